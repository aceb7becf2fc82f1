# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Joint training: the diffusion language model learns on the trajectories that its unmasking policy decides."""

import copy
import glob
import os
from typing import Any

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file

from ..hub.files import DLLM_FOLDER
from ..likelihood import MaskedView, score_view
from ..models import diffusion_model
from .denoising_trainer import add_means
from .likelihoods import LikelihoodMixin
from .objectives import clipped_token_loss, token_weights
from .side_training import SideTraining


_STATE = "dllm_optimizer.pt"
# TraceRL's clip range; `epsilon` is that of the policy's steps.
_EPSILON = 0.2


class DLLMTraining(LikelihoodMixin, SideTraining):
    """[`SideTraining`] of a diffusion language model, by TraceRL's objective (arXiv 2509.06949): the tokens of each
    step of a trajectory are scored in the state in which they were drawn, with the advantage of the whole one.

    Args:
        model (`torch.nn.Module`):
            A diffusion language model, whole or with an adapter.
        trainer ([`UnmaskPolicyTrainer`]):
            Whose rollouts are learned from.
    """

    def __init__(self, model: torch.nn.Module, trainer):
        if not isinstance(model, PeftModel):
            if not all(parameter.is_floating_point() for parameter in model.parameters()):
                raise ValueError(
                    f"dllm_learning_rate={trainer.args.dllm_learning_rate} cannot train quantized weights. Pass a "
                    "dllm with an adapter: peft.get_peft_model(model, peft_config)."
                )
            model.requires_grad_(True)
        elif list(model.peft_config) != ["default"]:
            raise ValueError(
                f"dllm has adapters named {', '.join(model.peft_config)}; joint training saves and resumes one, named "
                "'default'. Make it without adapter_name."
            )
        elif not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(
                f"dllm_learning_rate={trainer.args.dllm_learning_rate} and an adapter that is frozen: load it with "
                "is_trainable=True."
            )
        halves = {p.dtype for p in model.parameters() if p.requires_grad} & {torch.float16, torch.bfloat16}
        if halves:
            raise ValueError(
                f"dllm_learning_rate={trainer.args.dllm_learning_rate} would train weights in {halves.pop()}, in "
                "which small updates are lost. Load dllm with dtype='float32' (bf16=True computes in bf16), or train "
                "an adapter."
            )
        args = copy.copy(trainer.args)
        args.likelihood = "trace"
        rate = args.dllm_learning_rate
        super().__init__(
            model, diffusion_model(model), rate, args, trainer.accelerator, f"dllm_learning_rate={rate}", _STATE
        )
        self.trainer, self.temperature = trainer, args.temperature

    def compute_loss_context_manager(self):
        """The trainer's."""
        return self.trainer.compute_loss_context_manager()

    def _report_old_source(self, obstacle: str | None):
        self.trainer._metrics["train"]["old_logprobs/from_rollout"].append(float(obstacle is None))

    def add_old_logprobs(self, output: dict[str, Any], rollout):
        """Put the log-probabilities of the model before the updates into a generation batch, (B, C)."""
        output["old_per_token_logps"] = self._old_logprobs(output, rollout)

    def update_on(self, inputs: dict[str, Any]):
        """Back-propagate a micro-batch, view by view, and step where the trainer does."""
        views = self._views_of(inputs)
        mask, advantages = inputs["completion_mask"].bool(), inputs["advantages"][:, None]
        normalizer = len(mask) * self.trainer.current_gradient_accumulation_steps
        totals: dict[str, torch.Tensor] = {}
        self.prepared.train()

        def view_loss(view: MaskedView) -> torch.Tensor:
            scores = score_view(
                self.prepared, *self._rows(inputs), view, temperature=self.temperature, **self._block_kwargs(inputs)
            )
            current = scores.logprobs.detach()
            old = inputs["old_per_token_logps"].where(view.target, current)
            loss, metrics = clipped_token_loss(scores.logprobs, old, advantages, _EPSILON, _EPSILON)
            named = {f"dllm/{name}": values for name, values in metrics.items()}
            add_means(totals, {**named, "dllm/entropy": scores.entropies}, view.target)
            return (loss * token_weights("step", view, mask)).sum() / normalizer

        norm = self.update([lambda view=view: view_loss(view) for view in views])
        self.prepared.eval()
        self.trainer._log_means("train", totals)
        if norm is not None:
            self.trainer._metrics["train"]["dllm/grad_norm"].append(norm)

    # Files

    def save_pretrained(self, folder: str):
        """Write the model, or its adapter, in the Hub's format, and the tokenizer."""
        self.model.save_pretrained(os.path.join(folder, DLLM_FOLDER))
        self.trainer.processing_class.save_pretrained(os.path.join(folder, DLLM_FOLDER))

    def load_weights(self, folder: str):
        """Take the weights of a folder that [`save_pretrained`] wrote.

        Raises:
            ValueError: there are none.
        """
        weights = os.path.join(folder, DLLM_FOLDER)
        files = sorted(glob.glob(os.path.join(glob.escape(weights), "*.safetensors")))
        if not files:
            raise ValueError(
                f"{folder!r} has no weights of the diffusion language model: it was written by a run without "
                "dllm_learning_rate. Leave that out, or start from the policy instead (model=…)."
            )
        if isinstance(self.model, PeftModel):
            set_peft_model_state_dict(self.model, load_peft_weights(weights))
            return
        for file in files:
            self.model.load_state_dict(load_file(file), strict=False)

    def load(self, folder: str):
        """Take weights, optimizer and schedule from a checkpoint."""
        self.load_weights(folder)
        self.load_state(folder)
