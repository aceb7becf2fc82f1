# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Tiny checkpoints that come with the package: they train and generate in minutes on a CPU."""

from pathlib import Path


def tiny_checkpoints() -> list[str]:
    """Names of the tiny checkpoints, sorted."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/config.json"))


def tiny_checkpoint(name: str) -> Path:
    """Folder of a tiny checkpoint, for `from_pretrained`.

    Args:
        name (`str`):
            `"sudoku-llada-tiny"`, `"countdown-llada-tiny"`, `"arithmetic-llada-tiny"` (full attention) or
            `"sudoku-sdar-tiny"` (block-causal): mostly wrong, for reinforcement learning of the model.
            `"sudoku-llada-solver-tiny"` or `"arithmetic-llada-solver-tiny"` (full attention): mostly right at one
            token per step, and less so at more, for what is learned or measured about the unmasking of a frozen model.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in tiny_checkpoints():
        raise ValueError(f"name={name!r} is not a tiny checkpoint. There are: {', '.join(tiny_checkpoints())}.")
    return Path(__file__).parent / name
