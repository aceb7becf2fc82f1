# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Random numbers that belong to a row, whatever batch it is in and however it is decoded."""

from numbers import Integral

import numpy as np
import torch


# What a number is used for: the streams of a row do not overlap.
TOKENS, POSITIONS, ROWS = 0, 1, 2


def row_seeds(seed: int | list[int] | None, batch_size: int) -> list[int]:
    """One seed per row.

    Raises:
        ValueError: a list of seeds has another length than the batch.
    """
    if seed is None:
        return torch.randint(2**62, (batch_size,)).tolist()
    if isinstance(seed, Integral):
        pairs = ((int(seed) % 2**64, row) for row in range(batch_size))
        return [int(np.random.SeedSequence(pair).generate_state(1, np.uint64)[0]) for pair in pairs]
    if len(seed) != batch_size:
        raise ValueError(f"seed has {len(seed)} entries for {batch_size} rows; give one per row, or a single int.")
    return [int(row_seed) for row_seed in seed]


def row_noise(seeds: list[int], block: int, steps: range, width: int, stream: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for some steps of a block, (len(steps), R, width), fp64.

    A number depends on its row's seed, the block, the step, the slot inside the block and the stream, and on nothing
    else: numpy's Philox generator counts them (Salmon et al., SC 2011).
    """
    values = np.empty((len(steps), len(seeds), width))
    bits = np.random.Philox(key=0)
    generator, state = np.random.Generator(bits), bits.state
    for row, seed in enumerate(seeds):
        state["state"]["key"][:] = (seed % 2**64, 0)
        for place, step in enumerate(steps):
            # The lowest word of the counter is the generator's own. Setting the state costs a quarter of a new one.
            state["state"]["counter"][:] = (0, step, block, stream)
            bits.state = state
            generator.random(out=values[place, row])
    return values
