# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""How a canvas filled up, as a picture: one frame per step."""

import math
import os
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..generation import Rollout
from .frontier_plot import check_plot
from .trajectory_view import RolloutView, show_rollout, some_steps, step_color


_MASKED, _BEHIND = (0.9, 0.9, 0.9), (1.0, 1.0, 1.0)
# Above this many cells a letter in each would be too small to read.
_MOST_LABELS = 100
_LONGEST_LABEL = 3


def plot_rollout(
    rollout: Rollout,
    tokenizer: PreTrainedTokenizerBase,
    row: int = 0,
    columns: int | None = None,
    frames: int = 8,
    title: str | None = None,
    path: str | os.PathLike | None = None,
):
    """Draw how a row of a rollout was written: the canvas after some of the steps, each position in the colour of the
    step at which it was committed, grey where it is still a mask.

    Args:
        rollout ([`Rollout`]), tokenizer, row:
            As in [`show_rollout`].
        columns (`int`, *optional*):
            Positions per line. Defaults to about a square.
        frames (`int`, *optional*, defaults to 8):
            States drawn: all of them, or as many, evenly spaced, with the first and the last step.
        title (`str`, *optional*):
            Stands above.
        path (`str`, *optional*):
            A file (.png, .svg, .pdf) to write too, whole or not at all.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is no such row, `columns` is below 1, `frames` is below 2, nothing was drawn, or the file
            has another suffix.
    """
    check_plot("a picture.png" if path is None else path)
    if frames < 2:
        raise ValueError(f"frames={frames} must be at least 2, the first and the last step.")
    view = show_rollout(rollout, tokenizer, row, columns)
    if not view.num_steps:
        raise ValueError(f"row={row} has no token that the model drew: there is nothing to show.")
    figure = _figure(view, columns or math.ceil(math.sqrt(len(view.cells))), frames, title)
    if path is not None:
        temporary = f"{os.fspath(path)}.tmp"  # whose suffix must not decide the format
        figure.savefig(temporary, format=Path(path).suffix[1:].lower())
        os.replace(temporary, path)
    return figure


def _figure(view: RolloutView, columns: int, frames: int, title: str | None):
    # Without pyplot, whose state belongs to the user.
    from matplotlib.figure import Figure

    steps = some_steps(view.num_steps, frames)
    lines = math.ceil(len(view.cells) / columns)
    # A long line wants the whole width; boards stand side by side.
    per_row = max(1, min(len(steps), round(8 * min(1.0, 2 * lines / columns))))
    rows = math.ceil(len(steps) / per_row)
    height = min(10 / per_row * lines / columns, 3.0) + 0.35
    figure = Figure(figsize=(10, rows * height + (0.4 if title else 0.0)), dpi=100, layout="constrained")
    grid = list(figure.subplots(rows, per_row, squeeze=False).flat)
    for axes in grid:
        axes.set_axis_off()
    for axes, before, step in zip(grid, [0, *steps], steps, strict=False):
        _draw_state(axes, view, columns, before, step)
    if title is not None:
        figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


def _draw_state(axes, view: RolloutView, columns: int, before: int, step: int):
    """The canvas after a step; what came since the frame before it has an edge."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    labels = len(view.cells) <= _MOST_LABELS
    lines = math.ceil(len(view.cells) / columns)
    colors = [[_BEHIND] * columns for _ in range(lines)]
    for number, cell in enumerate(view.cells):
        line, column = divmod(number, columns)
        hidden = cell.kind == "masked" or cell.step > step
        color = _MASKED if hidden else to_rgb(step_color(cell.step, view.num_steps)) if cell.step else _BEHIND
        # Behind EOS: paler.
        colors[line][column] = color if cell.in_completion else tuple(0.65 + 0.35 * part for part in color)
        if before < cell.step <= step:
            axes.add_patch(Rectangle((column - 0.5, line - 0.5), 1, 1, fill=False, edgecolor="#444444", linewidth=1))
        # The font has no signs of every script.
        short = len(cell.label) <= _LONGEST_LABEL and (cell.special or cell.label.isascii())
        if labels and not hidden and short:
            axes.text(column, line, cell.label, ha="center", va="center", fontsize=9, parse_math=False)
    axes.imshow(colors, interpolation="nearest")
    axes.set_title(f"step {step}", fontsize=9)
