# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Group-relative policy optimisation of diffusion language models: the base of the RL trainers."""

import textwrap
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from transformers.utils import logging
from trl import GRPOTrainer
from trl.trainer.utils import get_config_model_id, use_adapter

from ..generation import Rollout
from ..generation.checks import check_settings
from ..likelihood import MaskedView, backward_by_view, even_views, fully_masked_view, score_view, score_views
from ..models import diffusion_model
from .card import DiffusionCardMixin
from .checks import (
    check_dataset,
    check_model_source,
    check_peft_config,
    settle_mask_token,
    switch_router_loss_off,
)
from .diffusion_grpo_config import DiffusionGRPOConfig
from .group_rewards import GroupRewardsMixin
from .objectives import clipped_token_loss, loss_normalizer, token_weights
from .resume import ResumableRolloutsMixin
from .rollouts import RolloutMixin


logger = logging.get_logger(__name__)


class DiffusionGRPOTrainer(DiffusionCardMixin, ResumableRolloutsMixin, RolloutMixin, GroupRewardsMixin, GRPOTrainer):
    """
    TRL's [`~trl.GRPOTrainer`] for masked diffusion language models, and the base of the other RL trainers. Prompts,
    rewards, groups, advantages, logging and the Hub are TRL's. The changes are:

    - a completion is a canvas filled by denoising (`model.generate`), with a seed of its own for every row;
    - the likelihood is a set of masked views ([`draw_views`]), here the one-step mean-field view of diffu-GRPO (d1,
      arXiv 2504.12216): all of the canvas masked, its tokens scored in one forward pass;
    - the loss is summed over views and back-propagated view by view, at the memory of one view;
    - tokens behind the first EOS stay in attention, since the others were drawn in their sight, and out of the loss.

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

    def __init__(
        self,
        model,
        reward_funcs,
        args: DiffusionGRPOConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        *,
        tools=None,
        rollout_func=None,
        environment_factory=None,
        **kwargs,
    ):
        for name, value in (
            ("tools", tools),
            ("rollout_func", rollout_func),
            ("environment_factory", environment_factory),
        ):
            if value is not None:
                raise ValueError(
                    f"{name} is not supported by {type(self).__name__}: a canvas is one turn, written by the model."
                )
        if args is None:
            args = self._config_class(f"{self._name.lower().replace(' ', '-')}-output")
        elif not isinstance(args, self._config_class):
            raise TypeError(
                f"args is a {type(args).__name__}; {type(self).__name__} takes a {self._config_class.__name__}."
            )
        check_model_source(model, args)
        check_peft_config(kwargs.get("peft_config"))
        check_dataset(train_dataset, "train_dataset", "prompt")
        check_dataset(eval_dataset, "eval_dataset", "prompt")
        if not reward_funcs:
            raise ValueError(f"reward_funcs={reward_funcs!r} is empty: give at least one reward function.")
        reward_funcs = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
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
            super().__init__(
                model,
                self._wrap_rewards(reward_funcs),
                args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                **kwargs,
            )
        finally:
            args.beta = beta
        family = settle_mask_token(self.model, self._tokenizer)
        switch_router_loss_off(self)
        if self.ref_model is not None:
            diffusion_model(self.ref_model).config.mask_token_id = family.mask_token_id
        # A checkpoint names the block it was trained for, so that the config of a model in training may change.
        self._own_block_length = family.block_length
        self._check_block_lengths(family)
        self._check_prompt_lengths()
        self._check_correctness_reward()
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

    def _check_block_lengths(self, family):
        """Raise for rollouts that the model cannot make, while nothing is lost yet."""
        check_settings(family, self.args.diffusion_generation_config())

    # Rollouts

    @property
    def _is_off_policy(self) -> bool:
        """Whether updates go past the policy that generated, whose log-probabilities are then needed."""
        generate_every = self.args.steps_per_generation * self.num_iterations
        return self.args.gradient_accumulation_steps % generate_every != 0

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        mode = "train" if self.model.training else "eval"
        lengths = self._block_lengths()
        if mode == "train":
            self._remember_block_lengths(lengths)
        output = super()._generate_and_score_completions(inputs)
        rollout = self._rollout
        self._rollout = None
        self._restore_logged_rewards(mode)
        # TRL knows the completions cut after EOS. The views need the whole canvas, and when each token was committed.
        kept_rows = output["completion_mask"].any(dim=1)  # mask_truncated_completions empties whole rows
        output["completion_ids"] = rollout.canvas_ids
        output["completion_mask"] = rollout.completion_mask * kept_rows[:, None]
        output["unmask_step"] = rollout.unmask_step
        if lengths.training is not None:
            output["block_length"] = torch.tensor(lengths.training)
        for placeholder in ("old_per_token_logps", "ref_per_token_logps"):
            output.pop(placeholder, None)
        if mode == "train":
            self._choose_rows(output)
        output["num_items_in_batch"] = self.accelerator.gather(output["completion_mask"].sum()).sum()
        if mode == "train":
            self._set_advantages(output)
            if self._is_off_policy:
                output["old_per_token_logps"] = self._old_logprobs(output, rollout)
        if self.beta != 0.0:
            if self.ref_model is not None:
                output["ref_per_token_logps"] = self._score(self.ref_model, output)
            else:
                model = self.accelerator.unwrap_model(self.model)
                with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
                    output["ref_per_token_logps"] = self._score(self.model, output)
        return output

    def _set_advantages(self, output: dict[str, torch.Tensor]):
        """Turn `advantages`, TRL's group-normalised outcomes (B,), into those of tokens where they differ, (B, C)."""

    def _old_logprobs(self, output: dict[str, torch.Tensor], rollout: Rollout) -> torch.Tensor:
        """Log-probabilities of the policy before the updates, (B, C): the rollout's own where a scorer would find the
        same, else computed."""
        obstacle = self._why_not_replayed(output, rollout)
        message = f"computed anew: {obstacle}" if obstacle else "taken from the rollouts, which the views replay"
        if message not in self._reported_sources:
            self._reported_sources.add(message)
            logger.info(f"Old log-probabilities are {message}.")
        self._metrics["train"]["old_logprobs/from_rollout"].append(float(obstacle is None))
        if obstacle is None:
            return rollout.logprobs * output["completion_mask"]
        return self._score(self.model, output)

    def _why_not_replayed(self, output: dict[str, torch.Tensor], rollout: Rollout) -> str | None:
        """Why the views do not find the log-probabilities that tokens were drawn with; `None` where they do."""
        return "the views are not the states in which the tokens were drawn"

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        # TRL asks for causal log-probabilities here. They are replaced after the rollout's canvas is known.
        return torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device), None, None

    # Likelihood

    def draw_views(self, inputs: dict[str, torch.Tensor]) -> list[MaskedView]:
        """The masked views whose scores are the likelihood of a batch of completions.

        Args:
            inputs (`dict[str, torch.Tensor]`):
                `completion_ids`, `completion_mask`, `unmask_step`: (B, C); `prompt_ids`, `prompt_mask`: (B, P).

        Returns:
            `list[MaskedView]`, the same for the old, the current and the reference policy. Each completion token is
            the target of one view at most.
        """
        return [fully_masked_view(inputs["completion_mask"].bool())]

    def _score(self, model, output: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities of a generation batch under a model, (B, C)."""

        def score(chunk, views):
            return score_views(
                model, *self._rows(chunk), views, temperature=self.temperature, **self._block_kwargs(chunk)
            )

        return self._over_chunks(score, output)

    @torch.no_grad()
    def _over_chunks(self, score: Callable, output: dict[str, torch.Tensor]) -> torch.Tensor:
        """`score(chunk, views)` of a generation batch, in chunks of the training batch size."""
        self_training = self.model.training
        size = self.args.per_device_train_batch_size if self_training else self.args.per_device_eval_batch_size
        keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "unmask_step")
        scores = []
        for start in range(0, len(output["completion_ids"]), size):
            chunk = {key: output[key][start : start + size] for key in keys}
            if "block_length" in output:
                chunk["block_length"] = output["block_length"]
            views = self._views_of(chunk)
            with self.compute_loss_context_manager():
                scores.append(score(chunk, views))
        return torch.cat(scores)

    @staticmethod
    def _rows(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return inputs["prompt_ids"], inputs["prompt_mask"], inputs["completion_ids"]

    def _block_kwargs(self, inputs: dict[str, torch.Tensor]) -> dict[str, int | None]:
        return {"block_length": self._attention_block_length(inputs)}

    def _attention_block_length(self, inputs: dict[str, torch.Tensor]) -> int | None:
        """Block of the policy's attention, which every model is scored with; `None` for full attention."""
        family = diffusion_model(self.model)
        if family.attention == "full":
            return None
        return int(inputs["block_length"]) if "block_length" in inputs else family.block_length

    def _views_of(self, inputs: dict[str, torch.Tensor]) -> list[MaskedView]:
        """The views of a batch, as many on every process, and at least one: forward passes may be collective."""
        nothing = torch.zeros_like(inputs["completion_mask"], dtype=torch.bool)
        return even_views(self.draw_views(inputs) or [MaskedView(nothing, nothing)], self.accelerator)

    # Loss

    def _compute_loss(self, model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        mode = "train" if self.model.training else "eval"
        mask = inputs["completion_mask"].bool()  # (B, C)
        views = self._views_of(inputs)
        advantages = inputs["advantages"]
        advantages = advantages[:, None] if advantages.ndim == 1 else advantages  # (B, 1) or (B, C)
        normalizer = self._normalizer(self.args.loss_type, inputs, mode)
        totals: dict[str, torch.Tensor] = {"tokens": torch.zeros((), device=mask.device)}

        def view_loss(view: MaskedView) -> torch.Tensor:
            scores = score_view(
                model, *self._rows(inputs), view, temperature=self.temperature, **self._block_kwargs(inputs)
            )
            # Off target the score is 0 and the old one that of another view: their ratio could overflow to a NaN. And
            # without old log-probabilities the policy is the one that generated: the ratio is 1, its gradient is not.
            current = scores.logprobs.detach()
            old = inputs.get("old_per_token_logps", current).where(view.target, current)
            ref = old
            if self.args.kl_reference == "frozen":
                ref = inputs.get("ref_per_token_logps", current).where(view.target, current)
            token_loss, metrics = clipped_token_loss(
                scores.logprobs,
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
            )
            metrics["entropy"] = scores.entropies
            totals["tokens"] += view.target.sum()
            for name, values in metrics.items():
                totals[name] = totals.get(name, 0.0) + (values.detach() * view.target).sum()
            weights = token_weights(self.args.loss_type, view, mask)  # (B, C), 0 off target
            return (token_loss * weights).sum() / normalizer

        loss = backward_by_view([lambda view=view: view_loss(view) for view in views], model, self.accelerator)
        self._log_token_means(mode, totals)
        self._metrics[mode]["views"].append(float(len(views)))
        return loss

    def _normalizer(self, loss_type: str, inputs: dict[str, torch.Tensor], mode: str) -> torch.Tensor | float:
        return loss_normalizer(
            loss_type,
            inputs["completion_mask"].bool(),
            num_items=inputs["num_items_in_batch"] / self.accelerator.num_processes,
            steps_per_generation=self.args.steps_per_generation if mode == "train" else 1,
            accumulation_steps=self.current_gradient_accumulation_steps if mode == "train" else 1,
        )

    # Metrics

    def _log_token_means(self, mode: str, totals: dict[str, torch.Tensor]):
        """Means over the scored tokens of all processes."""
        names = sorted(totals)
        values = self.accelerator.reduce(torch.stack([totals[name].float() for name in names]), reduction="sum")
        sums = dict(zip(names, values.tolist(), strict=True))
        tokens = max(sums.pop("tokens"), 1.0)
        for name, total in sums.items():
            self._metrics[mode][name].append(total / tokens)
