# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Tasks for reinforcement learning, by the name of their dataset."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from datasets import Dataset, load_dataset
from transformers.utils import logging

from ..evaluation import Completions
from ..evaluation.rewards import as_completions, score_completions, total_rewards
from ..tasks import (
    TINY_ARITHMETIC,
    TINY_COUNTDOWN,
    arithmetic_dataset,
    arithmetic_format_reward,
    arithmetic_reward,
    cell_accuracy,
    countdown_dataset,
    countdown_reward,
    countdown_solve_rate,
    has_unique_solution,
    read_countdown_jsonl,
    read_csv,
    solve_rate,
    split_grids,
    sudoku_dataset,
    sudoku_reward,
    sudoku_solved_reward,
)
from ..tasks.math import map_gsm8k, map_metamathqa
from .dotted_path import import_dotted


logger = logging.get_logger(__name__)

_REWARDS = {
    "sudoku_reward": sudoku_reward,
    "sudoku_solved_reward": sudoku_solved_reward,
    "countdown_reward": countdown_reward,
    "arithmetic_reward": arithmetic_reward,
    "arithmetic_format_reward": arithmetic_format_reward,
}


Verdicts = Callable[[Completions, Dataset], list[float]]
Metrics = Callable[[Completions, Dataset], dict[str, float]]


@dataclass
class RLTask:
    """Data, rewards and metrics of a task.

    Args:
        train_dataset, test_dataset (`Dataset`):
            Rows to train on and held-out rows, with a `prompt` column and what the rewards need.
        reward_funcs (`list[Callable]`):
            TRL reward functions.
        correct (`Callable[[Completions, Dataset], list[float]]`):
            For each completion of a held-out row 1.0 where it is right, else 0.0.
        metrics (`Callable[[Completions, Dataset], dict[str, float]]`):
            Metrics of completions on held-out rows; `solve_rate`, the mean of `correct`, is one of them.
        hub_dataset (`str`, *optional*):
            Hub id of the data, for the model card; `None` where it is generated or a local file.
    """

    train_dataset: Dataset
    test_dataset: Dataset
    reward_funcs: list[Callable]
    correct: Verdicts
    metrics: Metrics
    hub_dataset: str | None = None


def _sudoku_correct(completions: Completions, rows: Dataset) -> list[float]:
    problems = zip(completions.texts, rows["puzzle"], rows["solution"], strict=True)
    return [solve_rate([text], [puzzle], [solution]) for text, puzzle, solution in problems]


def _countdown_correct(completions: Completions, rows: Dataset) -> list[float]:
    problems = zip(completions.texts, rows["numbers"], rows["target"], strict=True)
    return [countdown_solve_rate([text], [numbers], [target]) for text, numbers, target in problems]


def _arithmetic_correct(completions: Completions, rows: Dataset) -> list[float]:
    return arithmetic_reward(completions.texts, list(rows["solution"]))


def _solve_rate(correct: Verdicts) -> tuple[Verdicts, Metrics]:
    """For a dataset whose only metric is the share of completions that are right."""
    return correct, lambda completions, rows: {"solve_rate": _mean(correct(completions, rows))}


def _sudoku_metrics(completions: Completions, rows: Dataset) -> dict[str, float]:
    cells = cell_accuracy(completions.texts, list(rows["puzzle"]), list(rows["solution"]))
    return {"solve_rate": _mean(_sudoku_correct(completions, rows)), "cell_accuracy": cells}


def _totals(reward_funcs: list[Callable], completions: Completions, rows: Dataset) -> list[float]:
    """The summed rewards of each completion."""
    columns = {name: list(rows[name]) for name in rows.column_names} | {"unmask_step": completions.unmask_step}
    answers = as_completions(columns["prompt"], completions.texts)
    return [
        total or 0.0 for total in total_rewards(score_completions(reward_funcs, columns, answers, completions.ids))
    ]


def _reward_correct(reward_funcs: list[Callable]) -> Verdicts:
    """Verdicts on a dataset that brings none: a completion whose summed rewards reach 1 is right."""
    return lambda completions, rows: [float(total >= 1) for total in _totals(reward_funcs, completions, rows)]


def _reward_metrics(reward_funcs: list[Callable]) -> Metrics:
    """Metrics of such a dataset: the summed rewards, and the share of completions that reach 1."""

    def metrics(completions: Completions, rows: Dataset) -> dict[str, float]:
        totals = _totals(reward_funcs, completions, rows)  # once: a reward function may be a slow judge
        return {"reward": _mean(totals), "solve_rate": _mean([float(total >= 1) for total in totals])}

    return metrics


def _by_rewards(reward_funcs: list[Callable]) -> tuple[Verdicts, Metrics]:
    return _reward_correct(reward_funcs), _reward_metrics(reward_funcs)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def load_reward(name: str) -> Callable:
    """A reward function by name: `sudoku_reward`, `sudoku_solved_reward`, `countdown_reward`, `arithmetic_reward`,
    `arithmetic_format_reward`, one of `trl.rewards`, or a dotted path.

    Raises:
        ValueError: there is no such function, or it makes a reward function instead of being one.
    """
    import trl.rewards

    if name in _REWARDS:
        return _REWARDS[name]
    if name in trl.rewards.__all__:
        return _reward_function(getattr(trl.rewards, name), name)
    if "." not in name:
        raise ValueError(
            f"reward_funcs has {name!r}: give {', '.join(map(repr, _REWARDS))}, the name of a function in "
            "trl.rewards, or a dotted path such as 'my_rewards.length_reward'."
        )
    return _reward_function(import_dotted("reward_funcs", name), name)


def _reward_function(found, name: str) -> Callable:
    try:
        takes = inspect.signature(found).parameters
    except (TypeError, ValueError):  # not callable, or a built-in without a signature
        takes = {}
    if "completions" not in takes and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        raise ValueError(
            f"reward_funcs has {name!r}, which is no reward function: it takes no `completions`. Name a function "
            "f(prompts, completions, completion_ids, **kwargs); wrap one that first needs settings in your own module."
        )
    return found


def load_rl_task(
    dataset: str, reward_funcs: list[str] | None = None, num_test: int | None = None, seed: int = 0
) -> RLTask:
    """Load a task by the name of its dataset.

    Args:
        dataset (`str`):
            `"sudoku"` (generated, split by solution), a d1 Sudoku CSV file (tested on its rows whose solution is
            unique and not in the training grids, trained on generated puzzles), `"countdown"` (generated, the tiny
            checkpoint's task, split by the multiset of numbers), a d1 Countdown JSONL file (tested on all its rows,
            trained on generated problems with other numbers), `"arithmetic"` (generated, the tiny checkpoint's task,
            with reasoning traces, split by the problem), `"openai/gsm8k"`, `"meta-math/MetaMathQA"` (tested on the
            test rows of openai/gsm8k), or any dataset of the Hub with a `prompt` column, `train` and `test` splits,
            and `reward_funcs` given.
        reward_funcs (`list[str]`, *optional*):
            Names for [`load_reward`]; defaults to the task's own.
        num_test (`int`, *optional*):
            Held-out rows to use, the first ones. Defaults to 256 for generated Sudoku, Countdown and arithmetic, and
            to all else.
        seed (`int`, *optional*, defaults to 0):
            Seed of generated training problems. The held-out ones do not depend on it.

    Returns:
        [`RLTask`].

    Raises:
        ValueError: an unknown dataset without `reward_funcs`, one without a split, an unknown reward, or `num_test`
            below 1.
        ImportError: a mathematics reward without math-verify.
    """
    if num_test is not None and num_test < 1:
        raise ValueError(f"num_test={num_test} must be at least 1 (0 on the command line skips the evaluation).")
    rewards = [load_reward(name) for name in reward_funcs or []]
    if dataset == "sudoku" or dataset.endswith(".csv"):
        train = sudoku_dataset("train", 4000, num_clues=(5, 6), seed=seed)
        if dataset == "sudoku":
            test = sudoku_dataset("test", num_test or 256, num_clues=(5, 6))
        else:
            test = _held_out(read_csv(dataset), dataset)
        task = RLTask(train, test, rewards or [sudoku_reward], _sudoku_correct, _sudoku_metrics)
    elif dataset == "countdown":
        train = countdown_dataset("train", 4000, **TINY_COUNTDOWN, seed=seed)
        test = countdown_dataset("test", num_test or 256, **TINY_COUNTDOWN)
        task = RLTask(train, test, rewards or [countdown_reward], *_solve_rate(_countdown_correct))
    elif dataset.endswith(".jsonl"):
        test = read_countdown_jsonl(dataset)
        task = RLTask(
            _train_without(test, seed), test, rewards or [countdown_reward], *_solve_rate(_countdown_correct)
        )
    elif dataset == "arithmetic":
        train = arithmetic_dataset("train", 4000, **TINY_ARITHMETIC, seed=seed)
        test = arithmetic_dataset("test", num_test or 256, **TINY_ARITHMETIC)
        task = RLTask(train, test, rewards or [arithmetic_reward], *_solve_rate(_arithmetic_correct))
    elif dataset in ("openai/gsm8k", "meta-math/MetaMathQA"):
        from trl.rewards import accuracy_reward

        if find_spec("math_verify") is None:
            raise ImportError(f"dataset={dataset!r} is scored with math-verify: pip install 'trl-diffusion[math]'.")
        gsm8k = load_dataset("openai/gsm8k", "main")
        # MetaMathQA is made of the training questions of GSM8K and MATH, and has no test rows of its own.
        own = dataset == "openai/gsm8k"
        train = map_gsm8k(gsm8k["train"]) if own else map_metamathqa(load_dataset(dataset)["train"])
        test = map_gsm8k(gsm8k["test"])
        task = RLTask(train, test, rewards or [accuracy_reward], *_by_rewards([accuracy_reward]), dataset)
    elif rewards:
        rows = load_dataset(dataset)
        for split in ("train", "test"):
            if split not in rows:
                raise ValueError(f"dataset={dataset!r} has no split {split!r}; it has {', '.join(rows)}.")
        hub_dataset = None if os.path.exists(dataset) else dataset
        task = RLTask(rows["train"], rows["test"], rewards, *_by_rewards(rewards), hub_dataset)
    else:
        raise ValueError(
            f"dataset={dataset!r} has no reward of its own. Give reward_funcs, or use 'sudoku', a Sudoku .csv file, "
            "'countdown', a Countdown .jsonl file, 'arithmetic', 'openai/gsm8k' or 'meta-math/MetaMathQA'."
        )
    if num_test is not None and num_test < len(task.test_dataset):
        task.test_dataset = task.test_dataset.select(range(num_test))
    return task


def _held_out(rows: Dataset, path: str) -> Dataset:
    """The rows of a customary Sudoku file that can be tested on: unique solution, and none that is trained on."""
    trained_on = set(split_grids()[0])
    kept = rows.filter(lambda row: row["solution"] not in trained_on and has_unique_solution(row["puzzle"]))
    logger.warning(
        f"{path}: {len(kept)} of {len(rows)} rows are tested on. The others have a solution among the training grids, "
        "or more than one solution."
    )
    if not len(kept):
        raise ValueError(f"dataset={path!r} has no row with a unique solution that is not trained on.")
    return kept


def _train_without(test: Dataset, seed: int) -> Dataset:
    """Generated Countdown problems with as many numbers as a file's, none of which has the numbers of one of its."""
    counts = [len(numbers) for numbers in test["numbers"]]
    held_out = {tuple(sorted(numbers)) for numbers in test["numbers"]}
    train = countdown_dataset("train", 4000, num_numbers=(min(counts), max(counts)), seed=seed)
    return train.filter(lambda row: tuple(sorted(row["numbers"])) not in held_out)
