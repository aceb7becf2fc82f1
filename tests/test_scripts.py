# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import random_model
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM
from trl import ModelConfig

import trl_diffusion.scripts.local_data as local_data
import trl_diffusion.scripts.tasks as tasks
from trl_diffusion import BGPOTrainer, DiffusionGenerationConfig, TraceRLConfig, TraceRLTrainer
from trl_diffusion.checkpoints import tiny_checkpoint, tiny_checkpoints
from trl_diffusion.evaluation import Completions, complete
from trl_diffusion.evaluation.task import reward_task
from trl_diffusion.scripts.rl import RLScriptArguments, run_rl, without_secrets
from trl_diffusion.tasks import (
    TINY_COUNTDOWN,
    arithmetic_format_reward,
    arithmetic_reward,
    arithmetic_solve_rate,
    character_tokenizer,
    countdown_reward,
    countdown_solve_rate,
    is_held_out,
    solve_rate,
    sudoku_reward,
)
from trl_diffusion.tasks.math import map_gsm8k


ROOT = Path(__file__).parents[1]
D1_FILE = ROOT / ".." / "shared" / "data" / "4x4_test_sudoku.csv"
D1_COUNTDOWN = D1_FILE.with_name("countdown_cd3_test.jsonl")
CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
GSM8K = Dataset.from_dict(
    {
        "question": ["Ann has 3 pens and buys 1,200 more. How many?", "What is 2 - 7?"],
        "answer": ["3+1200 = <<3+1200=1203>>1,203\n#### 1,203", "It is negative.\n#### -5"],
    }
)


# Tasks


def test_sudoku_task_is_split_by_solution():
    task = tasks.load_rl_task("sudoku", num_test=32, seed=3)
    assert not set(task.train_dataset["solution"]) & set(task.test_dataset["solution"])
    assert len(task.test_dataset) == 32 and task.reward_funcs == [sudoku_reward]
    right = Completions(
        texts=list(task.test_dataset["solution"]), forward_passes=1.0, ids=[[]] * 32, unmask_step=[[]] * 32
    )
    assert task.metrics(right, task.test_dataset) == {"solve_rate": 1.0, "cell_accuracy": 1.0}
    # The held-out rows do not move with the seed.
    assert tasks.load_rl_task("sudoku", num_test=32, seed=4).test_dataset[:] == task.test_dataset[:]


@pytest.mark.skipif(not D1_FILE.exists(), reason="shared/data/4x4_test_sudoku.csv is absent: its rows are not checked")
def test_the_d1_file_is_a_test_set():
    task = tasks.load_rl_task(str(D1_FILE))
    # Of its 500 rows 352 have a solution that is trained on and 124 have several.
    assert 0 < len(task.test_dataset) < 148
    assert not set(task.test_dataset["solution"]) & set(task.train_dataset["solution"])


def numbers_of(rows):
    return {tuple(sorted(numbers)) for numbers in rows["numbers"]}


def test_countdown_task_is_split_by_numbers():
    task = tasks.load_rl_task("countdown", num_test=32, seed=3)
    assert not numbers_of(task.train_dataset) & numbers_of(task.test_dataset)
    assert len(task.test_dataset) == 32 and task.reward_funcs == [countdown_reward]
    low, high = TINY_COUNTDOWN["number_range"]
    assert all(len(row) == 3 and low <= min(row) <= max(row) <= high for row in task.train_dataset["numbers"])
    right = Completions(
        texts=list(task.test_dataset["solution"]), forward_passes=1.0, ids=[[]] * 32, unmask_step=[[]] * 32
    )
    assert task.metrics(right, task.test_dataset) == {"solve_rate": 1.0}
    assert tasks.load_rl_task("countdown", num_test=32, seed=4).test_dataset[:] == task.test_dataset[:]
    assert len(tasks.load_rl_task("countdown").test_dataset) == 256


def test_arithmetic_task_is_split_and_brings_traces():
    task = tasks.load_rl_task("arithmetic", num_test=32, seed=3)
    assert len(task.train_dataset) == 4000 and len(task.test_dataset) == 32
    assert not set(task.train_dataset["reasoning"]) & set(task.test_dataset["reasoning"])
    assert task.reward_funcs == [arithmetic_reward]
    right = Completions(
        texts=list(task.test_dataset["reasoning"]), forward_passes=1.0, ids=[[]] * 32, unmask_step=[[]] * 32
    )
    assert task.metrics(right, task.test_dataset) == {"solve_rate": 1.0}
    assert tasks.load_rl_task("arithmetic", num_test=32, seed=4).test_dataset[:] == task.test_dataset[:]
    both = tasks.load_rl_task("arithmetic", ["arithmetic_reward", "arithmetic_format_reward"])
    assert both.reward_funcs == [arithmetic_reward, arithmetic_format_reward] and len(both.test_dataset) == 256


def test_a_countdown_file_is_a_test_set(tmp_path):
    path = tmp_path / "problems.jsonl"
    trained_on = tasks.countdown_dataset("train", 4000, num_numbers=(3, 3))[0]
    given = ",".join(map(str, reversed(trained_on["numbers"])))
    path.write_text(json.dumps({"input": given, "output": "7"}) + "\n" + '{"input": "1,2,3", "output": "6"}\n')
    task = tasks.load_rl_task(str(path))
    assert task.test_dataset["target"][:] == [7, 6] and task.reward_funcs == [countdown_reward]
    assert not is_held_out(trained_on["numbers"])
    assert 3900 < len(task.train_dataset) < 4000 and {len(row) for row in task.train_dataset["numbers"]} == {3}
    assert not numbers_of(task.train_dataset) & numbers_of(task.test_dataset)


@pytest.mark.skipif(not D1_COUNTDOWN.exists(), reason=f"{D1_COUNTDOWN.name} is absent: its rows are not checked")
def test_the_d1_countdown_file_is_a_test_set():
    task = tasks.load_rl_task(str(D1_COUNTDOWN))
    assert len(task.test_dataset) == 256
    assert not numbers_of(task.train_dataset) & numbers_of(task.test_dataset)


@pytest.mark.parametrize(
    ("name", "column", "rate"),
    [
        ("sudoku", "solution", lambda texts, rows: solve_rate(texts, rows["puzzle"][:], rows["solution"][:])),
        (
            "countdown",
            "solution",
            lambda texts, rows: countdown_solve_rate(texts, rows["numbers"][:], rows["target"][:]),
        ),
        ("arithmetic", "reasoning", lambda texts, rows: arithmetic_solve_rate(texts, rows["solution"][:])),
    ],
)
def test_the_solve_rate_is_the_mean_of_the_verdicts(name, column, rate):
    task = tasks.load_rl_task(name, num_test=8)
    texts = [text if row % 3 else "no" for row, text in enumerate(task.test_dataset[column])]
    some = Completions(texts=texts, forward_passes=1.0, ids=[[]] * 8, unmask_step=[[]] * 8)
    assert task.correct(some, task.test_dataset) == [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    assert task.metrics(some, task.test_dataset)["solve_rate"] == rate(texts, task.test_dataset) == 5 / 8


def test_rewards_that_reach_one_are_a_verdict(monkeypatch):
    rows = Dataset.from_dict({"prompt": ["a", "b", "c"]})
    others = Dataset.from_dict({"prompt": ["d", "b"]})
    monkeypatch.setattr(local_data, "load_dataset", lambda name: DatasetDict(train=others, test=rows))

    def number(completions, **kwargs):
        return [float(text) for text in completions]

    monkeypatch.setattr(tasks, "load_reward", lambda name: number)
    task = tasks.load_rl_task("some/dataset", ["r", "s"])
    some = Completions(texts=["0.5", "0.4", "2"], forward_passes=1.0, ids=[[]] * 3, unmask_step=[[]] * 3)
    assert task.correct(some, rows) == [1.0, 0.0, 1.0]
    assert task.metrics(some, rows) == {"reward": pytest.approx(5.8 / 3), "solve_rate": 2 / 3}
    assert task.train_dataset["prompt"][:] == ["d"] and task.hub_dataset == "some/dataset"  # "b" is held out


def test_gsm8k_rows_become_prompts_with_a_verifiable_answer():
    rows = map_gsm8k(GSM8K)
    assert rows["solution"][:] == ["1203", "-5"]
    assert rows[0]["prompt"][0]["role"] == "user" and "\\boxed{}" in rows[0]["prompt"][0]["content"]
    rewards = [
        tasks.load_reward("accuracy_reward")(
            [[{"role": "assistant", "content": text}] for text in texts], list(rows["solution"])
        )
        for texts in (["So \\boxed{1203}", "\\boxed{-5}"], ["\\boxed{1,203}", "\\boxed{5}"], ["1204", "five"])
    ]
    assert rewards == [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]


def test_a_gsm8k_row_without_its_answer_is_named():
    with pytest.raises(ValueError, match="answer of row 0"):
        map_gsm8k(Dataset.from_dict({"question": ["1+1?"], "answer": ["two"]}))


def test_rewards_are_found_by_name(tmp_path, monkeypatch):
    (tmp_path / "my_rewards_module.py").write_text("def constant(completions, **kwargs):\n    return [1.0]\n")
    monkeypatch.chdir(tmp_path)
    assert tasks.load_reward("my_rewards_module.constant")([]) == [1.0]
    assert tasks.load_reward("sudoku_reward") is sudoku_reward
    assert tasks.load_reward("countdown_reward") is countdown_reward
    factory = "get_soft_overlong_punishment"
    for name in ("no_such_reward", "my_rewards_module.missing", "no_such_module.reward", "os.sep", factory):
        with pytest.raises(ValueError, match=name):
            tasks.load_reward(name)
    with pytest.raises(ValueError, match="has no reward of its own"):
        tasks.load_rl_task("someone/some-dataset")


def test_the_metrics_of_unknown_data_are_its_rewards_called_as_trl_calls_them():
    async def late(completions, **kwargs):
        return [0.5] * len(completions)

    def full(prompts, completions, completion_ids, want, trainer_state, log_extra, log_metric):
        log_extra("want", want)
        log_metric("n", 1.0)
        pairs = zip(completions, completion_ids, strict=True)
        return [None if text == "skip" else 0.25 * len(ids) for text, ids in pairs]

    rows = Dataset.from_dict({"prompt": ["a", "b"], "want": [1, 2], "completion": ["x", "y"]})
    completions = Completions(
        texts=["one", "skip"], forward_passes=1.0, ids=[[1, 2, 3], [4]], unmask_step=[[1, 1, 2], [1]]
    )
    task = reward_task(rows, [late, full])
    assert task.metrics(completions, rows) == {"reward": 0.875, "solve_rate": 0.5}


# Evaluation


def test_completions_do_not_depend_on_the_batch_size(family):
    tokenizer = character_tokenizer("01234")
    model = random_model(family, tokenizer)
    prompts = ["0123", "01", "3", "44321", "2222"]
    config = DiffusionGenerationConfig(max_new_tokens=9, temperature=1.0, seed=5, eos_token_id=1, pad_token_id=0)
    results = [complete(model, tokenizer, prompts, config, batch_size) for batch_size in (1, 2, 5)]
    assert results[0] == results[1] == results[2]
    assert len(set(results[0].texts)) > 1
    assert all(len(text) <= 9 for text in results[0].texts)


def test_conversations_go_through_the_chat_template():
    tokenizer = character_tokenizer("01234>")
    tokenizer.chat_template = CHAT
    model = random_model("llada", tokenizer)
    config = DiffusionGenerationConfig(max_new_tokens=4, eos_token_id=1, pad_token_id=0)
    chat = complete(model, tokenizer, [[{"role": "user", "content": "012"}]], config)
    plain = complete(model, tokenizer, ["012>"], config)
    assert chat == plain


def test_nothing_to_complete_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="prompts is empty"):
        complete(random_model("llada", tokenizer), tokenizer, [], DiffusionGenerationConfig())


# The tiny checkpoints


def test_there_are_six_tiny_checkpoints_under_a_megabyte_each():
    weak = ["arithmetic-llada-tiny", "countdown-llada-tiny", "sudoku-llada-tiny", "sudoku-sdar-tiny"]
    assert tiny_checkpoints() == sorted([*weak, "arithmetic-llada-solver-tiny", "sudoku-llada-solver-tiny"])
    for name in tiny_checkpoints():
        size = sum(path.stat().st_size for path in tiny_checkpoint(name).iterdir())
        assert size < 1e6, (name, size)
        assert (ROOT / "model_cards" / f"{name}.md").exists()
    with pytest.raises(ValueError, match="sudoku-llada-huge"):
        tiny_checkpoint("sudoku-llada-huge")


# Whole runs


DEMOS = [
    ("tracerl", "TraceRL", "sudoku-llada-tiny", 8),
    ("bgpo", "BGPO", "countdown-llada-tiny", 10),
    ("igpo", "IGPO", "arithmetic-llada-tiny", 15),
]


@pytest.mark.parametrize(("script", "method", "checkpoint", "denoising_steps"), DEMOS)
def test_the_demo_script_saves_a_model_a_card_and_results(script, method, checkpoint, denoising_steps, tmp_path):
    command = [sys.executable, str(ROOT / "examples" / f"{script}.py"), "--output_dir", str(tmp_path)]
    command += ["--max_steps", "2", "--num_test", "16", "--per_device_train_batch_size", "16", "--logging_steps", "1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "solve rate" in run.stdout and "results.json" in run.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) >= {"solve_rate_before", "solve_rate_after", "reward_curve", "seconds", "seed", "config"}
    assert [point["step"] for point in results["reward_curve"]] == [1, 2]
    assert results["config"]["training"]["num_denoising_steps"] == denoising_steps
    assert results["config"]["model"]["model_name_or_path"] == checkpoint
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint(checkpoint))
    assert not torch.equal(model.lm_head.weight, base.lm_head.weight)
    assert method in (tmp_path / "README.md").read_text()
    assert not list(tmp_path.glob("*.tmp"))


def test_the_benchmark_of_the_demos_prints_a_row_per_seed(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import demos

    assert set(demos.DEMOS) == {script for script, *_ in DEMOS} | {"unmask_policy"}
    assert all((demos.EXAMPLES / "configs" / settings).exists() for settings in demos.DEMOS.values())

    def run(demo, seed, arguments):
        assert (demo, arguments) == ("bgpo", ["--max_steps", "3"])
        before = {"solve_rate_before": 0.25, "cell_accuracy_before": 0.5, "tokens_per_step_before": 2.0}
        after = {"solve_rate_after": 0.25 * seed, "cell_accuracy_after": 0.75, "tokens_per_step_after": 1.5}
        return {**before, **after, "seconds": 60.4, "seed": seed}

    monkeypatch.setattr(demos, "run", run)
    monkeypatch.setattr(sys, "argv", ["demos.py", "--demo", "bgpo", "--seeds", "2", "3", "--", "--max_steps", "3"])
    demos.main()
    assert capsys.readouterr().out.splitlines() == [
        "| seed | solve rate before | after | rise | cell accuracy before | after | tokens per step | seconds |",
        "|---|---|---|---|---|---|---|---|",
        "| 2 | 0.250 | 0.500 | +0.250 | 0.500 | 0.750 | 1.50 | 60 |",
        "| 3 | 0.250 | 0.750 | +0.500 | 0.500 | 0.750 | 1.50 | 60 |",
        "",
        "Rise of the solve rate: 0.375 ± 0.177 (mean ± standard deviation over seeds).",
    ]


def short_config(folder, config_class=TraceRLConfig, **kwargs):
    settings = {
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "max_steps": 1,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
    }
    return config_class(output_dir=str(folder), **{**settings, **kwargs})


@pytest.mark.parametrize("trainer_class", [TraceRLTrainer, BGPOTrainer])
def test_the_path_of_a_gpu_user_runs_on_a_tiny_chat_model(trainer_class, tmp_path, monkeypatch):
    """`--model_name_or_path <chat model> --dataset openai/gsm8k --use_peft`, with the dataset's rows made here."""
    tokenizer = character_tokenizer("".join(map(chr, range(32, 127))) + "\n")
    tokenizer.chat_template = CHAT
    random_model("sdar", tokenizer, max_position_embeddings=512).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    others = GSM8K.map(lambda row: {"question": f"{row['question']} Once more."})
    splits = {"train": others, "test": GSM8K}
    monkeypatch.setattr(local_data, "load_dataset", lambda name, config, split: splits[split])
    settings = {"max_completion_length": 8, "unmasking": "threshold", "threshold": 0.9}
    config = short_config(tmp_path / "out", trainer_class._config_class, **settings)
    model_args = ModelConfig(
        model_name_or_path=str(tmp_path / "model"), use_peft=True, lora_target_modules="all-linear"
    )
    results = run_rl(trainer_class, RLScriptArguments(dataset="openai/gsm8k"), config, model_args)
    assert 0 <= results["solve_rate_before"] <= 1 and results["reward_curve"]
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "accuracy_reward" in card and "| solve_rate |" in card and "base_model" not in card
    assert "datasets: openai/gsm8k" in card and "apply_chat_template" in card


def test_special_tokens_are_no_secrets():
    content = {"eos_token": "<e>", "headers": {"Authorization": "Bearer x"}, "limit": float("inf")}
    assert without_secrets(content) == {"eos_token": "<e>", "headers": {}, "limit": "inf"}


def test_results_hold_the_settings_and_no_secrets():
    content = {
        "hub_token": "hf_x",
        "kwargs": {"token": "hf_y", "dtype": torch.float32},
        "steps": [1, None],
        "ok": True,
    }
    assert without_secrets(content) == {"kwargs": {"dtype": "torch.float32"}, "steps": [1, None], "ok": True}


def test_both_evaluations_run_in_the_same_precision(tmp_path):
    """bf16 is TRL's default: the model must not be measured in fp32 before training and in bf16 after it."""
    dtypes = []

    class Spy(TraceRLTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            projection = self.model.model.layers[0].self_attn.q_proj
            projection.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))

        def train(self, *args, **kwargs):
            dtypes.append("train")
            super().train(*args, **kwargs)
            dtypes.append("trained")

    config = short_config(tmp_path, max_completion_length=17, num_denoising_steps=2, bf16=True)
    run_rl(Spy, RLScriptArguments(num_test=2), config, ModelConfig(model_name_or_path="sudoku-llada-tiny"))
    before, after = dtypes[: dtypes.index("train")], dtypes[dtypes.index("trained") + 1 :]
    assert set(before) == set(after) == {torch.bfloat16}


@pytest.mark.parametrize(
    ("script", "spelling"),
    [
        ("tracerl", "--model_name_or_path="),
        ("bgpo", "--model-name-or-path "),
        ("tracerl", "--model_name "),  # no abbreviations
        ("bgpo", "--config="),
    ],
)
def test_a_named_model_is_never_the_demo(script, spelling, tmp_path):
    name, separator = spelling[:-1], spelling[-1]
    value = str(tmp_path / "missing")
    arguments = [f"{name}={value}"] if separator == "=" else [name, value]
    command = [sys.executable, str(ROOT / "examples" / f"{script}.py"), *arguments, "--output_dir", str(tmp_path)]
    command += ["--bf16", "false", "--max_steps", "1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    named = "did you mean --model_name_or_path?" if name == "--model_name" else "missing"
    assert run.returncode != 0 and named in run.stderr and not (tmp_path / "results.json").exists()
    assert "Traceback" not in run.stderr


def test_the_package_imports_without_the_trainers():
    """TRL takes seconds to load; whoever only generates does not pay for it."""
    code = "import sys, trl_diffusion; sys.exit('trl' in sys.modules or 'peft' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], env={**os.environ}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
