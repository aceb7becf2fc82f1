# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Config of [`UnmaskPolicyTrainer`]."""

import math
from dataclasses import dataclass, field
from typing import Any

from ..generation.unmasking import RULES
from .checks import reject
from .denoising_config import DenoisingGRPOConfig


_RULES = "the policy decides what a step reveals. Leave it out."
# Fields that decide what the policy is to decide, or that belong to losses of tokens.
_UNSUPPORTED = {
    "unmasking": ("low_confidence", _RULES),
    "threshold": (None, "the policy decides what a step reveals. The expert's is expert_threshold."),
    "factor": (None, _RULES),
    "entropy_bound": (None, _RULES),
    "alg_temp": (None, _RULES),
    "step_schedule": ("even", _RULES),
    "policy_beta": (None, "a policy is trained on its own probabilities. Set it for generation."),
    "beta": (0.0, "there is no KL to a reference policy. Leave it at 0."),
    "sync_ref_model": (False, "there is no reference policy. Leave it at False."),
    "loss_type": ("grpo", "the loss is the mean over a trajectory's steps, and over trajectories. Leave it out."),
    "multi_objective_aggregation": ("sum_then_normalize", "rewards are summed before steps are taken off. Leave it."),
    "cast_lm_head_to_fp32": (False, "a policy has no vocabulary, and computes in fp32. Leave it at False."),
    "importance_sampling_level": ("token", "the ratio is that of a step. Leave it out."),
    "use_bias_correction_kl": (False, "there is no KL. Leave it at False."),
}
REWARD_FORMS = ("multiplicative", "additive")


@dataclass
class UnmaskPolicyConfig(DenoisingGRPOConfig):
    r"""
    Configuration of the [`UnmaskPolicyTrainer`]: [`DenoisingGRPOConfig`] (TRL's, with the fields of rollouts and
    rewards), and the fields below. `num_denoising_steps` bounds the steps of a trajectory (default: one per token of a
    block; with a block's last step everything left in it is committed); `model_init_kwargs` are those of a policy that
    is given by name.

    Parameters:
        > Parameters that control the reward

        alpha (`float`, *optional*, defaults to `1.0`):
            α ≥ 0, what steps cost: r · (1 − steps/C)^α. The larger, the faster the policy; above 4 training is
            unstable.
        reward_form (`str`, *optional*, defaults to `"multiplicative"`):
            `"multiplicative"`: as above, for rewards r ≥ 0. `"additive"`: r − α · steps/C, an ablation: where a policy
            seldom solves anything it learns to reveal everything at once.

        > Parameters that control the policy and its environment

        policy_temperature (`float`, *optional*):
            τ_π > 0 that actions are drawn and scored with; the trained policy's own from then on. Defaults to the
            policy's own.
        expert_steering (`bool`, *optional*, defaults to `False`):
            The last of the `num_generations` of a group is made by a heuristic, confidence threshold, instead of the
            policy, and scored under the mixture ((G − 1) π + 1) / G; helps where blocks are long.
        expert_threshold (`float`, *optional*, defaults to `0.9`):
            Its threshold.
        expert_block_length (`int`, *optional*, defaults to `32`):
            Its block (at most the canvas); a policy's `block_length` is a multiple of it.
        dllm_init_kwargs (`dict` or JSON `str`, *optional*):
            Keyword arguments of `from_pretrained` for a `dllm` that is given by name (`dtype`, `device_map`,
            `attn_implementation`, …).
        dllm_learning_rate (`float`, *optional*):
            Joint training: with each update of the policy the diffusion language model gets one too, by TraceRL's
            objective on the same trajectories, at this learning rate. Needs a `temperature` above 0. `None`: it is
            frozen.

    > [!NOTE]
    > Changed defaults, to the paper's settings: `temperature` 0, `epsilon` 0.5, `num_iterations` 2,
    > `scale_rewards` `"none"`, `learning_rate` 3e-5 with a cosine schedule and 100 steps of warm-up, `adam_beta2`
    > 0.99, `weight_decay` 0.1, `max_grad_norm` 0.2. `loss_type` is `"grpo"`, and `bf16` off: the policy computes in
    > fp32. It is evaluated and saved every 50 steps, and at the end the best one by `eval_reward` is loaded.
    """

    _VALID_DICT_FIELDS = DenoisingGRPOConfig._VALID_DICT_FIELDS + ["dllm_init_kwargs"]

    alpha: float = field(default=1.0, metadata={"help": "What steps cost: r (1 − steps/C)^alpha."})
    reward_form: str = field(
        default="multiplicative", metadata={"help": "'multiplicative', or 'additive': r − alpha · steps/C."}
    )
    policy_temperature: float | None = field(
        default=None,
        metadata={"help": "Temperature that the policy's actions are drawn and scored with; None: its own."},
    )
    expert_steering: bool = field(
        default=False, metadata={"help": "The last rollout of each group is that of a confidence threshold."}
    )
    expert_threshold: float = field(default=0.9, metadata={"help": "Threshold of the expert, in (0, 1]."})
    expert_block_length: int = field(default=32, metadata={"help": "Tokens per block of the expert."})
    dllm_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments of from_pretrained for the diffusion language model."}
    )
    dllm_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Train the diffusion language model too, at this learning rate; None: frozen."},
    )
    temperature: float = field(
        default=0.0, metadata={"help": "Temperature of the tokens; 0: all randomness is the policy's."}
    )
    epsilon: float = field(default=0.5, metadata={"help": "Clip range of a step's ratio."})
    num_iterations: int = field(default=2, metadata={"help": "Updates on each rollout."})
    scale_rewards: str = field(
        default="none", metadata={"help": "'none': advantages are rewards less their group's mean; 'group', 'batch'."}
    )
    loss_type: str = field(default="grpo", metadata={"help": "Always 'grpo'."})
    use_bias_correction_kl: bool = field(default=False, metadata={"help": "Not supported."})
    learning_rate: float = field(default=3e-5, metadata={"help": "Peak learning rate of the policy."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=100, metadata={"help": "Warm-up steps; below 1: their share."})
    adam_beta2: float = field(default=0.99, metadata={"help": "Adam's second beta."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay."})
    max_grad_norm: float = field(default=0.2, metadata={"help": "Largest norm of the gradient."})
    bf16: bool | None = field(default=False, metadata={"help": "bf16 autocast around the diffusion language model."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Not supported: the policy is small."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate: 'no', 'steps' or 'epoch'."})
    eval_steps: float | None = field(default=50, metadata={"help": "Steps between evaluations."})
    save_steps: float = field(default=50, metadata={"help": "Steps between checkpoints."})
    load_best_model_at_end: bool | None = field(
        default=None, metadata={"help": "Load the best policy at the end; None: where one is evaluated and saved."}
    )
    metric_for_best_model: str | None = field(
        default="eval_reward", metadata={"help": "What the best policy is best in."}
    )

    def __post_init__(self):
        reject(self, _UNSUPPORTED)
        if self.gradient_checkpointing or self.activation_checkpointing:
            name = "gradient_checkpointing" if self.gradient_checkpointing else "activation_checkpointing"
            raise ValueError(
                f"{name}=True is not supported by UnmaskPolicyConfig: the policy is small, and its "
                "passes are cut into pieces. Leave it out."
            )
        if self.load_best_model_at_end is None:
            names = [getattr(strategy, "value", strategy) for strategy in (self.eval_strategy, self.save_strategy)]
            self.load_best_model_at_end = names[0] == names[1] != "no"
        super().__post_init__()
        if self.alpha is None or not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha={self.alpha} must be a number that is not negative: it is what steps cost.")
        if self.reward_form not in REWARD_FORMS:
            raise ValueError(f"reward_form={self.reward_form!r} must be one of {', '.join(REWARD_FORMS)}.")
        self._check_rewards()
        if self.temperature == 0 and (self.top_k or (self.top_p is not None and self.top_p < 1)):
            raise ValueError(
                f"top_k={self.top_k} and top_p={self.top_p} have no effect with temperature=0, which takes the most "
                "probable tokens. Leave them out."
            )
        if self.policy_temperature is not None and not 0 < self.policy_temperature < math.inf:
            raise ValueError(
                f"policy_temperature={self.policy_temperature} must be positive: at 0 nothing is drawn, and there is "
                "nothing to learn from."
            )
        self._check_expert()
        canvas = self.max_completion_length
        block = min(self.block_length or canvas, canvas)
        # Of steps · block / canvas the first blocks take what is over.
        one_each = self.num_denoising_steps is not None and self.num_denoising_steps * block <= canvas
        if canvas > 1 and (block == 1 or one_each):
            raise ValueError(
                f"num_denoising_steps={self.num_denoising_steps} and block_length={self.block_length} leave one step "
                "for each block, with which everything in it is revealed: there is nothing to decide. Raise them."
            )
        if self.dllm_learning_rate is not None:
            if self.dllm_learning_rate <= 0:
                raise ValueError(f"dllm_learning_rate={self.dllm_learning_rate} must be positive, or None.")
            if self.temperature <= 0:
                raise ValueError(
                    f"dllm_learning_rate={self.dllm_learning_rate} with temperature={self.temperature}: tokens that "
                    "are not drawn at random say nothing about better ones. Set a temperature, e.g. 1.0."
                )

    def _check_rewards(self):
        """Rewards that slowness would make better."""
        if self.reward_form != "multiplicative":
            return
        negative = [weight for weight in self.reward_weights or [] if weight < 0]
        if negative:
            raise ValueError(
                f"reward_weights={self.reward_weights} with reward_form='multiplicative': steps would make the "
                "negative part better. Set reward_form='additive', or weights that are not negative."
            )
        if self.truncated_reward is not None and self.truncated_reward < 0:
            raise ValueError(
                f"truncated_reward={self.truncated_reward} with reward_form='multiplicative': steps would make it "
                "better. Set 0, or reward_form='additive'."
            )

    def _check_expert(self):
        fields = type(self).__dataclass_fields__
        if not self.expert_steering:
            for name in ("expert_threshold", "expert_block_length"):
                if getattr(self, name) != fields[name].default:
                    raise ValueError(f"{name}={getattr(self, name)} has no effect without expert_steering=True.")
            return
        if self.expert_threshold is None or not 0 < self.expert_threshold <= 1:
            raise ValueError(f"expert_threshold={self.expert_threshold} must lie in (0, 1].")
        if self.expert_block_length < 1:
            raise ValueError(f"expert_block_length={self.expert_block_length} must be at least 1.")
        if self.num_denoising_steps is not None:
            raise ValueError(
                f"num_denoising_steps={self.num_denoising_steps} with expert_steering=True: the expert takes the "
                "steps that it takes. Leave it out."
            )
        if self.cache == "dual":
            raise ValueError(
                "cache='dual' with expert_steering=True: the expert's steps do not compute what the policy would see "
                "of later blocks. Use cache='prefix' or 'none'."
            )
        expert = min(self.expert_block_length, self.max_completion_length)
        if self.block_length is not None and self.block_length % expert:
            raise ValueError(
                f"block_length={self.block_length} must be a multiple of expert_block_length={expert}: what the "
                "expert reveals is to lie in the block that the policy would fill."
            )

    def diffusion_generation_config(self, **kwargs):
        """As the parent's; the policy's temperature goes with a policy in `kwargs`."""
        if kwargs.get("unmasking", self.unmasking) in RULES:
            kwargs = {"policy_temperature": None, **kwargs}
        return super().diffusion_generation_config(**kwargs)
