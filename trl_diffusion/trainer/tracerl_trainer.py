# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""TraceRL: reinforcement learning on the sampler's own trajectory."""

import os
import textwrap

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..generation import Rollout
from ..generation.checks import check_settings
from ..likelihood import (
    MaskedView,
    merge_steps,
    on_last_step,
    stepwise_gae,
    value_view,
    value_views,
)
from ..models import DiffusionValueModel, diffusion_model
from ..models.value import TRAINED_PARTS
from .block_schedule import BlockLengths, block_lengths_at, parse_block_schedule
from .denoising_trainer import add_means
from .diffusion_grpo_trainer import DiffusionGRPOTrainer
from .objectives import clipped_value_loss
from .tracerl_config import TraceRLConfig
from .value import VALUE_FOLDER, ValueTraining


class TraceRLTrainer(DiffusionGRPOTrainer):
    """
    TraceRL (arXiv 2509.06949): [`DiffusionGRPOTrainer`] with tokens scored in the states in which the sampler drew
    them, instead of in states that it never visits.

        maximise  E Σ_i Σ_k (1/|τˢ_i(k)|) Σ_{o ∈ τˢ_i(k)} min(ρ_o A_o, clip(ρ_o, 1−ε, 1+ε) A_o) − β KL

    τˢ_i(k) are the positions that completion i commits in its k-th step, every s steps merged into one (block-causal
    models: inside each block). Full attention: one forward pass per step. Block-causal attention: one pass scores the
    k-th step of all blocks, each block's step being a term of its own.

    A_o is the completion's group-normalised reward; or, with `value_model`, the advantage over the values that a
    [`DiffusionValueModel`] gives to the tokens in the same states ([`stepwise_gae`]); the order is old values and
    advantages, value update, policy update.

    A reward function may return a list of rewards per completion, one for each token of `completion_ids` (EOS
    included), instead of a number; it is given the step of each token as `unmask_step`. With a value model they count
    as they are, beside the group-normalised numbers of other functions, which the tokens of the last step get. Without
    one, the returns to go of the tokens are group-normalised.

    Takes [`DiffusionGRPOTrainer`]'s arguments, with a [`TraceRLConfig`].
    """

    _tag_names = ["trl", "trl-diffusion", "tracerl"]
    _name = "TraceRL"
    _paper = {
        "title": "Revolutionizing Reinforcement Learning Framework for Diffusion Large Language Models",
        "id": "2509.06949",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{wang2025tracerl,
                title        = {{Revolutionizing Reinforcement Learning Framework for Diffusion
                                 Large Language Models}},
                author       = {Yinjie Wang and Ling Yang and Bowen Li and Ye Tian and Ke Shen and Mengdi Wang},
                year         = 2025,
                eprint       = {arXiv:2509.06949},
            }"""),
    }
    _config_class = TraceRLConfig
    _takes_token_rewards = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.value: ValueTraining | None = None
        source = self.args.value_model
        if source in TRAINED_PARTS:
            model = DiffusionValueModel.from_policy(self.model, source, self.args.value_lora_r)
        elif source is not None:
            model = DiffusionValueModel.from_pretrained(source, policy=self.model)
        if source is not None:
            self.value = ValueTraining(model, self.args, self.accelerator)

    # Blocks

    def _block_schedule(self) -> list[tuple[int, BlockLengths]]:
        schedule = self.args.block_length_schedule
        return [] if schedule is None else parse_block_schedule(schedule)

    def _check_block_lengths(self, family):
        super()._check_block_lengths(family)
        for step, lengths in self._block_schedule():
            check_settings(family, self.args.diffusion_generation_config(block_length=lengths.rollout))
            if family.attention == "full" and lengths.training != lengths.rollout:
                raise ValueError(
                    f"block_length_schedule[{step}]={list(lengths)}: a full-attention model is trained without "
                    "blocks. Give one number, the block of the rollouts."
                )

    def _block_lengths(self) -> BlockLengths:
        return block_lengths_at(self._block_schedule(), self.state.global_step, super()._block_lengths())

    def _remember_block_lengths(self, lengths: BlockLengths):
        super()._remember_block_lengths(lengths)
        family = diffusion_model(self.model)
        if self.value is not None and family.attention == "block_causal":
            self.value.model.backbone.config.block_length = family.block_length
        scheduled = self.args.block_length_schedule is not None and lengths.rollout is not None
        if scheduled and family.attention == "full":
            self._set_generation_block(lengths.rollout)

    # Likelihood

    def draw_views(self, inputs: dict[str, torch.Tensor]) -> list[MaskedView]:
        """The views that replay the recorded trajectories; see the parent."""
        return self._trace_views(inputs, self.args.shrinkage)

    def _why_not_replayed(self, output: dict[str, torch.Tensor], rollout: Rollout) -> str | None:
        if self.args.shrinkage > 1:
            return f"shrinkage={self.args.shrinkage} merges steps"
        return super()._why_not_replayed(output, rollout)

    # Advantages

    def _set_advantages(self, output: dict[str, torch.Tensor]):
        outcome, mask = output["advantages"], output["completion_mask"].bool()  # (B,), (B, C)
        token_rewards = self._take_token_rewards(mask)
        args = self.args
        if self.value is not None or token_rewards is not None or args.gamma != 1.0:
            steps = merge_steps(output["unmask_step"], args.shrinkage, self._groups(output))
            rewards = on_last_step(outcome, steps, mask)
            if self.value is None:
                zeros = torch.zeros_like(rewards)
                advantages, _ = stepwise_gae(rewards, zeros, steps, mask, args.gamma)
                if token_rewards is not None:
                    to_go, _ = stepwise_gae(token_rewards, zeros, steps, mask, args.gamma)
                    advantages = advantages + self._group_normalize(to_go, mask & (steps > 0))
            else:
                if token_rewards is not None:
                    rewards = rewards + token_rewards
                values = self._over_chunks(self._old_values, output)
                returns, advantages = stepwise_gae(rewards, values, steps, mask, args.gamma, args.gae_lambda)
                output["old_values"], output["returns"] = values, returns
                self._log_values(values, returns, mask)
            output["advantages"] = advantages
            self._log_token_advantages(advantages, mask)
        else:
            advantages = outcome[:, None].expand(mask.shape)
        count, total, squares = self._token_sums(mask, advantages)
        self._metrics["train"]["advantages/std"].append(_variance(count, total, squares) ** 0.5)

    @torch.no_grad()
    def _old_values(self, chunk: dict[str, torch.Tensor], views: list[MaskedView]) -> torch.Tensor:
        self.value.prepared.eval()
        return value_views(self.value.prepared, *self._rows(chunk), views, **self._block_kwargs(chunk))

    def _log_values(self, values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor):
        errors = returns - values
        count, total, squares = self._token_sums(mask, returns)
        residual = _variance(*self._token_sums(mask, errors))
        spread = _variance(count, total, squares)
        metrics = self._metrics["train"]
        metrics["value/returns"].append(total / max(count, 1.0))
        metrics["value/mean"].append((total - self._token_sums(mask, errors)[1]) / max(count, 1.0))
        metrics["value/explained_variance"].append(1 - residual / spread if spread > 0 else float("nan"))

    def _token_sums(self, mask: torch.Tensor, values: torch.Tensor) -> list[float]:
        """Number of tokens of all processes, the sum of their values and that of the squares."""
        values = values.double() * mask
        sums = torch.stack([mask.double().sum(), values.sum(), values.square().sum()])
        return self.accelerator.reduce(sums, reduction="sum").tolist()

    # Training the value model

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """The policy's schedule; the value model's begins with it."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if self.value is not None:
            self.value.prepare(num_training_steps)
        return scheduler

    def _compute_loss(self, model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.value is not None and "returns" in inputs:
            self._update_value(inputs)
        return super()._compute_loss(model, inputs)

    def _update_value(self, inputs: dict[str, torch.Tensor]):
        """A micro-batch of the value model: the mean over the tokens of the generation batch."""
        views = self._views_of(inputs)
        normalizer = self._normalizer("dapo", inputs, "train")
        totals: dict[str, torch.Tensor] = {}
        self.value.prepared.train()

        def view_loss(view: MaskedView) -> torch.Tensor:
            values = value_view(self.value.prepared, *self._rows(inputs), view, **self._block_kwargs(inputs))
            # Off target everything is 0, and so is the loss.
            old, returns = (inputs[name].where(view.target, 0.0) for name in ("old_values", "returns"))
            loss, metrics = clipped_value_loss(values, old, returns, self.args.value_epsilon)
            add_means(totals, metrics, view.target)
            return loss.sum() / normalizer

        norm = self.value.update([lambda view=view: view_loss(view) for view in views])
        self._log_means("train", totals)
        if norm is not None:
            self._metrics["train"]["value/grad_norm"].append(norm)

    # Files

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        super()._save(output_dir, state_dict)
        folder = self.args.output_dir if output_dir is None else output_dir
        is_checkpoint = os.path.basename(folder).startswith(PREFIX_CHECKPOINT_DIR)
        if self.value is not None and self.args.should_save and (is_checkpoint or self.args.push_value_model):
            self.value.model.save_pretrained(os.path.join(folder, VALUE_FOLDER))

    def _save_training_state(self, folder: str):
        super()._save_training_state(folder)
        if self.value is not None and self.args.should_save:
            self.value.save_state(folder)

    def _push_from_checkpoint(self, checkpoint_folder: str):
        if self.value is not None and self.args.push_value_model and self.is_world_process_zero():
            self.value.model.save_pretrained(os.path.join(self.args.output_dir, VALUE_FOLDER))
        super()._push_from_checkpoint(checkpoint_folder)

    def _pushes_from_checkpoint(self, name: str) -> bool:
        # Checkpoints hold the value model, whether it is shared or not.
        return super()._pushes_from_checkpoint(name) and not name.startswith(f"{VALUE_FOLDER}/")

    def _load_best_model(self):
        super()._load_best_model()
        if self.value is not None:
            self.value.model.load_weights(os.path.join(self.state.best_model_checkpoint, VALUE_FOLDER))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.value is not None:
            self.value.load(checkpoint)


def _variance(count: float, total: float, squares: float) -> float:
    """Variance of values, from their sums."""
    mean = total / max(count, 1.0)
    return max(squares / max(count, 1.0) - mean * mean, 0.0)
