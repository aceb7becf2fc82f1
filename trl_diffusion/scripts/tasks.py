# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Tasks for reinforcement learning, by the name of their dataset."""

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from datasets import Dataset, load_dataset

from ..tasks import cell_accuracy, read_csv, solve_rate, sudoku_dataset, sudoku_reward
from ..tasks.math import map_gsm8k


@dataclass
class RLTask:
    """Data, rewards and metrics of a task.

    Args:
        train_dataset, test_dataset (`Dataset`):
            Rows to train on and held-out rows, with a `prompt` column and what the rewards need.
        reward_funcs (`list[Callable]`):
            TRL reward functions.
        metrics (`Callable[[list[str], Dataset], dict[str, float]]`):
            Metrics of completion texts on held-out rows; `solve_rate` is one of them.
    """

    train_dataset: Dataset
    test_dataset: Dataset
    reward_funcs: list[Callable]
    metrics: Callable[[list[str], Dataset], dict[str, float]]


def _sudoku_metrics(texts: list[str], rows: Dataset) -> dict[str, float]:
    puzzles, solutions = list(rows["puzzle"]), list(rows["solution"])
    return {
        "solve_rate": solve_rate(texts, puzzles, solutions),
        "cell_accuracy": cell_accuracy(texts, puzzles, solutions),
    }


def _math_metrics(texts: list[str], rows: Dataset) -> dict[str, float]:
    from trl.rewards import accuracy_reward

    messages = [[{"role": "assistant", "content": text}] for text in texts]
    rewards = [reward for reward in accuracy_reward(messages, list(rows["solution"])) if reward is not None]
    return {"solve_rate": sum(rewards) / len(rewards)}


def _reward_metrics(reward_funcs: list[Callable]) -> Callable[[list[str], Dataset], dict[str, float]]:
    """Metrics of a dataset that is not known here: its own rewards, and the share of completions at the best one."""

    def metrics(texts: list[str], rows: Dataset) -> dict[str, float]:
        columns = {name: list(rows[name]) for name in rows.column_names}
        prompts = columns.pop("prompt")
        if not isinstance(prompts[0], str):
            texts = [[{"role": "assistant", "content": text}] for text in texts]
        totals = [
            sum(values)
            for values in zip(
                *(f(prompts=prompts, completions=texts, completion_ids=None, **columns) for f in reward_funcs),
                strict=True,
            )
        ]
        return {"reward": sum(totals) / len(totals), "solve_rate": sum(t >= 1 for t in totals) / len(totals)}

    return metrics


def load_reward(name: str) -> Callable:
    """A reward function by name: `sudoku_reward`, one of `trl.rewards`, or a dotted path to any other.

    Raises:
        ValueError: there is no such function.
    """
    import trl.rewards

    if name == "sudoku_reward":
        return sudoku_reward
    if name in trl.rewards.__all__:
        return getattr(trl.rewards, name)
    module_path, _, function = name.rpartition(".")
    if not module_path:
        raise ValueError(
            f"reward_funcs has {name!r}: give 'sudoku_reward', the name of a function in trl.rewards, or a dotted "
            "path such as 'my_rewards.length_reward'."
        )
    # As TRL's own scripts do: a module in the folder the script is run from can be named.
    sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module_path), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward_funcs has {name!r}, which cannot be imported: {error}") from error
    finally:
        sys.path.remove(os.getcwd())


def load_rl_task(
    dataset: str, reward_funcs: list[str] | None = None, num_test: int | None = None, seed: int = 0
) -> RLTask:
    """Load a task by the name of its dataset.

    Args:
        dataset (`str`):
            `"sudoku"` (generated, split by solution), a d1 Sudoku CSV file (tested on the file, trained on generated
            puzzles), `"openai/gsm8k"`, or any dataset of the Hub with a `prompt` column, `train` and `test` splits,
            and `reward_funcs` given.
        reward_funcs (`list[str]`, *optional*):
            Names for [`load_reward`]; defaults to the task's own.
        num_test (`int`, *optional*):
            Held-out rows to use, the first ones. Defaults to 256 for Sudoku and to all else.
        seed (`int`, *optional*, defaults to 0):
            Seed of generated training puzzles. The held-out ones do not depend on it.

    Returns:
        [`RLTask`].

    Raises:
        ValueError: an unknown dataset without `reward_funcs`, or an unknown reward.
    """
    rewards = [load_reward(name) for name in reward_funcs or []]
    if dataset == "sudoku" or dataset.endswith(".csv"):
        train = sudoku_dataset("train", 4000, num_clues=(5, 6), seed=seed)
        if dataset == "sudoku":
            test = sudoku_dataset("test", num_test or 256, num_clues=(5, 6))
        else:
            test = read_csv(dataset)
        task = RLTask(train, test, rewards or [sudoku_reward], _sudoku_metrics)
    elif dataset == "openai/gsm8k":
        from trl.rewards import accuracy_reward

        rows = load_dataset(dataset, "main")
        task = RLTask(map_gsm8k(rows["train"]), map_gsm8k(rows["test"]), rewards or [accuracy_reward], _math_metrics)
    elif rewards:
        rows = load_dataset(dataset)
        task = RLTask(rows["train"], rows["test"], rewards, _reward_metrics(rewards))
    else:
        raise ValueError(
            f"dataset={dataset!r} has no reward of its own. Give reward_funcs, or use 'sudoku', a Sudoku .csv file or "
            "'openai/gsm8k'."
        )
    if num_test is not None and num_test < len(task.test_dataset):
        task.test_dataset = task.test_dataset.select(range(num_test))
    return task
