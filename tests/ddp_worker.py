# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Three steps of RL or SFT in however many processes torchrun starts; the parameters go to a file."""

import sys

import conftest
from rl import rl_trainer
from safetensors.torch import save_file

from trl_diffusion.tasks import character_tokenizer


def train(name: str, family: str, folder: str, batch_size: int) -> dict:
    """Parameters after three steps with SGD and one generation per step; Adam would amplify rounding."""
    tokenizer = character_tokenizer("01234")
    trainer = rl_trainer(
        name,
        conftest.random_model(family, tokenizer),
        tokenizer,
        folder,
        per_device_train_batch_size=batch_size,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=1.0,
        max_steps=3,
        beta=0.0,
        lr_scheduler_type="constant",
        loss_type="dapo" if name == "grpo" else "step",
    )
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {key: value.detach().clone() for key, value in model.named_parameters()}, trainer


if __name__ == "__main__":
    name, family, folder, out = sys.argv[1:]
    parameters, trainer = train(name, family, folder, batch_size=4)
    assert trainer.accelerator.num_processes == 2
    if trainer.accelerator.is_main_process:
        save_file(parameters, out)
