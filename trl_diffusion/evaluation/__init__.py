# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Evaluation of models on tasks, through `generate()`."""

from .completion import Completions, complete


__all__ = ["Completions", "complete"]
