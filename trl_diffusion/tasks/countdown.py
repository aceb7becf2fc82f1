# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""
Countdown as a task: reach a target by an expression that uses each given number once.

Problems are split by the multiset of their numbers. Rewards and metrics find the answer in a text as d1's evaluation
does; unlike it they refuse signs (-3+8 is 8-3 written otherwise) and compute exactly.
"""

import json
import os
import random
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from .answers import last_box, last_tag
from .checks import check_count, check_fraction, check_pair, check_split, completion_text
from .countdown_problems import all_problems, countdown_prompt, draw_problems, is_held_out, targets_of
from .expressions import MAX_NUMBERS, OPERATORS, check_operators, parse_expression


__all__ = [
    "COUNTDOWN3",
    "COUNTDOWN_ALPHABET",
    "TINY_COUNTDOWN",
    "TINY_COUNTDOWN_CANVAS",
    "subtract_all",
    "countdown_dataset",
    "countdown_pretraining_dataset",
    "countdown_prompt",
    "countdown_reward",
    "countdown_solve_rate",
    "countdown_verdicts",
    "extract_expression",
    "is_held_out",
    "read_countdown_jsonl",
]

# The task that the tiny checkpoint is trained on and tested with: arguments of `countdown_dataset`.
TINY_COUNTDOWN = {"num_numbers": (3, 3), "number_range": (1, 20), "target_range": (1, 60), "operators": "+-"}
# The field's: three numbers up to 100. Its customary test file (see `read_countdown_jsonl`) is not split by numbers.
COUNTDOWN3 = {"num_numbers": (3, 3), "number_range": (1, 100), "target_range": (1, 100)}
# "12+15-17" and two end-of-sequence tokens.
TINY_COUNTDOWN_CANVAS = 10
# Prompts and expressions of any Countdown, not of the tiny one alone.
COUNTDOWN_ALPHABET = "0123456789+-*/()=,:"

# The protocol's, for values in floating point; exact ones that are this close are equal unless numbers are large.
_TOLERANCE = Fraction(1, 100_000)
_EXPRESSION_CHARACTERS = "0123456789+-*/() "
_OPERATOR_SPELLINGS = {r"\times": "*", r"\cdot": "*", r"\div": "/", "×": "*", "·": "*", "÷": "/", "−": "-"}


# Datasets


def countdown_dataset(
    split: Literal["train", "test"],
    num_problems: int,
    num_numbers: tuple[int, int] = (3, 4),
    number_range: tuple[int, int] = (1, 100),
    target_range: tuple[int, int] = (1, 100),
    operators: str = OPERATORS,
    seed: int = 0,
) -> Dataset:
    """
    Problems that have a solution, over the training multisets of numbers or over the test ones.

    For each problem the numbers are drawn uniformly (with replacement), then the target from all that they reach. A
    problem already drawn in this call, the order of its numbers aside, is drawn again, 20 times at most; then a repeat
    is taken, and the repeats come last. `countdown_dataset(..., **TINY_COUNTDOWN)` is the tiny checkpoint's task. A
    problem of three numbers takes a millisecond, one of four about twenty.

    Args:
        split (`"train"` or `"test"`):
            Which multisets of numbers to use, see [`is_held_out`]. No multiset of one split is in the other, whatever
            the seeds and the ranges.
        num_problems (`int`):
            Rows of the dataset.
        num_numbers (`tuple[int, int]`, *optional*, defaults to `(3, 4)`):
            Fewest and most numbers of a problem, both included, within 2..4.
        number_range (`tuple[int, int]`, *optional*, defaults to `(1, 100)`):
            Smallest and largest number, both included, from 0 on.
        target_range (`tuple[int, int]`, *optional*, defaults to `(1, 100)`):
            Smallest and largest target, both included, from 0 on.
        operators (`str`, *optional*, defaults to `"+-*/"`):
            Operators that the solutions may use. Answers with others count too.
        seed (`int`, *optional*, defaults to `0`):
            Equal arguments give equal datasets.

    Returns:
        `Dataset`: columns `prompt` (`str`, see [`countdown_prompt`]), `numbers` (`list[int]`, in the prompt's order),
        `target` (`int`) and `solution` (`str`, one right expression of possibly many).

    Raises:
        `ValueError`: an argument is outside its range, or they leave no problem.
    """
    check_split(split)
    check_count("num_problems", num_problems)
    check_pair("num_numbers", num_numbers, 2, MAX_NUMBERS)
    check_pair("number_range", number_range, 0)
    check_pair("target_range", target_range, 0)
    check_operators(operators)
    rng = random.Random(f"{split}-{seed}")
    ranges = tuple(number_range), tuple(target_range)
    problems = draw_problems(split, num_problems, num_numbers, *ranges, operators, rng)
    return _as_dataset(*zip(*problems, strict=True))


def _as_dataset(
    numbers: Sequence[Sequence[int]], targets: Sequence[int], solutions: Sequence[str | None], **columns: Sequence
) -> Dataset:
    prompts = [countdown_prompt(*problem) for problem in zip(numbers, targets, strict=True)]
    return Dataset.from_dict(
        {"prompt": prompts, "numbers": numbers, "target": targets, "solution": solutions, **columns}
    )


def subtract_all(numbers: Sequence[int]) -> str:
    """The numbers in their order, joined by minus signs: the systematically wrong procedure of a weak base model."""
    return "-".join(map(str, numbers))


def countdown_pretraining_dataset(num_examples: int, correct_fraction: float = 0.4, seed: int = 0) -> Dataset:
    """
    Training examples of a base model that solves some of the tiny task's problems and falls to [`subtract_all`] else.

    Problems are those of `TINY_COUNTDOWN`, training multisets only, distinct up to the order of their numbers. Each
    example draws its problem with replacement, the order of the numbers anew, and its completion: right with
    probability `correct_fraction`. A problem can thus appear with both completions.

    Args:
        num_examples (`int`):
            Rows of the dataset.
        correct_fraction (`float`, *optional*, defaults to `0.4`):
            Probability that the completion is a solution, in [0, 1].
        seed (`int`, *optional*, defaults to `0`):
            Equal arguments give equal datasets.

    Returns:
        `Dataset`: string columns `prompt` and `completion` (an expression, no end-of-sequence token), and the boolean
        `correct`: whether the solution was drawn. Where both are the same, `correct` still says which of the two was
        drawn.

    Raises:
        `ValueError`: `num_examples` or `correct_fraction` is outside its range.
    """
    check_count("num_examples", num_examples)
    check_fraction("correct_fraction", correct_fraction)
    problems = all_problems("train", **{**TINY_COUNTDOWN, "num_numbers": TINY_COUNTDOWN["num_numbers"][0]})
    generator = np.random.default_rng(seed)
    rows = generator.integers(len(problems), size=num_examples).tolist()
    correct = (generator.random(num_examples) < correct_fraction).tolist()
    prompts, completions = [], []
    for row, right in zip(rows, correct, strict=True):
        multiset, target, solution = problems[row]
        numbers = generator.permutation(multiset).tolist()
        prompts.append(countdown_prompt(numbers, target))
        completions.append(solution if right else subtract_all(numbers))
    return Dataset.from_dict({"prompt": prompts, "completion": completions, "correct": correct})


def read_countdown_jsonl(path: str | os.PathLike) -> Dataset:
    """
    Reads a test file of the d1 repository: a line is `{"input": "30,100,93", "output": "23"}`, the target last.

    Such a file is not split by multisets: four in five of its problems have numbers that [`countdown_dataset`] trains
    on. Drop the training rows with the same numbers, or test on the rows that [`is_held_out`] leaves.

    Args:
        path (`str` or `os.PathLike`):
            The file, one JSON object a line.

    Returns:
        `Dataset`: the columns of [`countdown_dataset`], rows in the file's order. `solution` is found by an exhaustive
        search, and `None` where no expression with `+ - * /` reaches the target.

    Raises:
        `ValueError`: there are no rows, or a row is not such an object with two to four numbers. Names the file and
            the row; row 1 is the first line.
    """
    with open(path, encoding="utf-8") as file:
        lines = file.read().splitlines()
    if not lines:
        raise ValueError(f"{path}: no rows: pass a d1 Countdown file.")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_read_row(line))
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
    numbers, targets = [row[0] for row in rows], [row[1] for row in rows]
    solutions = [targets_of(tuple(sorted(row)), OPERATORS, (target, target)).get(target) for row, target in rows]
    return _as_dataset(numbers, targets, solutions)


def _read_row(line: str) -> tuple[list[int], int]:
    try:
        row = json.loads(line)
    except RecursionError as error:  # nested deeper than Python's parser goes
        raise ValueError(f"{line[:40]!r}… is nested too deeply for a row.") from error
    if not isinstance(row, dict) or not {"input", "output"} <= row.keys():
        raise ValueError(f"{line[:80]!r} must be an object with `input` and `output`: pass a d1 Countdown file.")
    given, wanted = row["input"], row["output"]
    if not isinstance(given, str) or not re.fullmatch(rf"[0-9]{{1,9}}(,[0-9]{{1,9}}){{1,{MAX_NUMBERS - 1}}}", given):
        raise ValueError(f"input={given!r} must be a string of 2 to {MAX_NUMBERS} numbers, like '30,100,93'.")
    if not isinstance(wanted, str) or not re.fullmatch(r"[0-9]{1,9}", wanted):
        raise ValueError(f"output={wanted!r} must be a string of digits, the target.")
    return [int(number) for number in given.split(",")], int(wanted)


# Scoring


def _left_of_equals(text: str) -> str:
    """The expression left of the first equals sign that has one there and a number on the right, else all the text."""
    left, *rights = text.split("=")
    for right in rights:
        # By hand, as a search for "characters up to an equals sign" is quadratic in texts without one.
        expression = left[len(left.rstrip(_EXPRESSION_CHARACTERS)) :]
        if expression and right and right[0] in "0123456789. ":
            return expression
        left = right
    return text


def extract_expression(text: str) -> str:
    r"""
    The part of an answer that should be the expression, as d1's evaluation finds it.

    Taken from the last `\boxed{...}`; without one that closes, from the last `<answer>...</answer>`; else from the
    whole text. In it `\times`, `\cdot` and `\div` are replaced by `*`, `*` and `/`, the characters × · ÷ − by theirs,
    and of an equation such as `3*5+8 = 23` only the left side is kept. What is left need not be an expression.
    """
    found = last_box(text)
    if found is None:
        found = last_tag(text)
    if found is None:
        found = text
    for written, operator in _OPERATOR_SPELLINGS.items():
        found = found.replace(written, operator)
    return _left_of_equals(found).strip()


def countdown_verdicts(completions: list[Any], numbers: list[list[int]], targets: list[int]) -> list[bool | None]:
    """For each completion: whether it is right, `None` where it has no expression.

    Arguments and errors are those of [`countdown_reward`].
    """
    if not len(completions) == len(numbers) == len(targets):
        raise ValueError(
            f"{len(completions)} completions, {len(numbers)} lists of numbers and {len(targets)} targets: "
            "pass the numbers and one target for each completion."
        )
    verdicts = []
    for completion, given, target in zip(completions, numbers, targets, strict=True):
        _check_problem(given, target)
        expression = parse_expression(extract_expression(completion_text(completion)))
        if expression is None:
            verdicts.append(None)
        else:
            reached = expression.value is not None and abs(expression.value - target) < _TOLERANCE
            verdicts.append(reached and sorted(expression.numbers) == sorted(given))
    return verdicts


def _check_problem(numbers: Any, target: Any) -> None:
    if not isinstance(numbers, Sequence) or not numbers or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError(f"numbers={numbers!r} must be a list of non-negative integers for each completion.")
    if type(target) is not int:
        raise ValueError(f"target={target!r} must be an integer for each completion.")


def countdown_reward(
    completions: list[str] | list[list[dict[str, str]]],
    numbers: list[list[int]],
    target: list[int],
    **kwargs: Any,
) -> list[float]:
    """
    Reward function: 1 for a right expression, 0.1 for a wrong one, 0 for none.

    The answer is found by [`extract_expression`] and read by [`parse_expression`]. It is right when it uses exactly
    the given numbers, each as often as given, and its value is within 1e-5 of the target; otherwise, and when it
    divides by zero, it is wrong. What is not an expression scores 0. Special tokens must have been left out when
    decoding, unless the answer is in a box or a tag.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Texts, or conversations whose last message is read.
        numbers (`list[list[int]]`):
            For each completion the given numbers.
        target (`list[int]`):
            For each completion the target.
        **kwargs:
            The trainer's other columns, not used.

    Returns:
        `list[float]`: one reward per completion.

    Raises:
        `ValueError`: the lists differ in length, a problem is not made of integers, or a completion holds no text.
    """
    return [
        {None: 0.0, False: 0.1, True: 1.0}[verdict] for verdict in countdown_verdicts(completions, numbers, target)
    ]


def countdown_solve_rate(completions: list[Any], numbers: list[list[int]], targets: list[int]) -> float:
    """
    Fraction of the completions that are right.

    Arguments are those of [`countdown_reward`], as are the errors; a `ValueError` too when there is no completion.
    """
    verdicts = countdown_verdicts(completions, numbers, targets)
    if not verdicts:
        raise ValueError("completions=[] has nothing to score: pass at least one completion.")
    return sum(verdict is True for verdict in verdicts) / len(verdicts)
