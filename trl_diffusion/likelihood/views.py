# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Drawing masked views: every likelihood of a diffusion language model is a set of them."""

from dataclasses import dataclass

import torch


@dataclass
class MaskedView:
    """One partially masked copy of the canvases of a batch, and what to score in it.

    Args:
        masked (`torch.BoolTensor` of shape (B, C)):
            Positions replaced by [MASK]. Where the canvas holds [MASK] already it stays.
        target (`torch.BoolTensor` of shape (B, C)):
            Positions whose token is scored; a subset of `masked`.
        weight (`torch.FloatTensor` of shape (B, C), *optional*):
            Factor of each target's log-probability, e.g. 1/t. `None`: 1 everywhere.
        group (`torch.LongTensor` of shape (B, C), *optional*):
            Targets of a row in the same group were committed in the same step. `None`: all of them; a view of a
            block-causal model joins steps of several blocks, and its groups are the blocks.
        visible (`torch.BoolTensor` of shape (B, C), *optional*):
            Positions that exist in this copy; the others are not attended to. `None`: all of them.
        prompt_masked (`torch.BoolTensor` of shape (B, P), *optional*):
            Positions of the prompt replaced by [MASK]. `None`: none.
    """

    masked: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor | None = None
    group: torch.Tensor | None = None
    visible: torch.Tensor | None = None
    prompt_masked: torch.Tensor | None = None


def step_rank(unmask_step: torch.Tensor, group: torch.Tensor | None = None) -> torch.Tensor:
    """Which step of its row, or of its group, each position was drawn at, among those at which anything was.

    By sorting, so that memory stays linear in C.

    Args:
        unmask_step (`torch.Tensor` of shape (B, C)):
            Step of each position, 1-based; 0 = not drawn by the model.
        group (`torch.LongTensor` of shape (B, C), *optional*):
            Groups (blocks) whose steps are counted each on its own. `None`: one.

    Returns:
        `torch.LongTensor` of shape (B, C), 0-based; -1 where nothing was drawn.
    """
    steps = unmask_step.long()
    if not steps.numel():
        return steps
    group = torch.zeros_like(steps) if group is None else group
    num_groups = int(group.max()) + 1
    key, order = (group * (int(steps.max()) + 1) + steps).sort(dim=1)
    drawn, group = steps.gather(1, order) > 0, group.gather(1, order)
    new = drawn & torch.cat([torch.ones_like(drawn[:, :1]), key.diff(dim=1) != 0], dim=1)
    count = new.long().cumsum(dim=1)  # distinct steps up to here, over all groups of the row
    per_group = torch.zeros(len(steps), num_groups, dtype=torch.long, device=steps.device)
    per_group.scatter_add_(1, group, new.long())
    before = per_group.cumsum(dim=1) - per_group
    rank = torch.where(drawn, count - 1 - before.gather(1, group), -1)
    return torch.empty_like(rank).scatter_(1, order, rank)


def _views_of_rank(rank: torch.Tensor, shrinkage: int, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Views that replay the groups of `shrinkage` consecutive ranks; rows with fewer are padded by empty ones."""
    if shrinkage < 1:
        raise ValueError(f"shrinkage={shrinkage} must be at least 1.")
    drawn = rank >= 0
    wanted = drawn if mask is None else drawn & mask.bool()
    merged = torch.where(drawn, rank // shrinkage, -1)  # (B, C)
    num_views = int(merged.max()) + 1 if merged.numel() else 0
    index = torch.arange(num_views, device=rank.device)[:, None, None]
    target = (merged == index) & wanted  # (K, B, C)
    masked = merged >= index
    # Views without a target are dropped, row by row: the others move up, and the end is padded.
    empty = ~target.any(dim=2)  # (K, B)
    order = empty.long().argsort(dim=0, stable=True)
    num_kept = int((~empty).sum(dim=0).max()) if empty.numel() else 0
    order = order[:num_kept, :, None].expand(-1, -1, rank.size(1))
    target = target.gather(0, order)
    return masked.gather(0, order) & target.any(dim=2, keepdim=True), target


def trace_masks(
    unmask_step: torch.Tensor, shrinkage: int = 1, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Views that replay a trajectory under full attention (TraceRL, arXiv 2509.06949).

    Every `shrinkage` consecutive distinct steps of a row are merged into one: τˢ(k) = ∪ τ(j), j = s(k−1)+1 … sk. View
    k masks the positions of step k and later, and scores those of step k.

    Args:
        unmask_step (`torch.Tensor` of shape (B, C)):
            Step of each position, 1-based; 0 = not drawn by the model, never masked and never scored.
        shrinkage (`int`, *optional*, defaults to 1):
            s.
        mask (`torch.Tensor` of shape (B, C), *optional*):
            Positions that may be scored. Those outside are masked as the trajectory says, and views in which they
            were the only targets are left out.

    Returns:
        `masked`, `target`: `torch.BoolTensor` of shape (K, B, C), K ≤ ⌈T/s⌉. Rows with fewer views end in empty ones.

    Raises:
        ValueError: `shrinkage` < 1.
    """
    return _views_of_rank(step_rank(unmask_step), shrinkage, mask)


def block_trace_masks(
    unmask_step: torch.Tensor,
    block_length: int,
    shrinkage: int = 1,
    mask: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Views that replay a trajectory under block-causal attention, all blocks at once (TraceRL, section 4).

    View k masks, in every block, the positions of that block's own k-th (shrunk) step and later, and scores those of
    that step. With the clean copy of the sequence beside the noisy one, one forward pass scores a view.

    Args:
        unmask_step (`torch.Tensor` of shape (B, C)):
            Step of each position, 1-based; 0 = not drawn by the model.
        block_length (`int`):
            Tokens per block.
        shrinkage (`int`, *optional*, defaults to 1):
            s, applied inside each block.
        mask (`torch.Tensor` of shape (B, C), *optional*):
            Positions that may be scored.
        offset (`torch.LongTensor` of shape (B,), *optional*):
            Tokens of the prompt that stand in the same block as the first canvas position. `None`: 0, the prompt ends
            on a block boundary.

    Returns:
        `masked`, `target`: `torch.BoolTensor` of shape (K, B, C); K ≤ ⌈block_length/s⌉.

    Raises:
        ValueError: `block_length` or `shrinkage` < 1.
    """
    if block_length < 1:
        raise ValueError(f"block_length={block_length} must be at least 1.")
    blocks = canvas_blocks(unmask_step.shape, block_length, offset, unmask_step.device)
    return _views_of_rank(step_rank(unmask_step, blocks), shrinkage, mask)


def merge_steps(unmask_step: torch.Tensor, shrinkage: int, blocks: torch.Tensor | None = None) -> torch.Tensor:
    """The step map whose steps are those of the views: every `shrinkage` consecutive ones bear the last one's number.

    Args:
        unmask_step (`torch.Tensor` of shape (B, C)):
            Step of each position, 1-based; 0 = not drawn by the model.
        shrinkage (`int`):
            s.
        blocks (`torch.LongTensor` of shape (B, C), *optional*):
            Block of each position, inside which steps are merged (block-causal attention). `None`: the whole row.

    Returns:
        `torch.LongTensor` of shape (B, C).

    Raises:
        ValueError: `shrinkage` < 1.
    """
    if shrinkage < 1:
        raise ValueError(f"shrinkage={shrinkage} must be at least 1.")
    steps = unmask_step.long()
    if shrinkage == 1 or not steps.numel():
        return steps
    merged = step_rank(steps, blocks) // shrinkage  # (B, C); -1 where nothing was drawn
    per_block = int(merged.max()) + 2
    key = merged + 1 if blocks is None else blocks * per_block + merged + 1
    last = torch.zeros(len(steps), int(key.max()) + 1, dtype=torch.long, device=steps.device)
    return last.scatter_reduce_(1, key, steps, "amax").gather(1, key)


def canvas_blocks(
    shape: tuple[int, int], block_length: int, offset: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    """Block of each canvas position, 0 for that of the first one: (B, C). Arguments as in [`block_trace_masks`]."""
    position = torch.arange(shape[1], device=device).expand(shape)
    return (position if offset is None else position + offset.to(device)[:, None]) // block_length


def fully_masked_view(maskable: torch.Tensor) -> MaskedView:
    """The one-step mean-field view of diffu-GRPO (d1, arXiv 2504.12216): the whole canvas masked, all of it scored.

    Args:
        maskable (`torch.BoolTensor` of shape (B, C)):
            Positions to score.

    Returns:
        [`MaskedView`] in which the whole canvas, the tail behind EOS included, is masked.
    """
    return MaskedView(masked=torch.ones_like(maskable, dtype=torch.bool), target=maskable.bool())


def random_view(
    maskable: torch.Tensor,
    minimum: float = 1e-3,
    generator: torch.Generator | None = None,
    maximum: float = 1.0,
    group: torch.Tensor | None = None,
) -> MaskedView:
    """One Monte-Carlo view of the ELBO: a noise level t per row, every maskable position masked with probability t.

    E[(1/t) Σ_i 1[masked] log p(x_i | masked copy)] is a lower bound of log p(x) (LLaDA, arXiv 2502.09992, eq. 3).

    Args:
        maskable (`torch.BoolTensor` of shape (B, C)):
            Positions that may be masked; the others (prompt, padding) never are.
        minimum (`float`, *optional*, defaults to 1e-3):
            t ~ U[minimum, maximum]: with t ~ U[0, 1] the variance is infinite.
        generator (`torch.Generator`, *optional*):
            Source of the noise, on the CPU.
        maximum (`float`, *optional*, defaults to 1.0):
            The highest noise level.
        group (`torch.LongTensor` of shape (B, C), *optional*):
            Positions of a row in the same group share a level, every group has its own. `None`: one level per row.

    Returns:
        [`MaskedView`] with weight 1/t.
    """
    batch_size, length = maskable.shape
    num_groups = 1 if group is None or not group.numel() else int(group.max()) + 1
    level = minimum + (maximum - minimum) * torch.rand(batch_size, num_groups, generator=generator)  # (B, G)
    level = level.expand(-1, length) if group is None else level.gather(1, group.cpu())  # (B, C)
    masked = torch.rand(batch_size, length, generator=generator) < level
    masked = masked.to(maskable.device) & maskable.bool()
    return MaskedView(masked=masked, target=masked, weight=(1 / level).to(maskable.device))
