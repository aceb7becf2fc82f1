# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The problems of Countdown: the split by multisets of numbers, and drawing problems that have a solution."""

import functools
import hashlib
import itertools
import random
from collections.abc import Sequence

from .expressions import reachable


# One multiset in so many is held out.
_TEST_SHARE = 5
# Draws per problem before a repeated one is accepted.
_MAX_DRAWS = 20
# Draws of numbers before the settings are taken to have no problem at all.
_MAX_MISSES = 2_000


def is_held_out(numbers: Sequence[int]) -> bool:
    """
    Whether problems with these numbers, in whatever order, are test problems: so is one multiset of numbers in five.

    A hash decides, so that the split depends on neither seeds nor ranges, and holds for problems from elsewhere too.
    """
    digest = hashlib.sha256(",".join(map(str, sorted(numbers))).encode()).digest()
    return int.from_bytes(digest[:4], "big") % _TEST_SHARE == 0


def countdown_prompt(numbers: Sequence[int], target: int) -> str:
    """The prompt of a problem: `3,5,8=40:` asks for 40 from 3, 5 and 8. The completion is the expression alone."""
    return f"{','.join(map(str, numbers))}={target}:"


# Thousands of problems of the tiny task share its multisets; larger ranges hardly repeat one.
@functools.lru_cache(maxsize=1024)
def targets_of(numbers: tuple[int, ...], operators: str, target_range: tuple[int, int]) -> dict[int, str]:
    """The targets that sorted numbers reach, ascending, with an expression for each."""
    low, high = target_range
    found = reachable(numbers, operators).items()
    return dict(sorted((int(value), text) for value, text in found if value.denominator == 1 and low <= value <= high))


def draw_problems(
    split: str,
    num_problems: int,
    num_numbers: tuple[int, int],
    number_range: tuple[int, int],
    target_range: tuple[int, int],
    operators: str,
    rng: random.Random,
) -> list[tuple[tuple[int, ...], int, str]]:  # numbers as shown, target, solution
    problems, repeats, seen = [], [], set()
    draws = misses = 0
    while len(problems) + len(repeats) < num_problems:
        numbers = tuple(rng.randint(*number_range) for _ in range(rng.randint(*num_numbers)))
        multiset = tuple(sorted(numbers))
        targets = targets_of(multiset, operators, target_range) if is_held_out(numbers) == (split == "test") else {}
        if not targets:
            misses += 1
            if misses == _MAX_MISSES:
                raise ValueError(
                    f"number_range={number_range} with num_numbers={num_numbers}, operators={operators!r} and "
                    f"target_range={target_range} gives no problem of split={split!r}: widen one of them."
                )
            continue
        target = rng.choice(list(targets))
        draws, misses = draws + 1, 0
        if (multiset, target) not in seen:
            seen.add((multiset, target))
            problems.append((numbers, target, targets[target]))
            draws = 0
        elif draws == _MAX_DRAWS:
            repeats.append((numbers, target, targets[target]))
            draws = 0
    return problems + repeats


def all_problems(
    split: str, num_numbers: int, number_range: tuple[int, int], target_range: tuple[int, int], operators: str
) -> list[tuple[tuple[int, ...], int, str]]:  # numbers in ascending order, target, solution
    """Every problem of a split once, the order of its numbers aside."""
    low, high = number_range
    return [
        (multiset, target, solution)
        for multiset in itertools.combinations_with_replacement(range(low, high + 1), num_numbers)
        if is_held_out(multiset) == (split == "test")
        for target, solution in targets_of(multiset, operators, target_range).items()
    ]
