# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Settings of a generation by denoising."""

import copy
import os
import sys
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import nn
from transformers import GenerationConfig
from transformers.utils import logging

from .policy import UnmaskingPolicy
from .unmasking import RULES


logger = logging.get_logger(__name__)

CACHES = ("none", "prefix", "dual", "block")
STEP_SCHEDULES = ("even", "linear_time")
# Fields that one rule reads: rule → field, and the field's range.
_RULE_FIELDS = {
    "threshold": ("threshold", lambda value: 0 < value <= 1, "lie in (0, 1]"),
    "factor": ("factor", lambda value: value > 0, "be positive"),
    "entropy_bounded": ("entropy_bound", lambda value: value > 0, "be positive"),
}
# Rules whose choice of positions can be made stochastic.
_RANKING_RULES = ("low_confidence", "maskgit_plus", "entropy", "topk_margin")

# Fields of transformers' GenerationConfig that denoising uses. The others steer autoregressive decoding.
_SHARED_FIELDS = {
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "guidance_scale",
    "num_return_sequences",
    "suppress_tokens",
    "begin_suppress_tokens",
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
    "entropy_bound": None,
    "alg_temp": None,
    "policy_temperature": None,
    "policy_beta": None,
    "step_schedule": "even",
    "cache": "none",
    "cache_refresh_interval": None,
    "torch_compile": False,
    "output_entropies": False,
    "seed": None,
}
_AUTOREGRESSIVE_FIELDS = set(vars(GenerationConfig())) - _SHARED_FIELDS


class DiffusionGenerationConfig(GenerationConfig):
    """Settings of a generation by denoising; saved as the model's `generation_config.json`.

    Args:
        max_new_tokens (`int`, *optional*, defaults to 256):
            Length C of the canvas, never rounded. 0 where only positions of the input are filled (`infill_mask`).
        block_length (`int`, *optional*):
            Tokens per block; blocks are filled from left to right. Defaults to the model's own block for block-causal
            models (a value given here then replaces the attention's block too), else to the whole canvas.
        num_denoising_steps (`int`, *optional*):
            Steps over the whole canvas, shared out block by block: a full block gets `num_denoising_steps ·
            block_length / C` (at least 1; earlier blocks take the remainder), a block with m positions to fill at
            most m, so that a ragged last block may add a few steps. Defaults to C: one token per step.
        unmasking (`str` or callable, *optional*, defaults to `"low_confidence"`):
            Which masked positions of the block a step commits. The step's share of them, picked by a score:

            - `"low_confidence"`: the probability of the drawn token at temperature 1 (LLaDA; with an even schedule,
              SDAR's static decoding);
            - `"maskgit_plus"`, `"entropy"`, `"topk_margin"`: the drawn token's probability, the negative entropy, the
              difference of the two largest probabilities, after temperature and filters (Dream);
            - `"random"`: any; `"sequential"`: the leftmost (SDAR).

            Or as many as the model is sure of, and at least the share:

            - `"threshold"`: confidence ≥ `threshold` (Fast-dLLM; at temperature 1 without filters SDAR's dynamic
              decoding);
            - `"factor"`: the n most confident while the n-th confidence ≥ 1 − `factor` / (n + 1) (Fast-dLLM);
            - `"entropy_bounded"`: the n surest while their entropies without the largest add up to ≤ `entropy_bound`
              (EB-sampler, arXiv 2505.24857).

            `"origin"`: each with the share's probability (Dream). Or a learned policy ([`UnmaskPolicyModel`]): the
            model, or its folder or Hub id; `num_denoising_steps` then bounds the steps of a block. Or a callable,
            which takes an [`UnmaskingState`] and returns the positions to commit.
        threshold, factor, entropy_bound (`float`, *optional*):
            For the rules that bear their names; `entropy_bound` in nats.
        alg_temp (`float`, *optional*):
            Makes the choice of positions stochastic: n are drawn without replacement from softmax(score / `alg_temp`)
            (Dream). `None` or 0: the n best.
        policy_temperature (`float`, *optional*):
            τ_π of a learned policy: its logits are divided by it; 0: what is more likely than not. Defaults to the
            policy's own.
        policy_beta (`float`, *optional*):
            β of a learned policy: positions are revealed with probability min(1, βs) instead of s; more than 1 is
            faster. `None`: 1.
        step_schedule (`str`, *optional*, defaults to `"even"`):
            How a block's tokens are shared out over its steps. `"even"`: earlier steps take the remainder (LLaDA).
            `"linear_time"`: times run from 1 to 0.001, step i commits ⌊masks left · (1 − t_{i+1}/t_i)⌋, the last step
            the rest (Dream).
        cache (`str`, *optional*, defaults to `"none"`):
            Keys and values that steps reuse. `"block"`, for block-causal models: those of finished blocks; exact. For
            full attention, both approximate (Fast-dLLM): `"prefix"`, a step recomputes the block and what lies right
            of it; `"dual"`, the block alone. A block's first step computes everything.
        cache_refresh_interval (`int`, *optional*):
            With `"prefix"` and `"dual"`: every so many steps of a block everything is computed anew. `None`: at its
            first step only.
        torch_compile (`bool`, *optional*, defaults to `False`):
            Compile the model's forward pass of a step, with static shapes: anew for each batch size and prompt width.
        output_entropies (`bool`, *optional*, defaults to `False`):
            Record in the rollout the entropy of the distribution that each token was drawn from.
        temperature (`float`, *optional*, defaults to 0.0):
            Divides the logits before a token is drawn; 0 takes the most probable token.
        top_k (`int`, *optional*), top_p (`float`, *optional*):
            transformers' filters, applied after the temperature. Without effect at temperature 0.
        guidance_scale (`float`, *optional*):
            Classifier-free guidance: unconditional + scale · (conditional − unconditional) logits, the unconditional
            ones computed with the given tokens masked. 1 or `None`: off. LLaDA's `cfg_scale` + 1.
        num_return_sequences (`int`, *optional*, defaults to 1):
            Completions of each prompt, in consecutive rows.
        suppress_tokens, begin_suppress_tokens (`list[int]`, *optional*):
            Tokens never drawn, and never drawn at the first generated position.
        seed (`int` or `list[int]`, *optional*):
            One seed, or one per row of the output. Row r draws from its own generator (seeds[r], or a hash of
            (seed, r)), so that a row does not depend on the batch it is in. `None`: drawn from torch's global
            generator.
        eos_token_id (`int` or `list[int]`, *optional*):
            Generation of a row stops at the end of the block in which an EOS stands with no mask before it.
        pad_token_id (`int`, *optional*):
            Stands behind the first EOS in the returned sequences. Defaults to the first EOS id.

    Raises:
        ValueError: a field's value is out of range, or the field does nothing in a generation by denoising.
    """

    def __init__(self, **kwargs):
        for name, default in _OWN_DEFAULTS.items():
            value = kwargs.pop(name, None)
            setattr(self, name, default if value is None else value)
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
            hint = ""
            if dropped.keys() & {"alg", "steps", "eps"}:
                hint = (
                    " Dream's `alg` is `unmasking` here, its `steps` are `num_denoising_steps` with "
                    "step_schedule='linear_time'."
                )
            logger.warning(f"Generation settings that have no meaning here are left out: {dropped}.{hint}")
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def from_model_config(cls, model_config) -> "DiffusionGenerationConfig":
        """Only the special tokens come from a model's config: its other fields are no generation settings."""
        fields = model_config if isinstance(model_config, dict) else model_config.to_dict()
        return cls(**{name: fields.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")})

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for [`from_dict`]; a live unmasking rule as its path."""
        plain, rule = copy.copy(self), self.unmasking
        plain.unmasking = rule if isinstance(rule, str) else rule_path(rule) or f"<unsaved {type(rule).__name__}>"
        if plain.unmasking not in RULES and os.path.isdir(plain.unmasking):
            plain.unmasking = os.path.abspath(plain.unmasking)  # the file may be read from another folder
        output = super(DiffusionGenerationConfig, plain).to_dict()
        output = {name: value.item() if isinstance(value, np.generic) else value for name, value in output.items()}
        # transformers refuses to write a temperature without it, and reads the file as its own class at times.
        output["do_sample"] = self.is_stochastic
        if not self.is_stochastic:
            output["temperature"] = None
        return output

    def __eq__(self, other) -> bool:
        """Whether all fields are equal; live unmasking rules where they are the same object."""
        same_rule = self.unmasking == getattr(other, "unmasking", None)
        return super().__eq__(other) and same_rule

    __hash__ = GenerationConfig.__hash__

    def update(self, **kwargs) -> dict[str, Any]:
        """As [`~transformers.GenerationConfig.update`]; an error changes nothing."""
        before = dict(vars(self))
        try:
            return super().update(**kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    def save_pretrained(self, *args, **kwargs):
        """As [`~transformers.GenerationConfig.save_pretrained`]. Raises as [`check_saveable`]."""
        self.check_saveable()
        return super().save_pretrained(*args, **kwargs)

    def check_saveable(self):
        """Raises a ValueError where a field is out of range, or `unmasking` a callable that no path leads to."""
        self.validate()
        if not isinstance(self.unmasking, str) and rule_path(self.unmasking) is None:
            raise ValueError(
                f"unmasking={self.unmasking!r} cannot be written to a file: save the module first, or define the "
                "function at the top level of a module that can be imported."
            )

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None):
        """Check every field; called on construction, on every update and before saving."""
        for name in sorted(_AUTOREGRESSIVE_FIELDS):
            value = getattr(self, name, None)
            if value is not None and not name.startswith("_"):
                raise ValueError(f"{name}={value!r} does nothing in a generation by denoising. Leave it out.")
        canvas = self.max_new_tokens
        _require(_is_int(canvas, 0), "max_new_tokens", canvas, "be at least 1 (0 only with infill_mask)")
        longest = f"lie in 1..max_new_tokens={canvas}" if canvas else "be at least 1"
        for name in ("block_length", "num_denoising_steps"):
            value = getattr(self, name)
            fits = value is None or (_is_int(value, 1) and (value <= canvas or not canvas))
            _require(fits, name, value, longest)
        self._validate_rule()
        _require(self.step_schedule in STEP_SCHEDULES, "step_schedule", self.step_schedule, _one_of(STEP_SCHEDULES))
        _require(self.cache in CACHES, "cache", self.cache, _one_of(CACHES))
        interval = self.cache_refresh_interval
        _require(
            interval is None or _is_int(interval, 1), "cache_refresh_interval", interval, "be at least 1, or None"
        )
        if interval is not None:
            _require(
                self.cache in ("prefix", "dual"), "cache_refresh_interval", interval, "be None without a cache to "
                "refresh (cache='prefix' or 'dual')",
            )  # fmt: skip
        _require_moderate("temperature", self.temperature)
        if self.top_k is not None:
            _require(_is_int(self.top_k, 0), "top_k", self.top_k, "be at least 0 (0 or None: off)")
        if self.top_p is not None:
            _require(_is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p, "lie in (0, 1]")
        if self.guidance_scale is not None:
            _require_moderate("guidance_scale", self.guidance_scale)
        if self.num_return_sequences is not None:
            _require(
                _is_int(self.num_return_sequences, 1), "num_return_sequences", self.num_return_sequences, "be ≥ 1"
            )
        for name in ("bos_token_id", "pad_token_id"):
            value = getattr(self, name)
            _require(value is None or _is_int(value, 0), name, value, "be a token id, or None")
        eos = self.eos_token_id if isinstance(self.eos_token_id, (list, tuple)) else [self.eos_token_id]
        good = all(token is None or _is_int(token, 0) for token in eos)
        _require(good, "eos_token_id", self.eos_token_id, "be a token id, or a list of them")
        for name in ("torch_compile", "output_entropies"):
            _require(isinstance(getattr(self, name), bool), name, getattr(self, name), "be True or False")
        seeds = self.seed if isinstance(self.seed, (list, tuple)) else [] if self.seed is None else [self.seed]
        good = all(isinstance(seed, Integral) and not isinstance(seed, bool) for seed in seeds)
        _require(good, "seed", self.seed, "be an integer, or a list of one per row")
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            value = getattr(self, name)
            good = value is None or (isinstance(value, (list, tuple)) and all(_is_int(token, 0) for token in value))
            _require(good, name, value, "be a list of token ids")

    def _validate_rule(self):
        """The unmasking rule and the fields that belong to one rule."""
        rule = self.unmasking
        if isinstance(rule, str):
            known = rule in RULES
            hint = f"be one of {', '.join(RULES)}, the folder or Hub id of a policy, or a callable"
            # With a dot: what a function that was live when it was saved is called in the file.
            _require(known or "." in rule or names_policy(rule), "unmasking", rule, hint)
        else:
            good = callable(rule) or isinstance(rule, UnmaskingPolicy)
            _require(good, "unmasking", rule, f"be one of {', '.join(RULES)}, a policy, or a callable")
        self._validate_policy(names_policy(rule) if isinstance(rule, str) else isinstance(rule, UnmaskingPolicy))
        for name, (field, in_range, wanted) in _RULE_FIELDS.items():
            value = getattr(self, field)
            if rule == name:
                good = _is_number(value) and in_range(value)
                _require(good, field, value, f"{wanted} with unmasking='{name}'")
            else:
                _require(value is None, field, value, f"be None unless unmasking='{name}'")
        if self.alg_temp is not None:
            _require_moderate("alg_temp", self.alg_temp)
            ranks = rule in _RANKING_RULES or not self.alg_temp
            _require(
                ranks, "alg_temp", self.alg_temp, f"be None unless unmasking is one of {', '.join(_RANKING_RULES)}"
            )

    def _validate_policy(self, decides: bool):
        """The fields of a learned policy; `decides`: whether there is one."""
        temperature, beta = self.policy_temperature, self.policy_beta
        for name, value in (("policy_temperature", temperature), ("policy_beta", beta)):
            if value is not None:
                _require(decides, name, value, "be None unless unmasking is a learned policy")
                _require_moderate(name, value)
        _require(beta != 0, "policy_beta", beta, "be positive")
        drawn = beta is None or temperature != 0
        _require(drawn, "policy_beta", beta, "be None with policy_temperature=0, where nothing is drawn")
        even = not decides or self.step_schedule == "even"
        _require(even, "step_schedule", self.step_schedule, "be 'even' with a learned policy, which has no schedule")

    @property
    def eos_token_ids(self) -> list[int]:
        """Every id that ends a completion; empty where none does."""
        eos = self.eos_token_id
        return [int(eos)] if isinstance(eos, Integral) else [token for token in eos or [] if token is not None]

    @property
    def filters_tokens(self) -> bool:
        """Whether top-k or top-p cuts the distribution that tokens are drawn from."""
        return bool(self.top_k) or (self.top_p is not None and self.top_p < 1)

    @property
    def guides(self) -> bool:
        """Whether classifier-free guidance is on."""
        return self.guidance_scale is not None and self.guidance_scale != 1

    @property
    def changes_distribution(self) -> bool:
        """Whether tokens come from another distribution than the model's own at the temperature, which is the one
        that a scorer computes."""
        filtered = self.filters_tokens and self.temperature > 0
        return filtered or self.guides or bool(self.suppress_tokens) or bool(self.begin_suppress_tokens)

    @property
    def is_stochastic(self) -> bool:
        """Whether two rows of the same prompt can differ."""
        rule = self.unmasking
        # A name that is no rule's is a policy's, which draws the positions.
        chooses_at_random = rule not in RULES or rule in ("random", "origin") if isinstance(rule, str) else True
        return bool(self.temperature > 0 or self.alg_temp or chooses_at_random)


def names_policy(rule: str) -> bool:
    """Whether the name of a rule is the folder or the Hub id of a policy."""
    return rule not in RULES and ("/" in rule or os.path.isdir(rule))


def rule_path(rule: Callable) -> str | None:
    """Where a live unmasking rule can be found again: the folder or Hub id of a saved model, `module.function` of a
    function; `None` where nothing leads to it."""
    if isinstance(rule, nn.Module):
        return getattr(rule, "name_or_path", None) or None
    module, name = getattr(rule, "__module__", None), getattr(rule, "__qualname__", "")
    if module == "__main__" or getattr(sys.modules.get(module), name, None) is not rule:
        return None
    return f"{module}.{name}"


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _require_moderate(field: str, value: Any):
    """Not so far from 1 that logits overflow."""
    good = _is_number(value) and (value == 0 or 1e-6 <= value <= 1e6)
    _require(good, field, value, "be 0, or lie in 1e-6..1e6")


def _one_of(values: tuple[str, ...]) -> str:
    return f"be one of {', '.join(values)}"


def _require(condition: bool, field: str, value: Any, remedy: str):
    if not condition:
        raise ValueError(f"{field}={value!r} must {remedy}.")
