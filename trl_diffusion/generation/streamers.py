# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Watching a generation: the canvas as it fills up, or text as soon as nothing before it can change."""

import unicodedata
from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer


if TYPE_CHECKING:
    from .sampler import Generation


class CanvasStreamer(BaseStreamer):
    """Shows the canvas in the terminal while it fills up: masks as dots, the tokens of the last step highlighted.

    On a terminal the picture is drawn over itself; elsewhere (a file, a pipe) only the finished text is written.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Decodes the tokens.
        console ([`~rich.console.Console`], *optional*):
            Where to draw. Defaults to the standard output.
        skip_special_tokens (`bool`, *optional*, defaults to `True`):
            Leave out special tokens, and what follows an EOS, in the finished text.
        print_text (`bool`, *optional*, defaults to `True`):
            Write the finished text when the generation ends.

    Example:

        model.generate(input_ids, max_new_tokens=64, streamer=CanvasStreamer(tokenizer))
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        console: Console | None = None,
        skip_special_tokens: bool = True,
        print_text: bool = True,
    ):
        self.tokenizer, self.console = tokenizer, console or Console()
        self.skip_special_tokens, self.print_text = skip_special_tokens, print_text
        self._live: Live | None = None
        self._final: list[str] = []

    def put(self, value: torch.Tensor):
        """Part of transformers' interface; a canvas is shown by [`show`]."""
        raise NotImplementedError("CanvasStreamer shows whole canvases: call `show`.")

    def show(
        self,
        canvas: torch.Tensor,
        steps: torch.Tensor,
        masked: torch.Tensor,
        eos_token_ids: list[int],
        input_length: int = 0,
    ):
        """Draw the state after a step.

        Args:
            canvas (`torch.LongTensor` of shape (B, C)):
                Tokens.
            steps (`torch.LongTensor` of shape (B, C)):
                Step each was committed at, 0 for none.
            masked (`torch.BoolTensor` of shape (B, C)):
                Positions not filled yet.
            eos_token_ids (`list[int]`):
                Ids that end a completion.
            input_length (`int`, *optional*, defaults to 0):
                Leading columns that belong to the input, where an EOS ends nothing.
        """
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        self._final = [
            self._finished_text(ids, hidden, eos_token_ids, input_length)
            for ids, hidden in zip(canvas.tolist(), masked.tolist(), strict=True)
        ]
        # Off a terminal rich would write every picture below the last one.
        if self.console.is_terminal:
            height = max(1, self.console.height // len(canvas) - 2)
            rows = zip(canvas.tolist(), steps.tolist(), masked.tolist(), strict=True)
            self._live.update(Group(*(self._panel(*row, height) for row in rows)), refresh=True)

    def _panel(self, ids: list[int], steps: list[int], masked: list[bool], height: int) -> Panel:
        """One row. Of a canvas with more lines than the terminal, those around the first mask."""
        newest = max(steps, default=0)
        drawing, first_mask = Text(), None
        # Neighbours that look alike are decoded together: a character may be spread over several tokens.
        styles = [
            "dim" if hidden else "bold green" if step == newest > 0 else ""
            for step, hidden in zip(steps, masked, strict=True)
        ]
        for style, places in groupby(range(len(ids)), key=lambda place: styles[place]):
            tokens = [ids[place] for place in places]
            if style == "dim":
                first_mask = len(drawing) if first_mask is None else first_mask
                drawing.append("·" * len(tokens), style=style)
            else:
                drawing.append(printable(self.tokenizer.decode(tokens)), style=style)
        lines = drawing.wrap(self.console, self.console.width - 4)
        if len(lines) > height:
            at = len(drawing) if first_mask is None else first_mask
            ends = [sum(len(line) + 1 for line in lines[: count + 1]) for count in range(len(lines))]
            focus = next((count for count, end in enumerate(ends) if end > at), len(lines) - 1)
            first = min(max(0, focus - height // 2), len(lines) - height)
            drawing = Text("\n").join(lines[first : first + height])
        return Panel(drawing, title=f"step {newest}", title_align="left")

    def _finished_text(self, ids: list[int], hidden: list[bool], eos_token_ids: list[int], input_length: int) -> str:
        end = len(ids)
        if self.skip_special_tokens:
            end = next((place for place in range(input_length, end) if ids[place] in eos_token_ids), end)
        kept = [token for token, is_masked in zip(ids[:end], hidden[:end], strict=True) if not is_masked]
        return printable(self.tokenizer.decode(kept, skip_special_tokens=self.skip_special_tokens))

    def end(self):
        """Take the picture away and write the finished text."""
        if self._live is not None:
            # What is drawn last would stay where it is higher than the terminal.
            self._live.update("", refresh=self.console.is_terminal)
            self._live.stop()
            self._live = None
            if self.print_text:
                for text in self._final:
                    self.console.print(Text(text), soft_wrap=True)
            self._final = []


def printable(text: str) -> str:
    """The text without what would steer a terminal: control characters other than line breaks and tabs, and those that
    turn the direction of writing."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _steers(character) else character for character in text)


def _steers(character: str) -> bool:
    if character in "\n\t":
        return False
    turns = "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
    return turns or unicodedata.category(character) == "Cc"


def make_stream(streamer: BaseStreamer, prompt_width: int) -> "Callable[[Generation], None]":
    """What to call with the generation before the first step and after every step.

    A [`CanvasStreamer`] is shown every state. A streamer of transformers gets the prompt, and then tokens as soon as
    no mask stands before them, up to the first EOS: what it has been given does not change any more.
    """
    kind = _CanvasStream if isinstance(streamer, CanvasStreamer) else _TextStream
    return kind(streamer, prompt_width)


class _Stream:
    def __init__(self, streamer: BaseStreamer, prompt_width: int):
        self.streamer, self.prompt_width = streamer, prompt_width

    def _state(self, generation: "Generation") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens, steps and masks of input and canvas, on the CPU."""
        layout = generation.layout
        steps = layout.gather_back(generation.unmask_step).cpu()
        masked = layout.source_fill.cpu() & (steps == 0)
        return layout.tokens(generation.ids).cpu(), steps, masked


class _CanvasStream(_Stream):
    def __call__(self, generation: "Generation"):
        tokens, steps, masked = self._state(generation)
        begin = generation.layout.begin
        eos_ids, input_length = generation.config.eos_token_ids, self.prompt_width - begin
        self.streamer.show(tokens[:, begin:], steps[:, begin:], masked[:, begin:], eos_ids, input_length)


class _TextStream(_Stream):
    given = None  # tokens handed over so far

    def __call__(self, generation: "Generation"):
        tokens, _, masked = self._state(generation)
        if self.given is None:
            self.given = generation.layout.begin
            self.streamer.put(tokens[:, : self.given])
        settled = int(masked[0].long().cumsum(0).eq(0).sum())
        # A row ends with the first EOS of the canvas.
        eos_ids = generation.config.eos_token_ids
        row = tokens[0].tolist()
        ends = [place + 1 for place in range(self.prompt_width, settled) if row[place] in eos_ids]
        settled = min([settled, *ends])
        if settled > self.given:
            self.streamer.put(tokens[:1, self.given : settled])
            self.given = settled
