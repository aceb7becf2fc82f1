# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What the configs of all families share: the Hub's field names, the mask token, the block."""

from dataclasses import dataclass, fields
from typing import Any

from transformers import PreTrainedConfig


_ROPE_FIELDS = ("rope_theta", "rope_scaling", "partial_rotary_factor")


@dataclass(kw_only=True, repr=False)
class DiffusionConfigMixin:
    """Makes a config of transformers the config of a diffusion language model.

    A family inherits it before the config it extends, and says in class attributes what its Hub files look like:

    - `hub_fields`: Hub field → field of the library, where the names differ; written back on saving;
    - `fixed_hub_fields`: Hub fields that would change the arithmetic → the only value that is accepted;
    - `known_mask_token_ids`: size of the vocabulary → id of [MASK], for published models whose config names none;
    - `mask_token`: how their tokenizers write it.

    Args:
        mask_token_id (`int`, *optional*):
            Id of [MASK].
        is_causal (`bool`, *optional*, defaults to `False`):
            transformers' switch for bidirectional attention.
        use_cache (`bool`, *optional*, defaults to `False`):
            Whether a forward pass returns keys and values.

    Raises:
        ValueError: a field asks for something that the family does not do.
    """

    # The remote code's pointer, which TRL reads off every config it loads; always ignored, never written.
    auto_map = {}
    hub_fields = {}
    fixed_hub_fields = {}
    known_mask_token_ids = {}
    mask_token = "<|mask|>"

    mask_token_id: int | None = None
    is_causal: bool = False
    use_cache: bool = False

    def __post_init__(self, **kwargs):
        for field, value in self.fixed_hub_fields.items():
            given = kwargs.pop(field, value)
            if given != value:
                raise ValueError(
                    f"config.{field}={given!r} is not supported for model_type={self.model_type!r}: what is "
                    f"computed here is {field}={value!r}, as in the published models."
                )
        # Before super(): head_dim and the number of key/value heads are computed there from the library's names.
        for hub_field, field in self.hub_fields.items():
            if hub_field in kwargs:
                setattr(self, field, kwargs.pop(hub_field))
        if self.mask_token_id is None:
            self.mask_token_id = self.known_mask_token_ids.get(self.vocab_size)
        # The remote code's class is gone: a stale pointer to it would be written back.
        kwargs.pop("auto_map", None)
        super().__post_init__(**kwargs)
        if self.is_causal:
            raise ValueError(
                f"config.is_causal=True contradicts model_type={self.model_type!r}, which attends in both directions."
            )
        own = {field.name for field in fields(self)}
        if "sliding_window" in own and "use_sliding_window" not in own and self.sliding_window is not None:
            raise ValueError(
                f"config.sliding_window={self.sliding_window} is not supported for model_type={self.model_type!r}: "
                "tokens see the whole row, or whole blocks. Set it to None."
            )
        for field, wrong in (("use_sliding_window", True), ("layer_types", "sliding_attention")):
            given = getattr(self, field, None)
            if given == wrong or (isinstance(given, list) and wrong in given):
                raise ValueError(f"config.{field}={given!r} is not supported for model_type={self.model_type!r}.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Read a Hub config. An `attn_implementation` found there (SDAR: "flex_attention") was meant for the remote
        code: the choice is left to the caller and to transformers' default. The `model_type` is the class's, whatever
        the file calls it (LLaDA-MoE), since the conversion rules go by it.

        Keywords that name fields, by the Hub's names or the library's, replace those of the file before anything is
        derived from them or checked; transformers would set them afterwards.
        """
        config_dict = {
            name: value for name, value in config_dict.items() if name not in ("attn_implementation", "model_type")
        }
        aliases = cls._field_aliases()
        known = {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}
        known |= {*aliases, *aliases.values(), *cls.fixed_hub_fields, *_ROPE_FIELDS}
        for name in known & set(kwargs):
            field = aliases.get(name, name)
            for other in [field, *(alias for alias, target in aliases.items() if target == field)]:
                config_dict.pop(other, None)
            if name == "rope_parameters":
                for other in _ROPE_FIELDS:
                    config_dict.pop(other, None)
            if field == "num_hidden_layers":
                config_dict.pop("layer_types", None)  # a list as long as the layers; derived again
            config_dict[name] = kwargs.pop(name)
        # "Not set", where the library would compute with nothing.
        if config_dict.get("head_dim", 0) is None:
            del config_dict["head_dim"]
        if config_dict.get("num_key_value_heads", 0) is None:
            config_dict["num_key_value_heads"] = config_dict.get("num_attention_heads")
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def _field_aliases(cls) -> dict[str, str]:
        """Other names of fields -> the fields."""
        return {**cls.attribute_map, **cls.hub_fields}

    def to_dict(self) -> dict[str, Any]:
        """The config in the Hub's field names, so that other tools read what is saved."""
        output = super().to_dict()
        for hub_field, field in self.hub_fields.items():
            output[hub_field] = output.get(field)
        for field in set(self.hub_fields.values()) - set(self.hub_fields) - {"vocab_size"}:
            output.pop(field, None)
        output.update(_hub_rope_fields(output.pop("rope_parameters", None)))
        output.update(self.fixed_hub_fields)
        return output


@dataclass(kw_only=True, repr=False)
class BlockDiffusionConfigMixin(DiffusionConfigMixin):
    """The same for a family with block-causal attention.

    Args:
        block_length (`int`, *optional*):
            Tokens per attention block: attention is bidirectional inside a block and causal across blocks. Written to
            disk as `block_size`, the name that other tools read. Defaults to the family's `default_block_length`;
            where that is `None`, to full attention.
    """

    default_block_length = None

    @classmethod
    def _field_aliases(cls) -> dict[str, str]:
        return {**super()._field_aliases(), "block_size": "block_length"}

    block_length: int | None = None

    def __post_init__(self, **kwargs):
        block_size = kwargs.pop("block_size", None)
        if block_size is not None:
            self.block_length = block_size
        if self.block_length is None:
            self.block_length = self.default_block_length
        if self.block_length is not None and self.block_length < 1:
            raise ValueError(f"config.block_length={self.block_length} must be at least 1.")
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The config in the Hub's field names."""
        output = super().to_dict()
        output["block_size"] = output.pop("block_length")
        return output


def _hub_rope_fields(rope_parameters: dict[str, Any] | None) -> dict[str, Any]:
    """transformers 5's `rope_parameters` in the fields that the Hub's configs and other tools use."""
    rope = dict(rope_parameters or {})
    fields = {"rope_theta": rope.pop("rope_theta", 10000.0)}
    if "partial_rotary_factor" in rope:
        fields["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    if rope.keys() - {"rope_type"}:
        fields["rope_scaling"] = rope
    return fields
