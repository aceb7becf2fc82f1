# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Families of diffusion language models, native on transformers' own Llama and Qwen3."""

from . import llada, sdar
from .attention import layout_mask, token_positions
from .llada import LLaDAConfig, LLaDAModelLM
from .modeling import DiffusionModelMixin, diffusion_model, token_logits
from .sdar import SDARConfig, SDARForCausalLM


for _family in (llada, sdar):
    _family.register()

__all__ = [
    "DiffusionModelMixin",
    "LLaDAConfig",
    "LLaDAModelLM",
    "SDARConfig",
    "SDARForCausalLM",
    "diffusion_model",
    "layout_mask",
    "token_logits",
    "token_positions",
]
