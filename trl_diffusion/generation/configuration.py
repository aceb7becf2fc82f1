# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Settings of a generation by denoising."""

from typing import Any, Literal, get_args

from transformers import GenerationConfig
from transformers.utils import logging


logger = logging.get_logger(__name__)

Unmasking = Literal["low_confidence", "random", "threshold"]

# Fields of transformers' GenerationConfig that denoising uses. The others steer autoregressive decoding.
_SHARED_FIELDS = {
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "return_dict_in_generate",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "transformers_version",
}
_OWN_DEFAULTS = {
    "block_length": None,
    "num_denoising_steps": None,
    "unmasking": "low_confidence",
    "threshold": None,
    "factor": None,
    "step_schedule": "even",
    "cache": "none",
    "seed": None,
}
_AUTOREGRESSIVE_FIELDS = set(vars(GenerationConfig())) - _SHARED_FIELDS


class DiffusionGenerationConfig(GenerationConfig):
    """Settings of a generation by denoising; saved as the model's `generation_config.json`.

    Args:
        max_new_tokens (`int`, *optional*, defaults to 256):
            Length C of the canvas, never rounded.
        block_length (`int`, *optional*):
            Tokens per block; blocks are filled from left to right. Defaults to the model's own block for block-causal
            models (a value given here then replaces the attention's block too), else to the whole canvas.
        num_denoising_steps (`int`, *optional*):
            Steps over the whole canvas, shared out block by block: a full block gets `num_denoising_steps ·
            block_length / C` (at least 1; earlier blocks take the remainder), a partial block of m positions at most
            m. Defaults to C: one token per step.
        unmasking (`str`, *optional*, defaults to `"low_confidence"`):
            Which masked positions of the block a step commits. `"low_confidence"`: those whose drawn token is most
            probable (LLaDA). `"random"`: random ones. `"threshold"`: all whose drawn token has probability ≥
            `threshold`, and at least the step's even share (Fast-dLLM; SDAR's dynamic decoding).
        threshold (`float`, *optional*):
            For `unmasking="threshold"`, in (0, 1].
        factor (`float`, *optional*):
            Reserved for the factor rule; `None`.
        step_schedule (`str`, *optional*, defaults to `"even"`):
            How a block's tokens are shared out over its steps: `"even"`, earlier steps take the remainder (LLaDA).
        cache (`str`, *optional*, defaults to `"none"`):
            Key/value cache: `"none"`.
        temperature (`float`, *optional*, defaults to 0.0):
            Divides the logits before a token is drawn; 0 takes the most probable token.
        top_k (`int`, *optional*), top_p (`float`, *optional*):
            transformers' filters, applied after the temperature.
        seed (`int` or `list[int]`, *optional*):
            One seed, or one per row. Row r draws from its own generator (seeds[r], or a hash of (seed, r)), so that
            a row does not depend on the batch it is in. `None`: drawn from torch's global generator.
        eos_token_id, pad_token_id (`int` or `list[int]`, *optional*):
            Generation of a row stops at the end of the block in which an EOS stands with no mask before it.

    Raises:
        ValueError: a field's value is out of range, or the field does nothing in a generation by denoising.
    """

    def __init__(self, **kwargs):
        for name, default in _OWN_DEFAULTS.items():
            setattr(self, name, kwargs.pop(name, default))
        for name, default in (("max_new_tokens", 256), ("temperature", 0.0)):
            if kwargs.get(name) is None:
                kwargs[name] = default
        unknown = sorted(name for name in kwargs if name not in _SHARED_FIELDS and not name.startswith("_"))
        for name in unknown:
            if name not in _AUTOREGRESSIVE_FIELDS:
                raise ValueError(f"{name}={kwargs[name]!r} is not a field of DiffusionGenerationConfig.")
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> "DiffusionGenerationConfig":
        """Build from a `generation_config.json`; autoregressive settings found there are reported and dropped."""
        config_dict = dict(config_dict)
        # `do_sample` and the temperature say the same thing twice; here the temperature alone does.
        do_sample = config_dict.pop("do_sample", None)
        if do_sample is False:
            config_dict["temperature"] = 0.0
        elif do_sample and config_dict.get("temperature") is None:
            config_dict["temperature"] = 1.0
        known = _SHARED_FIELDS | set(_OWN_DEFAULTS)
        dropped = {
            name: config_dict.pop(name) for name in list(config_dict) if name not in known and not name.startswith("_")
        }
        # What transformers itself writes into every file says nothing.
        silent = {"use_cache": True, "output_attentions": False, "output_hidden_states": False, "output_scores": False}
        dropped = {name: value for name, value in dropped.items() if value not in (None, silent.get(name))}
        if dropped:
            logger.warning(f"Generation settings without a meaning for a diffusion model are left out: {dropped}.")
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def from_model_config(cls, model_config) -> "DiffusionGenerationConfig":
        """Only the special tokens come from a model's config: its other fields are no generation settings."""
        fields = model_config if isinstance(model_config, dict) else model_config.to_dict()
        return cls(**{name: fields.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")})

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None):
        """Check every field; called on construction, on every update and before saving."""
        for name in sorted(_AUTOREGRESSIVE_FIELDS):
            value = getattr(self, name, None)
            if value is not None and not name.startswith("_"):
                raise ValueError(f"{name}={value!r} does nothing in a generation by denoising. Leave it out.")
        _require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "be at least 1")
        if self.block_length is not None:
            _require(
                isinstance(self.block_length, int) and 1 <= self.block_length <= self.max_new_tokens,
                "block_length",
                self.block_length,
                f"lie in 1..max_new_tokens={self.max_new_tokens}",
            )
        if self.num_denoising_steps is not None:
            _require(
                isinstance(self.num_denoising_steps, int) and 1 <= self.num_denoising_steps <= self.max_new_tokens,
                "num_denoising_steps",
                self.num_denoising_steps,
                f"lie in 1..max_new_tokens={self.max_new_tokens}: a step commits at least one token",
            )
        _require(
            self.unmasking in get_args(Unmasking),
            "unmasking",
            self.unmasking,
            f"be one of {', '.join(get_args(Unmasking))}",
        )
        if self.unmasking == "threshold":
            _require(
                self.threshold is not None and 0 < self.threshold <= 1,
                "threshold",
                self.threshold,
                "lie in (0, 1] with unmasking='threshold'",
            )
        else:
            _require(self.threshold is None, "threshold", self.threshold, "be None unless unmasking='threshold'")
        _require(self.factor is None, "factor", self.factor, "be None: no unmasking rule uses it yet")
        _require(self.step_schedule == "even", "step_schedule", self.step_schedule, "be 'even'")
        _require(self.cache == "none", "cache", self.cache, "be 'none'")
        _require(self.temperature >= 0, "temperature", self.temperature, "be at least 0")
        if self.top_k is not None:
            _require(self.top_k >= 0, "top_k", self.top_k, "be at least 0 (0 or None: off)")
        if self.top_p is not None:
            _require(0 < self.top_p <= 1, "top_p", self.top_p, "lie in (0, 1]")

    @property
    def eos_token_ids(self) -> list[int]:
        """Every id that ends a completion; empty where none does."""
        eos = self.eos_token_id
        return [eos] if isinstance(eos, int) else [token for token in eos or [] if token is not None]

    @property
    def filters_tokens(self) -> bool:
        """Whether top-k or top-p cuts the distribution that tokens are drawn from."""
        return bool(self.top_k) or (self.top_p is not None and self.top_p < 1)


def _require(condition: bool, field: str, value: Any, remedy: str):
    if not condition:
        raise ValueError(f"{field}={value!r} must {remedy}.")
