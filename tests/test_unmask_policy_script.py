# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The example that trains an unmasking policy, and the card of what it trains."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import random_model
from policies import CANVAS, all_right, policy_trainer, small_policy
from rl import prompts
from transformers import AutoTokenizer
from trl import ModelConfig

from trl_diffusion import AutoModelForDiffusionLM, DiffusionGenerationConfig, UnmaskPolicyConfig, UnmaskPolicyModel
from trl_diffusion.checkpoints import tiny_checkpoint, tiny_checkpoints, tiny_policies, tiny_policy
from trl_diffusion.evaluation import complete, read_frontier
from trl_diffusion.scripts import unmask_policy
from trl_diffusion.scripts.cli import main
from trl_diffusion.scripts.generation_options import parse_setting
from trl_diffusion.scripts.tasks import load_rl_task
from trl_diffusion.scripts.unmask_policy import UnmaskPolicyScriptArguments
from trl_diffusion.tasks import sudoku_solved_reward


ROOT = Path(__file__).parents[1]


@pytest.mark.filterwarnings("ignore")
def test_the_example_saves_a_policy_its_frontier_and_its_card(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(unmask_policy, "CURVES", ("threshold",))
    monkeypatch.setattr(unmask_policy, "POLICY_BETAS", (1.0, 4.0))
    command = ["--output_dir", str(tmp_path), "--max_steps", "2", "--num_test", "8"]
    command += ["--per_device_train_batch_size", "16", "--eval_steps", "2", "--save_steps", "2", "--num_eval", "2"]
    command += ["--per_device_eval_batch_size", "16", "--logging_steps", "1", "--use_cpu", "true"]
    config = ROOT / "examples" / "configs" / "unmask_policy_sudoku_tiny.yaml"
    assert main(["unmask-policy", "--config", str(config), *command]) == 0
    printed = capsys.readouterr().out
    assert "forward passes; " in printed and "frontier.png are in" in printed
    names = {path.name for path in tmp_path.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "results.json", "frontier.csv", "frontier.png"} <= names
    results = json.loads((tmp_path / "results.json").read_text())
    assert [point["step"] for point in results["reward_curve"]] == [1]  # a rollout feeds two
    rows = read_frontier(tmp_path / "frontier.csv")
    assert {row.curve for row in rows} == {"policy", "threshold"} and all(row.num_problems == 8 for row in rows)
    own = next(row for row in rows if row.curve == "policy" and row.setting == "policy_beta=1.0")
    assert (results["accuracy"], results["forward_passes"]) == (own.accuracy, own.forward_passes)
    assert results["config"]["training"]["alpha"] == 1.0 and results["config"]["script"]["initial_bias"] == -1.0
    assert UnmaskPolicyModel.from_pretrained(tmp_path).config.initial_bias == -1.0
    assert not list(tmp_path.glob("*.tmp"))

    sys.path.insert(0, str(ROOT / "benchmarks"))
    import demos

    titles, cells = zip(*demos.cells(results), strict=True)
    assert titles[:4] == ("seed", "accuracy", "forward passes", "best rule there") and cells[0] == "42"


def test_settings_that_contradict_each_other_are_refused_before_training(tmp_path):
    args = UnmaskPolicyConfig(str(tmp_path / "out"), use_cpu=True, max_completion_length=17)
    model = ModelConfig(model_name_or_path="sudoku-llada-solver-tiny")
    small_policy().save_pretrained(tmp_path / "policy")
    arguments = UnmaskPolicyScriptArguments(policy=str(tmp_path / "policy"), entropy=True)
    with pytest.raises(ValueError, match="entropy: the policy .* is what it is"):
        unmask_policy.run_unmask_policy(arguments, args, model)
    with pytest.raises(ValueError, match="use_peft=True is not supported by this script"):
        unmask_policy.run_unmask_policy(UnmaskPolicyScriptArguments(), args, replace(model, use_peft=True))
    with pytest.raises(ValueError, match="num_eval=0 must lie between"):
        unmask_policy.run_unmask_policy(UnmaskPolicyScriptArguments(num_eval=0), args, model)
    with pytest.raises(ValueError, match="model_name_or_path is not set"):
        unmask_policy.run_unmask_policy(UnmaskPolicyScriptArguments(), args, ModelConfig())


@pytest.mark.parametrize("name", ["a folder", "a tiny checkpoint"])
def test_the_card_has_a_quick_start_that_runs(tokenizer, tmp_path, name, capsys):
    model = random_model("llada", tokenizer)
    model.save_pretrained(tmp_path / "dllm")
    tokenizer.save_pretrained(tmp_path / "dllm")
    if name == "a folder":
        model = type(model).from_pretrained(tmp_path / "dllm", dtype=torch.float32)
    else:
        path = tiny_checkpoint("sudoku-llada-solver-tiny")
        model, tokenizer = AutoModelForDiffusionLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    trainer = policy_trainer(model, tokenizer, tmp_path / "run", reward=all_right, alpha=0.5)
    trainer.save_model()
    trainer.create_model_card()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "unmasking policy" in card.lower() and "2512.09106" in card and "| alpha | 0.5 |" in card
    assert ("tiny_checkpoint" in card) == (name == "a tiny checkpoint") and "| unmasking | this policy |" in card
    code = card.split("```python\n")[1].split("```")[0]
    config = DiffusionGenerationConfig.from_pretrained(tmp_path / "run")
    assert f'from_pretrained("{tmp_path / "run"}")' in code and config.unmasking == str(tmp_path / "run")
    exec(compile(code, "quick start", "exec"), {})
    assert len(capsys.readouterr().out.split()[-1]) <= CANVAS
    assert trainer.train_dataset[0] == prompts()[0]


def test_the_reward_of_a_solved_puzzle():
    puzzle, solution = "0234341221434321", "1234341221434321"
    wrong = "2" + solution[1:]
    found = sudoku_solved_reward([solution, wrong, solution + "1", ""], [puzzle] * 4, [solution] * 4)
    assert found == [1.0, 0.0, 0.0, 0.0]


def test_the_shipped_policy_loads_by_its_path_and_does_what_its_card_says(capsys):
    folder = tiny_policy("sudoku-unmask-policy-tiny")
    assert tiny_policies() == ["sudoku-unmask-policy-tiny"] and "sudoku-unmask-policy-tiny" not in tiny_checkpoints()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    card = (ROOT / "model_cards" / "sudoku-unmask-policy-tiny.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    exec(compile(code, "quick start", "exec"), {})
    expected = code.rsplit("# ", 1)[1].strip()
    assert capsys.readouterr().out.split()[-1] == expected

    task = load_rl_task("sudoku", num_test=64)
    path = tiny_checkpoint("sudoku-llada-solver-tiny")
    model, tokenizer = AutoModelForDiffusionLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    config = DiffusionGenerationConfig(
        max_new_tokens=17, unmasking=str(folder), policy_temperature=0.0, eos_token_id=1, pad_token_id=0
    )
    completions = complete(model, tokenizer, list(task.test_dataset["prompt"]), config)
    assert task.metrics(completions, task.test_dataset)["solve_rate"] > 0.8 and completions.forward_passes < 4
    assert parse_setting("unmasking", "sudoku-unmask-policy-tiny") == str(folder)
    with pytest.raises(ValueError, match="name='sudoku' is not a tiny policy. There are: sudoku-unmask-policy-tiny"):
        tiny_policy("sudoku")
