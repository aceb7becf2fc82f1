# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Training a second model beside the one that is the trainer's."""

import os
from collections.abc import Callable
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from transformers import SchedulerType, Trainer, get_scheduler

from ..likelihood import backward_by_view


class SideTraining:
    """A model, its optimizer and its schedule, which follow the trainer's at a learning rate of their own.

    Args:
        model (`torch.nn.Module`):
            What is trained of it requires a gradient.
        family (`torch.nn.Module`):
            The transformers model inside, which optimizers are chosen for.
        learning_rate (`float`):
            The peak.
        args ([`DenoisingGRPOConfig`]):
            Settings.
        accelerator ([`~accelerate.Accelerator`]):
            The trainer's.
        setting (`str`):
            The setting that asks for it, e.g. `"value_model='full'"`, for error messages.
        state_file (`str`):
            Name of the file of a checkpoint that holds its optimizer.

    Raises:
        ValueError: DeepSpeed, FSDP or fp16 (each takes one model and one optimizer), or an optimizer that is made for
            one model's layers.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        family: torch.nn.Module,
        learning_rate: float,
        args,
        accelerator: Accelerator,
        setting: str,
        state_file: str,
    ):
        kind, name = str(accelerator.distributed_type.value), setting.split("=")[0]
        if kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
            raise ValueError(
                f"{setting} is not supported under {kind}, which prepares one model and one optimizer. Use DDP, or "
                f"leave {name} out."
            )
        if accelerator.mixed_precision == "fp16":
            raise ValueError(
                f"{setting} is not supported with fp16=True: two optimizers cannot share a gradient scaler. Use "
                "bf16=True."
            )
        if args.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY):
            raise ValueError(
                f"lr_scheduler_type={args.lr_scheduler_type.value!r} is not supported with {setting}: it follows a "
                "metric of the policy's. Use 'constant', or another schedule."
            )
        self.args, self.accelerator, self.state_file = args, accelerator, state_file
        self.model = model
        self.prepared: torch.nn.Module = model
        decayed = set(Trainer.get_decay_parameter_names(None, model))
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for name, p in trained if name in decayed], "weight_decay": args.weight_decay},
            {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
        ]
        optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, family)
        standard = isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)
        if not standard or kwargs.keys() & {"params", "model", "optimizer_dict"}:
            raise ValueError(
                f"optim={args.optim!r} is not supported with {setting}: it is made for one model's layers. Use "
                "'adamw_torch'."
            )
        self.optimizer = optimizer_class(groups, **{**kwargs, "lr": learning_rate})
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
        path = os.path.join(folder, self.state_file)
        state = {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}
        torch.save(state, f"{path}.tmp")
        os.replace(f"{path}.tmp", path)

    def load_state(self, folder: str):
        """Take optimizer and schedule from a checkpoint."""
        # The optimizer moves its state to where its parameters are.
        state = torch.load(os.path.join(folder, self.state_file), weights_only=True, map_location="cpu")
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
