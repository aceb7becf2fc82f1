# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""A few steps of RL in however many processes torchrun starts; what they computed and became goes to a file."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import conftest
import torch
from hinted import fails_at_one, igpo, traced, traced_tokenizer
from peft import LoraConfig
from policies import policy_trainer, small_policy
from processes import leave
from rl import rl_trainer, share_of_ones
from transformers import Trainer, TrainerState

from trl_diffusion.tasks import character_tokenizer


def correct(completions, **kwargs):
    return [float(completion.count("1") >= 1) for completion in completions]


def digits(completion_ids, unmask_step, **kwargs):
    """A reward for every token; nothing for completions that begin with an even one."""
    return [
        [(token % 3 - 1) / step for token, step in zip(ids, steps, strict=True)] if ids[0] % 2 else None
        for ids, steps in zip(completion_ids, unmask_step, strict=True)
    ]


VALUE = {"trainer": "tracerl", "value_learning_rate": 0.1, "num_generations": 8}
# `rows` is the batch of all processes together. With 8 generations and 8 rows, every group lies on both of two
# processes. With 24 and two micro-batches each, three groups lie on 12 + 12 rows, so that the second one does.
CASES: dict[str, dict[str, Any]] = {
    "full attention": {"trainer": "tracerl", "family": "llada", "rows": 8},
    "blocks": {"trainer": "tracerl", "family": "sdar", "rows": 8},
    "grpo": {"trainer": "grpo", "family": "llada", "rows": 8, "loss_type": "dapo"},
    "full value model": {
        **VALUE,
        "family": "llada",
        "rows": 8,
        "value_model": "full",
        "gamma": 0.9,
        "loss_type": "dapo",
    },
    # A generation feeds two steps, an epoch has four: the checkpoint is in mid-buffer, in the second epoch, which has
    # one more generation to come.
    "lora value model": {
        **VALUE,
        "family": "sdar",
        "lora": True,
        "rows": 12,
        "value_model": "lora",
        "gradient_accumulation_steps": 2,
        "num_iterations": 2,
        "max_steps": 7,
        "save_strategy": "steps",
        "save_steps": 5,
    },
    "head value model": {
        **VALUE,
        "family": "sdar",
        "lora": True,
        "rows": 8,
        "value_model": "head",
        "gae_lambda": 0.8,
        "reward": [share_of_ones, digits],
        "truncated_reward": -0.5,
    },
    "token rewards": {
        "trainer": "tracerl",
        "family": "llada",
        "num_generations": 8,
        "rows": 24,
        "gamma": 0.9,
        "reward": [digits, correct],
        "difficulty_range": [0.1, 0.9],
        "model_seed": 6,  # of which some completions end
        "correctness_reward": "correct",
        "truncated_reward": 0.5,
    },
}
# The bound on-policy, in groups across processes; the exact objective off-policy, with two micro-batches.
CASES["bound"] = {
    "trainer": "bgpo",
    "family": "llada",
    "rows": 16,
    "num_generations": 8,
    "num_mc_samples": 4,
    "noise_levels": "stratified",
    "antithetic": True,
    "learning_rate": 0.01,
    "gradient_variance_steps": 2,
}
CASES["exact objective"] = {
    "trainer": "bgpo",
    "family": "sdar",
    "lora": True,
    "rows": 12,
    "num_generations": 8,
    "objective": "elbo",
    "num_mc_samples": 3,
    "gradient_accumulation_steps": 2,
    "num_iterations": 2,
    "max_steps": 5,
    "learning_rate": 0.05,
    "beta": 0.1,
    "epsilon": 0.3,
    "delta": 2.0,
}
CASES["coupled"] = {"trainer": "grpo", "family": "llada", "rows": 8, "likelihood": "coupled", "num_iterations": 2}
# Hints in groups across processes; the second of three lies on both.
CASES["hints"] = {
    "trainer": "igpo",
    "family": "llada",
    "rows": 24,
    "num_generations": 8,
    "num_iterations": 2,
    "hint_entropy_quantile": 0.5,
    "learning_rate": 0.02,
    "reward": fails_at_one,
    "max_steps": 8,
}
# Whole groups on each process, half of them without a trace: one process has rows to replace, the other may not.
CASES["some hints"] = {
    "trainer": "igpo",
    "family": "sdar",
    "lora": True,
    "rows": 8,
    "num_generations": 4,
    "likelihood": "coupled",
    "gradient_accumulation_steps": 2,
    "dataset": traced(every=2),
}
# A policy of unmasking, in groups across processes, with their experts; and with the model trained too.
CASES["unmasking policy"] = {
    "trainer": "policy",
    "family": "llada",
    "rows": 24,
    "num_generations": 8,
    "num_iterations": 2,
    "expert_steering": True,
    "expert_block_length": 3,
    "alpha": 0.3,
    "learning_rate": 0.05,
}
CASES["joint"] = {
    "trainer": "policy",
    "family": "sdar",
    "rows": 12,
    "num_generations": 4,
    "num_iterations": 2,
    "block_length": 4,
    "temperature": 0.9,
    "gradient_accumulation_steps": 2,
    "dllm_learning_rate": 0.05,
    "learning_rate": 0.05,
}
RECORDED = ("completion_ids", "completion_mask", "advantages", "returns", "old_values", "old_elbos", "view_seed")
RECORDED += ("injected", "learned", "unmask_step", "rank", "num_steps", "is_expert")


def record_generations(trainer) -> list[dict[str, torch.Tensor]]:
    """Fills up with the rows of every generation, all processes' side by side."""
    generations = []
    generate = trainer._generate_and_score_completions

    def recorded(inputs):
        output = generate(inputs)
        generations.append(
            {name: trainer.accelerator.gather(output[name].double()) for name in RECORDED if name in output}
        )
        return output

    trainer._generate_and_score_completions = recorded
    return generations


def train(case: str, folder: str, resume: str | None = None) -> dict[str, Any]:
    """A run with SGD; Adam would amplify rounding."""
    settings = dict(CASES[case])
    name, family, lora = settings.pop("trainer"), settings.pop("family"), settings.pop("lora", False)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    settings["per_device_train_batch_size"] = settings.pop("rows") // processes
    settings = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 1.0, "max_steps": 3, "beta": 0.0, **settings}
    settings["peft_config"] = LoraConfig(target_modules="all-linear", r=4, lora_alpha=16) if lora else None
    if name == "igpo":
        model = conftest.random_model(family, traced_tokenizer(), seed=6, spread=0.1)
        trainer = igpo(folder, model=model, family=family, **settings)
    elif name == "policy":
        tokenizer = character_tokenizer("01234")
        model, policy = conftest.random_model(family, tokenizer), small_policy(initial_bias=0.5)
        settings.pop("peft_config")
        trainer = policy_trainer(model, tokenizer, folder, policy, **settings)
    else:
        tokenizer = character_tokenizer("01234")
        model = conftest.random_model(family, tokenizer, seed=settings.pop("model_seed", 0))
        trainer = rl_trainer(name, model, tokenizer, folder, **settings)
    assert trainer.accelerator.num_processes == processes
    value = getattr(trainer, "value", None)
    models = {"policy": trainer.model} if value is None else {"policy": trainer.model, "value": value.model}
    if getattr(trainer, "joint", None) is not None:
        models["dllm"] = trainer.joint.model
    trained = {
        f"{model} {key}": parameter
        for model, module in models.items()
        for key, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    start = {key: parameter.detach().clone() for key, parameter in trained.items()}
    if resume:
        with torch.no_grad():
            for parameter in trained.values():
                parameter.uniform_(-1, 1)
    generations = record_generations(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return {
        "start": start,
        "end": {key: parameter.detach().clone() for key, parameter in trained.items()},
        "generations": generations,
        "logs": [row for row in trainer.state.log_history if "loss" in row],
    }


def a_list_on_one_process(completion_ids, **kwargs):
    lists = [[1.0] * len(ids) for ids in completion_ids]
    return lists if os.environ["RANK"] == "1" else [float(len(ids)) for ids in completion_ids]


def error_of_mixed_rewards(folder: str) -> str:
    """What every process is told where a reward function gives lists to one of them alone."""
    CASES["mixed"] = {**CASES["token rewards"], "reward": [a_list_on_one_process, correct]}
    try:
        train("mixed", folder)
    except TypeError as error:
        return str(error)
    return "nothing"


def watch_checkpoints() -> list[list[str]]:
    """The files that are there when the one is written that makes a checkpoint whole; the second process is late."""
    there = []
    write, save = TrainerState.save_to_json, Trainer._save_rng_state

    def noting(self, path):
        there.append(os.listdir(os.path.dirname(path)))
        write(self, path)

    def late(self, folder):
        time.sleep(float(os.environ["RANK"]))
        save(self, folder)

    TrainerState.save_to_json, Trainer._save_rng_state = noting, late
    return there


if __name__ == "__main__":
    assert int(os.environ["WORLD_SIZE"]) == 2
    out = Path(sys.argv[1])
    files = watch_checkpoints()
    results = {case: train(case, str(out / case)) for case in CASES}
    folder = out / "lora value model"
    results["resumed"] = train(folder.name, str(folder), resume=str(folder / "checkpoint-5"))
    results["files"] = files
    results["error"] = error_of_mixed_rewards(str(out / "mixed"))
    if int(os.environ["RANK"]) == 0:
        torch.save(results, out / "results.pt")
    leave()
