# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""SDAR and TraDo (arXiv 2510.06303, 2509.06949): a Qwen3 with block-causal attention.

Inside a block attention is bidirectional, across blocks it is causal. Key names on disk are Qwen3's own.
"""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from .attention import layout_mask, token_positions
from .modeling import DiffusionModelMixin, hub_rope_fields


# The published SDAR and TraDo checkpoints name neither in their config.
_DEFAULT_BLOCK_LENGTH = 4
_QWEN3_VOCAB_SIZE = 151936
_QWEN3_MASK_TOKEN_ID = 151669  # <|MASK|>


@strict
class SDARConfig(Qwen3Config):
    """Config of SDAR and TraDo: [`~transformers.Qwen3Config`] plus the mask token and the block length.

    Args:
        mask_token_id (`int`, *optional*):
            Id of [MASK]. Where the checkpoint names none and has Qwen3's vocabulary, 151669 (`<|MASK|>`).
        block_length (`int`, *optional*, defaults to 4):
            Tokens per attention block. Written to disk as `block_size`, the name the family's other tools read.

    Raises:
        ValueError: `block_length` is smaller than 1.
    """

    model_type = "sdar"
    # The remote code's pointer, which TRL reads off every config it loads; always ignored, never written.
    auto_map = {}

    mask_token_id: int | None = None
    block_length: int = _DEFAULT_BLOCK_LENGTH
    is_causal: bool = False
    use_cache: bool = False

    def __post_init__(self, **kwargs):
        block_size = kwargs.pop("block_size", None)
        if block_size is not None:
            self.block_length = block_size
        if self.block_length < 1:
            raise ValueError(f"config.block_length={self.block_length} must be at least 1.")
        if self.mask_token_id is None and self.vocab_size == _QWEN3_VOCAB_SIZE:
            self.mask_token_id = _QWEN3_MASK_TOKEN_ID
        kwargs.pop("auto_map", None)
        super().__post_init__(**kwargs)
        if self.use_sliding_window:
            raise ValueError("config.use_sliding_window=True is not supported for model_type='sdar'.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> "SDARConfig":
        """Read a Hub config. Its `attn_implementation` ("flex_attention") was meant for the remote code: the choice is
        left to the caller and to transformers' default."""
        config_dict = {name: value for name, value in config_dict.items() if name != "attn_implementation"}
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The config in the Hub's field names."""
        output = super().to_dict()
        output["block_size"] = output.pop("block_length")
        output.update(hub_rope_fields(output.pop("rope_parameters", None)))
        return output


class SDARForCausalLM(DiffusionModelMixin, Qwen3ForCausalLM):
    """SDAR or TraDo with a language-model head. The name is the Hub's `architectures` entry."""

    config_class = SDARConfig
    attention = "block_causal"

    @property
    def block_length(self) -> int:
        """Tokens per attention block, from the config."""
        return self.config.block_length

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        block_length: int | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Qwen3's forward with block-causal attention.

        Args:
            input_ids (`torch.LongTensor` of shape (B, L)):
                Tokens, [MASK] where nothing is known yet.
            attention_mask (`torch.Tensor`, *optional*):
                (B, L), 0 on padding: blocks are counted from each row's first real token. Or a mask that is ready for
                the attention implementation (4-D, or a `BlockMask`): used as it is.
            position_ids (`torch.LongTensor` of shape (B, L), *optional*):
                Defaults to the positions counted from the first real token.
            labels (`torch.LongTensor` of shape (B, L), *optional*):
                Tokens to predict at their own positions, -100 elsewhere. The loss is their mean cross-entropy.
            block_length (`int`, *optional*):
                Overrides the config's block length; at least L gives full attention.
            kwargs:
                [`~transformers.Qwen3ForCausalLM`]'s other arguments (`logits_to_keep`, `past_key_values`, …). With
                `past_key_values` the tokens given see the whole cache and one another.

        Raises:
            ValueError: `block_length` is smaller than 1.
        """
        if block_length is not None and block_length < 1:
            raise ValueError(f"block_length={block_length} must be at least 1.")
        padded = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
        if kwargs.get("past_key_values") is None and (attention_mask is None or padded):
            inputs_embeds = kwargs.get("inputs_embeds")
            tokens = input_ids if inputs_embeds is None else inputs_embeds[..., 0]
            valid = attention_mask if padded else torch.ones_like(tokens, dtype=torch.long)
            positions = token_positions(valid)
            position_ids = positions if position_ids is None else position_ids
            blocks = positions // (block_length or self.block_length)
            attention_mask = layout_mask(self.config, blocks, valid, dtype=self.dtype)
        output = super().forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )
        if labels is not None:
            output["loss"] = self.masked_token_loss(output.logits, labels)
        return output


def register():
    """Make `AutoConfig` and `AutoModelForCausalLM` load SDAR and TraDo checkpoints of the Hub natively."""
    AutoConfig.register("sdar", SDARConfig, exist_ok=True)
    AutoModelForCausalLM.register(SDARConfig, SDARForCausalLM, exist_ok=True)
