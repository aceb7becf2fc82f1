# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Accuracy against forward passes as a picture."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from .frontier_file import FrontierRow


_SUFFIXES = (".png", ".svg", ".pdf")
# Told apart by colour-blind readers too (Okabe and Ito, without the yellow, which is too light for a line). Markers
# and dashes say the same again, so that the curves survive a grey print.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#56b4e9", "#e69f00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", ":", "-.")
_LONGEST_LABEL = 40


def plot_frontier(rows: Sequence[FrontierRow], path: str | os.PathLike, title: str | None = None):
    """Draw accuracy over forward passes per completion: a line per curve, with its 95 % confidence band.

    Args:
        rows (`list[FrontierRow]`):
            Points of any number of curves; a line joins those of one in the order of their forward passes.
        path (`str`):
            File to write, whole or not at all; its folder is made where there is none. The suffix (.png, .svg, .pdf)
            says how; a .png has 1000 × 650 pixels.
        title (`str`, *optional*):
            Stands above.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is no row, or the suffix is another one.
    """
    check_plot(path)
    if not rows:
        raise ValueError("rows is empty: there is nothing to draw.")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # Written under another name first, which must not decide the format.
    temporary = f"{os.fspath(path)}.tmp"
    _figure(rows, title).savefig(temporary, format=Path(path).suffix[1:].lower())
    os.replace(temporary, path)


def check_plot(path: str | os.PathLike):
    """Make sure that a plot can be drawn, before anything is measured. Raises as [`plot_frontier`]."""
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"path={str(path)!r} must end in {', '.join(_SUFFIXES)}.")
    if find_spec("matplotlib") is None:
        raise ImportError(f"{path.name} is drawn with matplotlib: pip install 'trl-diffusion[plots]'.")


def _figure(rows: Sequence[FrontierRow], title: str | None):
    # Without pyplot, whose state belongs to the user.
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    curves: dict[str, list[FrontierRow]] = {}
    for row in rows:
        curves.setdefault(row.curve, []).append(row)
    figure = Figure(figsize=(10, 6.5), dpi=100, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
    axes = figure.subplots()
    for number, (curve, points) in enumerate(curves.items()):
        points = sorted(points, key=lambda row: (row.forward_passes, row.accuracy))
        passes = [row.forward_passes for row in points]
        color = _COLORS[number % len(_COLORS)]
        style = {"color": color, "marker": _MARKERS[number % len(_MARKERS)], "markersize": 6, "linewidth": 1.8}
        dashes = _DASHES[number // len(_COLORS) % len(_DASHES)]
        line = {"label": _short(curve), "linestyle": dashes, **style}
        axes.plot(passes, [row.accuracy for row in points], clip_on=False, **line)
        low, high = ([getattr(row, f"accuracy_{end}") for row in points] for end in ("low", "high"))
        # A single point has no area: its interval is the edge.
        alpha, linewidth = (0.1, 0) if len(points) > 1 else (0.3, 4)
        axes.fill_between(passes, low, high, color=color, alpha=alpha, linewidth=linewidth)
    axes.set_xscale("log")
    ends = [end(row.forward_passes for row in rows) for end in (min, max)]
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if ends[1] > 10 * ends[0] else (1, 1.5, 2, 3, 4, 5, 7)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(bottom=0)
    axes.set_xlabel("forward passes per completion")
    axes.set_ylabel("accuracy")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if title is not None:
        axes.set_title(title, wrap=True)
    figure.legend(loc="outside lower center", ncols=min(len(curves), 4), frameon=False)
    return figure


def _short(label: str) -> str:
    """A label whose end is kept: that of a path says most; what matplotlib reads as formulae, or hides, as text."""
    shown = label if len(label) <= _LONGEST_LABEL else f"…{label[1 - _LONGEST_LABEL :]}"
    return (" " + shown if shown.startswith("_") else shown).replace("$", r"\$")
