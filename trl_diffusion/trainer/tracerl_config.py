# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Config of [`TraceRLTrainer`]."""

from dataclasses import dataclass, field

from .diffusion_grpo_config import DiffusionGRPOConfig


@dataclass
class TraceRLConfig(DiffusionGRPOConfig):
    r"""
    Configuration of the [`TraceRLTrainer`]: [`DiffusionGRPOConfig`], and the fields below.

    Parameters:
        > Parameters that control the likelihood

        shrinkage (`int`, *optional*, defaults to `1`):
            s: every s consecutive steps of a trajectory are merged into one, so that a completion of T steps takes
            ⌈T/s⌉ forward passes. Block-causal models: inside each block.

    > [!NOTE]
    > Changed defaults: `loss_type` is `"step"`, the objective of the paper.
    """

    loss_type: str = field(
        default="step",
        metadata={"help": "How the tokens' losses are averaged: 'step', 'grpo', 'bnpo', 'dr_grpo' or 'dapo'."},
    )
    shrinkage: int = field(
        default=1, metadata={"help": "Merge every s consecutive steps of a trajectory into one view."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.shrinkage < 1:
            raise ValueError(f"shrinkage={self.shrinkage} must be at least 1 (1 replays every step).")
