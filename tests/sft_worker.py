# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Steps of SFT and an evaluation in however many processes torchrun starts; results go to a file."""

import sys

import conftest
import torch
from accelerate import PartialState
from processes import leave
from safetensors.torch import save_file
from sft import recorded_rows, sft_trainer, text_rows

from trl_diffusion.tasks import character_tokenizer


FAMILIES = ("llada", "sdar")
NORMALIZATIONS = ("token", "sequence", "batch")


def train(family: str, folder: str, batch_size: int) -> dict[str, torch.Tensor]:
    """Parameters after two steps of trace SFT, whose views are the same in any number of processes, and the loss of an
    evaluation with noise, for every normalisation. The steps have two micro-batches; rows have unlike many views."""
    found = {}
    tokenizer = character_tokenizer("01234")
    for normalization in NORMALIZATIONS:
        trainer = sft_trainer(
            conftest.random_model(family, tokenizer),
            tokenizer,
            folder,
            dataset=recorded_rows(16),
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=batch_size,
            gradient_accumulation_steps=2,
            optim="sgd",
            learning_rate=3e-3,
            max_grad_norm=1e3,  # clipping would hide a wrong scale
            masking="trace",
            loss_normalization=normalization,
        )
        trainer.train()
        model = trainer.accelerator.unwrap_model(trainer.model)
        found |= {f"{family}.{normalization}.{key}": value.detach().clone() for key, value in model.named_parameters()}
        noisy = sft_trainer(
            conftest.random_model(family, tokenizer),
            tokenizer,
            folder,
            eval_dataset=text_rows(9),  # not as many rows in every process
            per_device_eval_batch_size=batch_size,
            masking="block",
            block_length=3,
            loss_normalization=normalization,
        )
        found[f"{family}.{normalization}.eval_loss"] = torch.tensor(noisy.evaluate()["eval_loss"])
    return found


if __name__ == "__main__":
    folder, out = sys.argv[1:]
    found = {name: value for family in FAMILIES for name, value in train(family, folder, batch_size=2).items()}
    assert PartialState().num_processes == 2
    if PartialState().is_main_process:
        save_file(found, out)
    leave()
