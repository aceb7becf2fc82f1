# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What stands behind the EOS of a row that is trained on."""

from collections.abc import Callable
from typing import Any

import torch


class CanvasFillCollator:
    """Fills the last canvas, or block, of rows that end in EOS with further EOS tokens, which are trained on as LLaDA
    trains them (arXiv 2502.09992): at generation, masks stand behind the answer until the model knows its end.

    Args:
        collator (`Callable`):
            Makes `input_ids`, `attention_mask` and `labels`, (B, L), padded on the right.
        eos_token_id, pad_token_id (`int`):
            Special tokens.
        block_length (`int`, *optional*):
            Block of a block-causal model, counted from the row's first token: rows are filled to the end of a block.
        canvas_length (`int`, *optional*):
            Full attention: the last answer is filled to a multiple of this. `None`: nothing is filled.
        limit (`int`):
            Positions of the model; no row gets longer.
    """

    def __init__(
        self,
        collator: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]],
        eos_token_id: int,
        pad_token_id: int,
        block_length: int | None,
        canvas_length: int | None,
        limit: int,
    ):
        self.collator, self.eos_token_id, self.pad_token_id = collator, eos_token_id, pad_token_id
        self.block_length, self.canvas_length, self.limit = block_length, canvas_length, limit

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.collator(examples)
        # Tensor -> what stands on padding, and where the row is filled.
        fillers = {
            "input_ids": (self.pad_token_id, self.eos_token_id),
            "attention_mask": (0, 1),
            "labels": (-100, self.eos_token_id),
        }
        ends = [self._end(*row) for row in zip(*(batch[name] for name in fillers), strict=True)]
        width = max(batch["input_ids"].size(1), *ends)
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        for name, (padding, filler) in fillers.items():
            wider = batch[name].new_full((len(ends), width), padding)
            wider[:, : batch[name].size(1)] = batch[name]
            for row, (length, end) in enumerate(zip(lengths, ends, strict=True)):
                wider[row, length:end] = filler
            batch[name] = wider
        return batch

    def _end(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> int:
        """Where the filled row ends."""
        length = int(attention_mask.sum())
        last = length - 1
        if length == 0 or input_ids[last] != self.eos_token_id or labels[last] == -100:
            return length  # cut, or ended by somebody else: nothing is known of what follows
        if self.block_length is not None:
            start, piece = 0, self.block_length
        else:
            context = (labels[:length] == -100).nonzero()
            start, piece = int(context[-1]) + 1 if len(context) else 0, self.canvas_length
        return max(length, min(start + -(-(length - start) // piece) * piece, self.limit))
