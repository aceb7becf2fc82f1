# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The block-length curriculum of TraceRL (arXiv 2509.06949, section 5.4): which blocks to use from which step on."""

from typing import NamedTuple


class BlockLengths(NamedTuple):
    """Tokens per block, in rollouts and in the likelihood; `None`: the model's own."""

    rollout: int | None
    training: int | None


def parse_block_schedule(schedule: dict) -> list[tuple[int, BlockLengths]]:
    """The entries of a schedule, in the order of their steps.

    Args:
        schedule (`dict`):
            Optimizer step → block length, or `[rollout, training]`. Steps may be texts, as in JSON:
            `{"0": 4, "60": [4, 8], "100": 8}`.

    Returns:
        `list[tuple[int, BlockLengths]]`.

    Raises:
        ValueError: a step or a length that is none, two entries for one step, or no entry.
    """
    if not isinstance(schedule, dict) or not schedule:
        raise ValueError(
            f"block_length_schedule={schedule!r} must map optimizer steps to block lengths, such as "
            '{"0": 4, "60": [4, 8], "100": 8} ([rollout, training] where they differ).'
        )
    entries: dict[int, BlockLengths] = {}
    for key, value in schedule.items():
        step = int(key) if isinstance(key, str) and key.isdecimal() else key
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"block_length_schedule has the step {key!r}, which is no optimizer step (0, 1, …).")
        if step in entries:
            raise ValueError(f"block_length_schedule has two entries for step {step}.")
        pair = value if isinstance(value, (list, tuple)) else [value, value]
        if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in pair):
            raise ValueError(
                f"block_length_schedule[{key!r}]={value!r} must be a block length, at least 1, or [rollout, training]."
            )
        entries[step] = BlockLengths(*pair)
    return sorted(entries.items())


def block_lengths_at(entries: list[tuple[int, BlockLengths]], step: int, before: BlockLengths) -> BlockLengths:
    """The entry in force at an optimizer step; `before` where none is yet."""
    in_force = before
    for start, lengths in entries:
        if start <= step:
            in_force = lengths
    return in_force
