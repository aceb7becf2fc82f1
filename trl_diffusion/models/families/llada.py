# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""LLaDA (arXiv 2502.09992), LLaDA 1.5 (arXiv 2505.19223) and the text part of MMaDA (arXiv 2505.15809): a Llama whose
attention sees the whole sequence."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.core_model_loading import WeightRenaming

from ..configuration import DiffusionConfigMixin
from ..modeling import DiffusionModelMixin
from ..registration import register_family


@strict
class LLaDAConfig(DiffusionConfigMixin, LlamaConfig):
    """Config of LLaDA; fields as in [`~transformers.LlamaConfig`] and [`DiffusionConfigMixin`]."""

    model_type = "llada"
    hub_fields = {
        "d_model": "hidden_size",
        "n_heads": "num_attention_heads",
        "n_kv_heads": "num_key_value_heads",
        "n_layers": "num_hidden_layers",
        "mlp_hidden_size": "intermediate_size",
        "embedding_size": "vocab_size",
        "max_sequence_length": "max_position_embeddings",
        "activation_type": "hidden_act",
        "weight_tying": "tie_word_embeddings",
        "init_std": "initializer_range",
    }
    fixed_hub_fields = {
        "alibi": False,
        "rope": True,
        "block_type": "llama",
        "layer_norm_type": "rms",
        "attention_layer_norm": False,
        "bias_for_layer_norm": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "scale_logits": False,
        "input_emb_norm": False,
        "embedding_dropout": 0.0,
        "residual_dropout": 0.0,
        "clip_qkv": None,
    }
    known_mask_token_ids = {126464: 126336}
    mask_token = "<|mdm_mask|>"

    rms_norm_eps: float = 1e-5
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    # LLaDA-MoE bears the same `model_type` on the Hub; its module puts its config here.
    config_class_with_experts = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Read a Hub config; one with experts becomes that of LLaDA-MoE."""
        if "num_experts" in config_dict:
            return cls.config_class_with_experts.from_dict(config_dict, **kwargs)
        return super().from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs):
        # What the original code takes for fields that are null.
        for field in ("embedding_size", "bias_for_layer_norm", "include_qkv_bias"):
            if kwargs.get(field, 0) is None:
                kwargs.pop(field)
        if kwargs.get("mlp_hidden_size", 0) is None:
            kwargs["mlp_hidden_size"] = kwargs.get("mlp_ratio", 4) * kwargs.get("d_model", self.hidden_size)
        if kwargs.pop("multi_query_attention", None) and kwargs.get("n_kv_heads") is None:
            kwargs["n_kv_heads"] = 1
        super().__post_init__(**kwargs)


class LLaDAModelLM(DiffusionModelMixin, LlamaForCausalLM):
    """LLaDA with a language-model head. The name is the Hub's `architectures` entry, which saving writes back."""

    config_class = LLaDAConfig


@strict
class MMadaConfig(LLaDAConfig):
    """Config of MMaDA: LLaDA's, with a vocabulary that holds the codes of images behind those of text."""

    model_type = "mmada"
    known_mask_token_ids = {134656: 126336}


class MMadaModelLM(LLaDAModelLM):
    """MMaDA as a language model."""

    config_class = MMadaConfig


_RENAMINGS = [
    # Free of capturing groups, so that each rule can be run backwards when saving; and without effect on names that
    # are Llama's already, since PEFT runs the rules on the keys of every adapter it loads.
    WeightRenaming(r"model\.transformer\.wte", r"model\.embed_tokens"),
    WeightRenaming(r"model\.transformer\.ln_f", r"model\.norm"),
    WeightRenaming(r"model\.transformer\.ff_out", "lm_head"),
    WeightRenaming(r"model\.transformer\.blocks", r"model\.layers"),
    WeightRenaming(r"\.attn_norm", r"\.input_layernorm"),
    WeightRenaming(r"\.ff_norm", r"\.post_attention_layernorm"),
    WeightRenaming(r"(?<!self_attn)\.q_proj", r"\.self_attn\.q_proj"),
    WeightRenaming(r"(?<!self_attn)\.k_proj", r"\.self_attn\.k_proj"),
    WeightRenaming(r"(?<!self_attn)\.v_proj", r"\.self_attn\.v_proj"),
    WeightRenaming(r"\.attn_out", r"\.self_attn\.o_proj"),
    WeightRenaming(r"\.ff_proj", r"\.mlp\.gate_proj"),
    WeightRenaming(r"(?<!mlp)\.up_proj", r"\.mlp\.up_proj"),
    WeightRenaming(r"\.ff_out", r"\.mlp\.down_proj"),
]
register_family(LLaDAConfig, LLaDAModelLM, _RENAMINGS)
register_family(MMadaConfig, MMadaModelLM, _RENAMINGS)
