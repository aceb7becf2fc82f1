# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""LLaDA 2.0 and 2.1 (arXiv 2512.15745): a GLM-4 with experts and block-causal attention. On disk queries, keys and
values are fused and the experts are apart; in memory it is the other way round."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import Split, WeightConverter, WeightRenaming

from ..configuration import BlockDiffusionConfigMixin
from ..modeling import DiffusionModelMixin
from ..registration import register_family


@strict
class LLaDA2MoeConfig(BlockDiffusionConfigMixin, Glm4MoeConfig):
    """Config of LLaDA 2.x; fields as in [`~transformers.Glm4MoeConfig`] and [`BlockDiffusionConfigMixin`].

    The published checkpoints name neither the mask token nor the block in their config: `<|mask|>` and 32.
    """

    model_type = "llada2_moe"
    hub_fields = {
        "num_experts": "n_routed_experts",
        "num_shared_experts": "n_shared_experts",
        "use_qkv_bias": "attention_bias",
    }
    fixed_hub_fields = {
        "use_bias": False,
        "norm_head": False,
        "embedding_dropout": 0.0,
        "output_dropout": 0.0,
        "score_function": "sigmoid",
    }
    known_mask_token_ids = {157184: 156895}
    default_block_length = 32

    use_qk_norm: bool = True
    rms_norm_eps: float = 1e-6
    num_nextn_predict_layers: int = 0

    def __post_init__(self, **kwargs):
        # The remote code normalises the weights of a token's experts whenever there are two or more.
        self.norm_topk_prob = self.num_experts_per_tok > 1
        super().__post_init__(**kwargs)


class LLaDA2MoeModelLM(DiffusionModelMixin, Glm4MoeForCausalLM):
    """LLaDA 2.x with a language-model head. The name is the Hub's `architectures` entry."""

    config_class = LLaDA2MoeConfig
    _keys_to_ignore_on_load_unexpected = None  # GLM's names of layers that LLaDA may well have


def _split_fused(kind: str) -> WeightConverter:
    projections = [rf"\.self_attn\.{name}_proj\.{kind}" for name in "qkv"]
    return WeightConverter(rf"\.self_attn\.query_key_value\.{kind}", projections, [Split(dim=0)])


_CONVERSIONS: list[Any] = [
    WeightRenaming(r"model\.word_embeddings", r"model\.embed_tokens"),
    WeightRenaming(r"\.attention\.", r"\.self_attn\."),
    WeightRenaming(r"\.self_attn\.dense", r"\.self_attn\.o_proj"),
    WeightRenaming(r"\.self_attn\.query_layernorm", r"\.self_attn\.q_norm"),
    WeightRenaming(r"\.self_attn\.key_layernorm", r"\.self_attn\.k_norm"),
    WeightRenaming(r"\.gate\.expert_bias", r"\.gate\.e_score_correction_bias"),
    _split_fused("weight"),
    _split_fused("bias"),
    *get_checkpoint_conversion_mapping("glm4_moe"),
]
register_family(LLaDA2MoeConfig, LLaDA2MoeModelLM, _CONVERSIONS)
