# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""
The grids and puzzles of 4x4 Sudoku.

A grid is a string of 16 digits 1-4, row by row; a puzzle is the same with 0 for an empty cell. Only 288 grids exist,
so test puzzles drawn without a split repeat solutions seen in training; here 200 grids train and the other 88 test.
"""

import functools
import itertools
import random
from typing import Any


DIGITS = "1234"
NUM_CELLS = 16
NUM_TRAIN_GRIDS = 200
# No 4x4 puzzle with fewer clues has a single solution.
MIN_CLUES = 4

# Removal orders per puzzle before giving up.
_MAX_ORDERS = 1_000


@functools.cache
def _grids() -> tuple[str, ...]:
    def fits(grid: str, row: str) -> bool:
        if any(row[column] in grid[column::4] for column in range(4)):
            return False
        # The lower row of a band must not repeat, in the left box, what is above; the right box then follows.
        lower = (len(grid) // 4) % 2 == 1
        return not (lower and set(grid[-4:-2]) & set(row[:2]))

    rows = ["".join(row) for row in itertools.permutations(DIGITS)]
    grids = [""]
    for _ in range(4):
        grids = [grid + row for grid in grids for row in rows if fits(grid, row)]
    return tuple(sorted(grids))


@functools.cache
def _grids_with() -> list[dict[str, int]]:
    """For each cell and digit, the grids that have the digit there, as a bit set: bit `g` is `_grids()[g]`."""
    return [
        {digit: sum(1 << g for g, grid in enumerate(_grids()) if grid[cell] == digit) for digit in DIGITS}
        for cell in range(NUM_CELLS)
    ]


def _matching(puzzle: str | list[str]) -> int:
    """The bit set of the grids that agree with every clue: all solutions, without a search."""
    grids = (1 << len(_grids())) - 1
    for clue, grids_with in zip(puzzle, _grids_with(), strict=True):
        if clue != "0":
            grids &= grids_with[clue]
    return grids


def check_digits(name: str, value: Any, digits: str) -> None:
    if not isinstance(value, str) or len(value) != NUM_CELLS or not set(value) <= set(digits):
        raise ValueError(
            f"{name}={value!r} must be a string of {NUM_CELLS} digits {digits[0]}-{digits[-1]}, row by row: "
            "read the column as strings (numbers lose leading zeros) and drop separators."
        )


def check_pair(puzzle: Any, solution: Any) -> None:
    check_digits("puzzle", puzzle, "0" + DIGITS)
    check_digits("solution", solution, DIGITS)
    if any(clue not in ("0", digit) for clue, digit in zip(puzzle, solution, strict=True)):
        raise ValueError(
            f"puzzle={puzzle!r} has a clue that solution={solution!r} contradicts: pair each puzzle with its solution."
        )


def check_num_clues(num_clues: tuple[int, int]) -> None:
    fewest, most = num_clues
    if not MIN_CLUES <= fewest <= most <= NUM_CELLS:
        raise ValueError(
            f"num_clues={num_clues} must be (fewest, most) with {MIN_CLUES} <= fewest <= most <= {NUM_CELLS}."
        )


def all_grids() -> list[str]:
    """The 288 valid 4x4 grids, sorted, each a string of 16 digits 1-4."""
    return list(_grids())


def split_grids(seed: int = 0) -> tuple[list[str], list[str]]:
    """
    Splits the 288 grids by solution: 200 to train on, the other 88 to test on, each list sorted.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Seed of the split. The datasets of this module all use `0`.
    """
    grids = all_grids()
    random.Random(seed).shuffle(grids)
    return sorted(grids[:NUM_TRAIN_GRIDS]), sorted(grids[NUM_TRAIN_GRIDS:])


def solve(puzzle: str, limit: int = 2) -> list[str]:
    """
    Up to `limit` solutions of a puzzle, sorted; an empty list when there is none.

    Args:
        puzzle (`str`):
            16 digits 0-4, 0 for an empty cell.
        limit (`int`, *optional*, defaults to `2`):
            Most solutions to return; 2 is enough to tell whether the solution is unique.

    Raises:
        `ValueError`: `puzzle` is not 16 digits 0-4, or `limit` is below 1.
    """
    check_digits("puzzle", puzzle, "0" + DIGITS)
    if limit < 1:
        raise ValueError(f"limit={limit} must be at least 1: 288 returns every solution.")
    matching = _matching(puzzle)
    return list(itertools.islice((grid for g, grid in enumerate(_grids()) if matching >> g & 1), limit))


def has_unique_solution(puzzle: str) -> bool:
    """Whether exactly one grid agrees with the clues. Raises a `ValueError` unless `puzzle` is 16 digits 0-4."""
    return len(solve(puzzle)) == 1


def make_puzzle(solution: str, num_clues: int, rng: random.Random) -> str:
    """
    Removes cells of a grid at random until `num_clues` clues are left that still have one solution.

    Cells are visited in a random order and emptied where the solution stays unique. An order that ends with too many
    clues is thrown away for another one.

    Args:
        solution (`str`):
            One of the 288 grids.
        num_clues (`int`):
            Clues to leave, 4 to 16.
        rng (`random.Random`):
            Source of the orders; equal states give equal puzzles.

    Returns:
        `str`: the puzzle, 16 digits 0-4, with exactly `num_clues` nonzero ones.

    Raises:
        `ValueError`: `solution` is not a valid grid or `num_clues` is outside 4..16.
    """
    if solution not in _grids():
        raise ValueError(f"solution={solution!r} is not a valid 4x4 grid: take one of all_grids().")
    if not MIN_CLUES <= num_clues <= NUM_CELLS:
        raise ValueError(f"num_clues={num_clues} must be between {MIN_CLUES} and {NUM_CELLS}.")
    for _ in range(_MAX_ORDERS):
        cells, clues_left = list(solution), NUM_CELLS
        for cell in rng.sample(range(NUM_CELLS), NUM_CELLS):
            if clues_left == num_clues:
                break
            cells[cell] = "0"
            if _matching(cells).bit_count() == 1:
                clues_left -= 1
            else:
                # Fewer clues only add solutions, so this cell cannot be emptied later in this order either.
                cells[cell] = solution[cell]
        if clues_left == num_clues:
            return "".join(cells)
    raise ValueError(f"no puzzle with num_clues={num_clues} found for solution={solution!r}: ask for more clues.")


def greedy_row_fill(puzzle: str) -> str:
    """
    Fills each row's missing digits in ascending order and looks at neither columns nor boxes.

    The systematically wrong procedure of a weak base model: each row holds 1-4 once, e.g. row `3000` becomes `3124`.

    Args:
        puzzle (`str`):
            16 digits 0-4, no row of which repeats a clue.

    Returns:
        `str`: 16 digits 1-4 that keep every clue; rarely a valid grid.

    Raises:
        `ValueError`: `puzzle` is not 16 digits 0-4, or a row repeats a clue.
    """
    check_digits("puzzle", puzzle, "0" + DIGITS)
    filled = ""
    for start in range(0, NUM_CELLS, 4):
        row = puzzle[start : start + 4]
        missing = [digit for digit in DIGITS if digit not in row]
        if len(missing) != row.count("0"):
            raise ValueError(f"puzzle={puzzle!r} repeats a clue in row {row!r}: pass a puzzle that has a solution.")
        for digit in missing:
            row = row.replace("0", digit, 1)
        filled += row
    return filled
