# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""How many positions each step commits. Everything here is known before the first forward pass, on the CPU."""

import numpy as np
import torch


# Dream's smallest time.
_LAST_TIME = 1e-3


def steps_per_block(
    fill_counts: np.ndarray, lengths: np.ndarray, block_length: int, num_steps: int | None
) -> np.ndarray:
    """Share out the steps block by block.

    A full block gets k = ⌊S·B/C⌋ steps (at least 1), the first blocks one more until S·B/C is used up on average; a
    block with m positions to fill at most m.

    Args:
        fill_counts (`numpy.ndarray` of shape (B, N), int):
            Positions to fill in each block of each row.
        lengths (`numpy.ndarray` of shape (B,), int):
            C of each row: its positions from the first one that is filled.
        block_length (`int`):
            Tokens per full block.
        num_steps (`int`, *optional*):
            S, over the whole canvas. `None`: C, a token per step.

    Returns:
        `numpy.ndarray` of shape (B, N), int.
    """
    if num_steps is None:
        return fill_counts
    # A row shorter than a block is one block.
    block_lengths = np.minimum(block_length, np.maximum(lengths, 1))
    total = num_steps * block_lengths  # (B,)
    base = np.maximum(total // np.maximum(lengths, 1), 1)
    extra = np.maximum((total - base * lengths) // block_lengths, 0)
    wanted = base[:, None] + (np.arange(fill_counts.shape[1]) < extra[:, None])
    return np.minimum(wanted, fill_counts)


def even_share(num_masked: np.ndarray, step: int, num_steps: np.ndarray) -> np.ndarray:
    """Tokens to commit at a step, when a block's tokens are shared out evenly over its steps.

    Args:
        num_masked (`numpy.ndarray` of shape (R,), int):
            Masked positions of the block at its first step.
        step (`int`):
            0-based step within the block.
        num_steps (`numpy.ndarray` of shape (R,), int):
            Steps of the block.

    Returns:
        `numpy.ndarray` of shape (R,), int; the first steps take the remainder, steps past the last get 0.
    """
    steps = np.maximum(num_steps, 1)
    return (num_masked // steps + (step < num_masked % steps)) * (step < num_steps)


def linear_time_fractions(num_steps: int) -> np.ndarray:
    """Share of the masks left that each step commits, (K,) fp32: 1 − t_{i+1}/t_i with K + 1 times from 1 to 0.001,
    and 1 at the last step (Dream). The arithmetic is Dream's, torch's in fp32, since counts are rounded down."""
    times = torch.linspace(1, _LAST_TIME, num_steps + 1)
    fractions = 1 - times[1:] / times[:-1]
    fractions[-1:] = 1
    return fractions.numpy()


def even_shares(num_masked: np.ndarray, num_steps: np.ndarray) -> np.ndarray:
    """[`even_share`] of every step: (K, R), int, K being the most steps of any row. A row's add up to its masks."""
    return np.stack([even_share(num_masked, step, num_steps) for step in range(int(num_steps.max()))])


def fractions_left(num_steps: np.ndarray, schedule: str) -> np.ndarray:
    """Share of the masks left that each step commits of each row, before rounding down.

    Args:
        num_steps (`numpy.ndarray` of shape (R,), int):
            Steps of the block.
        schedule (`str`):
            `"even"`: 1 / (steps left); `"linear_time"`: as [`linear_time_fractions`].

    Returns:
        `numpy.ndarray` of shape (K, R), fp32, K being the most steps of any row; 1 from a row's last step on.
    """
    most = int(num_steps.max())
    if schedule == "even":
        return (1 / np.maximum(num_steps - np.arange(most)[:, None], 1)).astype(np.float32)
    fractions = np.ones((most, len(num_steps)), dtype=np.float32)
    for steps in np.unique(num_steps):
        fractions[:steps, num_steps == steps] = linear_time_fractions(int(steps))[:, None]
    return fractions
