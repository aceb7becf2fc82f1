# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Training a value model beside the policy."""

import os
from collections.abc import Callable
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from transformers import SchedulerType, Trainer, get_scheduler

from ..likelihood import backward_by_view
from ..models import DiffusionValueModel


VALUE_FOLDER = "value_model"
_STATE = "value_optimizer.pt"


class ValueTraining:
    """A value model, its optimizer and its schedule, which follow the policy's at a learning rate of their own.

    Args:
        model ([`DiffusionValueModel`]):
            The value model.
        args ([`TraceRLConfig`]):
            Settings.
        accelerator ([`~accelerate.Accelerator`]):
            The trainer's.

    Raises:
        ValueError: DeepSpeed, FSDP or fp16 (each takes one model and one optimizer), or an optimizer that is made for
            one model's layers.
    """

    def __init__(self, model: DiffusionValueModel, args, accelerator: Accelerator):
        kind = str(accelerator.distributed_type.value)
        if kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
            raise ValueError(
                f"value_model={args.value_model!r} is not supported under {kind}, which prepares one model and one "
                "optimizer. Use DDP (with value_model='lora' or 'head' to save memory), or leave value_model out."
            )
        if accelerator.mixed_precision == "fp16":
            raise ValueError(
                f"value_model={args.value_model!r} is not supported with fp16=True: two optimizers cannot share a "
                "gradient scaler. Use bf16=True."
            )
        if args.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY):
            raise ValueError(
                f"lr_scheduler_type={args.lr_scheduler_type.value!r} is not supported with value_model="
                f"{args.value_model!r}: it follows a metric of the policy's. Use 'constant', or another schedule."
            )
        self.args, self.accelerator = args, accelerator
        self.model = model.to(accelerator.device)
        self.prepared: torch.nn.Module = self.model
        # A frozen backbone without adapters keeps no activations.
        if args.activation_checkpointing and model.trains != "head":
            model.backbone.activation_checkpointing_enable(args.activation_checkpointing_kwargs)
            if model.trains == "lora":
                model.backbone.enable_input_require_grads()
        decayed = set(Trainer.get_decay_parameter_names(None, model))
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for name, p in trained if name in decayed], "weight_decay": args.weight_decay},
            {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
        ]
        optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model.backbone)
        standard = isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)
        if not standard or kwargs.keys() & {"params", "model", "optimizer_dict"}:
            raise ValueError(
                f"optim={args.optim!r} is not supported with value_model={args.value_model!r}: it is made for one "
                "model's layers. Use 'adamw_torch'."
            )
        self.optimizer = optimizer_class(groups, **{**kwargs, "lr": args.value_learning_rate})
        self.scheduler = None

    def prepare(self, num_training_steps: int):
        """Wrap the model for this run, and begin its schedule."""
        if self.scheduler is None:
            self.prepared, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.scheduler = get_scheduler(
            self.args.lr_scheduler_type,
            optimizer=self.optimizer,
            num_warmup_steps=self.args.get_warmup_steps(num_training_steps),
            num_training_steps=num_training_steps,
            scheduler_specific_kwargs=self.args.lr_scheduler_kwargs,
        )

    def update(self, view_losses: list[Callable[[], torch.Tensor]]) -> float | None:
        """Back-propagate a micro-batch's loss, view by view; where the policy's gradients are accumulated, wait.

        Args:
            view_losses (`list[Callable[[], torch.Tensor]]`):
                As in [`~trl_diffusion.likelihood.backward_by_view`].

        Returns:
            The norm of the gradient before clipping, where the optimizer made a step.
        """
        accelerator, synchronising = self.accelerator, self.accelerator.sync_gradients
        with nullcontext() if synchronising else accelerator.no_sync(self.prepared):
            accelerator.backward(backward_by_view(view_losses, self.prepared, accelerator))
        if not synchronising:
            return None
        bound = self.args.max_grad_norm or torch.inf
        norm = accelerator.clip_grad_norm_(self.prepared.parameters(), bound)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return norm.item()

    # Files

    def save_state(self, folder: str):
        """Write what a checkpoint needs beside the weights."""
        path = os.path.join(folder, _STATE)
        state = {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}
        torch.save(state, f"{path}.tmp")
        os.replace(f"{path}.tmp", path)

    def load(self, folder: str):
        """Take weights, optimizer and schedule from a checkpoint.

        Raises:
            ValueError: it holds no value model, or another one.
        """
        weights, path = os.path.join(folder, VALUE_FOLDER), os.path.join(folder, _STATE)
        if not os.path.isdir(weights) or not os.path.isfile(path):
            raise ValueError(
                f"resume_from_checkpoint={folder!r} has no value model: it was written by a run without one. Leave "
                "value_model out, or start from its weights instead (model=…)."
            )
        self.model.load_weights(weights)
        # The optimizer moves its state to where its parameters are.
        state = torch.load(path, weights_only=True, map_location="cpu")
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
