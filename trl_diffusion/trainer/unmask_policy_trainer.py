# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Learning which tokens to reveal."""

import copy
import os
import textwrap
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from transformers import BitsAndBytesConfig, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging
from trl.trainer.utils import get_config_model_id

from ..generation import DiffusionGenerationConfig, Rollout
from ..generation.checks import check_settings
from ..generation.recording import revealed_at
from ..hub import check_base, tiny_name
from ..likelihood import backward_by_view, canvas_blocks
from ..models import DiffusionModelMixin, UnmaskPolicyModel, diffusion_model
from .block_schedule import BlockLengths
from .denoising_trainer import DenoisingGRPOTrainer, add_means
from .joint import DLLM_FOLDER, DLLMTraining
from .objectives import clipped_token_loss
from .policy_rollouts import PolicyRolloutMixin, as_language_model, load_dllm, load_policy, load_tokenizer
from .step_rewards import StepRewardsMixin, mixture_log_prob
from .unmask_policy_config import UnmaskPolicyConfig


logger = logging.get_logger(__name__)

# Places of canvases that the policy is back-propagated through at once; some 0.5 GB of activations.
_PLACES = 2**15


class UnmaskPolicyTrainer(PolicyRolloutMixin, StepRewardsMixin, DenoisingGRPOTrainer):
    """
    Learns a policy that decides which masks a diffusion language model reveals at each step (arXiv 2512.09106), by
    GRPO over denoising steps. The model itself is the environment, and frozen:

        maximise  E (1/G) Σ_i (1/T_i) Σ_t min(ρ_{i,t} A_i, clip(ρ_{i,t}, 1−ε, 1+ε) A_i),   ρ = π_θ(u_t)/π_old(u_t)
        A_i = R_i − mean R,   R = r · (1 − T/C)^α

    u_t are the positions that step t of T reveals, r is what the reward functions return, C the length of the canvas.
    A step may reveal nothing, and costs one all the same; with the last step of a block everything left is revealed.
    In evaluation, as in use, such a step reveals the most promising position.

    A group whose rewards are all equal is left out of the passes of the policy.

    Args:
        model ([`UnmaskPolicyModel`] or `str`, *optional*):
            The policy, or where to load it from. `None`: a new one.
        reward_funcs, train_dataset, eval_dataset, processing_class, reward_processing_classes, callbacks, optimizers:
            As in [`~trl.GRPOTrainer`]; the tokenizer defaults to that of `dllm`.
        args ([`UnmaskPolicyConfig`], *optional*):
            Settings.
        dllm ([`~transformers.PreTrainedModel`], [`~peft.PeftModel`] or `str`):
            The diffusion language model, or where to load it from. It may be quantized, and lie on several devices.
            While it is frozen it is not wrapped, and has no gradients or optimizer.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            For a `dllm` that is given by name.

    Raises:
        ValueError: as [`DenoisingGRPOTrainer`]; no `dllm`; a policy that does not fit it.
        TypeError: `model` is no policy.
    """

    _tag_names = ["trl", "trl-diffusion", "unmask-policy"]
    _name = "Unmask Policy"
    _paper = {
        "title": "Learning Unmasking Policies for Diffusion Language Models",
        "id": "2512.09106",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{jazbec2025unmasking,
                title        = {{Learning Unmasking Policies for Diffusion Language Models}},
                author       = {Metod Jazbec and Theo X. Olausson and Louis B{\\'e}thune and Pierre Ablin and
                                Michael Kirchhof and Jo{\\~a}o Monteiro and Victor Turrisi and Jason Ramapuram and
                                Marco Cuturi},
                year         = 2025,
                eprint       = {arXiv:2512.09106},
            }"""),
    }
    _config_class = UnmaskPolicyConfig
    # What is kept of a rollout depends on these.
    _ROLLOUT_FIELDS = (
        "temperature", "policy_temperature", "alpha", "reward_form", "expert_steering", "num_generations"
    )  # fmt: skip

    def __init__(
        self,
        model: UnmaskPolicyModel | str | None = None,
        reward_funcs=None,
        args: UnmaskPolicyConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        *,
        dllm: "DiffusionModelMixin | PeftModel | str | None" = None,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config=None,
        **kwargs,
    ):
        args = copy.copy(self._settled_args(args))  # what is settled here is not the caller's
        if dllm is None:
            raise ValueError(
                "dllm is None: pass the diffusion language model that the policy is to decide for, or where it is."
            )
        if peft_config is not None:
            raise ValueError(
                "peft_config is not supported by UnmaskPolicyTrainer: the policy is small and trained whole. To train "
                "an adapter of the model with it, pass that as `dllm`: peft.get_peft_model(model, peft_config)."
            )
        set_seed(args.seed)
        policy = load_policy(model, args)
        self.dllm = load_dllm(dllm, args, quantization_config)
        if args.policy_temperature is None:
            args.policy_temperature = policy.config.policy_temperature
        if args.policy_temperature <= 0:
            raise ValueError(
                f"policy_temperature={args.policy_temperature} of the policy draws nothing. Set one in the config."
            )
        if policy.dtype not in (torch.float32, torch.float64):
            policy.float()
        processing_class = processing_class or load_tokenizer(self._dllm, args)
        if eval_dataset is None and args.eval_strategy != "no":
            logger.warning(
                "eval_dataset is None: nothing is evaluated, and the last policy is kept, which may be a worse one "
                "than those before. Pass eval_dataset, or set eval_strategy='no'."
            )
            args.eval_strategy, args.load_best_model_at_end = "no", False
        with as_language_model(policy, self._dllm):
            super().__init__(policy, reward_funcs, args, train_dataset, eval_dataset, processing_class, **kwargs)
        # What the policy is trained at is what it is used at.
        policy.config.policy_temperature = float(args.policy_temperature)
        kind = self.accelerator.distributed_type
        if kind in ("FSDP", "MEGATRON_LM") or (kind == "DEEPSPEED" and is_deepspeed_zero3_enabled()):
            raise ValueError(f"UnmaskPolicyTrainer is not supported under {kind}: the policy is small. Use DDP.")
        self._place_dllm()
        self.joint = None if args.dllm_learning_rate is None else DLLMTraining(self.dllm, self)

    @property
    def _dllm(self) -> DiffusionModelMixin:
        return diffusion_model(self.dllm)

    @property
    def _policy(self) -> UnmaskPolicyModel:
        return self.accelerator.unwrap_model(self.model)

    def _place_dllm(self):
        """Freeze it, unless it is trained too, on the process's device unless it has devices of its own."""
        self.dllm.eval()
        if self.args.dllm_learning_rate is None:
            self.dllm.requires_grad_(False)
        on_devices = len(getattr(self._dllm, "hf_device_map", None) or {}) > 1
        if not on_devices and not getattr(self._dllm, "is_quantized", False):
            self.dllm.to(self.accelerator.device)

    def _check_block_lengths(self, family: DiffusionModelMixin):
        check_settings(family, self.args.diffusion_generation_config(unmasking=self._policy))
        if not self.args.expert_steering:
            return
        if family.attention == "block_causal" and self.args.expert_block_length != self._block_lengths().rollout:
            raise ValueError(
                f"expert_block_length={self.args.expert_block_length} must be the model's block, "
                f"{self._block_lengths().rollout}, which its attention goes by."
            )

    def _remember_block_lengths(self, lengths: BlockLengths):
        self._current_block_lengths = lengths  # the model is as it was

    def _complete_batch(self, output: dict[str, torch.Tensor], rollout: Rollout, mode: str):
        num_rows = len(rollout.canvas_ids)
        if mode == "train":
            record, self._record = self._record, None
            learned = output["completion_mask"].any(dim=1) & self._differs()
            output["advantages"] = output["advantages"] * learned
            output |= {"features": record.features, "rank": record.rank, "decided": record.decided}
            output["is_expert"] = self._expert_rows(num_rows)
            output["num_steps"] = rollout.num_forward_passes
            block_length = (
                rollout.block_length
                if self._dllm.attention == "block_causal"
                else (self._block_lengths().rollout or self.max_completion_length)
            )
            offset = output["prompt_mask"].sum(dim=1) % block_length
            if self._dllm.attention == "full":
                offset = torch.zeros_like(offset)
            output["blocks"] = canvas_blocks(rollout.unmask_step.shape, block_length, offset, offset.device)
            _check_rows(output, num_rows)
            if self.joint is not None:
                self.joint.add_old_logprobs(output, rollout)
            if self._is_off_policy:
                with torch.no_grad():
                    output["old_log_probs"] = self._old_log_probs(output)
            self._log_decisions(output)
            _check_rows(output, num_rows)
        else:
            start = self.accelerator.process_index * num_rows
            output["reward"] = self._totals()[start : start + num_rows]

    def _log_decisions(self, output: dict[str, torch.Tensor]):
        """How often the policy waited, and how often a block's last step decided for it."""
        own = ~output["is_expert"][:, None]
        steps = torch.arange(1, output["decided"].size(1) + 1, device=own.device)
        taken = (steps <= output["num_steps"][:, None]) & own  # (B, T)
        revealing = torch.zeros_like(taken).scatter_add(
            1, (output["unmask_step"].long() - 1).clamp(min=0), (output["unmask_step"] > 0)
        )
        totals: dict[str, torch.Tensor] = {}
        metrics = {"policy/waiting_steps": ~revealing, "policy/steps_out_of_its_hands": ~output["decided"]}
        add_means(totals, metrics, taken)
        self._log_means("train", totals)

    # Likelihood

    def _states(self, inputs: dict[str, torch.Tensor], chosen: torch.Tensor) -> list[torch.Tensor]:
        """Steps of trajectories, (row, step − 1) each, in pieces that are back-propagated at once: as many pieces on
        every process, and at least one. `chosen`, (B,), are the rows that are looked at."""
        pairs = (inputs["decided"] & chosen[:, None]).nonzero()  # (n, 2)
        size = max(1, _PLACES // inputs["features"].size(2))
        pieces = list(pairs.split(size)) if len(pairs) else []
        count = torch.tensor(max(1, len(pieces)), device=pairs.device)
        if self.accelerator.num_processes > 1:
            count = self.accelerator.gather(count).max()
        nothing = pairs.new_zeros(1, 2)  # a step that weighs nothing
        return pieces + [nothing] * (int(count) - len(pieces))

    def _log_probs(self, model, inputs: dict[str, torch.Tensor], pairs: torch.Tensor) -> torch.Tensor:
        """log π of what steps revealed, (n,); the expert's under the mixture."""
        rows, steps = pairs.unbind(dim=1)
        masked, candidates, rank = revealed_at(
            inputs["unmask_step"][rows], inputs["rank"][rows], inputs["blocks"][rows], steps + 1
        )
        logits = model(
            features=inputs["features"][rows, steps], masked=masked, time=steps / self.max_completion_length
        )
        log_probs = self._policy.log_prob(logits, rank, candidates, self.args.policy_temperature)
        mixed = mixture_log_prob(log_probs, self.num_generations)
        return torch.where(inputs["is_expert"][rows], mixed, log_probs)

    def _old_log_probs(self, output: dict[str, torch.Tensor]) -> torch.Tensor:
        """log π_old of every step, (B, T)."""
        old = torch.zeros_like(output["decided"], dtype=torch.float32)
        for pairs in self._states(output, output["advantages"] != 0):
            rows, steps = pairs.unbind(dim=1)
            old[rows, steps] = self._log_probs(self._policy, output, pairs).float()
        return old

    # Loss

    def _compute_loss(self, model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if "reward" in inputs:
            # Of an evaluation: the objective itself.
            return -inputs["reward"].nanmean()
        if self.joint is not None:
            self.joint.update_on(inputs)
        advantages = inputs["advantages"]
        num_rows = len(advantages) * self.current_gradient_accumulation_steps
        counts = inputs["decided"].sum(dim=1).clamp(min=1)
        totals: dict[str, torch.Tensor] = {}

        def loss_of(pairs: torch.Tensor) -> torch.Tensor:
            rows, steps = pairs.unbind(dim=1)
            log_probs = self._log_probs(model, inputs, pairs)
            old = inputs["old_log_probs"][rows, steps] if "old_log_probs" in inputs else log_probs.detach()
            counted = inputs["decided"][rows, steps] & (advantages[rows] != 0)
            losses, metrics = clipped_token_loss(
                log_probs,
                old.where(counted, log_probs.detach()),
                advantages[rows],
                epsilon_low=self.epsilon_low,
                epsilon_high=self.epsilon_high,
                delta=self.args.delta,
            )
            add_means(totals, {**metrics, "policy/log_prob": log_probs}, counted)
            return (losses * counted / counts[rows]).sum() / num_rows

        pieces = self._states(inputs, advantages != 0)
        loss = backward_by_view([lambda pairs=pairs: loss_of(pairs) for pairs in pieces], model, self.accelerator)
        self._log_means("train", totals)
        return loss

    # Files

    # Of the card's settings, those that mean nothing here are left out.
    _card_settings = tuple(
        name
        for name in DenoisingGRPOTrainer._card_settings
        if name not in ("unmasking", "loss_type", "beta", "importance_sampling_level")
    )

    @property
    def _card_model(self) -> torch.nn.Module:
        return self._dllm

    def _card_kind(self) -> str:
        return "policy" if self.args.dllm_learning_rate is None else "joint"

    def _hub_kind(self, merge: bool) -> str:
        return "policy"

    def _card_limits(self) -> list[str]:
        return [
            "It was trained with one model, on one kind of task and one length of canvas; with others it may decide "
            "badly.",
            *super()._card_limits(),
        ]

    def _card_sampling(self, sampling: dict[str, Any]) -> dict[str, Any]:
        return {**super()._card_sampling(sampling), "unmasking": "this policy"}

    def _hub_generation_config(self, folder: str | None = None) -> DiffusionGenerationConfig:
        """How the model was decoded with the policy, which lies in `folder`."""
        return super()._hub_generation_config(
            unmasking=os.path.abspath(self.args.output_dir if folder is None else folder),
            policy_temperature=self.args.policy_temperature,
        )

    def _write_run_files(self, folder: str):
        super()._write_run_files(folder)
        self._hub_generation_config(folder).save_pretrained(folder)
        if self.joint is not None:
            self._hub_generation_config(folder).save_pretrained(os.path.join(folder, DLLM_FOLDER))

    def _check_pushable(self, merge: bool):
        super()._check_pushable(merge)
        base = get_config_model_id(self._dllm.config)
        if self.args.dllm_learning_rate is not None and isinstance(self.dllm, PeftModel):
            check_base(base)
        elif self.args.dllm_learning_rate is None and base and os.path.isdir(base) and tiny_name(base) is None:
            logger.warning(
                f"dllm is a folder of this machine, {base!r}, and the card's quick start loads it. Push the model "
                "too, and write its id into the card."
            )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        # A policy knows no token: its folder holds no tokenizer, its config none of the ids that the Trainer puts in.
        if self.joint is not None and self.args.should_save:
            self.joint.save_pretrained(self.args.output_dir if output_dir is None else output_dir)
        with self._without_tokens():
            super()._save(output_dir, state_dict)

    def _save_training_state(self, folder: str):
        super()._save_training_state(folder)
        if self.joint is not None and self.args.should_save:
            self.joint.save_state(folder)

    @contextmanager
    def _without_tokens(self):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache"):
            vars(self._policy.config).pop(name, None)
        tokenizer, self.processing_class = self.processing_class, None
        try:
            yield
        finally:
            self.processing_class = tokenizer

    def _load_best_model(self):
        super()._load_best_model()
        if self.joint is not None:
            self.joint.load_weights(self.state.best_model_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.joint is not None:
            self.joint.load(checkpoint)
        elif checkpoint is not None and os.path.isdir(os.path.join(checkpoint, DLLM_FOLDER)):
            raise ValueError(
                f"resume_from_checkpoint={checkpoint!r} is of joint training, with a model of its own in "
                f"{DLLM_FOLDER!r}: set dllm_learning_rate, or start from its policy (model=…, dllm=…)."
            )

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """The policy's schedule; that of a model in training begins with it."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if self.joint is not None:
            self.joint.prepare(num_training_steps)
        return scheduler


def _check_rows(output: dict[str, Any], num_rows: int):
    """The buffer shuffles rows and hands them out in pieces: what has no row for each completion would not follow."""
    for name, value in output.items():
        if isinstance(value, torch.Tensor) and value.ndim and len(value) != num_rows:
            raise RuntimeError(f"{name} has {len(value)} rows in a batch of {num_rows}: it cannot be buffered.")
