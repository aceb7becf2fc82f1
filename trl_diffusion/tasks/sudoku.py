# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""
4x4 Sudoku: puzzles split by solution grid, a base model's training data, and rewards.

A grid is a string of 16 digits 1-4, row by row; a puzzle is the same with 0 for an empty cell. Only 288 grids exist,
so test puzzles drawn without a split repeat solutions seen in training; here 200 grids train and the other 88 test.
"""

import csv
import functools
import itertools
import os
import random
from typing import Any, Literal

import numpy as np
from datasets import Dataset


DIGITS = "1234"
NUM_CELLS = 16
NUM_TRAIN_GRIDS = 200
# No 4x4 puzzle with fewer clues has a single solution.
MIN_CLUES = 4

# Distinct puzzles behind `pretraining_dataset`, whose examples may number many more.
_POOL_SIZE = 50_000
# Draws per puzzle before a repeated one is accepted, and removal orders per puzzle before giving up.
_MAX_DRAWS = 20
_MAX_ORDERS = 1_000


# Grids and puzzles


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


def _check_digits(name: str, value: Any, digits: str) -> None:
    if not isinstance(value, str) or len(value) != NUM_CELLS or not set(value) <= set(digits):
        raise ValueError(
            f"{name}={value!r} must be a string of {NUM_CELLS} digits {digits[0]}-{digits[-1]}, row by row: "
            "read the column as strings (numbers lose leading zeros) and drop separators."
        )


def _check_pair(puzzle: Any, solution: Any) -> None:
    _check_digits("puzzle", puzzle, "0" + DIGITS)
    _check_digits("solution", solution, DIGITS)
    if any(clue not in ("0", digit) for clue, digit in zip(puzzle, solution, strict=True)):
        raise ValueError(
            f"puzzle={puzzle!r} has a clue that solution={solution!r} contradicts: pair each puzzle with its solution."
        )


def _check_num_clues(num_clues: tuple[int, int]) -> None:
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
    _check_digits("puzzle", puzzle, "0" + DIGITS)
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
    _check_digits("puzzle", puzzle, "0" + DIGITS)
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


# Datasets


def _draw_puzzles(
    grids: list[str], num_puzzles: int, num_clues: tuple[int, int], rng: random.Random
) -> tuple[list[str], list[str]]:
    puzzles: dict[str, str] = {}  # puzzle -> solution, in the order drawn
    repeats: list[str] = []
    while len(puzzles) + len(repeats) < num_puzzles:
        for _ in range(_MAX_DRAWS):
            solution = rng.choice(grids)
            puzzle = make_puzzle(solution, rng.randint(*num_clues), rng)
            if puzzle not in puzzles:
                puzzles[puzzle] = solution
                break
        else:
            repeats.append(puzzle)
    drawn = [*puzzles, *repeats]
    return drawn, [puzzles[puzzle] for puzzle in drawn]


def _draw_from_split(
    split: str, num_puzzles: int, num_clues: tuple[int, int], seed: int | str
) -> tuple[list[str], list[str]]:
    _check_num_clues(num_clues)
    train_grids, test_grids = split_grids()
    grids = {"train": train_grids, "test": test_grids}[split]
    return _draw_puzzles(grids, num_puzzles, num_clues, random.Random(f"{split}-{seed}"))


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{name}={count} must be at least 1.")


def sudoku_dataset(
    split: Literal["train", "test"], num_puzzles: int, num_clues: tuple[int, int] = (5, 8), seed: int = 0
) -> Dataset:
    """
    Puzzles with a unique solution, from the training grids or from the test grids.

    For each puzzle a grid (with replacement) and a number of clues are drawn uniformly. A puzzle already drawn in this
    call is drawn again, 20 times at most; then a repeat is taken, and the repeats come last. So puzzles repeat only
    where the settings leave (nearly) no other, e.g. more than 88 test puzzles with all 16 cells given.

    Args:
        split (`"train"` or `"test"`):
            Which grids of `split_grids(0)` to use. `seed` does not move a grid between the two: no solution of one
            split is in the other, whatever the seeds.
        num_puzzles (`int`):
            Rows of the dataset.
        num_clues (`tuple[int, int]`, *optional*, defaults to `(5, 8)`):
            Fewest and most clues of a puzzle, both included, within 4..16.
        seed (`int`, *optional*, defaults to `0`):
            Equal arguments give equal datasets.

    Returns:
        `Dataset`: string columns `prompt` and `puzzle` (both the puzzle's 16 digits) and `solution`.

    Raises:
        `ValueError`: `split`, `num_puzzles` or `num_clues` is outside its range.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r} must be 'train' or 'test'.")
    _check_count("num_puzzles", num_puzzles)
    puzzles, solutions = _draw_from_split(split, num_puzzles, num_clues, seed)
    return Dataset.from_dict({"prompt": puzzles, "puzzle": puzzles, "solution": solutions})


def pretraining_dataset(
    num_examples: int, correct_fraction: float = 0.4, num_clues: tuple[int, int] = (5, 8), seed: int = 0
) -> Dataset:
    """
    Training examples of a base model that solves some puzzles and fills the rest by `greedy_row_fill`.

    Puzzles come from the training grids only. A pool of distinct puzzles (as in [`sudoku_dataset`], one per example up
    to 50,000) is made first. Each example draws its puzzle from the pool with replacement, and its completion: right
    with probability `correct_fraction`. A puzzle can thus appear with both completions.

    Args:
        num_examples (`int`):
            Rows of the dataset.
        correct_fraction (`float`, *optional*, defaults to `0.4`):
            Probability that the completion is the solution, in [0, 1].
        num_clues (`tuple[int, int]`, *optional*, defaults to `(5, 8)`):
            Fewest and most clues of a puzzle, both included, within 4..16.
        seed (`int`, *optional*, defaults to `0`):
            Equal arguments give equal datasets.

    Returns:
        `Dataset`: string columns `prompt` (16 digits 0-4) and `completion` (16 digits 1-4, no end-of-sequence token),
        and the boolean `correct`: whether the solution was drawn. Where the greedy fill happens to be the solution,
        `correct` still says which of the two was drawn.

    Raises:
        `ValueError`: `num_examples`, `correct_fraction` or `num_clues` is outside its range.
    """
    _check_count("num_examples", num_examples)
    if not 0.0 <= correct_fraction <= 1.0:
        raise ValueError(f"correct_fraction={correct_fraction} must be a probability, between 0 and 1.")
    puzzles, solutions = _draw_from_split("train", min(num_examples, _POOL_SIZE), num_clues, f"pretraining-{seed}")
    greedy = [greedy_row_fill(puzzle) for puzzle in puzzles]

    generator = np.random.default_rng(seed)
    rows = generator.integers(len(puzzles), size=num_examples).tolist()
    correct = (generator.random(num_examples) < correct_fraction).tolist()
    return Dataset.from_dict(
        {
            "prompt": [puzzles[row] for row in rows],
            "completion": [solutions[row] if right else greedy[row] for row, right in zip(rows, correct, strict=True)],
            "correct": correct,
        }
    )


def read_csv(path: str | os.PathLike) -> Dataset:
    """
    Reads a test file of the d1 repository (header `Puzzle,Solution`, 16 digits in each column).

    Such a file is not split by solution: drop rows whose `solution` is in `split_grids()[0]` to test on unseen grids.
    Nor are its puzzles all unique: the scores below count any solution but the file's as wrong; to leave those puzzles
    out, filter by [`has_unique_solution`].

    Args:
        path (`str` or `os.PathLike`):
            The CSV file.

    Returns:
        `Dataset`: the columns of [`sudoku_dataset`], rows in the file's order, leading zeros kept.

    Raises:
        `ValueError`: the header differs, there are no rows, a row is not 16 digits 0-4 and 16 digits 1-4, or its clues
            contradict its solution. Names the file and the row; row 1 is the first after the header.
    """
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    if header != ["Puzzle", "Solution"]:
        raise ValueError(f"{path}: header={','.join(header)!r} must be 'Puzzle,Solution': pass a d1 Sudoku file.")
    if not rows:
        raise ValueError(f"{path}: no rows after the header: pass a d1 Sudoku file.")
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise ValueError(f"{path}, row {number}: {','.join(row)!r} must have the two columns Puzzle,Solution.")
        try:
            _check_pair(*row)
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
    puzzles, solutions = [row[0] for row in rows], [row[1] for row in rows]
    return Dataset.from_dict({"prompt": puzzles, "puzzle": puzzles, "solution": solutions})


# Scoring


def extract_grid(text: str) -> str | None:
    """
    The grid a text begins with: its first 16 characters, whitespace removed, or `None` unless all are digits 1-4.

    What follows the grid is ignored here; the scores below count such a text as not solved.
    """
    cells = "".join(text.split())[:NUM_CELLS]
    return cells if len(cells) == NUM_CELLS and set(cells) <= set(DIGITS) else None


def _completion_text(completion: Any) -> str:
    if isinstance(completion, list) and completion and isinstance(completion[-1], dict):
        completion = completion[-1].get("content")
    if not isinstance(completion, str):
        raise ValueError(
            f"completions has {completion!r}: pass strings, or message lists whose last message has a text `content`."
        )
    return completion


def _scores(
    completions: list[Any], puzzles: list[str], solutions: list[str]
) -> list[tuple[int, int, bool]]:  # blanks right, blanks, solved
    if not len(completions) == len(puzzles) == len(solutions):
        raise ValueError(
            f"{len(completions)} completions, {len(puzzles)} puzzles and {len(solutions)} solutions: "
            "pass one puzzle and one solution for each completion."
        )
    scores = []
    for completion, puzzle, solution in zip(completions, puzzles, solutions, strict=True):
        _check_pair(puzzle, solution)
        answer = "".join(_completion_text(completion).split())
        blanks = [cell for cell, clue in enumerate(puzzle) if clue == "0"]
        # The slice is empty past the answer's end: a missing cell is a wrong one.
        right = sum(answer[cell : cell + 1] == solution[cell] for cell in blanks)
        scores.append((right, len(blanks), answer == solution))
    return scores


def sudoku_reward(
    completions: list[str] | list[list[dict[str, str]]],
    puzzle: list[str],
    solution: list[str],
    solve_bonus: float = 1.0,
    **kwargs: Any,
) -> list[float]:
    """
    Reward function: the fraction of blank cells that are right, plus a bonus for a solved puzzle.

    A completion is read after removing whitespace, one character a cell from the first cell on. A missing cell and any
    character but the right digit are wrong. Solved means that nothing but the 16 digits of the solution is there:
    longer text and changed clues keep the fraction and lose the bonus. Without blanks the fraction is 1 if solved,
    else 0. Special tokens must have been left out when decoding.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Texts, or conversations whose last message is read.
        puzzle (`list[str]`):
            For each completion the puzzle, 16 digits 0-4.
        solution (`list[str]`):
            For each completion the solution, 16 digits 1-4.
        solve_bonus (`float`, *optional*, defaults to `1.0`):
            Added for a solved puzzle; `0.0` gives the reward of d1.
        **kwargs:
            The trainer's other columns, not used.

    Returns:
        `list[float]`: one reward per completion, in [0, 1 + `solve_bonus`].

    Raises:
        `ValueError`: the lists differ in length, a puzzle or solution is malformed, they contradict each other, or a
            completion holds no text.
    """
    return [
        (right / blanks if blanks else float(solved)) + solve_bonus * solved
        for right, blanks, solved in _scores(completions, puzzle, solution)
    ]


def cell_accuracy(completions: list[Any], puzzles: list[str], solutions: list[str]) -> float:
    """
    Blank cells that are right over all blank cells, pooled over the puzzles (not a mean of each puzzle's fraction).

    Arguments are those of [`sudoku_reward`], as are the errors; a `ValueError` too when there is no blank cell at all.
    """
    scores = _scores(completions, puzzles, solutions)
    num_blanks = sum(blanks for _, blanks, _ in scores)
    if num_blanks == 0:
        raise ValueError(f"puzzles={puzzles[:3]} have no blank cell: pass at least one puzzle with a 0.")
    return sum(right for right, _, _ in scores) / num_blanks


def solve_rate(completions: list[Any], puzzles: list[str], solutions: list[str]) -> float:
    """
    Fraction of the puzzles that are solved: the completion is the solution's 16 digits and, at most, whitespace.

    Arguments are those of [`sudoku_reward`], as are the errors; a `ValueError` too when there is no puzzle.
    """
    scores = _scores(completions, puzzles, solutions)
    if not scores:
        raise ValueError("completions=[] has nothing to score: pass at least one completion.")
    return sum(solved for _, _, solved in scores) / len(scores)
