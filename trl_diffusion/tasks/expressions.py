# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""
Arithmetic expressions: exact values of texts that nobody vouches for, and all that some numbers can make.

An expression is made of non-negative integers, the operators `+ - * /` and parentheses; white space may stand between
them. There are no signs: a minus always stands between two operands.
"""

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple


OPERATORS = "+-*/"
# A longer text is no expression. This bounds numbers, depth and time at once; four numbers need less than 40.
MAX_LENGTH = 256
# What `reachable` takes: a fifth number takes it from milliseconds to a second.
MAX_NUMBERS = 4

_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
_ATOM = 3
_TOKEN = re.compile(r"0|[1-9][0-9]*|[-+*/()]")
_SPACE = " \t\r\n"


class Expression(NamedTuple):
    """What [`parse_expression`] reads.

    Args:
        numbers (`tuple[int, ...]`):
            The numbers, in the order written.
        value (`Fraction` or `None`):
            The exact value; `None` where something is divided by zero.
    """

    numbers: tuple[int, ...]
    value: Fraction | None


# Reading


def _tokens(text: str) -> list[str] | None:
    tokens, position = [], 0
    while position < len(text):
        if text[position] in _SPACE:
            position += 1
            continue
        match = _TOKEN.match(text, position)
        if match is None:
            return None
        tokens.append(match.group())
        position = match.end()
    return tokens


def _apply(operator: str, left: Fraction | None, right: Fraction | None) -> Fraction | None:
    if left is None or right is None:
        return None
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    return left / right if right else None


def parse_expression(text: str) -> Expression | None:
    """
    Reads an expression and computes its exact value, without `eval` and without recursion.

    Any text is safe to pass: one that is longer than 256 characters, or holds anything but an expression (see the
    module), is refused. That goes for signs (`-3`, also `(-3)` and `2--3`), `**` and `//`, decimal points, names,
    leading zeros, underscores, and digits that are not ASCII.

    Args:
        text (`str`):
            What may be an expression, and nothing else.

    Returns:
        [`Expression`], or `None` where the text is none. A division by zero is an expression without a value.

    Example:

    ```python
    >>> parse_expression("2 * (3 + 4) / 5")
    Expression(numbers=(2, 3, 4, 5), value=Fraction(14, 5))
    ```
    """
    tokens = _tokens(text) if len(text) <= MAX_LENGTH else None
    if not tokens:
        return None
    numbers: list[int] = []
    values: list[Fraction | None] = []
    waiting: list[str] = []  # operators and opening parentheses whose right side is not complete

    def apply_last() -> None:
        right, left = values.pop(), values.pop()
        values.append(_apply(waiting.pop(), left, right))

    operand_next = True
    for token in tokens:
        if operand_next:
            if token == "(":
                waiting.append(token)
            elif token.isdigit():
                numbers.append(int(token))
                values.append(Fraction(numbers[-1]))
                operand_next = False
            else:
                return None
        elif token == ")":
            while waiting and waiting[-1] != "(":
                apply_last()
            if not waiting:
                return None
            waiting.pop()
        elif token in _PRECEDENCE:
            # "(" has no precedence: what waits before it waits on. Equal ones are applied from the left.
            while waiting and _PRECEDENCE.get(waiting[-1], 0) >= _PRECEDENCE[token]:
                apply_last()
            waiting.append(token)
            operand_next = True
        else:
            return None
    if operand_next or "(" in waiting:
        return None
    while waiting:
        apply_last()
    return Expression(tuple(numbers), values[0])


# Searching


class _Written(NamedTuple):
    text: str
    precedence: int


def _write(operator: str, left: _Written, right: _Written) -> _Written:
    """`left operator right`, with parentheses only where they are needed."""
    precedence = _PRECEDENCE[operator]
    # a - (b + c) and a / (b * c) need them on the right; a + (b - c) and a * (b / c) do not.
    right_needs = precedence + (operator in "-/")
    a = left.text if left.precedence >= precedence else f"({left.text})"
    b = right.text if right.precedence >= right_needs else f"({right.text})"
    return _Written(f"{a}{operator}{b}", precedence)


def _combinations(
    lefts: dict[Fraction, _Written], rights: dict[Fraction, _Written], operators: str
) -> Iterator[tuple[Fraction, _Written]]:
    for operator in operators:
        for x, a in lefts.items():
            for y, b in rights.items():
                if operator != "/" or y:
                    yield _apply(operator, x, y), _write(operator, a, b)
                if operator == "-" or (operator == "/" and x):  # the others commute
                    yield _apply(operator, y, x), _write(operator, b, a)


def reachable(numbers: Sequence[int], operators: str = OPERATORS) -> dict[Fraction, str]:
    """
    Every value that an expression using each number exactly once can have, with one such expression.

    Exhaustive: a value that is not among the keys cannot be reached. The order of the numbers does not matter.

    Args:
        numbers (`Sequence[int]`):
            One to four non-negative integers, repeats included.
        operators (`str`, *optional*, defaults to `"+-*/"`):
            Operators that the expressions may use.

    Returns:
        `dict[Fraction, str]`: value -> the shortest expression met, without white space.

    Raises:
        `ValueError`: there are no numbers or more than four, one is not a non-negative integer, or `operators` are not
            some of `+-*/`.
    """
    check_numbers(numbers)
    check_operators(operators)
    ordered = sorted(numbers)
    # For each subset of the numbers, as a bit set: its values.
    values: list[dict[Fraction, _Written]] = [{} for _ in range(1 << len(ordered))]
    for position, number in enumerate(ordered):
        values[1 << position][Fraction(number)] = _Written(str(number), _ATOM)
    for subset in range(1, len(values)):
        left = (subset - 1) & subset
        while left:
            right = subset ^ left
            if left < right:  # the other half of the splits are these, swapped
                for value, written in _combinations(values[left], values[right], operators):
                    if value not in values[subset] or len(written.text) < len(values[subset][value].text):
                        values[subset][value] = written
            left = (left - 1) & subset
    return {value: written.text for value, written in values[-1].items()}


def check_numbers(numbers: Sequence[int]) -> None:
    if not 1 <= len(numbers) <= MAX_NUMBERS or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"numbers={numbers!r} must be 1 to {MAX_NUMBERS} non-negative integers.")


def check_operators(operators: str) -> None:
    if not operators or not set(operators) <= set(OPERATORS) or len(set(operators)) < len(operators):
        raise ValueError(f"operators={operators!r} must be some of {OPERATORS!r}, each once.")
