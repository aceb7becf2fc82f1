# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Countdown solved the slow way, sharing nothing with the package."""

import itertools
from fractions import Fraction


OPERATE = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else None,
}


def slow_reachable(numbers, operators="+-*/"):
    """All values, by taking two of the numbers, putting what they make in their place, and so on."""
    if len(numbers) == 1:
        return set(numbers)
    values = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        rest = [number for k, number in enumerate(numbers) if k not in (i, j)]
        for operator in operators:
            value = OPERATE[operator](Fraction(numbers[i]), Fraction(numbers[j]))
            if value is not None:
                values |= slow_reachable([*rest, value], operators)
    return values
