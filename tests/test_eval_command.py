# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""`trl-diffusion eval`."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import trl_diffusion.scripts.tasks as tasks
from trl_diffusion import (
    AutoModelForDiffusionLM,
    DiffusionGenerationConfig,
    UnmaskPolicyModel,
    UnmaskPolicyModelConfig,
)
from trl_diffusion.checkpoints import tiny_checkpoint
from trl_diffusion.evaluation import read_frontier
from trl_diffusion.evaluation.task import sudoku_task
from trl_diffusion.generation.unmasking import RULES
from trl_diffusion.scripts import curves
from trl_diffusion.scripts.cli import main
from trl_diffusion.tasks import solve_rate, sudoku_dataset


ROOT = Path(__file__).parents[1]
MODEL = "sudoku-llada-tiny"
# Easy enough for some to be solved and some not.
ROWS = sudoku_dataset("test", num_puzzles=6, num_clues=(12, 13))


@pytest.fixture(autouse=True)
def easy_task(monkeypatch):
    """The Sudoku task, with the problems above and nothing to train on."""

    real = tasks.load_task

    def load(name, reward_funcs=None, num_test=None, split="test", option="tasks"):
        if name != "sudoku":
            return real(name, reward_funcs, num_test, split, option)
        return sudoku_task(ROWS.select(range(num_test or 6)))

    monkeypatch.setattr(tasks, "load_task", load)


def run(*arguments, model=MODEL):
    return main(["eval", "--model", model, "--tasks", "sudoku", "--device", "cpu", "--batch_size", "4", *arguments])


def run_frontier(folder, *arguments):
    return run("--frontier", "--output_dir", str(folder), *arguments)


def errors(captured):
    return [line for line in captured.err.splitlines() if line.startswith("trl-diffusion eval: ")]


def expected(**settings):
    """Texts and forward passes of one call of `generate`, and the solve rate."""
    path = tiny_checkpoint(MODEL)
    model, tokenizer = AutoModelForDiffusionLM.from_pretrained(path), load_tokenizer(path)
    inputs = tokenizer(ROWS["prompt"][:], return_tensors="pt")
    rollout = model.generate(**inputs, return_dict_in_generate=True, **settings).rollout
    texts = tokenizer.batch_decode(rollout.completions(), skip_special_tokens=True)
    rate = solve_rate(texts, ROWS["puzzle"][:], ROWS["solution"][:])
    return rate, rollout.num_forward_passes.float().mean().item()


def load_tokenizer(path):
    return AutoTokenizer.from_pretrained(path, padding_side="left")


# One setting


def test_the_table_is_what_generate_achieves(capsys):
    assert run("--unmasking", "threshold", "--threshold", "0.9", "--num_denoising_steps", "none") == 0
    rate, passes = expected(unmasking="threshold", threshold=0.9, num_denoising_steps=None)
    out = capsys.readouterr().out
    assert 0 < rate < 1 and MODEL in out and "95 % interval" in out
    row, cells_right = (line.split() for line in out.splitlines()[-3:-1])
    assert row[:3] == ["sudoku", "6", f"{rate:.3f}"] and row[4] == f"{passes:.2f}"
    assert row[5] == "17.0" and float(row[6]) > 0
    low, high = map(float, row[3].split("–"))
    assert low < rate < high
    assert cells_right[:2] == ["cell", "accuracy"] and rate < float(cells_right[2]) < 1
    assert all(len(line) <= 80 for line in out.splitlines())


def test_the_model_says_what_is_not_given_but_for_the_seed(tmp_path, capsys):
    model = AutoModelForDiffusionLM.from_pretrained(tiny_checkpoint(MODEL))
    model.generation_config.update(num_denoising_steps=3, seed=5)
    model.save_pretrained(tmp_path)
    load_tokenizer(tiny_checkpoint(MODEL)).save_pretrained(tmp_path)
    assert run(model=str(tmp_path)) == 0
    assert capsys.readouterr().out.splitlines()[-3].split()[4] == "3.00"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_test", "0"], "num_test=0 must be at least 1"),
        (["--batch_size", "0"], "batch_size=0 must be at least 1"),
        (["--seed", "3"], "seed=3 has no place here. Give one or more with seeds"),
        (["--curves", "random"], "curves=['random'] does nothing without frontier"),
        (["--curves"], "curves=[] does nothing without frontier"),
        (["--policies", "x/y"], "policies=['x/y'] does nothing without frontier"),
        (["--overwrite"], "overwrite=True does nothing without output_dir"),
        (["--preset", "d2"], "preset='d2' must be one of d1-128, d1-256, d1-512"),
        (["--chat_template_kwargs", "[1]"], "chat_template_kwargs='[1]' must be a JSON object"),
        (["--tasks", "sudoku,sudoku"], "tasks=sudoku,sudoku has 'sudoku' twice"),
        (["--tasks", ","], "tasks=',' names no task"),
        (["--tasks", "no-such-task"], "tasks='no-such-task' has no reward of its own. Give reward_funcs, name a file"),
        (["--tasks", "no-such.jsonl"], "tasks='no-such.jsonl' is no file"),
        (["--reward_funcs", "sudoku_reward"], "reward_funcs=['sudoku_reward'] does nothing"),
        (["--split", "train"], "split='train' is none of 'sudoku', whose problems are generated"),
        (["--compare", "a", "b"], "does nothing with compare"),
        (
            ["--frontier", "--output_dir", "out", "--tasks", "sudoku", "arithmetic"],
            "tasks=sudoku,arithmetic: frontier takes one task",
        ),
        (["--frontier", "--output_dir", "out", "--preset", "d1-128"], "preset='d1-128' sets what the curves"),
        (["--frontier"], "output_dir is not given"),
        (["--frontier", "--output_dir", "out", "--curves"], "curves is empty, and policies is not given"),
        (
            ["--frontier", "--output_dir", "out", "--curves", "best"],
            "curves has 'best': give low_confidence, maskgit_plus",
        ),
        (
            ["--frontier", "--output_dir", "out", "--threshold", "0.9"],
            "threshold=0.9 is swept by the curves of frontier",
        ),
        (
            ["--frontier", "--output_dir", "out", "--num_denoising_steps", "none"],
            "num_denoising_steps=None is swept",
        ),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_loaded(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments, model="no/such-model") == 1
    (line,) = errors(capsys.readouterr())
    assert message in line and list(tmp_path.iterdir()) == []


def test_a_plot_that_cannot_be_drawn_is_known_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("trl_diffusion.evaluation.frontier_plot.find_spec", lambda name: None)
    assert run("--frontier", "--output_dir", str(tmp_path / "out"), model="no/such-model") == 1
    (line,) = errors(capsys.readouterr())
    assert "frontier.png is drawn with matplotlib: pip install 'trl-diffusion[plots]'" in line
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_does_not_fit_the_model_is_refused(tmp_path, capsys):
    assert run("--cache", "block") == 1
    assert run_frontier(tmp_path / "out", "--curves", "low_confidence", "threshold", "--alg_temp", "0.5") == 1
    lines = errors(capsys.readouterr())
    assert "cache='block' needs block-causal attention" in lines[0]
    assert "points has (threshold: threshold=0.5): alg_temp=0.5 must be None unless unmasking is one" in lines[1]
    assert list(tmp_path.iterdir()) == []


# Curves


def test_curves_are_measured_drawn_and_gone_on_with(tmp_path, capsys):
    folder = tmp_path / "out"
    assert run_frontier(folder, "--curves", "threshold", "random", "--seeds", "1", "2") == 0
    rows = read_frontier(folder / "frontier.csv")
    thresholds = curves.SWEEPS["threshold"][1]
    assert [row.setting for row in rows[:7]] == [f"threshold={value}" for value in thresholds]
    assert [row.setting for row in rows[7:]] == [f"num_denoising_steps={steps}" for steps in (1, 2, 4, 8, 17)]
    assert [row.forward_passes for row in rows[7:]] == [1, 2, 4, 8, 17]
    assert {row.seeds for row in rows[:7]} == {()} and {row.seeds for row in rows[7:]} == {(1, 2)}
    # The model's own eight steps do not hold a threshold back.
    for row, value in ((rows[0], 0.5), (rows[6], 0.99)):
        rate, passes = expected(unmasking="threshold", threshold=value, num_denoising_steps=None)
        assert row.accuracy == rate and row.forward_passes == pytest.approx(passes)
    printed = capsys.readouterr().out
    assert re.search(r"^  threshold +$", printed, re.MULTILINE) and "    threshold=0.95 " in printed
    assert all(len(line) <= 80 for line in printed.splitlines()[:-1])
    before = (folder / "frontier.png").read_bytes()
    assert before.startswith(b"\x89PNG")

    assert run_frontier(folder, "--curves", "sequential", "threshold", "--seeds", "1", "2") == 0
    again = read_frontier(folder / "frontier.csv")
    # Nothing was measured twice, down to the seconds.
    assert again[:12] == rows and [row.curve for row in again[12:]] == ["sequential"] * 5
    assert (folder / "frontier.png").read_bytes() != before
    assert sorted(path.name for path in folder.iterdir()) == ["frontier.csv", "frontier.json", "frontier.png"]


def test_other_settings_are_refused_unless_overwritten(tmp_path, capsys):
    few = ["--curves", "sequential", "--num_test", "3"]
    assert run_frontier(tmp_path, *few) == 0
    before = (tmp_path / "frontier.csv").read_text()
    changed = [["--num_test", "2"], ["--seeds", "4"], ["--temperature", "1"], ["--max_new_tokens", "16"]]
    for more in changed:
        assert run_frontier(tmp_path, *few, *more) == 1
    assert main(
        ["eval", "--model", "sudoku-sdar-tiny", "--tasks", "sudoku", "--device", "cpu", "--frontier"]
        + ["--output_dir", str(tmp_path), *few]
    ) == 1  # fmt: skip
    lines = errors(capsys.readouterr())
    assert (tmp_path / "frontier.csv").read_text() == before
    for line, words in zip(
        lines,
        (
            "num_test was 3 and is 2",
            "seeds was [0] and is [4]",
            "generation_config.temperature was None and is 1.0",
            "generation_config.max_new_tokens was 17 and is 16",
            "model was",
        ),
        strict=True,
    ):
        assert f"has frontier.csv of another call: {words}" in line and "overwrite=True measures everything" in line
    assert run_frontier(tmp_path, *few, "--num_test", "2", "--overwrite") == 0
    assert {row.num_problems for row in read_frontier(tmp_path / "frontier.csv")} == {2}


@pytest.mark.parametrize(
    ("canvas", "block", "steps"),
    [
        (17, None, [1, 2, 4, 8, 17]),
        (256, 32, [8, 16, 32, 64, 128, 256]),
        (30, 7, [5, 8, 15, 30]),
        (10, 64, [1, 2, 5, 10]),
        (1, None, [1]),
        (4, 1, [4]),
    ],
)
def test_steps_go_from_one_per_block_to_one_per_token(canvas, block, steps):
    # round(canvas / 2^k), halves to the even number; above a step per block.
    assert curves.step_ladder(canvas, block) == steps


@pytest.mark.parametrize("rule", list(RULES))
def test_every_rule_has_a_curve_of_settings_that_are_valid(rule):
    points = curves.rule_points(rule, [2, 4])
    configs = [point.config(DiffusionGenerationConfig(max_new_tokens=8)) for point in points]
    assert len(configs) >= 2 and {config.unmasking for config in configs} == {rule}
    assert {point.curve for point in points} == {rule} and len({point.setting for point in points}) == len(points)


# Learned policies


def test_a_policy_is_swept_over_beta():
    points = curves.policy_points("runs/policy", {"policy_temperature": 0.5})
    assert [point.fields["policy_beta"] for point in points] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
    assert {point.curve for point in points} == {point.fields["unmasking"] for point in points} == {"runs/policy"}
    assert points[0].setting == "policy_temperature=0.5, policy_beta=0.25"


def test_a_saved_policy_is_a_curve(tmp_path, capsys):
    torch.manual_seed(0)
    policy = UnmaskPolicyModel(UnmaskPolicyModelConfig(initial_bias=-1.0))
    policy.save_pretrained(tmp_path / "policy")
    path = str(tmp_path / "policy")
    given = ["--curves", "sequential", "--policies", path, "--policy_temperature", "0.5"]
    assert run_frontier(tmp_path / "out", *given, "--seeds", "0", "1") == 0
    rows = [row for row in read_frontier(tmp_path / "out" / "frontier.csv") if row.curve == path]
    assert [row.setting for row in rows] == [f"policy_temperature=0.5, policy_beta={b}" for b in curves.POLICY_BETAS]
    assert {row.unmasking for row in rows} == {path} and {row.seeds for row in rows} == {(0, 1)}
    # The larger β, the more is committed at once.
    passes = [row.forward_passes for row in rows]
    assert passes == sorted(passes, reverse=True) and passes[0] > 2 * passes[-1]
    # A point is what `generate` gives at its settings, with the seeds of its rows; the model's own eight steps do not
    # hold a policy back.
    found = []
    for seed in (0, 1):
        seeds = [seed * 1_000_003 + row for row in range(6)]
        settings = {"policy_temperature": 0.5, "policy_beta": 4.0, "num_denoising_steps": None, "seed": seeds}
        found.append(expected(unmasking=policy, **settings))
    rates, counts = zip(*found, strict=True)
    assert rows[4].setting.endswith("policy_beta=4.0") and rows[4].accuracy == pytest.approx(sum(rates) / 2)
    assert rows[4].forward_passes == pytest.approx(sum(counts) / 2, abs=1e-4)

    # Other weights in the same folder are another curve, and are measured anew or not at all.
    UnmaskPolicyModel(UnmaskPolicyModelConfig(initial_bias=3.0)).save_pretrained(tmp_path / "policy")
    assert run_frontier(tmp_path / "out", *given, "--seeds", "0", "1") == 1
    (line,) = errors(capsys.readouterr())
    assert "has frontier.csv of another call" in line and path in line


def test_a_policy_is_measured_beside_rules_that_keep_to_another_schedule(tmp_path):
    UnmaskPolicyModel(UnmaskPolicyModelConfig()).save_pretrained(tmp_path / "policy")
    given = ["--curves", "sequential", "--policies", str(tmp_path / "policy"), "--step_schedule", "linear_time"]
    assert run_frontier(tmp_path / "out", *given, "--num_test", "2") == 0
    settings = {row.setting for row in read_frontier(tmp_path / "out" / "frontier.csv") if row.curve != "sequential"}
    assert settings == {f"step_schedule=even, policy_beta={beta}" for beta in curves.POLICY_BETAS}


def test_a_policy_that_does_not_exist_is_known_before_anything_is_measured(tmp_path, capsys):
    given = ["--curves", "sequential", "--policies", str(tmp_path / "no-policy")]
    assert run_frontier(tmp_path / "out", *given) == 1
    (line,) = errors(capsys.readouterr())
    assert "no-policy' is no unmasking policy that can be loaded" in line
    assert run_frontier(tmp_path / "out", "--policy_temperature", "0.5") == 1
    (line,) = errors(capsys.readouterr())
    assert "policy_temperature=0.5 does nothing without policies" in line and list(tmp_path.iterdir()) == []


# What is written about it


def test_the_help_names_the_options(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["eval", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for option in ("tasks", "num_test", "batch_size", "seeds", "frontier", "curves", "policies", "output_dir"):
        assert f"--{option}" in text
    assert "low_confidence random threshold factor" in " ".join(text.split()) and "--block_length" in text
