# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""SDAR and TraDo (arXiv 2510.06303, 2509.06949): a Qwen3, dense or with experts, with block-causal attention. Key
names on disk are Qwen3's own."""

from huggingface_hub.dataclasses import strict
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from ..configuration import BlockDiffusionConfigMixin
from ..modeling import DiffusionModelMixin
from ..registration import register_family


@strict
class SDARConfig(BlockDiffusionConfigMixin, Qwen3Config):
    """Config of SDAR and TraDo; fields as in [`~transformers.Qwen3Config`] and [`BlockDiffusionConfigMixin`].

    The published checkpoints name neither the mask token nor the block in their config: `<|MASK|>` and 4.
    """

    model_type = "sdar"
    known_mask_token_ids = {151936: 151669}
    mask_token = "<|MASK|>"
    default_block_length = 4


class SDARForCausalLM(DiffusionModelMixin, Qwen3ForCausalLM):
    """SDAR or TraDo with a language-model head. The name is the Hub's `architectures` entry."""

    config_class = SDARConfig


@strict
class SDARMoeConfig(BlockDiffusionConfigMixin, Qwen3MoeConfig):
    """Config of SDAR with experts; as [`SDARConfig`], on [`~transformers.Qwen3MoeConfig`]."""

    model_type = "sdar_moe"
    hub_fields = {"num_experts": "num_local_experts"}
    known_mask_token_ids = SDARConfig.known_mask_token_ids
    mask_token = SDARConfig.mask_token
    default_block_length = SDARConfig.default_block_length


class SDARMoeForCausalLM(DiffusionModelMixin, Qwen3MoeForCausalLM):
    """SDAR with experts and a language-model head."""

    config_class = SDARMoeConfig


register_family(SDARConfig, SDARForCausalLM)
register_family(SDARMoeConfig, SDARMoeForCausalLM, get_checkpoint_conversion_mapping("qwen3_moe"))
