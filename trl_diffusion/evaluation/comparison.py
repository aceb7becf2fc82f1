# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Two evaluations on the same problems: how far apart they are, and whether chance would do the same."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..tasks.fingerprint import first_difference
from .run_folder import RUN_FILE, read_results, read_rows, read_run


# Draws of the permutation test and of the bootstrap, and their seed: a second comparison has the same figures.
_DRAWS = 20_000
_SEED = 0
# Up to this many problems that differ, all signs are tried instead of some.
_EXACT = 14
_Z = 1.959964


@dataclass(frozen=True)
class Comparison:
    """Of one quantity of one task, in two evaluations of the same problems.

    Args:
        task (`str`):
            Name of the task.
        quantity (`str`):
            `"accuracy"`, or `"score"`: the mean grade of the completions.
        num_problems (`int`):
            Problems, each compared with itself.
        first, second (`float`):
            Its value in the two evaluations.
        low, high (`float`):
            Ends of the 95 % confidence interval of the difference `second - first`.
        p_value (`float`):
            Probability of a difference as large as this one, or larger, either way, if the two were alike.
        test (`str`):
            `"McNemar"` for verdicts, `"permutation"` for grades and for means over seeds.
    """

    task: str
    quantity: str
    num_problems: int
    first: float
    second: float
    low: float
    high: float
    p_value: float
    test: str

    @property
    def difference(self) -> float:
        """`second - first`."""
        return self.second - self.first


def mcnemar_test(only_first: int, only_second: int) -> float:
    """McNemar's exact test: the two-sided p-value of verdicts in pairs.

    Of the n pairs that disagree, as many as a fair coin would give should be right in the first alone: p is twice the
    probability of min(b, c) or fewer of n = b + c, at most 1.

    Args:
        only_first, only_second (`int`):
            Problems that are right in the first alone, and in the second alone.

    Returns:
        `float`, in [0, 1]; 0 where it is too small for a float.

    Raises:
        ValueError: a count is negative.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"only_first={only_first} and only_second={only_second} must not be negative.")
    count = only_first + only_second
    tail, ways = 0, 1
    for k in range(min(only_first, only_second) + 1):
        tail += ways  # of choosing k of the pairs
        ways = ways * (count - k) // (k + 1)
    return min(1.0, 2 * tail / 2**count)  # whole numbers, rounded once


def paired_interval(only_first: int, only_second: int, num_problems: int) -> tuple[float, float]:
    """95 % confidence interval of the difference of two rates of the same problems, (c − b) / N.

    Bonett and Price's (2012): Wald's for paired rates with one pair more on either side. With p_b = (b + 1) / (N + 2),
    p_c = (c + 1) / (N + 2) and d = p_c − p_b it is d ± z · sqrt((p_b + p_c − d²) / (N + 2)). Unlike Wald's own it is
    not empty where no pair disagrees.

    Args:
        only_first, only_second (`int`):
            As in [`mcnemar_test`]: b and c.
        num_problems (`int`):
            All pairs, N.

    Returns:
        `tuple[float, float]`: its ends, in [-1, 1].

    Raises:
        ValueError: there are more pairs that disagree than pairs, or a count is negative.
    """
    if min(only_first, only_second) < 0 or num_problems < max(1, only_first + only_second):
        raise ValueError(
            f"only_first={only_first} and only_second={only_second} must be parts of num_problems={num_problems}."
        )
    first, second = (only_first + 1) / (num_problems + 2), (only_second + 1) / (num_problems + 2)
    middle = second - first
    half = _Z * math.sqrt((first + second - middle**2) / (num_problems + 2))
    return max(middle - half, -1.0), min(middle + half, 1.0)


def permutation_test(differences: Sequence[float]) -> float:
    """Two-sided p-value of a mean of paired differences: how often random signs make it as large.

    Args:
        differences (`Sequence[float]`):
            One per problem.

    Returns:
        `float`: exact for up to 14 differences that are not 0; else of 20,000 seeded draws, (1 + k) / (1 + draws).
    """
    values = np.abs([value for value in differences if value != 0])
    if not len(values):
        return 1.0
    # Sums that are equal on paper differ in their last bits.
    observed = abs(math.fsum(differences)) - 1e-9 * values.sum()
    if len(values) <= _EXACT:
        signs = 1 - 2 * ((np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1)
        return float(np.mean(np.abs(signs @ values) >= observed))
    generator = np.random.default_rng(_SEED)
    count = 0
    for size in _pieces(len(values)):
        signs = 1 - 2 * generator.integers(0, 2, (size, len(values)), dtype=np.int8)
        count += int(np.sum(np.abs(signs @ values) >= observed))
    return (1 + count) / (1 + _DRAWS)


def bootstrap_interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % percentile interval of a mean of paired differences: problems are drawn with replacement, 20,000 times from
    one seed."""
    values = np.asarray(differences, dtype=float)
    generator = np.random.default_rng(_SEED)
    means = [values[generator.integers(0, len(values), (size, len(values)))].mean(1) for size in _pieces(len(values))]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


def _pieces(width: int) -> list[int]:
    """Numbers of draws that add up to all of them, each with at most some megabytes of numbers."""
    size = max(1, min(_DRAWS, 2_000_000 // width))
    return [min(size, _DRAWS - start) for start in range(0, _DRAWS, size)]


def compare_runs(first: str | os.PathLike, second: str | os.PathLike) -> list[Comparison]:
    """Compare two folders of [`evaluate_tasks`], problem by problem, in the tasks that both have.

    Verdicts (one completion per problem) are compared by [`mcnemar_test`] and [`paired_interval`]; means over several
    seeds, and scores, by [`permutation_test`] and [`bootstrap_interval`].

    Args:
        first, second (`str`):
            The folders.

    Returns:
        `list[Comparison]`: for each task its accuracy, and its score where the task has grades, in the order of the
        first folder.

    Raises:
        ValueError: a folder is none of a finished evaluation, they share no task, or a task's problems or verdicts
            are not the same (names what differs).
    """
    runs = [_load(Path(folder)) for folder in (first, second)]
    shared = [name for name in runs[0] if name in runs[1]]
    if not shared:
        names = " and ".join(
            f"{os.fspath(f)!r} ({', '.join(run)})" for f, run in zip((first, second), runs, strict=True)
        )
        raise ValueError(f"compare={names} have no finished task in common.")
    found = []
    for name in shared:
        (was, before), (given, after) = (run[name] for run in runs)
        different = first_difference(was, given, f"{name}.")
        if different is not None:
            raise ValueError(
                f"{os.fspath(first)!r} and {os.fspath(second)!r} cannot be compared: {different[0]} is "
                f"{different[1]!r} in the first and {different[2]!r} in the second. Evaluate both on the same "
                "problems, with the same scoring."
            )
        found += _compared(name, before, after)
    return found


def _load(folder: Path) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """By finished task what its problems are, and its rows."""
    figures, tasks = read_results(folder)["tasks"], read_run(folder)["tasks"]
    found = {}
    for name, of_task in figures.items():
        if name not in tasks:
            raise ValueError(f"{str(folder / RUN_FILE)!r} does not know the task {name!r} of its results.json.")
        path = folder / f"{name}.jsonl"
        rows = read_rows(path) if path.exists() else []
        expected = of_task["num_problems"] * max(1, len(of_task["seeds"]))
        if len(rows) != expected:
            raise ValueError(f"{str(path)!r} has {len(rows)} rows, and its results.json is about {expected}.")
        found[name] = (tasks[name], rows)
    return found


def _compared(task: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[Comparison]:
    found = [_of_quantity(task, "accuracy", _by_problem(before, "correct"), _by_problem(after, "correct"))]
    if all(row["score"] is not None for row in (*before, *after)):
        found.append(_of_quantity(task, "score", _by_problem(before, "score"), _by_problem(after, "score")))
    return found


def _by_problem(rows: list[dict[str, Any]], name: str) -> list[float]:
    """For each problem the mean over the seeds."""
    values: dict[int, list[float]] = {}
    for row in rows:
        values.setdefault(row["id"], []).append(float(row[name]))
    return [sum(values[place]) / len(values[place]) for place in sorted(values)]


def _of_quantity(task: str, quantity: str, first: list[float], second: list[float]) -> Comparison:
    count = len(first)
    means = sum(first) / count, sum(second) / count
    if quantity == "accuracy" and {*first, *second} <= {0.0, 1.0}:
        only_first = sum(a > b for a, b in zip(first, second, strict=True))
        only_second = sum(a < b for a, b in zip(first, second, strict=True))
        interval = paired_interval(only_first, only_second, count)
        p_value, test = mcnemar_test(only_first, only_second), "McNemar"
    else:
        differences = [b - a for a, b in zip(first, second, strict=True)]
        interval, p_value, test = bootstrap_interval(differences), permutation_test(differences), "permutation"
    return Comparison(task, quantity, count, *means, *interval, p_value, test)
