# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""How a canvas filled up, to look at: HTML for a notebook or a browser, plain text everywhere."""

import html
import math
import os
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..generation import Rollout
from ..generation.streamers import printable


# From the first step to the last: light enough for black letters, and telling light from dark in a grey print too.
_PALETTE = ((255, 247, 188), (199, 233, 180), (127, 205, 187), (120, 170, 220), (190, 150, 215))
_MASK_COLOR = "#e6e6e6"
_MASK = "·"
_SPECIAL = "∎"
# What the slider does: cells of later steps look like masks again.
_SCRUB = (
    "const view=this.closest('figure'),at=+this.value;"
    "view.querySelector('output').textContent=at;"
    "view.querySelectorAll('span[data-step]').forEach(cell=>{const later=+cell.dataset.step>at;"
    f"cell.style.color=later?'transparent':'#000';cell.style.background=later?'{_MASK_COLOR}':cell.dataset.color}})"
)
_CELL = "padding:0 .15em;margin:0 1px;border-radius:3px;color:#000;background:"


@dataclass
class Cell:
    """A position of a canvas.

    Args:
        text (`str`):
            Its token, as text that steers no terminal; a dot where nothing was drawn.
        step (`int`):
            Step at which the token was committed; 0 where the model did not draw it.
        probability (`float`, *optional*):
            With which it was drawn; `None` where the model did not draw it.
        kind (`str`):
            `"drawn"`, `"forced"` (drawn only to fill a step's share), `"given"` (a hint, or text between positions
            that were filled) or `"masked"` (never drawn).
        in_completion (`bool`):
            Not behind the first EOS.
        special (`bool`, *optional*, defaults to `False`):
            A special token, such as EOS.
    """

    text: str
    step: int
    probability: float | None
    kind: str
    in_completion: bool
    special: bool = False

    @property
    def label(self) -> str:
        """The token in a row of others: a special token as one sign, a line break as an arrow."""
        return _SPECIAL if self.special else self.text.replace("\n", "↵")


class RolloutView:
    """One row of a rollout, made by [`show_rollout`]: a notebook shows it in colour, `print` as text.

    Args:
        prompt (`str`):
            The prompt as text.
        cells (`list[Cell]`):
            The canvas, from left to right.
        columns (`int`, *optional*):
            Cells per line; `None` where the tokens run on as text.
    """

    def __init__(self, prompt: str, cells: list[Cell], columns: int | None = None):
        self.prompt, self.cells, self.columns = prompt, cells, columns

    @property
    def num_steps(self) -> int:
        """The last step at which a token was committed."""
        return max((cell.step for cell in self.cells), default=0)

    def html(self) -> str:
        """The finished canvas as a fragment of HTML that needs nothing from outside: each token in the colour of its
        step, with the step and the probability where the pointer rests, and a slider that goes back to any step."""
        steps = self.num_steps
        cells = "".join(self._cell(number, cell, steps) for number, cell in enumerate(self.cells))
        legend = "".join(
            f'<span style="{_CELL}{step_color(step, steps)}">{step}</span>' for step in some_steps(steps, at_most=12)
        )
        return (
            '<figure style="margin:0;font-size:14px;line-height:1.7">'
            f'<div style="white-space:pre-wrap;color:#666">{html.escape(self.prompt)}</div>'
            '<div style="font-family:monospace;white-space:pre-wrap;overflow-wrap:anywhere;border:1px solid #bbb;'
            f'border-radius:4px;padding:.4em;margin:.3em 0;width:fit-content;background:#fff">{cells}</div>'
            '<label style="color:#666">step '
            f'<input type="range" min="0" max="{steps}" value="{steps}" oninput="{html.escape(_SCRUB)}"> '
            f"<output>{steps}</output> of {steps}</label> {legend}"
            "</figure>"
        )

    def _cell(self, number: int, cell: Cell, num_steps: int) -> str:
        place = f"position {number + 1}: "
        if cell.step:
            color = step_color(cell.step, num_steps)
            note = f"step {cell.step}, probability {cell.probability:.3f}"
            note += ", only to fill the step" if cell.kind == "forced" else ""
            data = f' data-step="{cell.step}" data-color="{color}"'
        else:
            color = "#ffffff" if cell.kind == "given" else _MASK_COLOR
            note, data = ("given" if cell.kind == "given" else "never filled"), ""
        style = f"{_CELL}{color}"
        style += ";outline:1px dashed #666" if cell.kind in ("given", "forced") else ""
        style += "" if cell.in_completion else ";opacity:.35"
        # A line break is a token like any other, and breaks the line.
        text = html.escape(cell.text.replace("\n", "↵")) + "\n" * cell.text.count("\n")
        end = "\n" if self.columns and (number + 1) % self.columns == 0 else ""
        return f'<span style="{style}"{data} title="{place}{note}">{text}</span>{end}'

    def text(self, frames: int = 8) -> str:
        """States of the canvas as lines of text: a dot for each mask, ∎ for a special token such as EOS.

        Args:
            frames (`int`, *optional*, defaults to 8):
                States shown: all of them, or as many, evenly spaced, with the first and the last step.

        Raises:
            ValueError: `frames` is below 2.
        """
        if frames < 2:
            raise ValueError(f"frames={frames} must be at least 2, the first and the last step.")
        steps = self.num_steps
        width = len(str(steps))
        return "\n".join(f"step {step:>{width}}  {self._state(step)}" for step in some_steps(steps, frames))

    def _state(self, step: int) -> str:
        """The canvas after a step, in one line."""
        columns = self.columns or len(self.cells)
        shown = [_MASK if cell.step > step else cell.label for cell in self.cells]
        return " ".join("".join(shown[start : start + columns]) for start in range(0, len(shown), columns))

    def save(self, path: str | os.PathLike):
        """Write the view as an HTML page of its own, whole or not at all."""
        page = (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Rollout</title></head>'
            f'<body style="margin:1em;background:#fff">{self.html()}</body></html>\n'
        )
        temporary = f"{os.fspath(path)}.tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(page)
        os.replace(temporary, path)

    def _repr_html_(self) -> str:
        return self.html()

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__


def show_rollout(
    rollout: Rollout, tokenizer: PreTrainedTokenizerBase, row: int = 0, columns: int | None = None
) -> RolloutView:
    """How a row of a rollout was written: what a notebook shows in colour, and `print` as text.

    Args:
        rollout ([`Rollout`]):
            Of `model.generate(..., return_dict_in_generate=True)`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Decodes the tokens, each for itself: a character that takes several of them is shown as replacement
            characters.
        row (`int`, *optional*, defaults to 0):
            Which row.
        columns (`int`, *optional*):
            Tokens per line, for a canvas that is a board; else they run on as text.

    Returns:
        [`RolloutView`]: `html()`, `text()`, and `save("view.html")`.

    Raises:
        ValueError: there is no such row, or `columns` is below 1.

    Example:

        output = model.generate(**inputs, max_new_tokens=64, return_dict_in_generate=True)
        print(show_rollout(output.rollout, tokenizer))
    """
    if columns is not None and columns < 1:
        raise ValueError(f"columns={columns} must be at least 1, or None for running text.")
    rows = len(rollout.canvas_ids)
    if not 0 <= row < rows:
        raise ValueError(f"row={row} is not in the rollout, which has rows 0 to {rows - 1}.")
    one = rollout.select([row]).to("cpu")
    values = (one.canvas_ids, one.unmask_step, one.logprobs, one.forced, one.fixed, one.completion_mask)
    cells, special_ids = [], set(tokenizer.all_special_ids)
    for token, step, logprob, forced, fixed, inside in zip(*(value[0].tolist() for value in values), strict=True):
        kind = "given" if fixed else "masked" if step == 0 else "forced" if forced else "drawn"
        text = _MASK if kind == "masked" else printable(tokenizer.decode([token]))
        special = kind != "masked" and token in special_ids
        cells.append(Cell(text, step, math.exp(logprob) if step else None, kind, bool(inside), special))
    prompt = tokenizer.decode(one.prompt_ids[0][one.prompt_mask[0].bool()])
    return RolloutView(printable(prompt), cells, columns)


def step_color(step: int, num_steps: int) -> str:
    """The colour of a step, `#rrggbb`: black letters can be read on all of them."""
    place = (step - 1) / max(num_steps - 1, 1) * (len(_PALETTE) - 1)
    low = min(int(place), len(_PALETTE) - 2)
    pairs = zip(_PALETTE[low], _PALETTE[low + 1], strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (place - low)):02x}" for a, b in pairs)


def some_steps(num_steps: int, at_most: int) -> list[int]:
    """Steps from the first to the last, evenly spaced where they are too many."""
    if num_steps <= at_most:
        return list(range(1, num_steps + 1))
    return [1 + round(number * (num_steps - 1) / (at_most - 1)) for number in range(at_most)]
