# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Tables and figures of benchmarks/unmask_policy.py."""

import statistics
from collections.abc import Iterable
from pathlib import Path

from cells import Result, read_results
from reporting import mean_and_deviation

from trl_diffusion.evaluation import FrontierRow, best_at


COMMAND = "python benchmarks/unmask_policy.py run"
# At τ = 0 a policy reveals what it holds for more likely than not; the other is as it was trained.
AS_TRAINED, SURE = "policy_beta=1.0", "policy_temperature=0.0"
_RULES = ("threshold", "factor", "entropy_bounded", "low_confidence", "random")
_TITLES = {
    "sudoku": "Sudoku, full diffusion (canvas 17, one block)",
    "arithmetic": "Arithmetic, block-wise (canvas 30, blocks of 10)",
}


def rows_of(result: Result, policy: bool) -> list[FrontierRow]:
    """The measured points of a cell: those of its policy, or those of the rules."""
    rows = [FrontierRow(**{**row, "seeds": tuple(row["seeds"])}) for row in result["rows"]]
    return [row for row in rows if (row.curve == "policy") == policy]


def point(result: Result, setting: str = AS_TRAINED) -> FrontierRow:
    """A policy at one setting."""
    return next(row for row in rows_of(result, policy=True) if row.setting == setting)


def best_rule(rules: Iterable[FrontierRow], passes: float) -> float | None:
    """The best accuracy of any rule with at most so many forward passes, interpolated between measured points."""
    reached = [value for value in best_at(rules, passes).values() if value is not None]
    return max(reached, default=None)


def beside_rules(results: list[Result], rules: list[FrontierRow], setting: str) -> str:
    """Cells of a table: accuracy and passes of policies over seeds, the best rule there, ratio and difference."""
    points = [point(result, setting) for result in results]
    best = [best_rule(rules, row.forward_passes) for row in points]
    pairs = [(row.accuracy, rule) for row, rule in zip(points, best, strict=True) if rule]
    cells = [
        mean_and_deviation([row.accuracy for row in points], 3),
        mean_and_deviation([row.forward_passes for row in points], 2),
        mean_and_deviation(best, 3),
        mean_and_deviation([own / rule for own, rule in pairs], 2),
        mean_and_deviation([100 * (own - rule) for own, rule in pairs], 1),
    ]
    return " | ".join(cells)


_HEAD = "accuracy | forward passes | best rule there | ratio | points above it |"


def policy_table(task: str, cells: dict, rules: list[FrontierRow]) -> list[str]:
    """A row for each α and temperature, and the target's verdict."""
    lines = [f"| α | actions | seeds | {_HEAD}", f"|{'---|' * 8}"]
    ratios, worst = [], 0.0
    for _, alpha, _ in sorted((key for key in cells if key[0] == task and key[2] == ""), key=lambda k: -k[1]):
        results = list(cells[task, alpha, ""].values())
        for setting, words in ((AS_TRAINED, "drawn"), (SURE, "τ = 0")):
            lines.append(f"| {alpha:g} | {words} | {len(results)} | {beside_rules(results, rules, setting)} |")
            for result in results:
                row = point(result, setting)
                rule = best_rule(rules, row.forward_passes)
                if rule:
                    ratios.append((row.accuracy / rule, row.forward_passes))
                    worst = min(worst, row.accuracy - rule)
    best, passes = max(ratios)
    verdict = (
        f"The best policy of all seeds reaches {best:.2f} × the best rule's accuracy at as many passes "
        f"({passes:.2f}); the worst is {-100 * worst:.1f} points below."
    )
    return [*lines, "", verdict]


def variant_table(cells: dict, variant: str, rules: list[FrontierRow], labels: tuple[str, str]) -> list[str]:
    """A variant of training beside the plain one, at each α that it was trained with."""
    lines = [f"| | α | seeds | kept at update | collapsed | {_HEAD}", f"|{'---|' * 10}"]
    for alpha in sorted({key[1] for key in cells if key[2] == variant}, reverse=True):
        for label, name in zip(labels, ("", variant), strict=True):
            results = list(cells.get(("sudoku", alpha, name), {}).values())
            if results:
                kept = mean_and_deviation([float(result["best_step"]) for result in results], 0)
                collapsed = sum(result["collapsed"] for result in results)
                beside = beside_rules(results, rules, AS_TRAINED)
                lines.append(f"| {label} | {alpha:g} | {len(results)} | {kept} | {collapsed} | {beside} |")
    return lines


def joint_table(joint: dict, rules: list[FrontierRow]) -> list[str]:
    """On the weak checkpoint: what was trained, and what then decides."""
    lines = ["| trained | decided by | seeds | accuracy | forward passes |", f"|{'---|' * 5}"]
    untrained = [row for row in rules if row.curve in ("threshold", "low_confidence")]

    def add(trained: str, by: str, rows: list[FrontierRow]):
        accuracy = mean_and_deviation([row.accuracy for row in rows], 3)
        passes = mean_and_deviation([row.forward_passes for row in rows], 2)
        lines.append(f"| {trained} | {by} | {len(rows)} | {accuracy} | {passes} |")

    def ruled(rows: Iterable[FrontierRow], curve: str, setting: str) -> FrontierRow:
        return next(row for row in rows if row.curve == curve and row.setting == setting)

    chosen = (
        ("threshold", "threshold=0.9"),
        ("threshold", "threshold=0.99"),
        ("low_confidence", "num_denoising_steps=17"),
    )
    for curve, setting in chosen:
        add("nothing", setting.replace("num_denoising_steps=17", "low_confidence, 17 steps"),
            [ruled(untrained, curve, setting)])  # fmt: skip
    for variant, words in (("policy", "policy"), ("joint", "policy and model"), ("tracerl", "model, by TraceRL")):
        results = list(joint.get((variant,), {}).values())
        if not results:
            continue
        if variant != "tracerl":
            add(words, "the policy", [point(result) for result in results])
        if variant != "policy":
            for curve, setting in chosen:
                rows = [ruled(rows_of(result, policy=False), curve, setting) for result in results]
                add(words, setting.replace("num_denoising_steps=17", "low_confidence, 17 steps"), rows)
    return lines


def transfer_table(transfer: dict, heuristics: dict) -> list[str]:
    """Policies of the first seed where they were not trained."""
    lines = [f"| trained on | α | used on | {_HEAD}", f"|{'---|' * 8}"]
    for (task, alpha, environment), by_seed in sorted(transfer.items(), key=lambda item: (item[0][0], item[0][2])):
        if (environment,) not in heuristics:
            continue
        (result,) = by_seed.values()
        rules = rows_of(heuristics[environment,][None], policy=False)
        lines.append(f"| {task} | {alpha:g} | {environment} | {beside_rules([result], rules, AS_TRAINED)} |")
    return lines


def draw(task: str, cells: dict, rules: list[FrontierRow], path: Path):
    """Curves of the rules, and the policies of all seeds as dots."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    grey = ["#333333", "#777777", "#999999", "#bbbbbb", "#dddddd"]
    for rule, color in zip(_RULES, grey, strict=True):
        points = sorted((row.forward_passes, row.accuracy) for row in rules if row.curve == rule)
        axes.plot(*zip(*points, strict=True), color=color, linewidth=1.8, label=rule)
    colors = iter(["#d55e00", "#e69f00", "#0072b2", "#009e73"])
    for key in sorted((key for key in cells if key[0] == task and key[2] == ""), key=lambda k: -k[1]):
        color = next(colors)
        for setting, marker, words in ((AS_TRAINED, "o", "drawn"), (SURE, "^", "τ = 0")):
            rows = [point(result, setting) for result in cells[key].values()]
            axes.scatter(
                [row.forward_passes for row in rows], [row.accuracy for row in rows],
                color=color, marker=marker, s=60, zorder=3, label=f"policy, α = {key[1]:g}, {words}",
            )  # fmt: skip
    axes.set_xscale("log")
    ticks = [1, 2, 3, 5, 10, 20, 30]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 1)
    axes.set_xlabel("forward passes per completion")
    axes.set_ylabel("accuracy, 256 held-out problems")
    axes.set_title(_TITLES[task])
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _read(folder: Path, pattern: str, key: tuple[str, ...]) -> dict:
    """Cells of a kind; those that have no seed, under `None`."""
    if not list(folder.glob(pattern)):
        return {}
    if key[0] == "environment" or "environment" in key:
        import json

        found = {}
        for path in sorted(folder.glob(pattern)):
            result = json.loads(path.read_text())
            found[tuple(result["settings"][name] for name in key)] = {None: result}
        return found
    return read_results(folder, COMMAND, key, ("num_test",), pattern)


def write_report(folder: Path, figures: Path) -> str:
    """The tables as Markdown; draws the figures.

    Raises:
        ValueError: there are no cells, or such that do not compare.
    """
    cells = _read(folder, "policy-*.json", ("task", "alpha", "variant"))
    heuristics = _read(folder, "heuristics-*.json", ("environment",))
    if not cells or not heuristics:
        raise ValueError(f"{folder} lacks cells of policies or of rules: run `{COMMAND}` first.")
    lines: list[str] = []
    for task, title in _TITLES.items():
        if (task,) not in heuristics or not any(key[0] == task for key in cells):
            continue
        rules = rows_of(heuristics[task,][None], policy=False)
        lines += [f"**{title}**", "", *policy_table(task, cells, rules), ""]
        draw(task, cells, rules, figures / f"unmask_policy_{task}.png")
    rules = rows_of(heuristics["sudoku",][None], policy=False)
    if any(key[2] == "additive" for key in cells):
        lines += ["**Form of the reward** (Sudoku)", ""]
        lines += [*variant_table(cells, "additive", rules, ("multiplicative", "additive")), ""]
    if any(key[2] == "expert" for key in cells):
        lines += ["**Expert steering** (Sudoku)", ""]
        lines += [*variant_table(cells, "expert", rules, ("without", "with an expert")), ""]
    joint = _read(folder, "joint-*.json", ("variant",))
    if joint and ("sudoku-weak",) in heuristics:
        weak = rows_of(heuristics["sudoku-weak",][None], policy=False)
        lines += ["**Joint training** (sudoku-llada-tiny, which solves little)", "", *joint_table(joint, weak), ""]
    transfer = _read(folder, "transfer-*.json", ("task", "alpha", "environment"))
    if transfer:
        lines += ["**Transfer** (first seed)", "", *transfer_table(transfer, heuristics), ""]
    every = [result for by_seed in cells.values() for result in by_seed.values()]
    seconds = statistics.median(result["cpu_seconds_per_update"] for result in every)
    lines.append(
        f"Median {seconds:.2f} s of a processor per update, {every[0]['threads']} thread, other work running."
    )
    return "\n".join(lines)
