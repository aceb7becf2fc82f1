# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""`trl-diffusion eval --compare`: evaluations of the same problems, side by side."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..evaluation import Comparison, compare_runs


_TESTS = {
    "McNemar": "McNemar's exact test where each problem is right or wrong",
    "permutation": "a paired permutation test of grades and of means over seeds",
}


def run_compare(folders: Sequence[str]):
    """Compare the first folder with each of the others, and print tables.

    Raises:
        ValueError: there are fewer than two folders, one is none of a finished evaluation, or problems differ.
    """
    if len(folders) < 2:
        raise ValueError(f"compare={folders[0]!r} needs another folder to compare it with.")
    # All of them first: an error shows before any table does.
    found = [(folder, compare_runs(folders[0], folder)) for folder in folders[1:]]
    for folder, comparisons in found:
        print_comparisons(comparisons, f"{folder} (B) against {folders[0]} (A)")


def print_comparisons(comparisons: Sequence[Comparison], title: str):
    """A table with a row per task, and one for its score where it has grades."""
    table = Table(title=Text(title), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))  # 80 columns
    table.add_column("", overflow="fold", min_width=14)
    for column in ("problems", "A", "B", "B − A", "95 % interval", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in comparisons:
        table.add_row(
            Text(row.task if row.quantity == "accuracy" else f"  {row.quantity}"),
            str(row.num_problems) if row.quantity == "accuracy" else "",
            f"{row.first:.3f}",
            f"{row.second:.3f}",
            f"{row.difference:+.3f}",
            f"{row.low:+.3f} to {row.high:+.3f}",
            f"{row.p_value:.2g}" if row.p_value < 0.001 else f"{row.p_value:.3f}",
        )
    Console().print(table)
    used = {row.test for row in comparisons}
    print("p: " + "; ".join(words for test, words in _TESTS.items() if test in used) + ".")
