# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Evaluation on tasks: figures, rows, files that are gone on with."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import random_model
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from trl_diffusion import AutoModelForDiffusionLM, DiffusionGenerationConfig
from trl_diffusion.checkpoints import tiny_checkpoint
from trl_diffusion.evaluation import evaluate_tasks, wilson_interval
from trl_diffusion.evaluation.task import countdown_task, gsm8k_task, math_task, reward_task, sudoku_task
from trl_diffusion.scripts.cli import main
from trl_diffusion.tasks import character_tokenizer, countdown_dataset, sudoku_dataset
from trl_diffusion.tasks.math import map_gsm8k


ROOT = Path(__file__).parents[1]
MODEL = "sudoku-llada-tiny"
ROWS = sudoku_dataset("test", num_puzzles=7, num_clues=(12, 13))
CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}{{ end }}"


@pytest.fixture(scope="module")
def loaded():
    path = tiny_checkpoint(MODEL)
    return AutoModelForDiffusionLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def settings(**fields):
    return DiffusionGenerationConfig(max_new_tokens=17, eos_token_id=1, pad_token_id=0, **fields)


GREEDY = settings(num_denoising_steps=4)
RANDOM = settings(unmasking="random", num_denoising_steps=3)


def run(loaded, folder=None, config=GREEDY, tasks=None, **kwargs):
    tasks = {"sudoku": sudoku_task(ROWS)} if tasks is None else tasks
    return evaluate_tasks(*loaded, tasks, config, **{"batch_size": 3, "output_dir": folder, **kwargs})


def lines(folder, task="sudoku"):
    return [json.loads(line) for line in (folder / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()]


# Figures


def test_figures_and_rows_are_those_of_generate(loaded, tmp_path):
    model, tokenizer = loaded
    result = run(loaded, tmp_path)["sudoku"]
    inputs = tokenizer(ROWS["prompt"][:], return_tensors="pt")
    rollout = model.generate(**inputs, generation_config=GREEDY, return_dict_in_generate=True).rollout
    texts = tokenizer.batch_decode(rollout.completions(), skip_special_tokens=True)
    rows = lines(tmp_path)
    assert [row["completion"] for row in rows] == texts and [row["id"] for row in rows] == list(range(7))
    assert [row["prompt"] for row in rows] == ROWS["prompt"][:] and {row["seed"] for row in rows} == {None}
    right, blanks, solved = 0, 0, 0
    for row, text, puzzle, solution in zip(rows, texts, ROWS["puzzle"], ROWS["solution"], strict=True):
        cells = [cell for cell in range(16) if puzzle[cell] == "0"]
        good = sum(text[cell : cell + 1] == solution[cell] for cell in cells)
        right, blanks, solved = right + good, blanks + len(cells), solved + (text == solution)
        assert row["correct"] == (text == solution) and row["score"] == good / len(cells)
        assert row["forward_passes"] == 4 and row["length"] == 17
        assert row["problem"] == {"puzzle": puzzle, "solution": solution} and row["answer"] == text
    assert 0 < solved < 7
    assert result.metrics == {"solve_rate": solved / 7, "cell_accuracy": right / blanks}
    assert result.accuracy == solved / 7 and (result.accuracy_low, result.accuracy_high) == wilson_interval(
        solved / 7, 7
    )
    assert (result.forward_passes, result.length, result.tokens_per_pass) == (4, 17, 17 / 4)
    assert result.seconds > 0 and result.tokens_per_second == pytest.approx(7 * 17 / result.seconds, rel=0.05)
    figures = json.loads((tmp_path / "results.json").read_text())["tasks"]["sudoku"]
    assert figures["metrics"] == result.metrics and figures["seeds"] == [] and figures["num_problems"] == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "results.json",
        "run.json",
        "seconds.csv",
        "sudoku.jsonl",
    ]


def test_guidance_makes_two_passes_of_a_step(loaded):
    result = run(loaded, config=settings(num_denoising_steps=3, guidance_scale=2.0))["sudoku"]
    assert result.forward_passes == 6


def test_seeds_are_a_row_each_and_averaged(loaded, tmp_path):
    both = run(loaded, tmp_path, RANDOM, seeds=(3, 8))["sudoku"]
    single = [run(loaded, None, RANDOM, seeds=(seed,), batch_size=7)["sudoku"] for seed in (3, 8)]
    rows = lines(tmp_path)
    assert [(row["seed"], row["id"]) for row in rows] == [(seed, place) for seed in (3, 8) for place in range(7)]
    assert rows == [*single[0].rows, *single[1].rows]
    assert single[0].rows != single[1].rows
    for name, value in both.metrics.items():
        assert value == pytest.approx((single[0].metrics[name] + single[1].metrics[name]) / 2)
    assert both.seeds == [3, 8] and (both.accuracy_low, both.accuracy_high) == wilson_interval(both.accuracy, 7)


def test_rewards_are_a_task_with_a_score(loaded, tmp_path):
    def share(completions, solution, completion_ids, **kwargs):
        return [
            len(ids) / 34 * (text[0] == own[0])
            for text, own, ids in zip(completions, solution, completion_ids, strict=True)
        ]

    async def half(completions, **kwargs):
        return [0.5] * len(completions)

    result = run(loaded, tmp_path, tasks={"own": reward_task(ROWS, [share, half])})["own"]
    rows = lines(tmp_path, "own")
    for row, solution in zip(rows, ROWS["solution"], strict=True):
        first = 0.5 * (row["completion"][0] == solution[0])
        assert (row["rewards/share"], row["rewards/half"], row["score"]) == (first, 0.5, first + 0.5)
        assert row["correct"] == (row["score"] >= 1)
    assert result.metrics["reward"] == pytest.approx(sum(row["score"] for row in rows) / 7)
    assert result.accuracy == sum(row["correct"] for row in rows) / 7 > 0


# Going on


CHILD = """
import os, signal, sys
from dataclasses import replace
from transformers import AutoTokenizer
from trl_diffusion import AutoModelForDiffusionLM, DiffusionGenerationConfig
from trl_diffusion.checkpoints import tiny_checkpoint
from trl_diffusion.evaluation import evaluate_tasks
from trl_diffusion.evaluation.task import sudoku_task
from trl_diffusion.tasks import sudoku_dataset

path = tiny_checkpoint("sudoku-llada-tiny")
model, tokenizer = AutoModelForDiffusionLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
task = sudoku_task(sudoku_dataset("test", num_puzzles=7, num_clues=(12, 13)))
calls = []
def judge(completions, rows, own=task.judge):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return own(completions, rows)
config = DiffusionGenerationConfig(max_new_tokens=17, eos_token_id=1, pad_token_id=0, unmasking="random",
                                   num_denoising_steps=3)
evaluate_tasks(model, tokenizer, {"sudoku": replace(task, judge=judge)}, config, batch_size=2, seeds=(3, 8),
               output_dir=sys.argv[1])
"""


def test_a_run_that_was_killed_goes_on_and_is_the_same(loaded, tmp_path, monkeypatch):
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    expected = run(loaded, whole, RANDOM, seeds=(3, 8), batch_size=5)["sudoku"]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    assert len(lines(folder)) == 6 and not (folder / "results.json").exists()
    with open(folder / "sudoku.jsonl", "a") as file:
        file.write('{"id": 6, "seed": 3, "prompt": "04')  # a line that was cut
    judged = []
    task = sudoku_task(ROWS)

    def judge(completions, rows):
        judged.append(len(rows))
        return task.judge(completions, rows)

    found = run(loaded, folder, RANDOM, {"sudoku": replace(task, judge=judge)}, seeds=(3, 8), batch_size=3)["sudoku"]
    assert judged == [1, 3, 3, 1]
    assert (folder / "sudoku.jsonl").read_bytes() == (whole / "sudoku.jsonl").read_bytes()
    timed = ("seconds", "tokens_per_second")
    assert {k: v for k, v in found.figures().items() if k not in timed} == {
        k: v for k, v in expected.figures().items() if k not in timed
    }
    # Once more: nothing is left to do, and the figures stay, down to the seconds.
    again = run(loaded, folder, RANDOM, {"sudoku": replace(task, judge=judge)}, seeds=(3, 8))["sudoku"]
    assert judged == [1, 3, 3, 1] and again == found


def test_an_exception_loses_a_batch_at_most(loaded, tmp_path):
    task = sudoku_task(ROWS)

    def fails(completions, rows):
        if ROWS["puzzle"][5] in rows["puzzle"][:]:
            raise KeyboardInterrupt
        return task.judge(completions, rows)

    with pytest.raises(KeyboardInterrupt):
        run(loaded, tmp_path, tasks={"sudoku": replace(task, judge=fails)})
    assert len(lines(tmp_path)) == 3
    assert run(loaded, tmp_path)["sudoku"].num_problems == 7 and len(lines(tmp_path)) == 7


def test_rows_do_not_depend_on_the_batch(loaded, tmp_path):
    for size in (1, 4, 7):
        run(loaded, tmp_path / str(size), RANDOM, batch_size=size)
    first, *others = [(tmp_path / str(size) / "sudoku.jsonl").read_bytes() for size in (1, 4, 7)]
    assert others == [first, first]


def test_more_tasks_may_follow(loaded, tmp_path):
    first = run(loaded, tmp_path)
    before = (tmp_path / "sudoku.jsonl").stat().st_mtime_ns
    few = {"few": sudoku_task(ROWS.select(range(2)))}
    run(loaded, tmp_path, tasks=few)
    tasks = json.loads((tmp_path / "results.json").read_text())["tasks"]
    assert list(tasks) == ["sudoku", "few"] and tasks["sudoku"]["accuracy"] == first["sudoku"].accuracy
    assert (tmp_path / "sudoku.jsonl").stat().st_mtime_ns == before
    run(loaded, tmp_path, tasks=few, overwrite=True)
    assert list(json.loads((tmp_path / "results.json").read_text())["tasks"]) == ["few"]
    assert not (tmp_path / "sudoku.jsonl").exists()


def test_other_settings_are_refused_by_name(loaded, tmp_path):
    run(loaded, tmp_path, RANDOM)
    before = (tmp_path / "sudoku.jsonl").read_bytes()
    other = sudoku_dataset("test", num_puzzles=7, num_clues=(12, 13), seed=1)
    changes = [
        (
            {"config": settings(unmasking="random", num_denoising_steps=4)},
            "generation_config.num_denoising_steps was 3 and is 4",
        ),
        ({"seeds": (1,)}, r"seeds was \[0\] and is \[1\]"),
        ({"chat_template_kwargs": {"end": "."}}, "chat_template_kwargs.end was None and is '.'"),
        ({"tasks": {"sudoku": sudoku_task(ROWS.select(range(5)))}}, "sudoku.columns.prompt was"),
        ({"tasks": {"sudoku": sudoku_task(other)}}, "sudoku.columns.prompt was"),
        ({"tasks": {"sudoku": replace(sudoku_task(ROWS), scorer="mine")}}, "sudoku.scorer was 'sudoku' and is 'mine'"),
    ]
    for change, message in changes:
        with pytest.raises(
            ValueError, match=f"has completions of another call: {message}.*overwrite=True starts anew"
        ):
            run(loaded, tmp_path, **{"config": RANDOM, **change})
    model = random_model("llada", character_tokenizer("01234"))
    with pytest.raises(ValueError, match="model was '.*' and is '"):
        run((model, loaded[1]), tmp_path, RANDOM)
    assert (tmp_path / "sudoku.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace('{"id": 1', '["id": 1'), "line 2 of .*sudoku.jsonl' is no row"),
        (lambda text: text.split("\n", 1)[1], "line 1 of .* is completion 1 of seed None, and should be 0"),
        (lambda text: text + text.split("\n", 1)[0].replace('"id": 0', '"id": 7') + "\n", "has 8 rows for 7"),
    ],
)
def test_damaged_rows_are_named(loaded, tmp_path, damage, message):
    run(loaded, tmp_path)
    file = tmp_path / "sudoku.jsonl"
    file.write_text(damage(file.read_text()))
    with pytest.raises(ValueError, match=message):
        run(loaded, tmp_path)


def test_rows_without_what_they_were_made_with_are_not_gone_on_with(loaded, tmp_path):
    run(loaded, tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match="has sudoku.jsonl, and no run.json"):
        run(loaded, tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="run.json' is missing or damaged"):
        run(loaded, tmp_path)


# Tasks


def test_bare_puzzles_are_put_into_words_for_a_chat_model():
    tokenizer = character_tokenizer("".join(map(chr, range(32, 127))) + "\n")
    tasks = {"sudoku": sudoku_task(ROWS), "countdown": countdown_task(countdown_dataset("test", 2))}
    assert tasks["sudoku"].rows_for(tokenizer)["prompt"][:] == ROWS["prompt"][:]
    tokenizer.chat_template = CHAT
    for task in tasks.values():
        rows = task.rows_for(tokenizer)
        assert set(rows.column_names) == set(task.test_dataset.column_names)
        for row, bare in zip(rows, task.test_dataset, strict=True):
            ((role, content),) = [(m["role"], m["content"]) for m in row["prompt"]]
            given = bare.get("puzzle") or ", ".join(map(str, bare["numbers"]))
            assert role == "user" and given in content and "</answer>" in content and row["prompt"] != bare["prompt"]


def test_conversations_go_through_the_template_with_its_keywords(tmp_path):
    tokenizer = character_tokenizer("".join(map(chr, range(32, 127))) + "\n")
    rows = map_gsm8k(Dataset.from_dict({"question": ["1+1?", "2+2?"], "answer": ["#### 2", "#### 4"]}))
    model = random_model("llada", tokenizer, max_position_embeddings=256)
    tasks = {"gsm8k": gsm8k_task(rows), "math": math_task(rows)}
    config = settings(num_denoising_steps=2)
    with pytest.raises(ValueError, match="task 'gsm8k': the prompts are conversations, and the tokenizer has no chat"):
        evaluate_tasks(model, tokenizer, tasks, config)
    tokenizer.chat_template = CHAT
    plain = evaluate_tasks(model, tokenizer, tasks, config)
    other = evaluate_tasks(model, tokenizer, tasks, config, chat_template_kwargs={"end": "Now:"})
    for found, suffix in ((plain, ">"), (other, ">Now:")):
        text = rows["prompt"][0][0]["content"] + suffix
        inputs = tokenizer([text], return_tensors="pt")
        ids = model.generate(**inputs, generation_config=config)[0, inputs["input_ids"].size(1) :]
        assert tokenizer.decode(ids, skip_special_tokens=True).startswith(found["gsm8k"].rows[0]["completion"])
    assert [r["completion"] for r in plain["math"].rows] != [r["completion"] for r in other["math"].rows]
    long = {"gsm8k": gsm8k_task(map_gsm8k(Dataset.from_dict({"question": ["?" * 300], "answer": ["#### 2"]})))}
    with pytest.raises(ValueError, match="task 'gsm8k': the longest prompt .* exceed the model's 256"):
        evaluate_tasks(model, tokenizer, long, config, output_dir=tmp_path / "none")
    assert not (tmp_path / "none").exists()


# The command


def command(*arguments):
    return main(["eval", "--device", "cpu", "--batch_size", "4", *map(str, arguments)])


def test_an_adapter_is_evaluated_as_it_is(loaded, tmp_path, capsys):
    model = AutoModelForDiffusionLM.from_pretrained(tiny_checkpoint(MODEL))
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    assert (
        command("--model", tmp_path / "adapter", "--tasks", "sudoku", "--num_test", 4, "--output_dir", tmp_path / "a")
        == 0
    )
    assert command("--model", MODEL, "--tasks", "sudoku", "--num_test", 4, "--output_dir", tmp_path / "b") == 0
    rows, base = lines(tmp_path / "a"), lines(tmp_path / "b")
    inputs = loaded[1]([row["prompt"] for row in rows], return_tensors="pt")
    rollout = adapted.merge_and_unload().generate(**inputs, return_dict_in_generate=True).rollout
    texts = loaded[1].batch_decode(rollout.completions(), skip_special_tokens=True)
    assert [row["completion"] for row in rows] == texts != [row["completion"] for row in base]
    about = [json.loads((tmp_path / name / "results.json").read_text()) for name in "ab"]
    assert about[0]["base_model"] == str(tiny_checkpoint(MODEL)) and about[1]["base_model"] is None


def test_several_tasks_make_one_table_and_a_file_each(tmp_path, capsys):
    path = tmp_path / "more.jsonl"
    ROWS.to_json(path)
    given = ["--model", MODEL, "--num_test", 5, "--output_dir", tmp_path / "out"]
    assert command(*given, "--tasks", f"sudoku,{path}") == 0
    out = capsys.readouterr().out
    assert out.count("95 % interval") == 1 and " sudoku " in out and " more " in out
    assert {len(lines(tmp_path / "out", name)) for name in ("sudoku", "more")} == {5}
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["sources"] == {"sudoku": "sudoku", "more": str(path)} and results["versions"]["torch"]
    assert command(*given, "--tasks", "sudoku", path) == 0
    other = tmp_path / "other" / "more.csv"
    other.parent.mkdir()
    other.write_text("prompt\n1?\n")
    assert command("--model", MODEL, "--tasks", path, other, "--reward_funcs", "math.sqrt") == 1
    assert "reward_funcs has 'math.sqrt'" in capsys.readouterr().err
    assert command("--model", MODEL, "--tasks", path, other, "--reward_funcs", "sudoku_reward") == 1
    assert "which are both called 'more'" in capsys.readouterr().err


def test_a_preset_is_the_protocol_and_what_is_given_wins(tmp_path, capsys):
    tokenizer = character_tokenizer("".join(map(chr, range(32, 127))) + "\n")
    tokenizer.chat_template = CHAT
    model = random_model("llada", tokenizer, max_position_embeddings=1024)
    # The protocol says what the model's own settings would be.
    model.generation_config.update(num_denoising_steps=3, unmasking="random", seed=5)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "questions.jsonl").write_text('{"question": "1+1?", "answer": "#### 2"}\n')
    chosen = ["--model", tmp_path / "model", "--tasks", tmp_path / "questions.jsonl", "--preset", "d1-128"]
    assert command(*chosen, "--output_dir", tmp_path / "out") == 0
    captured = capsys.readouterr()
    assert "preset d1-128: max_new_tokens=128 block_length=32 num_denoising_steps=64" in captured.out
    assert "dtype=bfloat16 seeds=42" in captured.out and "given on the command line" not in captured.out
    assert "questions.jsonl has 1 problems, the protocol's are 1319" in captured.err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["tasks"]["questions"]["forward_passes"] == 64 and results["dtype"] == "bfloat16"
    generation = results["generation"]
    assert (generation["unmasking"], generation["temperature"], generation["cache"]) == ("low_confidence", 0.0, "none")
    assert results["seeds"] == [] and results["preset"] == "d1-128" and results["block_length"] == 32
    given = ["--num_denoising_steps", 32, "--unmasking", "random", "--dtype", "float32"]
    assert command(*chosen, *given, "--output_dir", tmp_path / "given") == 0
    assert "of these given on the command line: num_denoising_steps=32 unmasking=random" in capsys.readouterr().out
    results = json.loads((tmp_path / "given" / "results.json").read_text())
    assert results["tasks"]["questions"]["forward_passes"] == 32 and results["seeds"] == [42]
    assert results["dtype"] == "float32"


def test_nothing_to_do_is_an_error(loaded):
    with pytest.raises(ValueError, match="tasks is empty"):
        run(loaded, tasks={})
    with pytest.raises(ValueError, match="task 'none': prompts is empty"):
        run(loaded, tasks={"none": sudoku_task(ROWS.select([]))})
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        run(loaded, batch_size=0)
