# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Trainers in TRL's style."""

from .bgpo_config import BGPOConfig
from .bgpo_trainer import BGPOTrainer
from .diffusion_grpo_config import DiffusionGRPOConfig
from .diffusion_grpo_trainer import DiffusionGRPOTrainer
from .diffusion_sft_config import DiffusionSFTConfig
from .diffusion_sft_trainer import DiffusionSFTTrainer
from .igpo_config import IGPOConfig
from .igpo_trainer import IGPOTrainer
from .tracerl_config import TraceRLConfig
from .tracerl_trainer import TraceRLTrainer
from .unmask_policy_config import UnmaskPolicyConfig
from .unmask_policy_trainer import UnmaskPolicyTrainer


__all__ = [
    "BGPOConfig",
    "BGPOTrainer",
    "DiffusionGRPOConfig",
    "DiffusionGRPOTrainer",
    "DiffusionSFTConfig",
    "DiffusionSFTTrainer",
    "IGPOConfig",
    "IGPOTrainer",
    "TraceRLConfig",
    "TraceRLTrainer",
    "UnmaskPolicyConfig",
    "UnmaskPolicyTrainer",
]
