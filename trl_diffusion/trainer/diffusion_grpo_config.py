# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Config of [`DiffusionGRPOTrainer`]."""

from dataclasses import dataclass, field

from transformers.utils import logging

from .denoising_config import DenoisingGRPOConfig
from .likelihoods import LIKELIHOODS
from .objectives import KL_ESTIMATORS


logger = logging.get_logger(__name__)

_LOSS_TYPES = ("step", "grpo", "bnpo", "dr_grpo", "dapo")
KL_REFERENCES = ("frozen", "old")


@dataclass
class DiffusionGRPOConfig(DenoisingGRPOConfig):
    r"""
    Configuration of the [`DiffusionGRPOTrainer`]: [`DenoisingGRPOConfig`] (TRL's, with the fields of rollouts and
    rewards), and the fields below.

    Parameters:
        > Parameters that control the loss

        likelihood (`str`, *optional*, defaults to `"fully_masked"`):
            The masked views that tokens are scored in: `"fully_masked"`, `"coupled"`, `"random_mask"`, `"trace"` or
            `"autoregressive"`; see [`DiffusionGRPOTrainer`].
        prompt_mask_probability (`float`, *optional*):
            With `likelihood="fully_masked"`: share of the prompt's tokens that are masked too. Defaults to d1's 0.15
            there, and to 0 with other likelihoods.
        loss_type (`str`, *optional*, defaults to `"grpo"`):
            How the tokens' losses are averaged. `"grpo"`: per completion, then over completions. `"bnpo"`: over the
            tokens of the batch. `"dr_grpo"`: divided by the canvas. `"dapo"`: over the tokens of all processes and
            accumulation steps. `"step"`: per denoising step, summed over the steps (TraceRL).
        kl_estimator (`str`, *optional*, defaults to `"k3"`):
            With `beta`: how the KL is estimated from Δ = log π_θ − log π_ref of each token: `"k1"`, Δ; `"k2"`, Δ²/2;
            `"k3"`, e^{−Δ} − 1 + Δ.
        kl_reference (`str`, *optional*, defaults to `"frozen"`):
            π_ref. `"frozen"`: the model before training (without its adapter), TRL's reference. `"old"`: the policy
            at the time of the rollout, as in the TraceRL paper; it matters where several updates follow a rollout.
        importance_sampling_level (`str`, *optional*, defaults to `"token"`):
            Of what the ratio π_θ/π_old is taken. `"token"`: of each token. `"sequence"`: of the completion, the
            geometric mean over its tokens (GSPO); with a likelihood of several views this costs a forward pass more
            per view where a rollout is updated on more than once, or with `beta`.
        log_ratio_clamp (`float`, *optional*):
            Bounds log π_θ − log π_old, and Δ, to ± this. `None`: no bound.

    > [!NOTE]
    > Changed defaults: `loss_type` is `"grpo"` instead of `"dapo"`.
    """

    likelihood: str = field(
        default="fully_masked",
        metadata={"help": f"The masked views that tokens are scored in: {', '.join(LIKELIHOODS)}."},
    )
    prompt_mask_probability: float | None = field(
        default=None,
        metadata={"help": "Share of the prompt that likelihood='fully_masked' masks; None: 0.15 with it, else 0."},
    )
    loss_type: str = field(
        default="grpo",
        metadata={"help": "How the tokens' losses are averaged: 'step', 'grpo', 'bnpo', 'dr_grpo' or 'dapo'."},
    )
    kl_estimator: str = field(
        default="k3", metadata={"help": "How the KL is estimated: 'k1', 'k2' or 'k3'. Used with beta."}
    )
    kl_reference: str = field(
        default="frozen",
        metadata={"help": "What the KL is taken to: 'frozen' (the model before training) or 'old' (the rollout's)."},
    )
    log_ratio_clamp: float | None = field(
        default=None, metadata={"help": "Bound of the logarithm of probability ratios; None: no bound."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.loss_type not in _LOSS_TYPES:
            raise ValueError(f"loss_type={self.loss_type!r} must be one of {', '.join(_LOSS_TYPES)}.")
        self._check_likelihood()
        if self.temperature <= 0:
            raise ValueError(
                f"temperature={self.temperature} must be positive: at 0 all completions of a group are the same, and "
                "every advantage is 0."
            )
        for name, choices in (("kl_estimator", tuple(KL_ESTIMATORS)), ("kl_reference", KL_REFERENCES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(choices)}.")
        levels = ("token", "sequence")
        if self.importance_sampling_level not in levels:
            raise ValueError(
                f"importance_sampling_level={self.importance_sampling_level!r} must be one of {', '.join(levels)}."
            )
        if self.importance_sampling_level == "sequence" and self.loss_type == "step":
            raise ValueError(
                "importance_sampling_level='sequence' with loss_type='step': a ratio of whole completions has no "
                "steps. Set loss_type='grpo', or importance_sampling_level='token'."
            )
        if self.kl_reference == "old" and self.sync_ref_model:
            raise ValueError("sync_ref_model=True has no effect with kl_reference='old': there is no reference model.")
        for name, default in (("kl_estimator", "k3"), ("kl_reference", "frozen")):
            if self.beta == 0.0 and getattr(self, name) != default:
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect with beta=0.0. Set beta, or leave it.")
        if self.log_ratio_clamp is not None and self.log_ratio_clamp <= 0:
            raise ValueError(f"log_ratio_clamp={self.log_ratio_clamp} must be positive, or None for no bound.")

    # What `likelihood` may be.
    _likelihoods = LIKELIHOODS

    def _check_likelihood(self):
        if self.likelihood not in self._likelihoods:
            raise ValueError(f"likelihood={self.likelihood!r} must be one of {', '.join(self._likelihoods)}.")
        masks_prompt = self.likelihood == "fully_masked"
        if self.prompt_mask_probability is None:
            self.prompt_mask_probability = 0.15 if masks_prompt else 0.0
        share = self.prompt_mask_probability
        if not 0 <= share < 1:
            raise ValueError(f"prompt_mask_probability={share} must lie in [0, 1).")
        if share > 0 and not masks_prompt:
            raise ValueError(
                f"prompt_mask_probability={share} has no effect with likelihood={self.likelihood!r}. Leave it out."
            )
        if self.likelihood == "autoregressive" and self.unmasking != "sequential":
            logger.warning(
                f"likelihood='autoregressive' is that of left-to-right sampling, and unmasking={self.unmasking!r} "
                "writes in another order. Set unmasking='sequential'."
            )
