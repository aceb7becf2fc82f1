# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Tables and curves of benchmarks/bgpo.py, from the files of its cells."""

import statistics
from collections.abc import Callable
from pathlib import Path

import cells
from bgpo_cells import TASKS, VARIANTS
from bgpo_gradients import OBJECTIVES, SCHEMES, UPDATES
from cells import Result
from reporting import Column, difference, last_reward, line_chart, mean_curve, table


PARTS = {
    "a": "Bias and variance of the gradient",
    "b": "BGPO against other likelihoods",
    "c": "Several updates on a rollout",
    "d": "How noise levels are drawn",
}

# Name → seed → cell.
Found = dict[str, dict[int, Result]]


def _evaluated(when: str, metric: str) -> Callable[[Result], float | None]:
    """`None` where the training ended without a model to evaluate, or the task has no such metric."""
    return lambda result: (result[when] or {}).get(metric)


def _last(name: str) -> Callable[[Result], float | None]:
    def read(result: Result) -> float | None:
        values = result["curves"].get(name)
        return None if values is None else statistics.mean(values[-5:])

    return read


def _seconds_per_rollout(result: Result) -> float:
    training = result["settings"]["training"]
    return result["cpu_seconds_per_update"] * training.get("num_iterations", 1)


COLUMNS: dict[str, Column] = {
    "solve rate before": (_evaluated("before", "solve_rate"), 3),
    "after": (_evaluated("after", "solve_rate"), 3),
    "reward of the rollouts, mean": (mean_curve("reward"), 3),
    "last 5": (last_reward, 3),
    "entropy, last 5 updates": (_last("entropy"), 3),
    "collapsed, share of seeds": (lambda result: float(result["collapsed"]), 2),
    "views": (mean_curve("views"), 0),
    "CPU s per rollout": (_seconds_per_rollout, 2),
}


def _behind(name: str) -> Callable[[Result], float | None]:
    """Median over the rollouts, of the last update on each: on the first one the policies are the same."""

    def read(result: Result) -> float | None:
        iterations = result["settings"]["training"]["num_iterations"]
        values = result["curves"][name][iterations - 1 :: iterations]
        return statistics.median(values) if values else None

    return read


_OFF_POLICY: dict[str, Column] = {
    "standard deviation of d_j at the last update": (_behind("difference_std"), 2),
    "share of abs(d_j) > 1": (_behind("difference_above_one"), 3),
}


def read_results(folder: Path) -> tuple[dict[tuple, dict[int, Result]], dict[tuple, dict[int, Result]]]:
    """Trainings, (task, variant) → seed → cell, and gradients, (task, updates, estimator) → seed → cell."""
    kinds = {
        "training-*.json": (("task", "variant"), ("prompts", "num_test")),
        "gradient-*.json": (
            ("task", "updates", "estimator"),
            ("mc_samples", "prompts", "repeats", "reference", "update_learning_rate"),
        ),
    }
    command = "python benchmarks/bgpo.py run"
    # One kind alone can be reported.
    there = [pattern for pattern in kinds if any(folder.glob(pattern))] or list(kinds)
    found = {pattern: cells.read_results(folder, command, *kinds[pattern], pattern) for pattern in there}
    return found.get("training-*.json", {}), found.get("gradient-*.json", {})


# Gradients


def _few_digits(values: list[float]) -> str:
    """mean ± standard deviation, of numbers of any size."""
    deviation = f" ± {statistics.stdev(values):.1g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{deviation}"


def gradient_table(found: Found) -> list[str]:
    """Lines of a table: a row for each estimator and n; bias, its noise and variance as shares of the reference.

    The square of the bias that is measured is, in expectation, the bias's own plus the squares of two noises: that of
    the mean over repeats, and that of the reference, which all rows share.
    """
    reference = _reference_noise(found)
    columns = ("n", "seeds", "bias", "its noise", "without it", "variance", "cosine to the reference")
    lines = [f"| | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    for name, by_seed in found.items():
        for index, n in enumerate(next(iter(by_seed.values()))["mc_samples"]):
            read = {key: [r[key][index] for r in by_seed.values()] for key in ("bias", "noise", "variance", "cosine")}
            read["noise"] = [(r["noise"][index] ** 2 + reference[seed] ** 2) ** 0.5 for seed, r in by_seed.items()]
            pairs = zip(read["bias"], read["noise"], strict=True)
            without = [max(bias**2 - noise**2, 0.0) ** 0.5 for bias, noise in pairs]
            values = map(_few_digits, (read["bias"], read["noise"], without, read["variance"], read["cosine"]))
            lines.append(f"| {name} | {n} | {len(by_seed)} | {' | '.join(values)} |")
    return lines


def _reference_noise(found: Found) -> dict[int, float]:
    """Seed → |reference − its expectation| / |reference|, from the variance of the same objective at the largest n:
    the reference is one gradient of more copies."""
    by_seed = found.get("elbo") or found["bgpo"]  # on-policy the two are one
    return {
        seed: (result["variance"][-1] * result["mc_samples"][-1] / result["settings"]["reference"]) ** 0.5
        for seed, result in by_seed.items()
    }


def gradient_section(task: str, updates: int, found: Found, figures: Path, letter: str) -> str:
    """Table and figures of the estimators of one distance between the two policies."""
    example = next(iter(next(iter(found.values())).values()))
    settings = example["settings"]
    spread = [result["difference_std"] for by_seed in found.values() for result in by_seed.values()]
    policy = f"{updates} updates away from it (standard deviation of d_j {statistics.mean(spread):.2f})"
    lines = [
        f"{task}-llada-tiny, {settings['prompts']} prompts × {settings['training']['num_generations']} completions of "
        f"the checkpoint, gradient {policy if updates else 'at the same policy'}: {settings['repeats']} gradients for "
        f"each n, compared with the exact objective's at n = {settings['reference']}, mean ± standard deviation over "
        "seeds:",
        "",
        *gradient_table(found),
    ]
    positions = list(settings["mc_samples"])
    for metric, label in (("bias", "|mean − reference| / |reference|"), ("variance", "variance / |reference|²")):
        # Antithetic copies have no n = 1, where the axis begins.
        shown = [n for n in positions if all(n in next(iter(r.values()))["mc_samples"] for r in found.values())]
        curves = {
            name: [[dict(zip(r["mc_samples"], r[metric], strict=True))[n] for n in shown] for r in by_seed.values()]
            for name, by_seed in found.items()
        }
        path = figures / f"bgpo_{letter}_{task}_{metric}_{updates}.svg"
        title = f"{metric.capitalize()} of the gradient: {task}, {updates} updates"
        path.write_text(line_chart(title, label, curves, "masked copies n", shown))
        lines += ["", f"![{metric} against n](figures/{path.name})"]
    return "\n".join(lines)


# Trainings


def training_section(task: str, found: Found, base: str, title: str, path: Path) -> str:
    """A table, the differences to `base` seed by seed, and the curves of the rewards."""
    example = next(iter(next(iter(found.values())).values()))
    settings = example["settings"]
    columns = COLUMNS | (_OFF_POLICY if "difference_std" in example["curves"] else {})
    lines = [
        f"{task}-llada-tiny, {settings['rollouts']} rollouts of {settings['prompts']} prompts × "
        f"{settings['training']['num_generations']} completions, {settings['num_test']} held-out problems, "
        f"{example['threads']} thread(s):",
        "",
        *table(columns, found),
    ]
    for name in found:
        if name != base and base in found:
            sentence = difference(COLUMNS["after"], "solve rate after", found, name, base)
            lines += ["", sentence] if sentence else []
    curves = {name: [result["curves"]["reward"] for result in by_seed.values()] for name, by_seed in found.items()}
    path.write_text(line_chart(f"{title}: {task}", "reward of the rollouts", curves, "rollout"))
    lines += ["", f"![reward by rollout](figures/{path.name})"]
    return "\n".join(lines)


def _groups(part: str) -> dict[str, list[str]]:
    """Base → the variants of a part that are compared with it."""
    names = [name for name, variant in VARIANTS.items() if part in variant.parts]
    if part != "c":
        return {"bgpo": names} if names else {}
    return {
        f"bgpo-{iterations}-updates": [name for name in names if name.endswith(f"-{iterations}-updates")]
        for iterations in (2, 4)
    }


def write_report(folder: Path, figures: Path) -> str:
    """The tables of all parts as Markdown; the curves go to `figures`."""
    (trainings, gradients), text = read_results(folder), []
    figures.mkdir(parents=True, exist_ok=True)
    shown = {"a": [(0, ("bgpo",)), *((updates, OBJECTIVES) for updates in UPDATES[1:])], "d": [(0, SCHEMES)]}
    for part, title in PARTS.items():
        sections = []
        for task in TASKS:
            for updates, names in shown.get(part, []):
                found = {name: gradients[task, updates, name] for name in names if (task, updates, name) in gradients}
                # (d) needs more than what it shares with (a).
                if found and (part == "a" or set(found) - {"bgpo"}):
                    sections.append(gradient_section(task, updates, found, figures, part))
            for base, names in _groups(part).items():
                found = {name: trainings[task, name] for name in names if (task, name) in trainings}
                if found and (part == "c" or set(found) - {base}):
                    cells.check_same((r for by_seed in found.values() for r in by_seed.values()), ["rollouts"], folder)
                    suffix = base.removeprefix("bgpo").removesuffix("-updates").replace("-", "_")
                    path = figures / f"bgpo_{part}_{task}{suffix}.svg"
                    sections.append(training_section(task, found, base, title, path))
        if sections:
            text += [f"### ({part}) {title}", *sections]
    return "\n\n".join(text)
