# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What stands behind the EOS of a row that is trained on."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase


class CanvasFillCollator:
    """Fills the last canvas, or block, of rows that end in EOS with further EOS tokens, which are trained on as LLaDA
    trains them (arXiv 2502.09992): at generation, masks stand behind the answer until the model knows its end.

    White space behind the EOS, which chat templates put between messages, gives way to it. Rows come out padded on the
    right.

    Args:
        collator (`Callable`):
            Makes `input_ids`, `attention_mask` and `labels`, (B, L).
        tokenizer:
            Its EOS fills.
        end_token_ids (`set[int]`):
            Tokens that end an answer.
        block_length (`int`, *optional*):
            Block of a block-causal model, counted from the row's first token: rows are filled to the end of a block.
        canvas_length (`int`, *optional*):
            Full attention: the last answer is filled to a multiple of this.
        limit (`int`):
            Positions of the model; no row gets longer.
        multiple (`int`, *optional*):
            The width of a batch is a multiple of this.
    """

    def __init__(
        self,
        collator: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]],
        tokenizer: PreTrainedTokenizerBase,
        end_token_ids: set[int],
        block_length: int | None,
        canvas_length: int | None,
        limit: int,
        multiple: int | None = None,
    ):
        self.collator, self.tokenizer, self.end_token_ids = collator, tokenizer, end_token_ids
        self.block_length, self.canvas_length, self.limit, self.multiple = block_length, canvas_length, limit, multiple
        self._blank: dict[int, bool] = {}

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.collator(examples)
        tensors = (batch["input_ids"], batch["labels"], batch["attention_mask"].bool())
        rows = [self._filled(ids[real], labels[real]) for ids, labels, real in zip(*tensors, strict=True)]
        width = max(len(ids) for ids, _ in rows)
        width += -width % (self.multiple or 1)
        pad = self.tokenizer.pad_token_id
        for name, padding in (("input_ids", 0 if pad is None else pad), ("labels", -100), ("attention_mask", 0)):
            batch[name] = batch[name].new_full((len(rows), width), padding)
        for row, (ids, labels) in enumerate(rows):
            batch["input_ids"][row, : len(ids)] = ids
            batch["labels"][row, : len(ids)] = labels
            batch["attention_mask"][row, : len(ids)] = 1
        return batch

    def end_of_answer(self, input_ids: list[int], labels: list[int]) -> int | None:
        """Where the row's last answer ends, behind its EOS; `None` where it has no EOS that is trained on: it was cut,
        or ended by somebody else, and nothing is known of what follows."""
        last = len(input_ids) - 1
        while last > 0 and self._is_blank(input_ids[last]):
            last -= 1
        ended = last >= 0 and input_ids[last] in self.end_token_ids and labels[last] != -100
        return last + 1 if ended else None

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = token not in self.end_token_ids and not self.tokenizer.decode([token]).strip()
        return self._blank[token]

    def _filled(self, input_ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A row without padding, (n,), up to the end of its last block or canvas."""
        end = self.end_of_answer(input_ids.tolist(), labels.tolist())
        if end is None:
            return input_ids, labels
        if self.block_length is not None:
            start, piece = 0, self.block_length
        else:
            context = (labels[:end] == -100).nonzero()
            start, piece = int(context[-1]) + 1 if len(context) else 0, self.canvas_length
        filled = max(end, min(start + -(-(end - start) // piece) * piece, self.limit))
        filler = input_ids.new_full((filled - end,), self.tokenizer.eos_token_id)
        return torch.cat([input_ids[:end], filler]), torch.cat([labels[:end], filler])
