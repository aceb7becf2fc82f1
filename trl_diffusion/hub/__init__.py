# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Model cards."""

from .model_card import diffusion_model_card


__all__ = ["diffusion_model_card"]
