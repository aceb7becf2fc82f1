# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Tables and curves of benchmarks/tracerl.py, from the files of its cells."""

import json
import statistics
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from tracerl_cells import VARIANTS


KINDS = {"llada": "full attention", "sdar": "blocks"}
PARTS = {
    "a": "TraceRL against random masking and diffu-GRPO",
    "b": "Shrinkage",
    "c": "With and without the value model",
    "d": "Blocks of 8: curriculum against direct",
    "e": "Tokens per step at a threshold of 0.9",
}

Result = dict[str, Any]


def _last_reward(result: Result) -> float:
    return statistics.mean(result["curves"]["reward"][-5:])


def _fluctuation(result: Result) -> float | None:
    """Of the reward from step to step: differences of neighbours hold twice its variance, and little of its rise."""
    rewards = result["curves"]["reward"]
    changes = [b - a for a, b in zip(rewards, rewards[1:], strict=False)]
    return statistics.pstdev(changes) / 2**0.5 if changes else None


def _mean_curve(name: str, power: int = 1) -> Callable[[Result], float | None]:
    def read(result: Result) -> float | None:
        values = result["curves"].get(name)
        return None if values is None else statistics.mean(value**power for value in values)

    return read


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
    "training reward, mean": (_mean_curve("reward"), 3),
    "last 5 steps": (_last_reward, 3),
}
# The median of the steps: whatever else the machine did meanwhile weighs less. `timing` compares in turns.
_SECONDS = {"s per step": (lambda result: statistics.median(result["curves"]["seconds"]), 2)}
_COST = {"views per step": (_mean_curve("views"), 1), **_SECONDS}
COLUMNS = {
    "a": _SOLVED | _COST,
    "b": _SOLVED | _COST,
    "c": _SOLVED
    | {
        "variance of the advantages": (_mean_curve("advantage_std", power=2), 3),
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


def mean_and_deviation(values: list[float | None], digits: int) -> str:
    """mean ± standard deviation; – where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    deviation = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{deviation}"


def read_results(folder: Path) -> dict[tuple[str, str], dict[int, Result]]:
    """(family, variant) → seed → cell."""
    found: dict[tuple[str, str], dict[int, Result]] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        settings = result["settings"]
        found.setdefault((settings["family"], settings["variant"]), {})[settings["seed"]] = result
    if not found:
        raise ValueError(f"{folder} has no cells: run `python benchmarks/tracerl.py run` first.")
    for name in ("steps", "puzzles", "num_test"):
        values = {result["settings"][name] for by_seed in found.values() for result in by_seed.values()}
        if len(values) > 1:
            raise ValueError(f"{folder} has cells of different {name} ({sorted(values)}), which do not compare.")
    return found


def table(part: str, family: str, cells: dict[str, dict[int, Result]]) -> str:
    """A part's table for one checkpoint, and the differences to TraceRL seed by seed."""
    columns = COLUMNS[part]
    example = next(iter(cells["tracerl"].values() if "tracerl" in cells else next(iter(cells.values())).values()))
    settings = example["settings"]
    lines = [
        f"sudoku-{family}-tiny ({KINDS[family]}), {settings['steps']} steps of {settings['puzzles']} puzzles × "
        f"{settings['training']['num_generations']} completions, {settings['num_test']} held-out puzzles, "
        f"{example['threads']} thread(s):",
        "",
        f"| | seeds | {' | '.join(columns)} |",
        f"|{'---|' * (len(columns) + 2)}",
    ]
    for name, by_seed in cells.items():
        values = (mean_and_deviation([read(r) for r in by_seed.values()], n) for read, n in columns.values())
        lines.append(f"| {name} | {len(by_seed)} | {' | '.join(values)} |")
    label = "tokens per step" if part == "e" else "solve rate"
    read, digits = columns["after"]
    for name, by_seed in cells.items():
        # TraceRL at blocks of 4 is no rival of those at 8.
        base = "tracerl-block8" if part == "d" else "tracerl"
        shared = sorted(by_seed.keys() & cells.get(base, {}).keys())
        if name == base or not shared or (part == "d" and name == "tracerl"):
            continue
        differences = [read(by_seed[seed]) - read(cells[base][seed]) for seed in shared]
        each = ", ".join(f"{value:+.{digits}f}" for value in differences)
        lines += [
            "",
            f"{name} − {base}, {label} after, same seed: {mean_and_deviation(differences, digits)} ({each}).",
        ]
    return "\n".join(lines)


def write_report(folder: Path, figures: Path) -> str:
    """The tables of all parts as Markdown; the curves go to `figures`."""
    results, text = read_results(folder), []
    figures.mkdir(parents=True, exist_ok=True)
    for part, title in PARTS.items():
        sections = []
        for family in KINDS:
            cells = {
                name: results[family, name]
                for name, variant in VARIANTS.items()
                if part in variant.parts and (family, name) in results
            }
            # A part needs more than what it shares with the others.
            if set(cells) - {"tracerl"}:
                metric, label = ("tokens_per_step", "tokens per step") if part == "e" else ("reward", "reward")
                curves = {
                    name: [result["curves"][metric] for result in by_seed.values()]
                    for name, by_seed in cells.items()
                    if part != "e" or name != "tracerl"  # whose own rollouts keep to the schedule
                }
                path = figures / f"tracerl_{part}_{family}.svg"
                path.write_text(line_chart(f"{title}: {KINDS[family]}", f"{label} of the rollouts", curves))
                sections.append(f"{table(part, family, cells)}\n\n![{label} by step](figures/{path.name})")
        if sections:
            text += [f"### ({part}) {title}", *sections]
    return "\n\n".join(text)


# Curves


_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart by colour-blind readers too (Okabe and Ito)
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 360, 56, 16, 36, 44


def line_chart(title: str, label: str, curves: dict[str, list[list[float]]]) -> str:
    """SVG of the mean over seeds by step, with the range of the seeds behind it."""
    length = max(len(curve) for seeds in curves.values() for curve in seeds)
    everything = [value for seeds in curves.values() for curve in seeds for value in curve]
    low, high = min(everything), max(everything)
    margin = 0.05 * (high - low) or 0.5
    low, high = low - margin, high + margin

    def x(step: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - 1) / max(1, length - 1)

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)

    def points(values: list[float]) -> str:
        return " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in enumerate(values, start=1))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12" fill="#333">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_WIDTH / 2}" y="20" text-anchor="middle" font-size="14">{escape(title)}</text>',
    ]
    for number in range(5):
        value = low + (high - low) * number / 4
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>'
        )
    for step in sorted({1, *(round(1 + (length - 1) * number / 4) for number in range(5))}):
        parts.append(f'<text x="{x(step):.1f}" y="{_HEIGHT - 26}" text-anchor="middle">{step}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 8}" text-anchor="middle">step</text>')
    parts.append(
        f'<text transform="translate(14 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(label)}</text>'
    )
    for number, (name, seeds) in enumerate(curves.items()):
        color = _COLORS[number % len(_COLORS)]
        by_step = list(zip(*seeds, strict=True))
        if len(seeds) > 1:
            # Up along the largest, and back along the smallest.
            upper = points([max(values) for values in by_step])
            lower = " ".join(reversed(points([min(values) for values in by_step]).split()))
            parts.append(f'<polygon points="{upper} {lower}" fill="{color}" opacity="0.15"/>')
        mean = points([statistics.mean(values) for values in by_step])
        parts.append(f'<polyline points="{mean}" fill="none" stroke="{color}" stroke-width="2"/>')
        line = _TOP + 14 + 16 * number
        parts.append(
            f'<rect x="{_LEFT + 10}" y="{line - 8}" width="14" height="4" fill="{color}"/>'
            f'<text x="{_LEFT + 30}" y="{line - 2}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])
