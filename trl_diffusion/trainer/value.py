# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Training a value model beside the policy."""

import os

from accelerate import Accelerator

from ..models import DiffusionValueModel
from .side_training import SideTraining


VALUE_FOLDER = "value_model"
_STATE = "value_optimizer.pt"


class ValueTraining(SideTraining):
    """[`SideTraining`] of a value model.

    Args:
        model ([`DiffusionValueModel`]):
            The value model.
        args ([`TraceRLConfig`]):
            Settings.
        accelerator ([`~accelerate.Accelerator`]):
            The trainer's.
    """

    def __init__(self, model: DiffusionValueModel, args, accelerator: Accelerator):
        setting = f"value_model={args.value_model!r}"
        super().__init__(
            model.to(accelerator.device), model.backbone, args.value_learning_rate, args, accelerator, setting, _STATE
        )
        # A frozen backbone without adapters keeps no activations.
        if args.activation_checkpointing and model.trains != "head":
            model.backbone.activation_checkpointing_enable(args.activation_checkpointing_kwargs)
            if model.trains == "lora":
                model.backbone.enable_input_require_grads()

    def load(self, folder: str):
        """Take weights, optimizer and schedule from a checkpoint.

        Raises:
            ValueError: it holds no value model, or another one.
        """
        weights = os.path.join(folder, VALUE_FOLDER)
        if not os.path.isdir(weights) or not os.path.isfile(os.path.join(folder, _STATE)):
            raise ValueError(
                f"resume_from_checkpoint={folder!r} has no value model: it was written by a run without one. Leave "
                "value_model out, or start from its weights instead (model=…)."
            )
        self.model.load_weights(weights)
        self.load_state(folder)
