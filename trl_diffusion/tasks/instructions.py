# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The generated tasks in words, for models with a chat template: a tiny checkpoint knows the bare puzzle alone."""

from collections.abc import Sequence

from .countdown import OPERATORS


def sudoku_instruction(puzzle: str) -> list[dict[str, str]]:
    """A conversation that asks for the solution of a 4x4 Sudoku, given as 16 digits, between answer tags."""
    return _user(
        f"Solve this 4x4 Sudoku: {puzzle}\n"
        "The 16 characters are its cells row by row, and 0 is an empty cell. In the solution every row, every column "
        "and every 2x2 box has each of the digits 1 to 4 once.\n"
        "Reason step by step. Then give all 16 digits of the solution, without spaces, between <answer> and </answer>."
    )


def countdown_instruction(numbers: Sequence[int], target: int) -> list[dict[str, str]]:
    """A conversation that asks for an expression of the numbers that makes the target, between answer tags."""
    return _user(
        f"Make {target} of the numbers {', '.join(map(str, numbers))}. Use each of them exactly once, with "
        f"{' '.join(OPERATORS)} and parentheses.\n"
        "Reason step by step. Then give the expression alone, such as (1+2)/3, between <answer> and </answer>."
    )


def _user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]
