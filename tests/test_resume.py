# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""A run (TraceRL with a value model, BGPO, IGPO, an unmasking policy with its model) that is killed again and again
ends as one that never was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import random_model
from resume_worker import CASES, LIVES, SHARED
from rl import rl_trainer
from transformers import AutoConfig

from trl_diffusion.trainer.resume import last_whole_checkpoint


HERE = Path(__file__).parent
STEPS = SHARED["max_steps"]
# Of a generation, and of every step.
ROLLOUT_METRICS = {
    "tracerl": ("reward", "value/returns", "value/explained_variance", "advantages/std", "trajectory/tokens_per_step"),
    "bgpo": ("reward", "trajectory/tokens_per_step"),
    "policy": ("reward", "expert/reward", "policy/waiting_steps", "generation/forward_passes"),
    "igpo": ("reward", "hints/all_wrong_before", "hints/all_wrong_after", "hints/replaced", "hints/reward"),
}
STEP_METRICS = {
    "tracerl": ("loss", "grad_norm", "learning_rate", "value/loss", "value/grad_norm", "entropy"),
    "bgpo": ("loss", "grad_norm", "learning_rate", "elbo/per_token", "elbo/difference_std", "kl", "entropy"),
    "igpo": ("loss", "grad_norm", "learning_rate", "entropy"),
    "policy": ("loss", "grad_norm", "learning_rate", "policy/log_prob", "dllm/grad_norm", "dllm/entropy"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    command = [sys.executable, str(HERE / "resume_worker.py"), str(folder)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    for case in CASES:
        statuses = json.loads((folder / case / "statuses.json").read_text())
        assert statuses == [0, *(-9 if death else 0 for _, death, _ in LIVES[case])], run.stderr[-3000:]
    return folder


@pytest.fixture(params=list(CASES))
def case(request, runs):
    return runs / request.param


def logs(folder: Path) -> dict[int, dict[str, float]]:
    """Step → what was logged, but for times and the last line's summary."""
    rows = [row for row in json.loads((folder / "log.json").read_text()) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return {row["step"]: {name: v for name, v in row.items() if name != "step_time"} for row in rows}


def leaves(tree, path=()):
    if isinstance(tree, dict | list | tuple):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in pairs:
            yield from leaves(value, (*path, str(key)))
    else:
        yield "/".join(path), tree


def test_it_goes_on_from_the_last_whole_checkpoint(case):
    for life, (_, _, step) in enumerate(LIVES[case.name]):
        assert (case / "killed" / f"start-{life}").read_text() == str(step), life


def test_every_logged_number_is_that_of_an_uninterrupted_run(case):
    expected, found = logs(case / "whole"), logs(case / "killed")
    trainer = CASES[case.name]["trainer"]
    for step in expected:
        # A generation every four steps.
        names = STEP_METRICS[trainer] + (ROLLOUT_METRICS[trainer] if step % 4 == 1 else ())
        assert expected[step].keys() >= set(names) and expected[step].keys() == found[step].keys(), step
        for name, value in expected[step].items():
            assert found[step][name] == pytest.approx(value, rel=1e-5, abs=1e-5), (step, name)
    # The numbers are not equal because nothing happened.
    for name in STEP_METRICS[trainer]:
        assert len({round(row[name], 4) for row in expected.values()}) > STEPS / 2, name


def test_it_ends_in_the_same_state(case):
    expected, found = (torch.load(case / name / "state.pt", weights_only=False) for name in ("whole", "killed"))
    for part in expected:
        wanted, given = dict(leaves(expected[part])), dict(leaves(found[part]))
        assert wanted.keys() == given.keys() and wanted
        for name, value in wanted.items():
            if isinstance(value, torch.Tensor):
                assert (given[name].double() - value.double()).abs().max() <= 1e-5, (part, name)
            elif value is not None and not callable(value):
                assert given[name] == pytest.approx(value, abs=1e-9), (part, name)


def test_a_folder_without_a_whole_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text('{"epoch": 0.')
    (tmp_path / "checkpoint-best").mkdir()
    with pytest.raises(ValueError, match="holds no whole checkpoint"):
        last_whole_checkpoint(str(tmp_path))
    with pytest.raises(ValueError, match="holds no whole checkpoint"):
        last_whole_checkpoint(str(tmp_path / "nothing"))


def test_rollouts_of_another_number_of_processes_or_batches_are_refused(tokenizer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    rl_trainer("tracerl", random_model("llada", tokenizer), tokenizer, tmp_path, **settings).train()
    again = rl_trainer("tracerl", random_model("llada", tokenizer), tokenizer, tmp_path, **settings | {"max_steps": 2})
    again.args.steps_per_generation = 2
    with pytest.raises(ValueError, match="with steps_per_generation=1; this run has 1 with 2"):
        again.train(resume_from_checkpoint=True)
    again.args.steps_per_generation = 1
    path = tmp_path / "checkpoint-1" / "rollouts_0.pt"
    torch.save({**torch.load(path, weights_only=True), "num_processes": 2}, path)
    with pytest.raises(ValueError, match="rollouts of 2 process"):
        again.train(resume_from_checkpoint=True)


def test_a_checkpoint_names_the_block_of_the_rollouts_that_it_was_trained_on(tokenizer, tmp_path):
    # The schedule moves on at step 3, in mid-buffer: a run that resumes there is still trained on blocks of 4.
    settings = {"num_iterations": 4, "save_strategy": "steps", "save_steps": 1, "block_length_schedule": {"3": 2}}
    for resume, steps in ((None, 3), (True, 4), (True, 5)):
        model = random_model("sdar", tokenizer)
        trainer = rl_trainer("tracerl", model, tokenizer, tmp_path, **settings, max_steps=steps)
        trainer.train(resume_from_checkpoint=resume)
    found = [AutoConfig.from_pretrained(tmp_path / f"checkpoint-{step}").block_length for step in range(1, 6)]
    assert found == [4, 4, 4, 4, 2]
