# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Tasks to train and evaluate on, by the name of their dataset."""

import csv
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..evaluation import Completions
from ..evaluation.task import (
    Task,
    arithmetic_task,
    countdown_task,
    gsm8k_task,
    math_task,
    reward_task,
    sudoku_task,
)
from ..tasks import (
    COUNTDOWN3,
    TINY_ARITHMETIC,
    TINY_COUNTDOWN,
    arithmetic_dataset,
    arithmetic_reward,
    countdown_dataset,
    countdown_reward,
    has_unique_solution,
    read_countdown_jsonl,
    read_csv,
    split_grids,
    sudoku_dataset,
    sudoku_reward,
)
from ..tasks.math import map_gsm8k, map_math, map_metamathqa
from ..tasks.math_scores import check_math_verify
from .local_data import is_local, load_all_splits, load_rows, pick_split
from .reward_names import load_reward


logger = logging.get_logger(__name__)

# Problems of a generated task where nobody says how many, and of what is split off a local file at most.
NUM_TEST = 256
GSM8K, METAMATHQA, MATH500 = "openai/gsm8k", "meta-math/MetaMathQA", "HuggingFaceH4/MATH-500"
_HUB_NAMES = {"gsm8k": GSM8K, "metamathqa": METAMATHQA, "math500": MATH500}
# Generated tasks → their rows, what scores them, and the reward of the training.
GENERATED: dict[str, tuple[Callable[..., Dataset], Callable[[Dataset], Task], Callable]] = {
    "sudoku": (
        lambda split, count, **seed: sudoku_dataset(split, count, num_clues=(5, 6), **seed),
        sudoku_task,
        sudoku_reward,
    ),
    "countdown": (
        lambda split, count, **seed: countdown_dataset(split, count, **TINY_COUNTDOWN, **seed),
        countdown_task,
        countdown_reward,
    ),
    "countdown3": (
        lambda split, count, **seed: countdown_dataset(split, count, **COUNTDOWN3, **seed),
        countdown_task,
        countdown_reward,
    ),
    "arithmetic": (
        lambda split, count, **seed: arithmetic_dataset(split, count, **TINY_ARITHMETIC, **seed),
        arithmetic_task,
        arithmetic_reward,
    ),
}
TASK_NAMES = (*GENERATED, "gsm8k", "math500")


@dataclass(kw_only=True)
class RLTask(Task):
    """A [`Task`] to train on, too.

    Args:
        train_dataset (`Dataset`):
            Rows to train on, with a `prompt` column and what the rewards need.
        reward_funcs (`list[Callable]`):
            TRL reward functions.
    """

    train_dataset: Dataset
    reward_funcs: list[Callable]

    def asked_of(self, tokenizer: PreTrainedTokenizerBase) -> "RLTask":
        """The task with prompts, to train and to test on, that a model with this tokenizer is to be asked; see
        [`~evaluation.task.Task.rows_for`]."""
        test, train = self.rows_for(tokenizer), self.rows_for(tokenizer, self.train_dataset)
        return replace(self, test_dataset=test, train_dataset=train)


def load_task(
    name: str,
    reward_funcs: list[str] | None = None,
    num_test: int | None = None,
    split: str = "test",
    option: str = "tasks",
) -> Task:
    """Load the problems of a task, to evaluate on.

    Args:
        name (`str`):
            `"sudoku"` (generated, split by solution), `"countdown"` (generated, the tiny checkpoint's task, split by
            the multiset of numbers), `"countdown3"` (the same with three numbers up to 100 and all four operators),
            `"arithmetic"` (generated, the tiny checkpoint's task, split by the problem), `"gsm8k"` or
            `"openai/gsm8k"`, `"math500"` or `"HuggingFaceH4/MATH-500"`, `"meta-math/MetaMathQA"` (tested on the test
            rows of openai/gsm8k); a file (.jsonl, .json, .csv, .parquet) or a folder of a dataset; or any dataset of
            the Hub with a `prompt` column, and `reward_funcs` given.

            What a file or folder holds is told by its columns: `Puzzle,Solution` (d1's Sudoku .csv file; of its rows
            those count whose solution is unique and not in the training grids), `input` and `output` (d1's Countdown
            .jsonl file), `question` and `answer` (GSM8K), `problem` and `answer` (MATH), `puzzle` and `solution`
            (Sudoku), `numbers` and `target` (Countdown), or `prompt`, with `reward_funcs`.
        reward_funcs (`list[str]`, *optional*):
            Names for [`load_reward`]: the verdict on data that have a `prompt` and no verdict of their own.
        num_test (`int`, *optional*):
            Problems to use, the first ones. Defaults to 256 of generated tasks, and to all else.
        split (`str`, *optional*, defaults to `"test"`):
            Split of a dataset that has splits.
        option (`str`, *optional*, defaults to `"tasks"`):
            What errors call the name.

    Returns:
        [`~evaluation.task.Task`].

    Raises:
        ValueError: an unknown task, one that cannot be loaded or has no such split or columns, an unknown reward, or
            `num_test` below 1.
        ImportError: mathematics without math-verify.
    """
    _check_num_test(num_test)
    rewards = [load_reward(reward) for reward in reward_funcs or []]
    hub_name = _HUB_NAMES.get(name, name)
    if name in GENERATED:
        make, score, _ = GENERATED[name]
        task = score(make("test", num_test or NUM_TEST))
    elif hub_name in (GSM8K, METAMATHQA, MATH500):
        # MetaMathQA is made of the training questions of GSM8K and MATH, and has no test rows of its own.
        source, config = (MATH500, None) if hub_name == MATH500 else (GSM8K, "main")
        task = _mathematics(load_rows(source, config, split, option), hub_name)
    elif is_local(name):
        task = _d1_task(name, option) or _task_of(load_rows(name, None, split, option), rewards, name, option)
    elif rewards:
        task = _task_of(load_rows(name, None, split, option), rewards, name, option)
        task.hub_dataset = name
    else:
        raise ValueError(
            f"{option}={name!r} has no reward of its own. Give reward_funcs, name a file, or use "
            f"{', '.join(map(repr, TASK_NAMES))} or {METAMATHQA!r}."
        )
    if num_test is not None and num_test < len(task.test_dataset):
        task.test_dataset = task.test_dataset.select(range(num_test))
    return task


def load_rl_task(
    dataset: str, reward_funcs: list[str] | None = None, num_test: int | None = None, seed: int = 0
) -> RLTask:
    """Load a task to train on, with its held-out problems.

    Args:
        dataset (`str`):
            As `name` of [`load_task`]. Generated training problems share no solution, numbers or problem with the
            held-out ones; beside d1's files they are generated, and share none with the file. `"math500"` trains on
            ankner/math-500. Other data are split into `train` and `test`, or, where they are one file or one
            table, the last `num_test` rows are held out (a tenth of them by default, 256 at most), and their prompts
            are not trained on.
        reward_funcs (`list[str]`, *optional*):
            Names for [`load_reward`]; defaults to the task's own.
        num_test (`int`, *optional*):
            Held-out rows to use, the first ones. Defaults as in [`load_task`].
        seed (`int`, *optional*, defaults to 0):
            Seed of generated training problems. The held-out ones do not depend on it.

    Returns:
        [`RLTask`].

    Raises:
        ValueError: as [`load_task`], or there is no row to train on.
        ImportError: mathematics without math-verify.
    """
    _check_num_test(num_test)
    rewards = [load_reward(name) for name in reward_funcs or []]
    hub_name = _HUB_NAMES.get(dataset, dataset)
    d1_task = _d1_task(dataset, "dataset") if is_local(dataset) else None
    if dataset in GENERATED:
        make, _, reward = GENERATED[dataset]
        task, train = load_task(dataset, None, num_test, option="dataset"), make("train", 4000, seed=seed)
    elif d1_task is not None:
        task = d1_task
        if task.scorer == "sudoku":
            train, reward = sudoku_dataset("train", 4000, num_clues=(5, 6), seed=seed), sudoku_reward
        else:
            train, reward = _train_without(task.test_dataset, seed), countdown_reward
    elif hub_name in (GSM8K, METAMATHQA, MATH500):
        from trl.rewards import accuracy_reward as reward

        check_math_verify()  # which the reward needs
        task = load_task(dataset, None, option="dataset")
        train = _without(_mathematics_to_train_on(hub_name), task.test_dataset, dataset)
    elif is_local(dataset) or rewards:
        task, train, reward = _own_data(dataset, rewards, num_test)
    else:
        load_task(dataset, option="dataset")  # which says what there is
    if num_test is not None and num_test < len(task.test_dataset):
        task.test_dataset = task.test_dataset.select(range(num_test))
    return RLTask(**vars(task), train_dataset=train, reward_funcs=rewards or [reward])


def _check_num_test(num_test: int | None):
    if num_test is not None and num_test < 1:
        raise ValueError(f"num_test={num_test} must be at least 1 (0 on the command line skips the evaluation).")


def _mathematics(rows: Dataset, hub_name: str) -> Task:
    if hub_name == MATH500:
        check_math_verify()
        return replace(math_task(map_math(rows)), hub_dataset=hub_name)
    return replace(gsm8k_task(map_gsm8k(rows)), hub_dataset=hub_name)


def _mathematics_to_train_on(hub_name: str) -> Dataset:
    if hub_name == GSM8K:
        return map_gsm8k(load_rows(GSM8K, "main", "train"))
    if hub_name == METAMATHQA:
        return map_metamathqa(load_rows(METAMATHQA))
    # MATH-500 has test rows alone; these are MATH's other ones.
    return map_math(load_rows("ankner/math-500"))


def _d1_task(path: str, option: str) -> Task | None:
    """The task of one of d1's files; `None` where it is another file. They are known by their columns."""
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        first = file.readline(10_000)
    if path.lower().endswith(".csv") and next(csv.reader([first]), None) == ["Puzzle", "Solution"]:
        return sudoku_task(_held_out(read_csv(path), path, option))
    if path.lower().endswith((".jsonl", ".json")):
        try:
            row = json.loads(first)
        except (ValueError, RecursionError):  # nothing of d1's; the next reader says what is wrong
            return None
        if isinstance(row, dict) and row.keys() == {"input", "output"}:
            return countdown_task(read_countdown_jsonl(path))
    return None


def _task_of(rows: Dataset, rewards: list[Callable], name: str, option: str) -> Task:
    """The task that rows are for, by their columns."""
    columns = set(rows.column_names)
    if not len(rows):
        raise ValueError(f"{option}={name!r} has no rows.")
    if "prompt" in columns:
        for place, prompt in enumerate(rows["prompt"]):
            if not prompt or not isinstance(prompt, str | list):
                raise ValueError(
                    f"{option}={name!r} has the prompt {prompt!r} in row {place}; it must be a text or a conversation."
                )
    if rewards:
        if "prompt" not in columns:
            raise ValueError(
                f"{option}={name!r} has no column 'prompt', only {', '.join(rows.column_names)}. Rename the column "
                "of the prompts."
            )
        return reward_task(rows, rewards)
    if {"question", "answer"} <= columns:
        return _read(lambda: gsm8k_task(map_gsm8k(rows)), name, option)
    if {"problem", "answer"} <= columns:
        check_math_verify()
        return _read(lambda: math_task(map_math(rows)), name, option)
    if {"prompt", "puzzle", "solution"} <= columns:
        return _read(lambda: sudoku_task(rows), name, option)
    if {"prompt", "numbers", "target"} <= columns:
        return _read(lambda: countdown_task(rows), name, option)
    raise ValueError(
        f"{option}={name!r} has the columns {', '.join(rows.column_names)}, which say of no task what a right answer "
        "is. Give reward_funcs (and a column 'prompt'), or the columns of Sudoku (prompt, puzzle, solution), of "
        "Countdown (prompt, numbers, target), of GSM8K (question, answer) or of MATH (problem, answer)."
    )


def _read(make: Callable[[], Task], name: str, option: str) -> Task:
    """A task of a user's rows, each of which is tried with an empty completion: a row that cannot be scored is to show
    before a model writes anything."""
    try:
        task = make()
        count = len(task.test_dataset)
        empty = Completions([""] * count, 0.0, [[]] * count, [[]] * count)
        task.judge(empty, task.test_dataset)
    except ValueError as error:
        raise ValueError(f"{option}={name!r}: {error}") from error
    return task


def _own_data(name: str, rewards: list[Callable], num_test: int | None) -> tuple[Task, Dataset, Callable | None]:
    """Test and training rows of a user's data, and the reward that goes with their columns."""
    data = load_all_splits(name)
    if isinstance(data, DatasetDict) and set(data) != {"train"}:
        train, test = (pick_split(data, name, split) for split in ("train", "test"))
    else:
        train, test = _split(data if isinstance(data, Dataset) else data["train"], name, num_test)
    task = _task_of(test, rewards, name, "dataset")
    task.hub_dataset = None if os.path.exists(name) else name
    train = _task_of(train, rewards, name, "dataset").test_dataset
    kept = _without(train, task.test_dataset, name)
    if rewards:
        return task, kept, None
    if task.scorer in ("sudoku", "countdown"):
        return task, kept, {"sudoku": sudoku_reward, "countdown": countdown_reward}[task.scorer]
    from trl.rewards import accuracy_reward

    check_math_verify()
    return task, kept, accuracy_reward


def _without(train: Dataset, test: Dataset, name: str) -> Dataset:
    """Training rows whose prompt is not held out."""
    asked = {str(prompt) for prompt in test["prompt"]}
    places = [place for place, prompt in enumerate(train["prompt"]) if str(prompt) not in asked]
    if not places:
        raise ValueError(f"dataset={name!r} has no training row whose prompt is not held out.")
    if len(places) == len(train):
        return train
    logger.warning(f"{name}: {len(train) - len(places)} training rows whose prompt is held out are left out.")
    return train.select(places)


def _split(rows: Dataset, name: str, num_test: int | None) -> tuple[Dataset, Dataset]:
    """The rows to train on, and the last ones to test on."""
    count = num_test or max(1, min(NUM_TEST, len(rows) // 10))
    if count >= len(rows):
        raise ValueError(f"num_test={count} leaves none of the {len(rows)} rows of dataset={name!r} to train on.")
    logger.warning(f"{name} has no split 'test': its last {count} rows are held out.")
    return rows.select(range(len(rows) - count)), rows.select(range(len(rows) - count, len(rows)))


def _held_out(rows: Dataset, path: str, option: str) -> Dataset:
    """The rows of a customary Sudoku file that can be tested on: unique solution, and none that is trained on."""
    trained_on = set(split_grids()[0])
    kept = rows.filter(lambda row: row["solution"] not in trained_on and has_unique_solution(row["puzzle"]))
    logger.warning(
        f"{path}: {len(kept)} of {len(rows)} rows are tested on. The others have a solution among the training grids, "
        "or more than one solution."
    )
    if not len(kept):
        raise ValueError(f"{option}={path!r} has no row with a unique solution that is not trained on.")
    return kept


def _train_without(test: Dataset, seed: int) -> Dataset:
    """Generated Countdown problems with as many numbers as a file's, none of which has the numbers of one of its."""
    counts = [len(numbers) for numbers in test["numbers"]]
    held_out = {tuple(sorted(numbers)) for numbers in test["numbers"]}
    train = countdown_dataset("train", 4000, num_numbers=(min(counts), max(counts)), seed=seed)
    return train.filter(lambda row: tuple(sorted(row["numbers"])) not in held_out)
