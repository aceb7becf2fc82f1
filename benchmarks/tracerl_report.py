# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Tables and curves of benchmarks/tracerl.py, from the files of its cells."""

import statistics
from collections.abc import Callable
from pathlib import Path

import cells
from cells import Result
from reporting import difference, last_reward, line_chart, mean_curve, median_curve, table
from tracerl_cells import VARIANTS


KINDS = {"llada": "full attention", "sdar": "blocks"}
PARTS = {
    "a": "TraceRL against random masking and diffu-GRPO",
    "b": "Shrinkage",
    "c": "With and without the value model",
    "d": "Blocks of 8: curriculum against direct",
    "e": "Tokens per step at a threshold of 0.9",
}


def _fluctuation(result: Result) -> float | None:
    """Of the reward from step to step: differences of neighbours hold twice its variance, and little of its rise."""
    rewards = result["curves"]["reward"]
    changes = [b - a for a, b in zip(rewards, rewards[1:], strict=False)]
    return statistics.pstdev(changes) / 2**0.5 if changes else None


def _evaluated(when: str, decoding: str, metric: str) -> Callable[[Result], float]:
    return lambda result: result[when][decoding][metric]


def _change(result: Result) -> float:
    before, after = (result[when]["threshold"]["tokens_per_step"] for when in ("before", "after"))
    return 100 * (after / before - 1)


# Column -> what it reads from a cell, and digits.
_SOLVED = {
    "solve rate before": (_evaluated("before", "own", "solve_rate"), 3),
    "after": (_evaluated("after", "own", "solve_rate"), 3),
    "cell accuracy after": (_evaluated("after", "own", "cell_accuracy"), 3),
    "training reward, mean": (mean_curve("reward"), 3),
    "last 5 steps": (last_reward, 3),
}
# `timing` compares in turns.
_SECONDS = {"s per step": (median_curve("seconds"), 2)}
_COST = {"views per step": (mean_curve("views"), 1), **_SECONDS}
COLUMNS = {
    "a": _SOLVED | _COST,
    "b": _SOLVED | _COST,
    "c": _SOLVED
    | {
        "variance of the advantages": (mean_curve("advantage_std", power=2), 3),
        "fluctuation of the reward": (_fluctuation, 3),
        **_SECONDS,
    },
    "d": _SOLVED | _SECONDS,
    "e": {
        "tokens per step before": (_evaluated("before", "threshold", "tokens_per_step"), 2),
        "after": (_evaluated("after", "threshold", "tokens_per_step"), 2),
        "change, %": (_change, 1),
        "solve rate before": (_evaluated("before", "threshold", "solve_rate"), 3),
        "solve rate after": (_evaluated("after", "threshold", "solve_rate"), 3),
    },
}


def read_results(folder: Path) -> dict[tuple[str, str], dict[int, Result]]:
    """(family, variant) → seed → cell."""
    command, same = "python benchmarks/tracerl.py run", ("steps", "puzzles", "num_test")
    return cells.read_results(folder, command, ("family", "variant"), same)


def section(part: str, family: str, found: dict[str, dict[int, Result]]) -> str:
    """A part's table for one checkpoint, and the differences to TraceRL seed by seed."""
    columns = COLUMNS[part]
    example = next(iter(found["tracerl"].values() if "tracerl" in found else next(iter(found.values())).values()))
    settings = example["settings"]
    lines = [
        f"sudoku-{family}-tiny ({KINDS[family]}), {settings['steps']} steps of {settings['puzzles']} puzzles × "
        f"{settings['training']['num_generations']} completions, {settings['num_test']} held-out puzzles, "
        f"{example['threads']} thread(s):",
        "",
        *table(columns, found),
    ]
    label = "tokens per step" if part == "e" else "solve rate"
    # TraceRL at blocks of 4 is no rival of those at 8.
    base = "tracerl-block8" if part == "d" else "tracerl"
    for name in found:
        if name != base and base in found and not (part == "d" and name == "tracerl"):
            sentence = difference(columns["after"], f"{label} after", found, name, base)
            lines += ["", sentence] if sentence else []
    return "\n".join(lines)


def write_report(folder: Path, figures: Path) -> str:
    """The tables of all parts as Markdown; the curves go to `figures`."""
    results, text = read_results(folder), []
    figures.mkdir(parents=True, exist_ok=True)
    for part, title in PARTS.items():
        sections = []
        for family in KINDS:
            found = {
                name: results[family, name]
                for name, variant in VARIANTS.items()
                if part in variant.parts and (family, name) in results
            }
            # A part needs more than what it shares with the others.
            if set(found) - {"tracerl"}:
                metric, label = ("tokens_per_step", "tokens per step") if part == "e" else ("reward", "reward")
                curves = {
                    name: [result["curves"][metric] for result in by_seed.values()]
                    for name, by_seed in found.items()
                    if part != "e" or name != "tracerl"  # whose own rollouts keep to the schedule
                }
                path = figures / f"tracerl_{part}_{family}.svg"
                path.write_text(line_chart(f"{title}: {KINDS[family]}", f"{label} of the rollouts", curves))
                sections.append(f"{section(part, family, found)}\n\n![{label} by step](figures/{path.name})")
        if sections:
            text += [f"### ({part}) {title}", *sections]
    return "\n\n".join(text)
