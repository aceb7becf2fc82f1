# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""A2D: Llama, Qwen2 and Qwen3 turned into diffusion language models (dllm-hub's checkpoints, and those that
`trl-diffusion convert` writes). Attention is full, or block-causal where the config has a block length; logits are not
shifted. Key names on disk are the autoregressive model's own."""

from huggingface_hub.dataclasses import strict
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ..configuration import BlockDiffusionConfigMixin
from ..modeling import DiffusionModelMixin
from ..registration import register_family


@strict
class A2DLlamaConfig(BlockDiffusionConfigMixin, LlamaConfig):
    """Config of a converted Llama; fields as in [`~transformers.LlamaConfig`] and [`BlockDiffusionConfigMixin`]."""

    model_type = "a2d-llama"


class A2DLlamaLMHeadModel(DiffusionModelMixin, LlamaForCausalLM):
    """A converted Llama. The name is the Hub's `architectures` entry."""

    config_class = A2DLlamaConfig


@strict
class A2DQwen2Config(BlockDiffusionConfigMixin, Qwen2Config):
    """Config of a converted Qwen2; fields as in [`~transformers.Qwen2Config`] and [`BlockDiffusionConfigMixin`]."""

    model_type = "a2d-qwen2"


class A2DQwen2LMHeadModel(DiffusionModelMixin, Qwen2ForCausalLM):
    """A converted Qwen2. The name is the Hub's `architectures` entry."""

    config_class = A2DQwen2Config


@strict
class A2DQwen3Config(BlockDiffusionConfigMixin, Qwen3Config):
    """Config of a converted Qwen3; fields as in [`~transformers.Qwen3Config`] and [`BlockDiffusionConfigMixin`]."""

    model_type = "a2d-qwen3"


class A2DQwen3LMHeadModel(DiffusionModelMixin, Qwen3ForCausalLM):
    """A converted Qwen3. The name is the Hub's `architectures` entry."""

    config_class = A2DQwen3Config


register_family(A2DLlamaConfig, A2DLlamaLMHeadModel)
register_family(A2DQwen2Config, A2DQwen2LMHeadModel)
register_family(A2DQwen3Config, A2DQwen3LMHeadModel)
