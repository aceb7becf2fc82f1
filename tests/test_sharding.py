# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Models that FSDP2 shares out over processes."""

import torch
from conftest import random_model
from processes import run_two_processes
from rl import rl_trainer

from trl_diffusion.trainer import rollouts
from trl_diffusion.trainer.sharding import gathered_weights


def test_rollouts_of_a_shared_out_model_are_those_of_the_whole_one():
    run_two_processes("fsdp_worker.py")


def test_rollouts_gather_the_weights(tokenizer, tmp_path, monkeypatch):
    gathered = []

    def watched(model):
        gathered.append(model)
        return gathered_weights(model)

    monkeypatch.setattr(rollouts, "gathered_weights", watched)
    trainer = rl_trainer("tracerl", random_model("llada", tokenizer), tokenizer, tmp_path, max_steps=1)
    trainer.train()
    assert gathered and all(model is trainer.model_wrapped for model in gathered)


def test_a_model_that_is_not_shared_out_is_left_alone():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    with gathered_weights(model):
        model(torch.ones(1, 2))
    assert calls
