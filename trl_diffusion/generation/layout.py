# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Rows side by side, so that their blocks stand in the same columns."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class CanvasLayout:
    """Rows shifted against each other until every block boundary is a column that all rows share.

    A row's blocks are counted from its anchor. For full attention that is the first position it generates. For
    block-causal attention it is the last block boundary at or before that, counted from the row's first real token,
    so that a prompt may end inside a block that the first generated tokens share. In the layout all anchors stand in
    column `start`, and block b is columns `start` + b · `block_length` and following. What lies left of a row's first
    token and right of its last is padding.

    Args:
        ids (`torch.LongTensor` of shape (B, L)):
            Tokens, [MASK] where the model fills.
        fill (`torch.BoolTensor` of shape (B, L)):
            Positions the model fills.
        canvas (`torch.BoolTensor` of shape (B, L)):
            Positions behind the input.
        first (`torch.LongTensor` of shape (B,)):
            Column of each row's first real token.
        end (`torch.LongTensor` of shape (B,)):
            Column behind each row's last token.
        fill_counts (`numpy.ndarray` of shape (B, N), int):
            Positions to fill in each block.
        lengths (`numpy.ndarray` of shape (B,), int):
            Positions of each row from the first one it fills.
        first_cpu, end_cpu (`numpy.ndarray` of shape (B,), int):
            `first` and `end`, for the CPU to count with.
        start (`int`), block_length (`int`):
            Where blocks stand.
        columns (`torch.LongTensor` of shape (B, P + C)):
            Column in the layout of each place of the input and the canvas.
        source_ids (`torch.LongTensor` of shape (B, P + C)), source_fill (`torch.BoolTensor` of shape (B, P + C)):
            Input and canvas as they were given.
    """

    ids: torch.Tensor
    fill: torch.Tensor
    canvas: torch.Tensor
    first: torch.Tensor
    end: torch.Tensor
    fill_counts: np.ndarray
    lengths: np.ndarray
    first_cpu: np.ndarray
    end_cpu: np.ndarray
    start: int
    block_length: int
    columns: torch.Tensor
    source_ids: torch.Tensor
    source_fill: torch.Tensor

    @property
    def begin(self) -> int:
        """Place of the first position that any row fills in the input, or else of the canvas."""
        return self.source_ids.size(1) - int(self.lengths.max())

    def gather_back(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the layout, (B, L), at the positions that are filled, and 0 elsewhere: (B, P + C)."""
        gathered = values.gather(1, self.columns.clamp(0, values.size(1) - 1))
        return torch.where(self.source_fill, gathered, torch.zeros_like(gathered))

    def tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """Input and canvas with the tokens of `ids`, (B, L), at the positions that are filled: (B, P + C)."""
        return torch.where(self.source_fill, self.gather_back(ids), self.source_ids)


def lay_out(
    ids: torch.Tensor,
    valid: torch.Tensor,
    fill: torch.Tensor,
    canvas_length: int,
    block_length: int | None,
    block_causal: bool,
    mask_token_id: int,
) -> CanvasLayout:
    """Build the layout; the CPU waits for the device here, and not again until a block is done.

    Args:
        ids (`torch.LongTensor` of shape (B, P + C)):
            Input and canvas; what stands at positions to fill does not matter.
        valid (`torch.BoolTensor` of shape (B, P + C)):
            False on the padding, which stands on the left.
        fill (`torch.BoolTensor` of shape (B, P + C)):
            Positions the model fills.
        canvas_length (`int`):
            C.
        block_length (`int`, *optional*):
            Tokens per block; `None`: one block for everything.
        block_causal (`bool`):
            Whether blocks are counted from the first real token.
        mask_token_id (`int`):
            Stands at positions to fill, and in the padding on the right.

    Returns:
        [`CanvasLayout`].
    """
    device, (batch_size, width) = ids.device, ids.shape
    lead = width - valid.sum(dim=1)  # (B,), padding on the left
    # The first generated position: of the input where something is filled there, else of the canvas.
    column = torch.arange(width, device=device)
    filled_at = torch.where(fill, column, width).amin(dim=1) if width else lead
    begins = filled_at.clamp(max=width - canvas_length)
    anchor = begins
    if block_causal:
        anchor = lead + (begins - lead) // block_length * block_length
    longest = torch.stack([(anchor - lead).amax(), width - anchor.amin(), (width - begins).amax()]).tolist()
    start = -(-longest[0] // block_length) * block_length if block_causal else longest[0]
    block_length = block_length or max(1, longest[1])
    total = start + longest[1]

    shift = start - anchor  # (B,): column of the layout = place in the row + shift
    place = torch.arange(total, device=device) - shift[:, None]  # (B, L)
    inside = (place >= lead[:, None]) & (place < width)
    safe = place.clamp(0, max(0, width - 1))
    laid_fill = fill.gather(1, safe) & inside
    laid_ids = ids.gather(1, safe).masked_fill(laid_fill | ~inside, mask_token_id)
    num_blocks = -(-longest[1] // block_length)
    counts = torch.nn.functional.pad(laid_fill[:, start:], (0, num_blocks * block_length - longest[1]))
    return CanvasLayout(
        ids=laid_ids,
        fill=laid_fill,
        canvas=inside & (place >= width - canvas_length),
        first=lead + shift,
        end=width + shift,
        fill_counts=counts.view(batch_size, num_blocks, block_length).sum(dim=2).cpu().numpy(),
        lengths=(width - begins).cpu().numpy(),
        first_cpu=(lead + shift).cpu().numpy(),
        end_cpu=(width + shift).cpu().numpy(),
        start=start,
        block_length=block_length,
        columns=column + shift[:, None],
        source_ids=ids,
        source_fill=fill,
    )
