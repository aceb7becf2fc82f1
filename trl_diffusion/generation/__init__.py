# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Generation by denoising."""

from .configuration import DiffusionGenerationConfig
from .mixin import DiffusionGenerateOutput, DiffusionGenerationMixin
from .rollout import Rollout
from .unmasking import token_distribution


__all__ = [
    "DiffusionGenerateOutput",
    "DiffusionGenerationConfig",
    "DiffusionGenerationMixin",
    "Rollout",
    "token_distribution",
]
