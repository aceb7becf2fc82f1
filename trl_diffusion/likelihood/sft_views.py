# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Drawing the masked views of supervised training: in all of them the tokens are those of the data.

Shapes: a batch has B rows of C tokens, the prompt among them. `trainable` says which tokens may be learned, `real`
which are no padding.
"""

import math

import torch
from torch import nn

from .views import MaskedView, block_trace_masks, random_view, trace_masks


def _noise(trainable, noise_levels, uniform, num_masks, generator, group=None) -> MaskedView:
    """One of `num_masks` masked copies, with the weights of the mean over them."""
    view = random_view(trainable, noise_levels[0], generator, maximum=noise_levels[1], group=group)
    view.weight = (torch.ones_like(view.weight) if uniform else view.weight) / num_masks
    return view


def noisy_views(
    trainable: torch.Tensor,
    real: torch.Tensor,
    block_length: int | None = None,
    *,
    noise_levels: tuple[float, float] = (1e-3, 1.0),
    uniform: bool = False,
    num_masks: int = 1,
    generator: torch.Generator | None = None,
) -> list[MaskedView]:
    """Views in which every trainable token of a row may be masked at once.

    With a noise level per row they are those of LLaDA's SFT (arXiv 2502.09992, eq. 5), for any attention; with one
    per block those of block diffusion (arXiv 2503.09573), whose [clean | noisy] layout shows each block the clean
    ones before it.

    Args:
        trainable, real (`torch.BoolTensor` of shape (B, C)):
            See the module.
        block_length (`int`, *optional*):
            Draw a level for each block of so many tokens, counted from the row's first real one, as generation counts
            them. `None`: one level per row.
        noise_levels (`tuple[float, float]`, *optional*, defaults to (1e-3, 1.0)):
            t ~ U[·, ·].
        uniform (`bool`, *optional*, defaults to `False`):
            Weight 1 instead of 1/t.
        num_masks (`int`, *optional*, defaults to 1):
            m, masked copies of each row; the weights are divided by it.
        generator (`torch.Generator`, *optional*):
            Source of the noise, on the CPU.

    Returns:
        `list[MaskedView]` of length m.
    """
    group = None if block_length is None else (real.long().cumsum(dim=1) - 1).clamp(min=0) // block_length
    return [_noise(trainable, noise_levels, uniform, num_masks, generator, group) for _ in range(num_masks)]


def canvas_views(
    trainable: torch.Tensor,
    real: torch.Tensor,
    block_length: int | None = None,
    canvas_length: int | None = None,
    num_blocks: int | None = None,
    *,
    noise_levels: tuple[float, float] = (1e-3, 1.0),
    uniform: bool = False,
    num_masks: int = 1,
    generator: torch.Generator | None = None,
) -> list[MaskedView]:
    """Views of full attention that train a completion piece by piece, each in the state in which generation fills it.

    Each answer, a run of trainable tokens, is cut into canvases and these into blocks. A view trains one block of each
    row, whose tokens are masked at the block's own level t:

    - before the block everything is clean;
    - behind it the rest of its canvas is masked and not scored;
    - behind its canvas nothing is in sight (`MaskedView.visible`): a long text is written canvas by canvas, and a
      later turn is not there yet.

    With `canvas_length` alone a block is a whole canvas; with `block_length` alone an answer is one canvas:
    semi-autoregressive training.

    Args:
        trainable, real (`torch.BoolTensor` of shape (B, C)):
            See the module.
        block_length (`int`, *optional*):
            Tokens per block; the last one of a canvas may be shorter. `None`: the canvas.
        canvas_length (`int`, *optional*):
            Tokens per canvas. `None`: the answer.
        num_blocks (`int`, *optional*):
            Draw so many blocks of each row and mask, without replacement, and scale the weights by (blocks of the
            row) / (blocks drawn), so that the expectation stays. `None`: all.
        noise_levels, uniform, num_masks, generator:
            As in [`noisy_views`].

    Returns:
        `list[MaskedView]`: for each mask as many as the row with the most blocks has (or draws), at least one. Rows
        with fewer end in empty ones; blocks without a trainable token are left out.
    """
    length = trainable.size(1)
    canvas_length = canvas_length or max(length, 1)
    block_length = min(block_length or canvas_length, canvas_length)
    per_canvas = math.ceil(canvas_length / block_length)
    position = torch.arange(length, device=trainable.device).expand_as(trainable)
    starts = trainable & ~nn.functional.pad(trainable, (1, 0))[:, :length]  # of answers
    offset = position - torch.where(starts, position, 0).cummax(dim=1).values  # in its answer
    canvas = (trainable & (offset % canvas_length == 0)).long().cumsum(dim=1) - 1
    block = canvas * per_canvas + offset % canvas_length // block_length  # ascending; of tokens that are not trained:
    block = torch.where(trainable, block, 0)  # none, but an index of something
    behind = real & (position > torch.where(trainable, position, -1).amax(dim=1, keepdim=True))
    whole_row = bool((starts.sum(dim=1) <= 1).all()) and canvas_length >= length and not behind.any()
    views = []
    for _ in range(num_masks):
        noise = _noise(trainable, noise_levels, uniform, num_masks, generator, group=block)
        order, drawn, scale = _draw_blocks(trainable, block, num_blocks, generator)
        for index in range(max(1, int(drawn.max()))):
            current, used = order[:, index : index + 1], index < drawn  # (B, 1)
            last = (current // per_canvas + 1) * per_canvas  # the first block behind the canvas
            in_canvas = trainable & (block < last)
            masked_tail = in_canvas & (block > current)
            end = torch.where(in_canvas, position, -1).amax(dim=1, keepdim=True)
            here = noise.masked & (block == current)  # rows whose blocks are used up are at those without a target
            views.append(
                MaskedView(
                    masked=here | masked_tail & used,
                    target=here,
                    weight=noise.weight * scale,
                    visible=None if whole_row else ((position <= end) | ~used) & real,
                )
            )
    return views


def _draw_blocks(trainable, block, num_blocks, generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks of each row in the order of the views (B, K), how many are used, and the factor of their weights: (B, 1).

    Only blocks with a trainable token count."""
    total = int(block.max()) + 1
    counts = torch.zeros(len(block), total, dtype=torch.long, device=block.device)
    absent = counts.scatter_add_(1, block, trainable.long()) == 0  # (B, K)
    present = (~absent).sum(dim=1, keepdim=True)
    if num_blocks is None:
        return absent.long().argsort(dim=1, stable=True), present, torch.ones_like(present)
    shuffled = torch.rand(absent.shape, generator=generator).to(block.device) + absent.long()
    drawn = present.clamp(max=num_blocks)
    return shuffled.argsort(dim=1), drawn, present / drawn.clamp(min=1)


def trace_views(
    unmask_step: torch.Tensor,
    trainable: torch.Tensor,
    real: torch.Tensor,
    block_length: int | None = None,
    shrinkage: int = 1,
) -> list[MaskedView]:
    """Views that replay a recorded trajectory: every trainable token with a step is the target of one view.

    Args:
        unmask_step (`torch.Tensor` of shape (B, C)):
            Step of each token, 1-based; 0 = not drawn by the model, never masked. Tokens with a step that are not
            trainable are masked as the trajectory says, and not scored.
        trainable, real (`torch.BoolTensor` of shape (B, C)):
            See the module.
        block_length (`int`, *optional*):
            Block of a block-causal model, counted from the first real token. `None`: full attention.
        shrinkage (`int`, *optional*, defaults to 1):
            s, as in [`trace_masks`] and [`block_trace_masks`].

    Returns:
        `list[MaskedView]` of weight 1, at least one.
    """
    if block_length is None:
        pairs = trace_masks(unmask_step, shrinkage, trainable)
    else:
        padding = real.long().argmax(dim=1)  # on the left
        pairs = block_trace_masks(unmask_step, block_length, shrinkage, trainable, offset=-padding % block_length)
    nothing = torch.zeros_like(trainable, dtype=torch.bool)
    return [MaskedView(*pair) for pair in zip(*pairs, strict=True)] or [MaskedView(nothing, nothing)]


def stack_views(rows: list[list[MaskedView]], real: torch.Tensor) -> list[MaskedView]:
    """Views that were drawn row by row, without padding, as views of the batch.

    Args:
        rows (`list[list[MaskedView]]` of length B):
            The views of each row, over its real tokens: (1, C_row).
        real (`torch.BoolTensor` of shape (B, C)):
            Where those tokens stand.

    Returns:
        `list[MaskedView]`, as many as the row with the most views has; rows with fewer end in empty ones.
    """
    stacked = []
    for index in range(max(map(len, rows))):
        view = MaskedView(
            masked=torch.zeros_like(real),
            target=torch.zeros_like(real),
            weight=torch.ones(real.shape, device=real.device),
            visible=real.clone(),
        )
        for row, views in enumerate(rows):
            if index < len(views):
                for name in ("masked", "target", "weight", "visible"):
                    value = getattr(views[index], name)
                    if value is not None:
                        getattr(view, name)[row, real[row]] = value[0]
        stacked.append(view)
    return stacked
