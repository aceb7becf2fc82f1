# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Group-relative policy optimisation of diffusion language models: the base of the RL trainers."""

import textwrap

import torch
from peft import PeftModel
from transformers.utils import logging
from trl.trainer.utils import get_config_model_id, use_adapter

from ..generation import Rollout
from ..likelihood import MaskedView, ViewScores, backward_by_sum, backward_by_view, score_view
from ..models import diffusion_model
from .checks import check_model_source, check_peft_config, switch_router_loss_off
from .denoising_trainer import DenoisingGRPOTrainer, add_means
from .diffusion_grpo_config import DiffusionGRPOConfig
from .likelihoods import METHODS, LikelihoodMixin
from .objectives import clipped_token_loss, loss_normalizer, token_weights


logger = logging.get_logger(__name__)


class DiffusionGRPOTrainer(LikelihoodMixin, DenoisingGRPOTrainer):
    """
    TRL's [`~trl.GRPOTrainer`] for masked diffusion language models, and the base of the other RL trainers. Prompts,
    rewards, groups, advantages, logging and the Hub are TRL's. The changes are:

    - a completion is a canvas filled by denoising (`model.generate`), with a seed of its own for every row;
    - the likelihood is a set of masked views ([`draw_views`]), chosen by the config's `likelihood`;
    - the loss is summed over views and back-propagated view by view, at the memory of one view;
    - tokens behind the first EOS stay in attention, since the others were drawn in their sight, and out of the loss.

    `likelihood`, and what it costs in forward passes:

    - `"fully_masked"` (1): tokens are scored in the fully masked canvas, behind a prompt of which 15 % is masked too:
      diffu-GRPO (d1, arXiv 2504.12216);
    - `"coupled"` (3): there, and in one of two complementary masks, and the mean is taken: coupled-GRPO (DiffuCoder,
      arXiv 2506.20639);
    - `"random_mask"` (1): a uniformly drawn share of the completion is masked and scored, the rest is not: UniGRPO
      (MMaDA, arXiv 2505.15809);
    - `"trace"` (one per step): in the state in which the sampler drew the token (TraceRL, arXiv 2509.06949);
    - `"autoregressive"` (one per token): with everything in front of it clean and everything behind it masked, the
      exact likelihood of left-to-right sampling, `unmasking="sequential"`: JustGRPO (arXiv 2601.15165).

    The masks of a rollout are drawn once, from a seed of each row: several updates, the old and the reference policy
    see the same ones. (In d1 and MMaDA each update of a rollout has masks of its own, and old scores for each.)

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A diffusion language model, or a checkpoint of one.
        reward_funcs, train_dataset, eval_dataset, processing_class, reward_processing_classes, callbacks, optimizers,
        quantization_config, peft_config:
            As in [`~trl.GRPOTrainer`].
        args ([`DiffusionGRPOConfig`], *optional*):
            Settings.

    Raises:
        ValueError: an empty dataset, a prompt too long for the model, no mask token, an unsupported model family, or
            an argument of [`~trl.GRPOTrainer`] that has no meaning here (`tools`, `rollout_func`,
            `environment_factory`).
    """

    _tag_names = ["trl", "trl-diffusion", "diffu-grpo"]
    _name = "Diffusion GRPO"
    _paper = {
        "title": "d1: Scaling Reasoning in Diffusion Large Language Models via Reinforcement Learning",
        "id": "2504.12216",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{zhao2025d1,
                title        = {{d1: Scaling Reasoning in Diffusion Large Language Models via Reinforcement Learning}},
                author       = {Siyan Zhao and Devaansh Gupta and Qinqing Zheng and Aditya Grover},
                year         = 2025,
                eprint       = {arXiv:2504.12216},
            }"""),
    }
    _config_class = DiffusionGRPOConfig

    def __init__(self, model, reward_funcs, args: DiffusionGRPOConfig | None = None, *positional, **kwargs):
        args = self._settled_args(args)
        method = METHODS.get(args.likelihood) if self._config_class is DiffusionGRPOConfig else None
        if method is not None:
            self._name, self._tag_names, self._paper = method["name"], method["tags"], method["paper"]
        check_model_source(model, args)
        check_peft_config(kwargs.get("peft_config"))
        has_adapter = kwargs.get("peft_config") is not None or isinstance(model, PeftModel)
        frozen_reference = args.beta != 0.0 and args.kl_reference == "frozen"
        if frozen_reference and not (has_adapter or isinstance(model, str) or get_config_model_id(model.config)):
            raise ValueError(
                f"beta={args.beta} needs a reference model, which is loaded from where the model came from; this "
                "model was built in memory. Save it and pass the folder, train an adapter, set kl_reference='old', or "
                "set beta=0."
            )
        beta = args.beta
        if not frozen_reference:
            args.beta = 0.0  # TRL would load a reference model that nothing asks
        try:
            super().__init__(model, reward_funcs, args, *positional, **kwargs)
        finally:
            args.beta = beta
        switch_router_loss_off(self)
        if self.ref_model is not None:
            diffusion_model(self.ref_model).config.mask_token_id = self._dllm.mask_token_id
        self._reported_sources: set[str] = set()
        if args.diffusion_generation_config().filters_tokens:
            logger.warning(
                f"top_k={args.top_k} and top_p={args.top_p} cut the distribution that rollouts are drawn from; the "
                "loss scores them at the temperature alone."
            )
        if beta != 0.0 and args.kl_reference == "old" and not self._is_off_policy:
            logger.warning(
                f"beta={beta} with kl_reference='old' has no effect here: with one update per rollout the policy is "
                "the one that the KL is taken to, where its gradient is zero (k2, k3) or zero on average (k1). Raise "
                "num_iterations, or use kl_reference='frozen'."
            )

    # Rollouts

    def _complete_batch(self, output: dict[str, torch.Tensor], rollout: Rollout, mode: str):
        self._choose_tokens(output, rollout)
        output["num_items_in_batch"] = self.accelerator.gather(self._scored_tokens(output).sum()).sum()
        if mode == "train":
            self._set_advantages(output)
            if self._is_off_policy:
                self._add_old_scores(output, rollout)
        if self.beta != 0.0:
            if self.ref_model is not None:
                self._add_reference_scores(self.ref_model, output)
            else:
                model = self.accelerator.unwrap_model(self.model)
                with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
                    self._add_reference_scores(self.model, output)

    def _set_advantages(self, output: dict[str, torch.Tensor]):
        """Turn `advantages`, TRL's group-normalised outcomes (B,), into those of tokens where they differ, (B, C)."""

    def _choose_tokens(self, output: dict[str, torch.Tensor], rollout: Rollout):
        """Put into the batch what views need to know of its tokens beyond their steps."""

    def _add_old_scores(self, output: dict[str, torch.Tensor], rollout: Rollout):
        """What the loss needs to know of the policy before the updates."""
        output["old_per_token_logps"] = self._old_logprobs(output, rollout)

    def _add_reference_scores(self, model: torch.nn.Module, output: dict[str, torch.Tensor]):
        """What the loss needs to know of the reference policy."""
        output["ref_per_token_logps"] = self._score(model, output)

    def _report_old_source(self, obstacle: str | None):
        """Log once where old log-probabilities come from: the rollouts, or for which reason not."""
        message = f"computed anew: {obstacle}" if obstacle else "taken from the rollouts, which the views replay"
        if message not in self._reported_sources:
            self._reported_sources.add(message)
            logger.info(f"Old log-probabilities are {message}.")
        self._metrics["train"]["old_logprobs/from_rollout"].append(float(obstacle is None))

    # Loss

    def _compute_loss(self, model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        mode = "train" if self.model.training else "eval"
        mask = self._scored_tokens(inputs)  # (B, C)
        views = self._views_of(inputs)
        advantages = inputs["advantages"]
        advantages = advantages[:, None] if advantages.ndim == 1 else advantages  # (B, 1) or (B, C)
        normalizer = self._normalizer(self.args.loss_type, {**inputs, "completion_mask": mask}, mode)
        totals: dict[str, torch.Tensor] = {}

        def score(view: MaskedView) -> ViewScores:
            scores = score_view(
                model, *self._rows(inputs), view, temperature=self.temperature, **self._block_kwargs(inputs)
            )
            add_means(totals, {"entropy": scores.entropies}, view.target)
            return scores

        def token_loss(logprobs: torch.Tensor, view: MaskedView) -> torch.Tensor:
            """The loss of a view's targets, from their log-probabilities, (B, C)."""
            # Off target the score is 0 and the old one that of another view: their ratio could overflow to a NaN. And
            # without old log-probabilities the policy is the one that generated: the ratio is 1, its gradient is not.
            current = logprobs.detach()
            old = inputs.get("old_per_token_logps", current).where(view.target, current)
            ref = old
            if self.args.kl_reference == "frozen":
                ref = inputs.get("ref_per_token_logps", current).where(view.target, current)
            loss, metrics = clipped_token_loss(
                logprobs,
                old,
                advantages,
                epsilon_low=self.epsilon_low,
                epsilon_high=self.epsilon_high,
                delta=self.args.delta,
                ref_logprobs=ref,
                beta=self.args.beta,
                weigh_kl=self.args.use_bias_correction_kl,
                kl_estimator=self.args.kl_estimator,
                log_ratio_clamp=self.args.log_ratio_clamp,
                sequence_mask=mask if self._takes_sequence_ratio else None,
            )
            self._add_token_means(totals, metrics, view.target, inputs)
            weights = token_weights(self.args.loss_type, view, mask)  # (B, C), 0 off target
            return (loss * weights).sum() / normalizer

        if self._scores_tokens_once and (len(views) == 1 or not self._takes_sequence_ratio):
            losses = [lambda view=view: token_loss(score(view).logprobs, view) for view in views]
            loss = backward_by_view(losses, model, self.accelerator)
        else:
            # A token's log-probability, or the completion's, is a sum over views, of which the clipped ratio is none.
            def logprobs(view: MaskedView) -> torch.Tensor:
                return score(view).logprobs * (1.0 if view.weight is None else view.weight)

            scores = [lambda view=view: logprobs(view) for view in views]
            once = self.args.beta == 0.0 and "old_per_token_logps" not in inputs  # the ratio is 1 whatever the sum
            total = torch.zeros_like(mask, dtype=torch.float32) if once else None
            whole = MaskedView(mask, mask)
            loss = backward_by_sum(scores, lambda total: token_loss(total, whole), model, self.accelerator, total)
        self._log_means(mode, totals)
        self._metrics[mode]["views"].append(float(len(views)))
        return loss

    @property
    def _takes_sequence_ratio(self) -> bool:
        return self.args.importance_sampling_level == "sequence"

    def _add_token_means(
        self,
        totals: dict[str, torch.Tensor],
        metrics: dict[str, torch.Tensor],
        target: torch.Tensor,
        inputs: dict[str, torch.Tensor],
    ):
        """Collect the metrics of a view's targets, (B, C)."""
        add_means(totals, metrics, target)

    def _normalizer(self, loss_type: str, inputs: dict[str, torch.Tensor], mode: str) -> torch.Tensor | float:
        return loss_normalizer(
            loss_type,
            inputs["completion_mask"].bool(),
            num_items=inputs["num_items_in_batch"] / self.accelerator.num_processes,
            steps_per_generation=self.args.steps_per_generation if mode == "train" else 1,
            accumulation_steps=self.current_gradient_accumulation_steps if mode == "train" else 1,
        )
