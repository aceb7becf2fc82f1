# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""
4x4 Sudoku as a task: puzzles split by solution grid, a base model's training data, rewards and metrics.

Grids and puzzles are strings, see [`sudoku_grids`].
"""

import csv
import os
import random
import re
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from .answers import last_tag
from .checks import check_count, check_fraction, check_split, completion_text
from .sudoku_grids import (
    DIGITS,
    NUM_CELLS,
    all_grids,
    check_num_clues,
    check_pair,
    greedy_row_fill,
    has_unique_solution,
    make_puzzle,
    solve,
    split_grids,
)


__all__ = [
    "all_grids",
    "answer_cells",
    "cell_accuracy",
    "extract_grid",
    "greedy_row_fill",
    "has_unique_solution",
    "make_puzzle",
    "pretraining_dataset",
    "read_csv",
    "solve",
    "solve_rate",
    "split_grids",
    "sudoku_dataset",
    "sudoku_reward",
    "sudoku_scores",
]

# Distinct puzzles behind `pretraining_dataset`, whose examples may number many more.
_POOL_SIZE = 50_000
# Draws per puzzle before a repeated one is accepted.
_MAX_DRAWS = 20
_ASCII_DIGITS = set("0123456789")
_GRID = re.compile(rf"[0-9]{{{NUM_CELLS},}}")


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
    check_num_clues(num_clues)
    train_grids, test_grids = split_grids()
    grids = {"train": train_grids, "test": test_grids}[split]
    return _draw_puzzles(grids, num_puzzles, num_clues, random.Random(f"{split}-{seed}"))


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
    check_split(split)
    check_count("num_puzzles", num_puzzles)
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
    check_count("num_examples", num_examples)
    check_fraction("correct_fraction", correct_fraction)
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
            check_pair(*row)
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


def answer_cells(text: str) -> str:
    """
    The part of a completion that is read as the grid, without white space: one character a cell.

    It is what the last complete `<answer>…</answer>` holds; without one, the last run of 16 or more digits; without
    that, all of the text, or nothing where that is longer than two grids and so is prose.
    """
    tagged = last_tag(text)
    if tagged is not None:
        return "".join(tagged.split())
    whole = "".join(text.split())
    if set(whole) <= _ASCII_DIGITS:
        return whole
    runs = _GRID.findall(text)
    if runs:
        return runs[-1]
    return whole if len(whole) <= 2 * NUM_CELLS else ""


def sudoku_scores(completions: list[Any], puzzles: list[str], solutions: list[str]) -> list[tuple[int, int, bool]]:
    """
    For each completion the blank cells that are right, all blank cells, and whether the puzzle is solved.

    Arguments, reading and errors are those of [`sudoku_reward`].
    """
    if not len(completions) == len(puzzles) == len(solutions):
        raise ValueError(
            f"{len(completions)} completions, {len(puzzles)} puzzles and {len(solutions)} solutions: "
            "pass one puzzle and one solution for each completion."
        )
    scores = []
    for completion, puzzle, solution in zip(completions, puzzles, solutions, strict=True):
        check_pair(puzzle, solution)
        answer = answer_cells(completion_text(completion))
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

    The answer is found by [`answer_cells`] and read one character a cell from the first cell on. A missing cell and
    any character but the right digit are wrong. Solved means that the answer is the 16 digits of the solution and
    nothing else: longer answers and changed clues keep the fraction and lose the bonus. Without blanks the fraction is
    1 if solved, else 0. Special tokens must have been left out when decoding.

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
        for right, blanks, solved in sudoku_scores(completions, puzzle, solution)
    ]


def cell_accuracy(completions: list[Any], puzzles: list[str], solutions: list[str]) -> float:
    """
    Blank cells that are right over all blank cells, pooled over the puzzles (not a mean of each puzzle's fraction).

    Arguments are those of [`sudoku_reward`], as are the errors; a `ValueError` too when there is no blank cell at all.
    """
    scores = sudoku_scores(completions, puzzles, solutions)
    num_blanks = sum(blanks for _, blanks, _ in scores)
    if num_blanks == 0:
        raise ValueError(f"puzzles={puzzles[:3]} have no blank cell: pass at least one puzzle with a 0.")
    return sum(right for right, _, _ in scores) / num_blanks


def solve_rate(completions: list[Any], puzzles: list[str], solutions: list[str]) -> float:
    """
    Fraction of the puzzles that are solved: the answer is the solution's 16 digits and, at most, white space.

    Arguments are those of [`sudoku_reward`], as are the errors; a `ValueError` too when there is no puzzle.
    """
    scores = sudoku_scores(completions, puzzles, solutions)
    if not scores:
        raise ValueError("completions=[] has nothing to score: pass at least one completion.")
    return sum(solved for _, _, solved in scores) / len(scores)


def sudoku_solved_reward(
    completions: list[str] | list[list[dict[str, str]]], puzzle: list[str], solution: list[str], **kwargs: Any
) -> list[float]:
    """
    Reward function: 1 for a solved puzzle, else 0; arguments, reading and errors as in [`sudoku_reward`].

    Returns:
        `list[float]`: one reward per completion.
    """
    return [float(solved) for _, _, solved in sudoku_scores(completions, puzzle, solution)]
