# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Group-relative policy optimisation of diffusion language models: the base of the RL trainers."""

import textwrap
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers.utils import logging
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import get_config_model_id, pad, use_adapter

from ..evaluation.rewards import checked_reward
from ..generation import Rollout
from ..generation.checks import check_settings
from ..likelihood import MaskedView, backward_by_view, fully_masked_view, score_view, score_views
from ..models import diffusion_model
from .card import DiffusionCardMixin
from .checks import (
    check_dataset,
    check_model_source,
    check_peft_config,
    map_style_datasets,
    settle_mask_token,
    switch_router_loss_off,
)
from .diffusion_grpo_config import DiffusionGRPOConfig
from .objectives import clipped_token_loss, loss_normalizer, token_weights
from .resume import ResumableRolloutsMixin


logger = logging.get_logger(__name__)


class DiffusionGRPOTrainer(DiffusionCardMixin, ResumableRolloutsMixin, GRPOTrainer):
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
        if args.beta != 0.0 and not (has_adapter or isinstance(model, str) or get_config_model_id(model.config)):
            raise ValueError(
                f"beta={args.beta} needs a reference model, which is loaded from where the model came from; this "
                "model was built in memory. Save it and pass the folder, train an adapter, or set beta=0."
            )
        super().__init__(
            model,
            [checked_reward(reward_func) for reward_func in reward_funcs],
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        family = settle_mask_token(self.model, self._tokenizer)
        switch_router_loss_off(self)
        if self.ref_model is not None:
            diffusion_model(self.ref_model).config.mask_token_id = family.mask_token_id
        check_settings(family, args.diffusion_generation_config())
        self._check_prompt_lengths()
        self._rollout: Rollout | None = None
        self._num_eval_batches = 0
        if args.diffusion_generation_config().filters_tokens:
            logger.warning(
                f"top_k={args.top_k} and top_p={args.top_p} cut the distribution that rollouts are drawn from; the "
                "loss scores them at the temperature alone."
            )

    def evaluation_loop(self, *args, **kwargs):
        """TRL's, with the same seeds at every evaluation."""
        self._num_eval_batches = 0
        return super().evaluation_loop(*args, **kwargs)

    # Generation

    def _check_prompt_lengths(self):
        """Raise for the first prompt that does not fit in front of the canvas, while nothing is lost yet."""
        limit = diffusion_model(self.model).config.max_position_embeddings - self.max_completion_length
        for name, dataset in map_style_datasets(self):
            for start in range(0, len(dataset), 1000):
                prompts = dataset[start : start + 1000]["prompt"]
                for row, ids in enumerate(self._tokenize_prompts(prompts)[0]):
                    if not ids:
                        raise ValueError(f"{name}[{start + row}]['prompt'] has no tokens. Drop such rows.")
                    if len(ids) > limit:
                        raise ValueError(
                            f"{name}[{start + row}]['prompt'] has {len(ids)} tokens; with max_completion_length="
                            f"{self.max_completion_length} the model leaves room for {limit}. Filter such prompts, or "
                            "make the canvas shorter."
                        )

    def _row_seeds(self, num_rows: int) -> list[int]:
        """One seed per row, from (seed, generation, global row): the same for any number of processes."""
        start = self.accelerator.process_index * num_rows
        if self.model.training:
            generation = (self.state.global_step, self._step, 0)
        else:
            generation = (0, self._num_eval_batches, 1)  # the same noise at every evaluation of a run
            self._num_eval_batches += 1
        return [
            int(np.random.SeedSequence((self.args.seed, *generation, start + row)).generate_state(1, np.uint64)[0])
            for row in range(num_rows)
        ]

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        """Denoise one completion per prompt; keeps the [`Rollout`] on `self` and returns the ids cut after EOS."""
        if not all(prompt_ids):
            raise ValueError(
                "A prompt has no tokens. Drop empty prompts from the dataset, or give them a first token such as BOS."
            )
        tensors = [torch.tensor(ids) for ids in prompt_ids]
        padded = pad(tensors, padding_value=self._tokenizer.pad_token_id, padding_side="left")
        mask = pad([torch.ones_like(ids) for ids in tensors], padding_value=0, padding_side="left")
        config = self.args.diffusion_generation_config(
            eos_token_id=[token for token in self.eos_token_ids if token is not None],
            pad_token_id=self._tokenizer.pad_token_id,
            seed=self._row_seeds(len(prompt_ids)),
            return_dict_in_generate=True,
        )
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as unwrapped_model,
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
            # What is wrapped in autocast is PEFT's forward, which generation does not call.
            self.accelerator.autocast(),
        ):
            output = diffusion_model(unwrapped_model).generate(
                padded.to(self.accelerator.device), mask.to(self.accelerator.device), generation_config=config
            )
        self._rollout = output.rollout
        mode = "train" if self.model.training else "eval"
        self._log_mean(mode, "generation/forward_passes", self._rollout.num_forward_passes.float().mean())
        return self._rollout.completions(), None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        rollout = self._rollout
        self._rollout = None
        # TRL knows the completions cut after EOS. The views need the whole canvas, and when each token was committed.
        kept_rows = output["completion_mask"].any(dim=1)  # mask_truncated_completions empties whole rows
        output["completion_ids"] = rollout.canvas_ids
        output["completion_mask"] = rollout.completion_mask * kept_rows[:, None]
        output["unmask_step"] = rollout.unmask_step
        for placeholder in ("old_per_token_logps", "ref_per_token_logps"):
            if placeholder in output:
                del output[placeholder]
        generate_every = self.args.steps_per_generation * self.num_iterations
        # Where the updates go past the policy that generated, its log-probabilities are needed before they begin.
        if self.model.training and self.args.gradient_accumulation_steps % generate_every != 0:
            output["old_per_token_logps"] = self._score(self.model, output)
        if self.beta != 0.0:
            if self.ref_model is not None:
                output["ref_per_token_logps"] = self._score(self.ref_model, output)
            else:
                model = self.accelerator.unwrap_model(self.model)
                with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
                    output["ref_per_token_logps"] = self._score(self.model, output)
        return output

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        # TRL asks for causal log-probabilities here. They are replaced after the rollout's canvas is known.
        return torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device), None, None

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if torch.isnan(rewards).all():
            raise ValueError(
                f"The reward functions {', '.join(self.reward_func_names)} returned only None for all "
                f"{len(rewards)} completions of the batch: there is nothing to learn from. At least one must score."
            )
        return rewards

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

    @torch.no_grad()
    def _score(self, model, output: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities of a generation batch, (B, C), in chunks of the training batch size."""
        self_training = self.model.training
        size = self.args.per_device_train_batch_size if self_training else self.args.per_device_eval_batch_size
        keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "unmask_step")
        scores = []
        for start in range(0, len(output["completion_ids"]), size):
            chunk = {key: output[key][start : start + size] for key in keys}
            views = self._pad_views(self.draw_views(chunk), chunk["completion_mask"])
            with self.compute_loss_context_manager():
                scores.append(score_views(model, *self._rows(chunk), views, **self._scoring_kwargs()))
        return torch.cat(scores)

    @staticmethod
    def _rows(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return inputs["prompt_ids"], inputs["prompt_mask"], inputs["completion_ids"]

    def _scoring_kwargs(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "block_length": self._attention_block_length()}

    def _attention_block_length(self) -> int | None:
        """Block of the policy's attention, which every model is scored with; `None` for full attention."""
        family = diffusion_model(self.model)
        return None if family.attention == "full" else self.args.block_length or family.block_length

    def _pad_views(self, views: list[MaskedView], mask: torch.Tensor) -> list[MaskedView]:
        """As many views on every process, since forward passes of sharded models are collective. At least one."""
        count = torch.tensor(max(1, len(views)), device=mask.device)
        if self.accelerator.num_processes > 1:
            count = self.accelerator.gather(count).max()
        nothing = torch.zeros_like(mask, dtype=torch.bool)
        return views + [MaskedView(nothing, nothing)] * (int(count) - len(views))

    # Loss

    def _compute_loss(self, model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        mode = "train" if self.model.training else "eval"
        mask = inputs["completion_mask"].bool()  # (B, C)
        views = self._pad_views(self.draw_views(inputs), mask)
        advantages = inputs["advantages"][:, None]  # (B, 1)
        normalizer = loss_normalizer(
            self.args.loss_type,
            mask,
            num_items=inputs["num_items_in_batch"] / self.accelerator.num_processes,
            steps_per_generation=self.args.steps_per_generation if mode == "train" else 1,
            accumulation_steps=self.current_gradient_accumulation_steps if mode == "train" else 1,
        )
        totals: dict[str, torch.Tensor] = {"tokens": torch.zeros((), device=mask.device)}

        def view_loss(view: MaskedView) -> torch.Tensor:
            scores = score_view(model, *self._rows(inputs), view, **self._scoring_kwargs())
            # Off target the score is 0 and the old one that of another view: their ratio could overflow to a NaN. And
            # without old log-probabilities the policy is the one that generated: the ratio is 1, its gradient is not.
            current = scores.logprobs.detach()
            old = inputs.get("old_per_token_logps", current).where(view.target, current)
            ref = inputs.get("ref_per_token_logps", current).where(view.target, current)
            token_loss, metrics = clipped_token_loss(
                scores.logprobs,
                old,
                advantages,
                epsilon_low=self.epsilon_low,
                epsilon_high=self.epsilon_high,
                delta=self.args.delta,
                ref_logprobs=ref,
                beta=self.beta,
                weigh_kl=self.args.use_bias_correction_kl,
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

    # Metrics

    def _log_token_means(self, mode: str, totals: dict[str, torch.Tensor]):
        """Means over the scored tokens of all processes."""
        names = sorted(totals)
        values = self.accelerator.reduce(torch.stack([totals[name].float() for name in names]), reduction="sum")
        sums = dict(zip(names, values.tolist(), strict=True))
        tokens = max(sums.pop("tokens"), 1.0)
        for name, total in sums.items():
            self._metrics[mode][name].append(total / tokens)

    def _log_mean(self, mode: str, name: str, value: torch.Tensor):
        self._metrics[mode][name].append(self.accelerator.gather(value).mean().item())
