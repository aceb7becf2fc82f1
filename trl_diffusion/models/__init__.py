# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Families of diffusion language models, native on transformers' own models."""

from . import families  # noqa: F401  (importing a family registers it)
from .attention import layout_mask
from .auto import (
    UNIFORM_MODEL_TYPE,
    AutoModelForDiffusionLM,
    adapter_base,
    check_model_type,
    find_mask_token_id,
    supported_model_types,
)
from .families.a2d import (
    A2DLlamaConfig,
    A2DLlamaLMHeadModel,
    A2DQwen2Config,
    A2DQwen2LMHeadModel,
    A2DQwen3Config,
    A2DQwen3LMHeadModel,
)
from .families.dream import DreamConfig, DreamModel
from .families.llada import LLaDAConfig, LLaDAModelLM, MMadaConfig, MMadaModelLM
from .families.llada2 import LLaDA2MoeConfig, LLaDA2MoeModelLM
from .families.llada_moe import LLaDAMoEConfig, LLaDAMoEModelLM
from .families.sdar import SDARConfig, SDARForCausalLM, SDARMoeConfig, SDARMoeForCausalLM
from .merging import merge_adapter, merge_adapter_folder
from .modeling import DiffusionModelMixin, diffusion_model, token_logits
from .positions import token_positions
from .unmask_policy import UnmaskPolicyModel, UnmaskPolicyModelConfig
from .value import DiffusionValueModel


__all__ = [
    "A2DLlamaConfig",
    "A2DLlamaLMHeadModel",
    "A2DQwen2Config",
    "A2DQwen2LMHeadModel",
    "A2DQwen3Config",
    "A2DQwen3LMHeadModel",
    "AutoModelForDiffusionLM",
    "DiffusionModelMixin",
    "DiffusionValueModel",
    "DreamConfig",
    "DreamModel",
    "LLaDA2MoeConfig",
    "LLaDA2MoeModelLM",
    "LLaDAConfig",
    "LLaDAMoEConfig",
    "LLaDAMoEModelLM",
    "LLaDAModelLM",
    "MMadaConfig",
    "MMadaModelLM",
    "SDARConfig",
    "SDARForCausalLM",
    "SDARMoeConfig",
    "SDARMoeForCausalLM",
    "UNIFORM_MODEL_TYPE",
    "UnmaskPolicyModel",
    "UnmaskPolicyModelConfig",
    "adapter_base",
    "check_model_type",
    "diffusion_model",
    "find_mask_token_id",
    "layout_mask",
    "merge_adapter",
    "merge_adapter_folder",
    "supported_model_types",
    "token_logits",
    "token_positions",
]
