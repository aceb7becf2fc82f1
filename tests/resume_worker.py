# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Runs (TraceRL with a value model, BGPO, IGPO, an unmasking policy with its model) that kill themselves, and the runs
that go on from what they left.

Every run is a process of its own, forked from one that has only imported: nothing but files comes from one to the
next, and the imports are paid for once.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path

import conftest
import numpy as np
import torch
from hinted import fails_at_one, igpo, traced_tokenizer
from peft import LoraConfig
from policies import policy_trainer, small_policy
from rl import rl_trainer
from transformers import TrainerCallback, TrainerState

from trl_diffusion.tasks import character_tokenizer


# A generation feeds 4 optimizer steps, an epoch has 8 of them: 14 steps end in the middle of the second epoch. Neither
# learning rate is constant, and both are large enough for a step to move the losses by far more than is allowed.
SHARED = {
    "max_steps": 14,
    "num_iterations": 2,
    "learning_rate": 0.01,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
}
CASES = {
    "llada": {
        "trainer": "tracerl",
        "family": "llada",
        "value_learning_rate": 0.02,
        "value_model": "full",
        "steps_per_generation": 2,
        "per_device_train_batch_size": 8,
        "save_steps": 2,
        "save_total_limit": 1,
    },
    "sdar": {
        "trainer": "tracerl",
        "family": "sdar",
        "value_learning_rate": 0.02,
        "value_model": "lora",
        "steps_per_generation": 4,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "save_steps": 1,
        "gamma": 0.9,
        "gae_lambda": 0.8,
        "block_length_schedule": {"0": 4, "6": 2},
    },
    # Two passes per update, with dropout; masks and old ELBOs come out of the checkpoint.
    "bgpo": {
        "trainer": "bgpo",
        "family": "sdar",
        "objective": "elbo",
        "num_mc_samples": 3,
        "beta": 0.05,
        "steps_per_generation": 4,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.002,
        "save_steps": 2,
        "gradient_variance_steps": 3,
    },
    # What was given and what is learned from comes out of the checkpoint, with the rollouts.
    "igpo": {
        "trainer": "igpo",
        "family": "llada",
        "num_iterations": 2,
        "steps_per_generation": 4,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "save_steps": 2,
        "hint_ratio_range": [0.7, 1.0],
        "hint_entropy_quantile": 0.5,
        "reward": fails_at_one,
    },
    # What the policy saw and did comes out of the checkpoint; and the model, which is trained too.
    "policy": {
        "trainer": "policy",
        "family": "llada",
        "steps_per_generation": 4,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "save_steps": 2,
        "expert_steering": True,
        "expert_block_length": 3,
        "temperature": 0.9,
        "alpha": 0.3,
        "dllm_learning_rate": 0.005,
    },
}
# The lives of one run: what it resumes; where it dies: at the end of a step before its checkpoint is written, or in
# the middle of writing one (`optimizer`: after the weights, `state`: in the last file); the step it must begin with.
LIVES = {
    "llada": [
        (None, ("step", 3), 0),
        (True, ("optimizer", 6), 2),  # in mid-buffer
        (True, ("step", 9), 4),  # the older checkpoint is still there, though only one is kept
        (True, ("step", 11), 8),  # where an epoch ends
        (True, None, 10),  # in mid-buffer, in the second epoch; it generates once more
    ],
    "sdar": [
        (None, ("step", 6), 0),
        ("checkpoint-4", ("optimizer", 5), 4),  # dies while overwriting a checkpoint that was whole
        (True, ("state", 7), 4),
        (True, ("step", 11), 6),
        (True, None, 10),
    ],
    "bgpo": [
        (None, ("step", 7), 0),  # in mid-buffer
        (True, ("optimizer", 10), 6),
        (True, None, 8),
    ],
    "igpo": [
        (None, ("step", 7), 0),  # in mid-buffer
        (True, ("state", 10), 6),
        (True, None, 8),
    ],
    "policy": [
        (None, ("step", 7), 0),  # in mid-buffer
        (True, ("optimizer", 10), 6),
        (True, None, 8),
    ],
}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Death(TrainerCallback):
    """Notes where the run begins, and ends it at the end of a step."""

    def __init__(self, note: Path, step: int | None):
        self.note, self.step = note, step

    def on_train_begin(self, args, state, control, **kwargs):
        self.note.write_text(str(state.global_step))

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            die()


def die_while_saving(trainer, place: str, step: int):
    if place == "optimizer":
        save = trainer._save_optimizer_and_scheduler
        trainer._save_optimizer_and_scheduler = lambda folder: (
            die() if trainer.state.global_step == step else save(folder)
        )
    else:
        write = TrainerState.save_to_json

        def half(self, path):
            write(self, path)
            if self.global_step == step:
                os.truncate(path, os.path.getsize(path) // 2)
                die()

        TrainerState.save_to_json = half


def train(case: str, folder: Path, life: int | None):
    """One life of a run; `life=None`: the run that nothing happens to, which saves nothing either."""
    settings = dict(CASES[case])
    name, family = settings.pop("trainer"), settings.pop("family")
    lora = LoraConfig(target_modules="all-linear", r=4, lora_alpha=16, lora_dropout=0.2) if family == "sdar" else None
    resume, death, _ = (None, None, 0) if life is None else LIVES[case][life]
    settings = {**SHARED, **settings, "save_strategy": "no" if life is None else "steps"}
    # The weights that an adapter leaves alone are not in a checkpoint; they come with the model.
    seed = 50 + life if resume and lora is None else 0
    if name == "igpo":
        trainer = igpo(folder, model=conftest.random_model(family, traced_tokenizer(), seed, spread=0.1), **settings)
    elif name == "policy":
        tokenizer = character_tokenizer("01234")
        model = conftest.random_model(family, tokenizer, seed)
        trainer = policy_trainer(model, tokenizer, folder, small_policy(seed, initial_bias=0.5), **settings)
    else:
        tokenizer = character_tokenizer("01234")
        model = conftest.random_model(family, tokenizer, seed)
        trainer = rl_trainer(name, model, tokenizer, folder, peft_config=lora, **settings)
    # What is trained beside the policy: a value model, or the model that a policy of unmasking decides for.
    value = getattr(trainer, "value", None) or getattr(trainer, "joint", None)
    models = {"policy": trainer.model} | ({} if value is None else {"value": value.model})
    place, step = death or (None, None)
    trainer.add_callback(Death(folder / f"start-{life}", step if place == "step" else None))
    if place in ("optimizer", "state"):
        die_while_saving(trainer, place, step)
    if resume:
        # Nothing may be right by accident.
        torch.manual_seed(life)
        np.random.seed(life)
        random.seed(life)
        with torch.no_grad():
            for parameter in [parameter for model in models.values() for parameter in model.parameters()]:
                if parameter.requires_grad:
                    parameter.uniform_(-1, 1)
    trainer.train(resume_from_checkpoint=resume if resume in (None, True) else str(folder / resume))
    state = {
        model: {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
        for model, module in models.items()
    }
    state["generator"] = torch.get_rng_state()
    state["policy optimizer"], state["policy schedule"] = (
        trainer.optimizer.state_dict(),
        trainer.lr_scheduler.state_dict(),
    )
    if value is not None:
        state["value optimizer"], state["value schedule"] = value.optimizer.state_dict(), value.scheduler.state_dict()
    torch.save(state, folder / "state.pt")
    (folder / "log.json").write_text(json.dumps(trainer.state.log_history))


def in_a_process(function, *args) -> int:
    """Exit status of a function in a forked process; the number of a signal is negative."""
    pid = os.fork()
    if pid == 0:
        try:
            function(*args)
        except BaseException as error:
            print(f"{args}: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_case(case: str, folder: Path):
    whole, killed = folder / case / "whole", folder / case / "killed"
    for path in (whole, killed):
        path.mkdir(parents=True)
    statuses = [in_a_process(train, case, whole, None)]
    statuses += [in_a_process(train, case, killed, life) for life in range(len(LIVES[case]))]
    (folder / case / "statuses.json").write_text(json.dumps(statuses))


if __name__ == "__main__":
    running = []
    for name in CASES:
        pid = os.fork()
        if pid == 0:
            run_case(name, Path(sys.argv[1]))
            os._exit(0)
        running.append(pid)
    for pid in running:
        os.waitpid(pid, 0)
