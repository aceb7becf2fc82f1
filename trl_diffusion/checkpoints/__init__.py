# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Tiny checkpoints that come with the package: they train and generate in minutes on a CPU."""

from pathlib import Path


_HERE = Path(__file__).parent


def tiny_checkpoints() -> list[str]:
    """Names of the tiny diffusion language models, sorted."""
    return _names(_HERE)


def tiny_checkpoint(name: str) -> Path:
    """Folder of a tiny diffusion language model, for `from_pretrained`.

    Args:
        name (`str`):
            Full attention: `"sudoku-llada-tiny"`, `"countdown-llada-tiny"`, `"arithmetic-llada-tiny"`, which
            reinforcement learning has much to improve on, and `"sudoku-llada-solver-tiny"`,
            `"arithmetic-llada-solver-tiny"`, which solve most problems. Block-causal: `"sudoku-sdar-tiny"`.

    Raises:
        ValueError: there is none of that name.
    """
    return _folder(_HERE, name, "checkpoint")


def tiny_policies() -> list[str]:
    """Names of the tiny unmasking policies, sorted."""
    return _names(_HERE / "policies")


def tiny_policy(name: str) -> Path:
    """Folder of a tiny unmasking policy, for `unmasking=` and `UnmaskPolicyModel.from_pretrained`.

    Args:
        name (`str`):
            `"sudoku-unmask-policy-tiny"`, which was trained with `"sudoku-llada-solver-tiny"`.

    Raises:
        ValueError: there is none of that name.
    """
    return _folder(_HERE / "policies", name, "policy")


def _names(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("*/config.json"))


def _folder(parent: Path, name: str, kind: str) -> Path:
    if name not in _names(parent):
        raise ValueError(f"name={name!r} is not a tiny {kind}. There are: {', '.join(_names(parent))}.")
    return parent / name
