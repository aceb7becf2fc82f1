# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""How many positions each step commits. Everything here is known before the first forward pass, on the CPU."""

import torch


# Dream's smallest time.
_LAST_TIME = 1e-3


def steps_per_block(fill_counts: torch.Tensor, lengths: torch.Tensor, block_length: int, num_steps: int | None):
    """Share out the steps block by block.

    A full block gets k = ⌊S·B/C⌋ steps (at least 1), the first blocks one more until S·B/C is used up on average; a
    block with m positions to fill at most m.

    Args:
        fill_counts (`torch.LongTensor` of shape (B, N)):
            Positions to fill in each block of each row.
        lengths (`torch.LongTensor` of shape (B,)):
            C of each row: its positions from the first one that is filled.
        block_length (`int`):
            Tokens per full block.
        num_steps (`int`, *optional*):
            S, over the whole canvas. `None`: C, a token per step.

    Returns:
        `torch.LongTensor` of shape (B, N).
    """
    if num_steps is None:
        return fill_counts.clamp(max=block_length)
    total = num_steps * block_length
    base = (total // lengths.clamp(min=1)).clamp(min=1)  # (B,)
    extra = ((total - base * lengths) // block_length).clamp(min=0)
    wanted = base[:, None] + (torch.arange(fill_counts.size(1)) < extra[:, None]).long()
    return torch.minimum(wanted, fill_counts)


def even_share(num_masked: torch.Tensor, step: int, num_steps: torch.Tensor) -> torch.Tensor:
    """Tokens to commit at a step, when a block's tokens are shared out evenly over its steps.

    Args:
        num_masked (`torch.LongTensor` of shape (R,)):
            Masked positions of the block at its first step.
        step (`int`):
            0-based step within the block.
        num_steps (`torch.LongTensor` of shape (R,)):
            Steps of the block.

    Returns:
        `torch.LongTensor` of shape (R,); the first steps take the remainder, steps past the last get 0.
    """
    steps = num_steps.clamp(min=1)
    share = num_masked // steps + (step < num_masked % steps).long()
    return share * (step < num_steps)


def linear_time_fractions(num_steps: int) -> torch.Tensor:
    """Share of the masks left that each step commits, (K,) fp32: 1 − t_{i+1}/t_i with K + 1 times from 1 to 0.001,
    and 1 at the last step (Dream). The arithmetic is Dream's, in fp32, since counts are rounded down."""
    times = torch.linspace(1, _LAST_TIME, num_steps + 1)
    fractions = 1 - times[1:] / times[:-1]
    fractions[-1] = 1
    return fractions


def share_table(num_masked: torch.Tensor, num_steps: torch.Tensor, schedule: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What each step of a block commits of each row.

    Args:
        num_masked (`torch.LongTensor` of shape (R,)):
            Masked positions of the block at its first step.
        num_steps (`torch.LongTensor` of shape (R,)):
            Steps of the block.
        schedule (`str`):
            `"even"` or `"linear_time"`.

    Returns:
        Shares (K, R), long, and fractions of the masks left (K, R), fp32; K is the most steps of any row. The shares
        of a row add up to its masks.
    """
    most = int(num_steps.max())
    if schedule == "even":
        shares = torch.stack([even_share(num_masked, step, num_steps) for step in range(most)])
        fractions = 1 / (num_steps - torch.arange(most)[:, None]).clamp(min=1)
        return shares, fractions.float()
    shares = torch.zeros(most, len(num_masked), dtype=torch.long)
    fractions = torch.ones(most, len(num_masked))
    for steps in num_steps.unique().tolist():
        rows = num_steps == steps
        left = num_masked[rows].clone()
        for step, fraction in enumerate(linear_time_fractions(steps) if steps else []):
            shares[step, rows] = (left * fraction).long()
            fractions[step, rows] = fraction
            left -= shares[step, rows]
    return shares, fractions
