# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What the configs of all RL trainers share: rollouts and rewards."""

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
    "policy_temperature",
    "policy_beta",
    "step_schedule",
    "cache",
    "cache_refresh_interval",
    "temperature",
    "top_p",
)


@dataclass
class DenoisingGRPOConfig(GRPOConfig):
    r"""
    What the configs of the RL trainers share: [`~trl.GRPOConfig`], and the fields below. `max_completion_length` is
    the length C of the canvas; `temperature`, `top_p` and `top_k` are TRL's.

    Parameters:
        > Parameters that control generation

        block_length (`int`, *optional*):
            Tokens per block of the canvas. Defaults to the model's block for block-causal models, else to the canvas.
        num_denoising_steps (`int`, *optional*):
            Denoising steps over the whole canvas. Defaults to C, one token per step.
        unmasking (`str`, *optional*, defaults to `"low_confidence"`):
            Which masked positions a step commits: the rules of [`DiffusionGenerationConfig`], or the folder or Hub id
            of a learned policy.
        threshold, factor, entropy_bound (`float`, *optional*):
            For the rules `"threshold"`, `"factor"` and `"entropy_bounded"`.
        alg_temp (`float`, *optional*):
            Makes the choice of positions stochastic.
        policy_temperature, policy_beta (`float`, *optional*):
            With a learned policy: its temperature, and what its probabilities are multiplied by.
        step_schedule (`str`, *optional*, defaults to `"even"`):
            How tokens are shared out over the steps: `"even"` or `"linear_time"`.
        cache (`str`, *optional*, defaults to `"none"`):
            Keys and values that rollouts reuse: `"block"` (exact) for block-causal models; `"prefix"` or `"dual"`
            (approximate) for full attention, whose rollouts are then drawn from a policy a little off the one that is
            scored.
        cache_refresh_interval (`int`, *optional*):
            Steps between refreshes of an approximate cache.

        > Parameters that control the rewards

        truncated_reward (`float`, *optional*):
            What each reward function counts for a completion without EOS; 0 counts it as wrong, as `difficulty_range`
            does then too. Rewards per token are left as they are. `None`: the functions' own.
        difficulty_range (`list[float]`, *optional*):
            `[low, high]`: train only on groups whose mean correctness lies in it, both included. The paper's range in
            mathematics is `[0.2, 0.8]`. `None`: on all.
        correctness_reward (`str`, *optional*):
            Name of the reward function that returns correctness, in [0, 1], for `difficulty_range`. Defaults to the
            only one.

        > Parameters that control the Hub

        push_merged_adapter (`bool`, *optional*, defaults to `False`):
            Push the base with the adapter merged into its weights, instead of the adapter; at the end only. Not for
            quantized bases.

    > [!NOTE]
    > Fields of [`~trl.GRPOConfig`] that have no meaning for a diffusion model are refused when set (vLLM, continuous
    > batching, `min_p`, `repetition_penalty`, …).
    """

    block_length: int | None = field(
        default=None,
        metadata={"help": "Tokens per block of the canvas. Defaults to the model's block, or the whole canvas."},
    )
    num_denoising_steps: int | None = field(
        default=None, metadata={"help": "Denoising steps over the whole canvas. Defaults to one per token."}
    )
    unmasking: str = field(
        default="low_confidence",
        metadata={"help": f"Which masked positions a step commits: {', '.join(RULES)}, or a policy's folder or id."},
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
    policy_temperature: float | None = field(
        default=None, metadata={"help": "Temperature of a learned unmasking policy; None: its own."}
    )
    policy_beta: float | None = field(
        default=None, metadata={"help": "What a learned policy's probabilities are multiplied by; None: 1."}
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

    truncated_reward: float | None = field(
        default=None, metadata={"help": "Reward of completions without EOS; 0 counts them as wrong."}
    )
    difficulty_range: list[float] | None = field(
        default=None, metadata={"help": "[low, high]: train only on groups whose mean correctness lies in it."}
    )
    correctness_reward: str | None = field(
        default=None, metadata={"help": "Name of the reward function that difficulty_range goes by."}
    )

    push_merged_adapter: bool = field(
        default=False,
        metadata={"help": "Push the base with the adapter merged into it, at the end, instead of the adapter."},
    )

    # Whether the trainer goes by correctness without `difficulty_range` too.
    _needs_correctness = False

    def __post_init__(self):
        # `reject` reads the fields as the user set them, before TRL acts on any of them.
        reject(self, _UNSUPPORTED)
        super().__post_init__()
        if not self.max_completion_length:
            raise ValueError(
                f"max_completion_length={self.max_completion_length} must be at least 1: it is the canvas."
            )
        self._check_difficulty()
        # Now, not at the first rollout, or at the first checkpoint.
        self.diffusion_generation_config().check_saveable()

    def _check_difficulty(self):
        if self.difficulty_range is None:
            if self.correctness_reward is not None and not self._needs_correctness:
                raise ValueError(
                    f"correctness_reward={self.correctness_reward!r} has no effect without difficulty_range. Set it "
                    "to [low, high], or leave correctness_reward out."
                )
            return
        bounds = self.difficulty_range
        if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] <= 1:
            raise ValueError(f"difficulty_range={bounds!r} must be [low, high] with 0 ≤ low ≤ high ≤ 1.")

    def diffusion_generation_config(self, **kwargs) -> DiffusionGenerationConfig:
        """The settings of a rollout; `kwargs` add the special tokens and the seeds, or replace fields."""
        settings = {name: getattr(self, name) for name in GENERATION_FIELDS}
        settings |= {"max_new_tokens": self.max_completion_length, "top_k": self.top_k or None}
        return DiffusionGenerationConfig(**{**settings, **kwargs})
