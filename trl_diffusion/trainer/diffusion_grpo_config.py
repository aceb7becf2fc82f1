# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Config of [`DiffusionGRPOTrainer`]."""

from dataclasses import dataclass, field

from trl import GRPOConfig

from ..generation import DiffusionGenerationConfig
from ..generation.unmasking import RULES
from .checks import reject


# GRPOConfig fields that next-token prediction, or an engine that cannot denoise, gives their meaning.
_UNSUPPORTED = {
    "use_vllm": (False, "vLLM cannot denoise and return the steps. Set use_vllm=False: the model generates."),
    "use_transformers_continuous_batching": (False, "a canvas is denoised as a whole. Set it to False."),
    "cache_implementation": (None, "it configures autoregressive caches. Leave it out."),
    "generation_kwargs": (None, "set the generation fields of this config (block_length, unmasking, …) instead."),
    "min_p": (None, "use top_k or top_p."),
    "repetition_penalty": (1.0, "tokens of a canvas are drawn together. Leave it at 1.0."),
    "importance_sampling_level": ("token", "the ratio is taken per token. Leave it at 'token'."),
    "top_entropy_quantile": (1.0, "leave it at 1.0."),
    "entropy_coef": (0.0, "leave it at 0.0."),
    "use_adaptive_entropy": (False, "leave it at False."),
    "off_policy_mask_threshold": (None, "leave it out."),
    "router_aux_loss_coef": (None, "the load-balancing loss of experts is not added. Leave it out."),
}
# Fields that bear the names of DiffusionGenerationConfig.
GENERATION_FIELDS = (
    "block_length",
    "num_denoising_steps",
    "unmasking",
    "threshold",
    "factor",
    "entropy_bound",
    "alg_temp",
    "step_schedule",
    "cache",
    "cache_refresh_interval",
    "temperature",
    "top_p",
)
_LOSS_TYPES = ("step", "grpo", "bnpo", "dr_grpo", "dapo")


@dataclass
class DiffusionGRPOConfig(GRPOConfig):
    r"""
    Configuration of the [`DiffusionGRPOTrainer`]: [`~trl.GRPOConfig`], and the fields below. `max_completion_length`
    is the length C of the canvas; `temperature`, `top_p` and `top_k` are TRL's.

    Parameters:
        > Parameters that control generation

        block_length (`int`, *optional*):
            Tokens per block of the canvas. Defaults to the model's block for block-causal models, else to the canvas.
        num_denoising_steps (`int`, *optional*):
            Denoising steps over the whole canvas. Defaults to C, one token per step.
        unmasking (`str`, *optional*, defaults to `"low_confidence"`):
            Which masked positions a step commits; the rules of [`DiffusionGenerationConfig`].
        threshold, factor, entropy_bound (`float`, *optional*):
            For the rules `"threshold"`, `"factor"` and `"entropy_bounded"`.
        alg_temp (`float`, *optional*):
            Makes the choice of positions stochastic.
        step_schedule (`str`, *optional*, defaults to `"even"`):
            How tokens are shared out over the steps: `"even"` or `"linear_time"`.
        cache (`str`, *optional*, defaults to `"none"`):
            Keys and values that rollouts reuse: `"block"` (exact) for block-causal models; `"prefix"` or `"dual"`
            (approximate) for full attention, whose rollouts are then drawn from a policy a little off the one that is
            scored.
        cache_refresh_interval (`int`, *optional*):
            Steps between refreshes of an approximate cache.

        > Parameters that control the loss

        loss_type (`str`, *optional*, defaults to `"grpo"`):
            How the tokens' losses are averaged. `"grpo"`: per completion, then over completions. `"bnpo"`: over the
            tokens of the batch. `"dr_grpo"`: divided by the canvas. `"dapo"`: over the tokens of all processes and
            accumulation steps. `"step"`: per denoising step, summed over the steps (TraceRL).

    > [!NOTE]
    > Changed defaults: `loss_type` is `"grpo"` instead of `"dapo"`. Fields of [`~trl.GRPOConfig`] that have no meaning
    > for a diffusion model are refused when set (vLLM, continuous batching, `min_p`, `repetition_penalty`, …).
    """

    loss_type: str = field(
        default="grpo",
        metadata={"help": "How the tokens' losses are averaged: 'step', 'grpo', 'bnpo', 'dr_grpo' or 'dapo'."},
    )
    block_length: int | None = field(
        default=None,
        metadata={"help": "Tokens per block of the canvas. Defaults to the model's block, or the whole canvas."},
    )
    num_denoising_steps: int | None = field(
        default=None, metadata={"help": "Denoising steps over the whole canvas. Defaults to one per token."}
    )
    unmasking: str = field(
        default="low_confidence",
        metadata={"help": f"Which masked positions a step commits: {', '.join(RULES)}."},
    )
    threshold: float | None = field(
        default=None, metadata={"help": "Confidence threshold of unmasking='threshold', in (0, 1]."}
    )
    factor: float | None = field(default=None, metadata={"help": "Factor of unmasking='factor'."})
    entropy_bound: float | None = field(
        default=None, metadata={"help": "Bound of unmasking='entropy_bounded', in nats."}
    )
    alg_temp: float | None = field(
        default=None, metadata={"help": "Temperature of the choice of positions; None: the best ones."}
    )
    step_schedule: str = field(
        default="even", metadata={"help": "How tokens are shared out over the steps: 'even' or 'linear_time'."}
    )
    cache: str = field(
        default="none",
        metadata={"help": "Keys and values that rollouts reuse: 'none', 'block' (exact), 'prefix' or 'dual'."},
    )
    cache_refresh_interval: int | None = field(
        default=None, metadata={"help": "Steps between refreshes of cache='prefix' or 'dual'."}
    )

    def __post_init__(self):
        # `reject` reads the fields as the user set them, before TRL acts on any of them.
        reject(self, _UNSUPPORTED)
        super().__post_init__()
        if self.loss_type not in _LOSS_TYPES:
            raise ValueError(f"loss_type={self.loss_type!r} must be one of {', '.join(_LOSS_TYPES)}.")
        if self.temperature <= 0:
            raise ValueError(
                f"temperature={self.temperature} must be positive: at 0 all completions of a group are the same, and "
                "every advantage is 0."
            )
        if not self.max_completion_length:
            raise ValueError(
                f"max_completion_length={self.max_completion_length} must be at least 1: it is the canvas."
            )
        # Now, not at the first rollout, or at the first checkpoint.
        self.diffusion_generation_config().check_saveable()

    def diffusion_generation_config(self, **kwargs) -> DiffusionGenerationConfig:
        """The settings of a rollout; `kwargs` add the special tokens and the seeds, or replace fields."""
        settings = {name: getattr(self, name) for name in GENERATION_FIELDS}
        settings |= {"max_new_tokens": self.max_completion_length, "top_k": self.top_k or None}
        return DiffusionGenerationConfig(**{**settings, **kwargs})
