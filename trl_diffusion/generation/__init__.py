# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Generation by denoising."""

from .configuration import DiffusionGenerationConfig
from .distribution import token_distribution
from .mixin import DiffusionGenerateOutput, DiffusionGenerationMixin
from .rollout import Rollout, trajectory_statistics
from .streamers import CanvasStreamer
from .unmasking import UnmaskingState


__all__ = [
    "CanvasStreamer",
    "DiffusionGenerateOutput",
    "DiffusionGenerationConfig",
    "DiffusionGenerationMixin",
    "Rollout",
    "UnmaskingState",
    "token_distribution",
    "trajectory_statistics",
]
