# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What the tables of trained cells (cells.py) are made of, and their curves."""

import math
import statistics
from collections.abc import Callable
from html import escape
from itertools import zip_longest

from cells import Result


# What a column reads from a cell, and its digits.
Column = tuple[Callable[[Result], float | None], int]


def last_reward(result: Result) -> float:
    return statistics.mean(result["curves"]["reward"][-5:])


def mean_curve(name: str, power: int = 1) -> Callable[[Result], float | None]:
    """Mean over the steps; `None` where the curve was not recorded."""

    def read(result: Result) -> float | None:
        values = result["curves"].get(name)
        return None if values is None else statistics.mean(value**power for value in values)

    return read


def median_curve(name: str) -> Callable[[Result], float]:
    """Median over the steps: of seconds, whatever else the machine did meanwhile weighs less in it."""
    return lambda result: statistics.median(result["curves"][name])


def mean_and_deviation(values: list[float | None], digits: int) -> str:
    """mean ± standard deviation; – where nothing was measured, or what is no number."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return "–"
    deviation = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{deviation}"


def table(columns: dict[str, Column], cells: dict[str, dict[int, Result]]) -> list[str]:
    """Lines of a Markdown table: name → seed → cell, a row for each name."""
    lines = [f"| | seeds | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 2)}"]
    for name, by_seed in cells.items():
        values = (mean_and_deviation([read(r) for r in by_seed.values()], n) for read, n in columns.values())
        lines.append(f"| {name} | {len(by_seed)} | {' | '.join(values)} |")
    return lines


def difference(column: Column, label: str, cells: dict[str, dict[int, Result]], name: str, base: str) -> str | None:
    """A sentence on the difference between two rows, seed by seed; `None` where they share no seed."""
    read, digits = column
    both = [(read(cells[name][seed]), read(cells[base][seed])) for seed in sorted(cells[name]) if seed in cells[base]]
    differences = [value - other for value, other in both if value is not None and other is not None]
    if not differences:
        return None
    each = ", ".join(f"{value:+.{digits}f}" for value in differences)
    return f"{name} − {base}, {label}, same seed: {mean_and_deviation(differences, digits)} ({each})."


# Curves


# Told apart by colour-blind readers too (Okabe and Ito).
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 360, 56, 16, 36, 44


def line_chart(
    title: str,
    label: str,
    curves: dict[str, list[list[float]]],
    below: str = "step",
    positions: list[float] | None = None,
) -> str:
    """SVG of the mean over seeds, with the range of the seeds behind it.

    Args:
        title, label, below (`str`):
            Above the chart, on its left, and under it.
        curves (`dict[str, list[list[float]]]`):
            Name → a curve of each seed. A shorter one ends where it ends.
        positions (`list[float]`, *optional*):
            Where the values stand, on logarithmic axes. `None`: at steps 1, 2, …, on linear axes.
    """
    logarithmic = positions is not None
    length = max(len(curve) for seeds in curves.values() for curve in seeds)
    scale, unscale = (
        (math.log10, lambda value: 10**value) if logarithmic else (lambda value: value, lambda value: value)
    )
    places = [scale(place) for place in (positions or range(1, length + 1))]
    everything = [scale(value) for seeds in curves.values() for curve in seeds for value in curve]
    low, high = min(everything), max(everything)
    margin = 0.05 * (high - low) or 0.5
    low, high = low - margin, high + margin

    def x(index: int) -> float:
        share = (places[index] - places[0]) / ((places[-1] - places[0]) or 1)
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * share

    def y(scaled: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - scaled) / (high - low)

    def points(values: list[float]) -> str:
        return " ".join(f"{x(index):.1f},{y(scale(value)):.1f}" for index, value in enumerate(values))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12" fill="#333">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_WIDTH / 2}" y="20" text-anchor="middle" font-size="14">{escape(title)}</text>',
    ]
    for number in range(5):
        value = low + (high - low) * number / 4
        written = f"{10**value:.2g}" if logarithmic else f"{value:.2f}"
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{written}</text>'
        )
    marks = range(length) if logarithmic else {0, *(round(1 + (length - 1) * number / 4) - 1 for number in range(5))}
    for index in sorted(marks):
        written = positions[index] if logarithmic else index + 1
        parts.append(f'<text x="{x(index):.1f}" y="{_HEIGHT - 26}" text-anchor="middle">{written}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(below)}</text>')
    parts.append(
        f'<text transform="translate(14 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(label)}</text>'
    )
    for number, (name, seeds) in enumerate(curves.items()):
        color = _COLORS[number % len(_COLORS)]
        by_place = [[value for value in values if value is not None] for values in zip_longest(*seeds)]
        if len(seeds) > 1:
            # Up along the largest, and back along the smallest.
            upper = points([max(values) for values in by_place])
            lower = " ".join(reversed(points([min(values) for values in by_place]).split()))
            parts.append(f'<polygon points="{upper} {lower}" fill="{color}" opacity="0.15"/>')
        mean = points([statistics.mean(values) for values in by_place])
        parts.append(f'<polyline points="{mean}" fill="none" stroke="{color}" stroke-width="2"/>')
        line = _TOP + 14 + 16 * number
        parts.append(
            f'<rect x="{_LEFT + 10}" y="{line - 8}" width="14" height="4" fill="{color}"/>'
            f'<text x="{_LEFT + 30}" y="{line - 2}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])
