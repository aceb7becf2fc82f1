# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""LLaDA-MoE (arXiv 2509.24389): a Qwen3 with experts whose attention sees the whole sequence. Experts are apart on
disk."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from ..configuration import DiffusionConfigMixin
from ..modeling import DiffusionModelMixin
from ..registration import register_family
from .llada import LLaDAConfig


@strict
class LLaDAMoEConfig(DiffusionConfigMixin, Qwen3MoeConfig):
    """Config of LLaDA-MoE; fields as in [`~transformers.Qwen3MoeConfig`] and [`DiffusionConfigMixin`].

    The published checkpoints call themselves `model_type="llada"`, like the dense model: they are told apart by their
    experts, and saved under that name.
    """

    model_type = "lladamoe"
    hub_fields = {
        "num_experts": "num_local_experts",
        "dense_intermediate_size": "intermediate_size",
        "expert_intermediate_size": "moe_intermediate_size",
    }
    fixed_hub_fields = {
        "shared_expert_intermediate_size": None,
        "clip_qkv": None,
        "qk_layernorm": True,
        "moe_router_enable_expert_bias": False,
        "moe_router_score_function": "softmax",
        "partial_rotary_factor": 1,
    }
    known_mask_token_ids = {157184: 156895}

    rms_norm_eps: float = 1e-5
    norm_topk_prob: bool | None = False

    def __post_init__(self, **kwargs):
        moe_layer_freq = kwargs.pop("moe_layer_freq", None)
        if moe_layer_freq is not None:
            self.mlp_only_layers = [layer for layer, sparse in enumerate(moe_layer_freq) if not sparse]
        self.norm_topk_prob = False  # the remote code ignores the field
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The config in the Hub's field names."""
        output = super().to_dict()
        dense = output.pop("mlp_only_layers")
        output["moe_layer_freq"] = [int(layer not in dense) for layer in range(self.num_hidden_layers)]
        output["model_type"] = LLaDAConfig.model_type
        return output


class LLaDAMoEModelLM(DiffusionModelMixin, Qwen3MoeForCausalLM):
    """LLaDA-MoE with a language-model head. The name is the Hub's `architectures` entry."""

    config_class = LLaDAMoEConfig


LLaDAConfig.config_class_with_experts = LLaDAMoEConfig
register_family(LLaDAMoEConfig, LLaDAMoEModelLM, get_checkpoint_conversion_mapping("qwen3_moe"))
