# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""LLaDA (arXiv 2502.09992): a Llama whose attention sees the whole sequence.

Checkpoints keep the Hub's key and field names on disk (GSAI-ML/LLaDA-8B-Base, -Instruct, LLaDA-1.5); in memory the
model is transformers' own Llama.
"""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_outputs import CausalLMOutputWithPast

from .attention import token_positions
from .modeling import DiffusionModelMixin, hub_rope_fields


# Hub field -> Llama field.
_HUB_FIELDS = {
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
# Hub fields that would change the arithmetic: the value that Llama computes, and the only one accepted.
_FIXED_HUB_FIELDS = {
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


@strict
class LLaDAConfig(LlamaConfig):
    """Config of LLaDA: [`~transformers.LlamaConfig`] that reads and writes the Hub's field names.

    Args:
        mask_token_id (`int`, *optional*):
            Id of [MASK] (126336 in the published models).
        is_causal (`bool`, *optional*, defaults to `False`):
            transformers' switch for bidirectional attention.

    Raises:
        ValueError: a Hub field asks for something that LLaDA's published models do not do (ALiBi, other norms, …).
    """

    model_type = "llada"
    # The remote code's pointer, which TRL reads off every config it loads; always ignored, never written.
    auto_map = {}

    mask_token_id: int | None = None
    is_causal: bool = False
    use_cache: bool = False
    rms_norm_eps: float = 1e-5
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        for field, value in _FIXED_HUB_FIELDS.items():
            given = kwargs.pop(field, value)
            if given != value:
                raise ValueError(
                    f"config.{field}={given!r} is not supported for model_type='llada': the published LLaDA models "
                    f"have {field}={value!r}."
                )
        # Before super(): head_dim and the number of key/value heads are computed there from the Llama names.
        if kwargs.get("embedding_size", 0) is None:
            kwargs.pop("embedding_size")
        for hub_field, field in _HUB_FIELDS.items():
            if hub_field in kwargs:
                value = kwargs.pop(hub_field)
                setattr(self, field, value)
        # The remote code's class is gone: a stale pointer to it would be written back.
        kwargs.pop("auto_map", None)
        super().__post_init__(**kwargs)
        if self.is_causal:
            raise ValueError("config.is_causal=True contradicts model_type='llada', which attends in both directions.")

    def to_dict(self) -> dict[str, Any]:
        """The config in the Hub's field names, so that other tools read what is saved."""
        output = super().to_dict()
        for hub_field, field in _HUB_FIELDS.items():
            output[hub_field] = output[field]
        for field in set(_HUB_FIELDS.values()) - {"vocab_size"}:
            del output[field]
        output.update(hub_rope_fields(output.pop("rope_parameters", None)))
        output.update(_FIXED_HUB_FIELDS)
        return output


class LLaDAModelLM(DiffusionModelMixin, LlamaForCausalLM):
    """LLaDA with a language-model head. The name is the Hub's `architectures` entry, which saving writes back."""

    config_class = LLaDAConfig
    attention = "full"

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        block_length: int | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Llama's forward with full attention.

        Args:
            input_ids (`torch.LongTensor` of shape (B, L)):
                Tokens, [MASK] where nothing is known yet.
            attention_mask (`torch.Tensor` of shape (B, L), *optional*):
                0 on padding, left or right.
            position_ids (`torch.LongTensor` of shape (B, L), *optional*):
                Defaults to the positions counted from the first real token.
            labels (`torch.LongTensor` of shape (B, L), *optional*):
                Tokens to predict at their own positions, -100 elsewhere. The loss is their mean cross-entropy.
            block_length (`int`, *optional*):
                Not for this family: full attention has no blocks.
            kwargs:
                [`~transformers.LlamaForCausalLM`]'s other arguments (`logits_to_keep`, …).

        Raises:
            ValueError: `block_length` is given.
        """
        if block_length is not None:
            raise ValueError(f"block_length={block_length}: LLaDA attends to the whole sequence; leave it out.")
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            # Rotary embeddings depend on distances alone in exact arithmetic, not quite in bf16: a row must get the
            # same positions whatever it is padded with.
            position_ids = token_positions(attention_mask)
        output = super().forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )
        if labels is not None:
            output["loss"] = self.masked_token_loss(output.logits, labels)
        return output


def register():
    """Make `AutoConfig` and `AutoModelForCausalLM` load LLaDA checkpoints of the Hub natively."""
    AutoConfig.register("llada", LLaDAConfig, exist_ok=True)
    AutoModelForCausalLM.register(LLaDAConfig, LLaDAModelLM, exist_ok=True)
    register_checkpoint_conversion_mapping(
        "llada",
        [
            # Free of capturing groups, so that each rule can be run backwards when saving; and without effect on names
            # that are Llama's already, since PEFT runs the rules on the keys of every adapter it loads.
            WeightRenaming("model.transformer.wte", "model.embed_tokens"),
            WeightRenaming("model.transformer.ln_f", "model.norm"),
            WeightRenaming("model.transformer.ff_out", "lm_head"),
            WeightRenaming("model.transformer.blocks", "model.layers"),
            WeightRenaming("attn_norm", "input_layernorm"),
            WeightRenaming("ff_norm", "post_attention_layernorm"),
            WeightRenaming(r"(?<!self_attn)\.q_proj", ".self_attn.q_proj"),
            WeightRenaming(r"(?<!self_attn)\.k_proj", ".self_attn.k_proj"),
            WeightRenaming(r"(?<!self_attn)\.v_proj", ".self_attn.v_proj"),
            WeightRenaming(".attn_out", ".self_attn.o_proj"),
            WeightRenaming(".ff_proj", ".mlp.gate_proj"),
            WeightRenaming(r"(?<!mlp)\.up_proj", ".mlp.up_proj"),
            WeightRenaming(".ff_out", ".mlp.down_proj"),
        ],
        overwrite=True,
    )
