# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Tasks of local files and of the Hub, by name."""

import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from trl.rewards import accuracy_reward

from trl_diffusion.evaluation import Completions
from trl_diffusion.scripts import local_data, tasks
from trl_diffusion.scripts.tasks import load_rl_task, load_task
from trl_diffusion.tasks import (
    character_tokenizer,
    countdown_dataset,
    countdown_reward,
    has_unique_solution,
    sudoku_dataset,
    sudoku_reward,
)
from trl_diffusion.tasks.instructions import sudoku_instruction
from trl_diffusion.tasks.math import INSTRUCTION, map_math


PROMPTS = Dataset.from_dict({"prompt": [f"{place}?" for place in range(30)], "want": list(range(30))})
MATH = {
    "problem": ["What is $1/2$?", "Name $x$ with $x^2 = 3$, $x > 0$."],
    "solution": ["It is \\boxed{\\frac{1}{2}}.", "So $x = \\boxed{\\sqrt{3}}$."],
    "answer": ["\\frac{1}{2}", "\\sqrt{3}"],
}


@pytest.fixture(autouse=True)
def folder_with_a_reward(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own_rewards_of_files.py").write_text(
        "def wanted(completions, want, **kwargs):\n"
        "    return [float(text == str(w)) for text, w in zip(completions, want, strict=True)]\n"
    )


REWARD = ["own_rewards_of_files.wanted"]


def write(kind, rows=PROMPTS):
    if kind == "folder":
        rows.save_to_disk("data")
        return "data"
    name = f"data.{kind}"
    {"jsonl": rows.to_json, "json": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[kind](name)
    return name


def some(texts):
    count = len(texts)
    return Completions(texts=texts, forward_passes=1.0, ids=[[1]] * count, unmask_step=[[1]] * count)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "folder"])
def test_a_file_with_prompts_is_a_task_with_rewards(kind):
    name = write(kind)
    task = load_task(name, REWARD, num_test=4)
    assert task.test_dataset["prompt"][:] == ["0?", "1?", "2?", "3?"] and task.hub_dataset is None
    assert task.metrics(some(["0", "no", "2", "no"]), task.test_dataset) == {"reward": 0.5, "solve_rate": 0.5}
    both = load_rl_task(name, REWARD)
    assert both.train_dataset["want"][:] == list(range(27)) and both.test_dataset["want"][:] == [27, 28, 29]
    assert [reward.__name__ for reward in both.reward_funcs] == ["wanted"]
    assert load_rl_task(name, REWARD, num_test=10).test_dataset["want"][:] == list(range(20, 30))


def test_splits_are_what_they_are_and_share_no_prompt():
    DatasetDict(train=PROMPTS.select(range(6)), test=PROMPTS.select(range(4, 9))).save_to_disk("data")
    both = load_rl_task("data", REWARD, num_test=3)
    assert both.train_dataset["want"][:] == [0, 1, 2, 3] and both.test_dataset["want"][:] == [4, 5, 6]
    assert load_task("data", REWARD).test_dataset["want"][:] == [4, 5, 6, 7, 8]
    assert load_task("data", REWARD, split="train").test_dataset["want"][:] == list(range(6))
    with pytest.raises(ValueError, match="tasks='data' has no split 'dev'; it has train, test"):
        load_task("data", REWARD, split="dev")
    DatasetDict(train=PROMPTS, dev=PROMPTS).save_to_disk("other")
    with pytest.raises(ValueError, match="dataset='other' has no split 'test'; it has train, dev"):
        load_rl_task("other", REWARD)


def test_a_folder_of_files_named_for_splits_has_these():
    Path("files").mkdir()
    PROMPTS.select(range(5)).to_json("files/train.jsonl")
    PROMPTS.select(range(5, 8)).to_json("files/test.jsonl")
    both = load_rl_task("files", REWARD)
    assert (len(both.train_dataset), both.test_dataset["want"][:]) == (5, [5, 6, 7])


@pytest.mark.parametrize(
    ("make", "reward"),
    [
        (lambda: sudoku_dataset("train", 20), sudoku_reward),
        (lambda: countdown_dataset("train", 20, num_numbers=(3, 3)), countdown_reward),
    ],
)
def test_rows_of_our_own_tasks_are_known_by_their_columns(make, reward):
    rows = make()
    task = load_rl_task(write("jsonl", rows))
    assert task.reward_funcs == [reward] and len(task.test_dataset) == 2 and len(task.train_dataset) == 18
    right = some(task.test_dataset["solution"][:])
    assert task.correct(right, task.test_dataset) == [1.0, 1.0]


def test_puzzles_in_a_csv_file_keep_their_zeros():
    rows = sudoku_dataset("test", 4)
    assert any(puzzle[0] == "0" for puzzle in rows["puzzle"])
    assert list(load_task(write("csv", rows)).test_dataset) == list(rows)


def test_mathematics_is_known_by_its_columns():
    gsm8k = Dataset.from_dict({"question": ["1+1?", "2+2?"], "answer": ["so\n#### 2", "#### 4"]})
    task = load_task(write("jsonl", gsm8k))
    assert task.scorer == "gsm8k" and task.test_dataset["solution"][:] == ["2", "4"]
    assert task.correct(some(["\\boxed{2.0}", "\\boxed{5}"]), task.test_dataset) == [1.0, 0.0]
    task = load_rl_task(write("parquet", Dataset.from_dict(MATH)), num_test=1)
    assert task.scorer == "math" and task.reward_funcs == [accuracy_reward]
    assert task.metrics(some(["\\boxed{3^{1/2}}"]), task.test_dataset) == {"solve_rate": 1.0}


def test_map_math():
    rows = map_math(Dataset.from_dict(MATH))
    assert rows["solution"][:] == ["\\boxed{\\frac{1}{2}}", "\\boxed{\\sqrt{3}}"]
    assert rows["reasoning"][:] == MATH["solution"]
    assert rows[0]["prompt"] == [{"role": "user", "content": f"What is $1/2$?\n{INSTRUCTION}"}]
    bare = map_math(Dataset.from_dict({name: MATH[name] for name in ("problem", "solution")}))
    assert bare["solution"][:] == rows["solution"][:]
    with pytest.raises(ValueError, match="rows have no 'solution', only problem"):
        map_math(Dataset.from_dict({"problem": ["?"]}))
    with pytest.raises(ValueError, match="row 1 has no answer"):
        map_math(Dataset.from_dict({"problem": ["?", "?"], "solution": ["\\boxed{1}", "It is 2."]}))


def test_answers_of_mathematics_may_be_numbers():
    rows = Dataset.from_dict({"problem": ["1 + 1?", "2 + 2?"], "answer": [2, 4]})
    task = load_task(write("jsonl", rows))
    assert task.correct(some(["\\boxed{2}", "\\boxed{2}"]), task.test_dataset) == [1.0, 0.0]


def test_names_of_the_hub(monkeypatch):
    asked = []
    sources = {
        ("HuggingFaceH4/MATH-500", None, "test"): Dataset.from_dict(MATH).select([0]),
        ("ankner/math-500", None, "train"): Dataset.from_dict(MATH).remove_columns("answer"),
        ("openai/gsm8k", "main", "test"): Dataset.from_dict({"question": ["1+1?"], "answer": ["#### 2"]}),
        ("user/data", None, "test"): PROMPTS,
        ("user/data", None, "dev"): PROMPTS.select([1]),
    }

    def load(name, config=None, split=None):
        asked.append((name, config, split))
        return sources[name, config, split]

    monkeypatch.setattr(local_data, "load_dataset", load)
    task = load_task("math500")
    assert task.hub_dataset == "HuggingFaceH4/MATH-500" and task.test_dataset["solution"][:] == [
        "\\boxed{\\frac{1}{2}}"
    ]
    both = load_rl_task("HuggingFaceH4/MATH-500")
    # The training rows lose the one that is tested on.
    assert both.train_dataset["solution"][:] == ["\\boxed{\\sqrt{3}}"] and both.reward_funcs == [accuracy_reward]
    assert load_task("gsm8k").hub_dataset == load_task("openai/gsm8k").hub_dataset == "openai/gsm8k"
    assert load_task("user/data", REWARD).hub_dataset == "user/data"
    assert len(load_task("user/data", REWARD, split="dev").test_dataset) == 1
    assert {name for name, _, _ in asked} == {name for name, _, _ in sources}


def test_the_fields_countdown_has_three_numbers():
    task = load_rl_task("countdown3", num_test=20)
    train, test = task.train_dataset, task.test_dataset
    assert {len(numbers) for numbers in test["numbers"]} == {3} and max(map(max, test["numbers"])) > 50
    assert not {tuple(sorted(n)) for n in train["numbers"]} & {tuple(sorted(n)) for n in test["numbers"]}
    assert any("*" in solution or "/" in solution for solution in test["solution"])


def test_d1_files_are_known_by_their_columns(tmp_path):
    puzzle = next(p for p in sudoku_dataset("test", 20) if has_unique_solution(p["puzzle"]))
    Path("d1.csv").write_text(f"Puzzle,Solution\n{puzzle['puzzle']},{puzzle['solution']}\n")
    assert load_task("d1.csv").scorer == "sudoku" and len(load_rl_task("d1.csv").train_dataset) == 4000
    Path("d1.jsonl").write_text('{"input": "1,2,3", "output": "6"}\n')
    assert load_task("d1.jsonl").test_dataset["target"][:] == [6]
    # With a prompt they are anything's.
    Path("other.jsonl").write_text(json.dumps({"prompt": "1", "input": "1,2,3", "output": "6", "want": 1}) + "\n")
    assert load_task("other.jsonl", REWARD).scorer.startswith("rewards ")


@pytest.mark.parametrize(
    ("name", "content", "rewards", "message"),
    [
        ("none.jsonl", None, None, "tasks='none.jsonl' is no file"),
        ("none.csv", None, REWARD, "tasks='none.csv' is no file"),
        ("empty.csv", "", REWARD, "tasks='empty.csv' is an empty file"),
        ("notes.txt", "x", REWARD, r"tasks='notes.txt' must end in .json, .jsonl, .csv, .parquet"),
        ("bad.jsonl", '{"prompt": 1\n', REWARD, "tasks='bad.jsonl' cannot be loaded"),
        ("a.jsonl", '{"prompt": "1"}\n', None, "has the columns prompt, which say of no task .* Give reward_funcs"),
        ("a.jsonl", '{"question": "1"}\n', REWARD, "tasks='a.jsonl' has no column 'prompt', only question"),
        ("a.jsonl", '{"question": "1", "answer": "2"}\n', None, "answer of row 0 does not end in '####"),
        ("a.jsonl", '{"question": "1", "answer": 2}\n', None, "answer of row 0 does not end in '####"),
        ("a.jsonl", '{"prompt": 1}\n', REWARD, "tasks='a.jsonl' has the prompt 1 in row 0; it must be a text"),
        ("a.jsonl", '{"prompt": "1"}\n{"prompt": null}\n', REWARD, "has the prompt None in row"),
        ("a.jsonl", '{"prompt": "1", "puzzle": "12", "solution": "12"}\n', None, "tasks='a.jsonl': puzzle='12' must"),
        ("a.jsonl", '{"prompt": "1", "numbers": [1, 2], "target": "3"}\n', None, "tasks='a.jsonl': target='3' must"),
        ("someone/data", None, None, "tasks='someone/data' has no reward of its own.*'gsm8k', 'math500'"),
        ("someone/data", None, ["no_such"], "reward_funcs has 'no_such'"),
    ],
)
def test_what_is_no_task_is_named(name, content, rewards, message):
    if content is not None:
        Path(name).write_text(content * 3)
    with pytest.raises(ValueError, match=message):
        load_task(name, rewards)
    with pytest.raises(ValueError, match=message.replace("tasks=", "dataset=")):
        load_rl_task(name, rewards)


def test_too_few_rows_to_train_on_are_an_error():
    with pytest.raises(ValueError, match="num_test=30 leaves none of the 30 rows of dataset='data.jsonl' to train on"):
        load_rl_task(write("jsonl"), REWARD, num_test=30)
    same = Dataset.from_dict({"prompt": ["a", "a", "a"], "want": [1, 2, 3]})
    with pytest.raises(ValueError, match="has no training row whose prompt is not held out"):
        load_rl_task(write("csv", same), REWARD)


def test_mathematics_without_math_verify_is_an_error(monkeypatch):
    monkeypatch.setattr("trl_diffusion.tasks.math_scores.has_math_verify", lambda: False)
    with pytest.raises(ImportError, match=r"pip install 'trl-diffusion\[math\]'"):
        tasks.load_task(write("jsonl", Dataset.from_dict(MATH)))


def test_training_and_test_rows_are_asked_alike():
    chat = character_tokenizer("01234")
    chat.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    task = load_rl_task("sudoku", num_test=2)
    asked, bare = task.asked_of(chat), task.asked_of(character_tokenizer("01234"))
    for rows, plain in ((asked.train_dataset, task.train_dataset), (asked.test_dataset, task.test_dataset)):
        assert rows["prompt"][0] == sudoku_instruction(plain["puzzle"][0])
        assert rows["puzzle"][:] == plain["puzzle"][:] and rows["solution"][:] == plain["solution"][:]
    assert bare.train_dataset["prompt"][:3] == task.train_dataset["prompt"][:3]
