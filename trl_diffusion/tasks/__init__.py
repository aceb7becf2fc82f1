# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Generated tasks with verifiable answers: data, rewards and metrics."""

from .metrics import SudokuMetric
from .sudoku import (
    all_grids,
    cell_accuracy,
    extract_grid,
    greedy_row_fill,
    has_unique_solution,
    make_puzzle,
    pretraining_dataset,
    read_csv,
    solve,
    solve_rate,
    split_grids,
    sudoku_dataset,
    sudoku_reward,
)
from .tokenization import character_tokenizer


__all__ = [
    "SudokuMetric",
    "all_grids",
    "cell_accuracy",
    "character_tokenizer",
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
]
