# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What a task is to an evaluation: problems, a verdict on each completion, and metrics."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..tasks import (
    ArithmeticMetric,
    CountdownMetric,
    GSM8KMetric,
    MathMetric,
    RewardMetric,
    SudokuMetric,
    answer_cells,
    arithmetic_reward,
    countdown_verdicts,
    extract_expression,
    gsm8k_answer,
    gsm8k_verdicts,
    math_answer,
    math_verdicts,
    sudoku_scores,
)
from ..tasks.answers import final_answer
from ..tasks.fingerprint import describe
from ..tasks.instructions import countdown_instruction, sudoku_instruction
from .completion import Completions


@dataclass(frozen=True)
class Verdict:
    """On one completion.

    Args:
        correct (`bool`):
            Whether it is right.
        score (`float`, *optional*):
            Its grade, where the task has one: the share of blank cells that are right, or the summed rewards.
        details (`dict[str, Any]`, *optional*):
            What else is known of it, for JSON, such as the answer that was read.
    """

    correct: bool
    score: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


# Completions, and their rows of the data → a verdict for each.
Judge = Callable[[Completions, Dataset], list[Verdict]]
# Texts, their rows and the verdicts on them → metrics, `solve_rate` among them.
Summary = Callable[[list[str], Dataset, list[Verdict]], dict[str, float]]


@dataclass(kw_only=True)
class Task:
    """Problems to evaluate on, and how completions of them are scored.

    Args:
        test_dataset (`Dataset`):
            Rows with a `prompt` column and what the verdicts need.
        judge (`Callable[[Completions, Dataset], list[Verdict]]`):
            A verdict on each completion of rows of `test_dataset`.
        summarise (`Callable[[list[str], Dataset, list[Verdict]], dict[str, float]]`):
            Metrics of the texts of completions, through the `evaluate` library; `solve_rate`, the share of them that
            are right, is one of them.
        instruct (`Callable[[dict], list[dict]]`, *optional*):
            For a task whose prompts are bare puzzles: a conversation that asks for the same in words.
        scorer (`str`, *optional*):
            What decides the verdicts besides the rows, for comparing settings.
        hub_dataset (`str`, *optional*):
            Hub id of the data; `None` where it is generated or a local file.
    """

    test_dataset: Dataset
    judge: Judge
    summarise: Summary
    instruct: Callable[[dict[str, Any]], list[dict[str, str]]] | None = None
    scorer: str = ""
    hub_dataset: str | None = None

    def correct(self, completions: Completions, rows: Dataset) -> list[float]:
        """For each completion of a row 1.0 where it is right, else 0.0."""
        return [float(verdict.correct) for verdict in self.judge(completions, rows)]

    def metrics(self, completions: Completions, rows: Dataset) -> dict[str, float]:
        """Metrics of completions of rows."""
        return self.summarise(completions.texts, rows, self.judge(completions, rows))

    def rows_for(self, tokenizer: PreTrainedTokenizerBase, rows: Dataset | None = None) -> Dataset:
        """The rows to test on, or other rows of the task, with the prompts for a model with this tokenizer.

        Where the tokenizer has a chat template, bare puzzles are put into words.

        Raises:
            ValueError: the prompts are conversations, and there is no chat template.
        """
        rows = self.test_dataset if rows is None else rows
        if tokenizer.chat_template and self.instruct is not None:
            prompts = [self.instruct(row) for row in rows]
            return rows.remove_columns("prompt").add_column("prompt", prompts)
        if not tokenizer.chat_template and len(rows) and not isinstance(rows[0]["prompt"], str):
            raise ValueError(
                "the prompts are conversations, and the tokenizer has no chat template to write them with. Give a "
                "model whose tokenizer has one, or data whose prompts are texts."
            )
        return rows


def sudoku_task(rows: Dataset) -> Task:
    """A task of Sudoku: rows with a `puzzle` and its `solution`."""

    def judge(completions: Completions, rows: Dataset) -> list[Verdict]:
        scores = sudoku_scores(completions.texts, list(rows["puzzle"]), list(rows["solution"]))
        return [
            Verdict(
                solved,
                right / blanks if blanks else float(solved),
                {"answer": answer_cells(text), "cells_right": right, "blank_cells": blanks},
            )
            for (right, blanks, solved), text in zip(scores, completions.texts, strict=True)
        ]

    def summarise(texts: list[str], rows: Dataset, verdicts: list[Verdict]) -> dict[str, float]:
        found = SudokuMetric().compute(
            predictions=texts, references=list(rows["solution"]), puzzles=list(rows["puzzle"])
        )
        return {"solve_rate": found["solve_rate"], "cell_accuracy": found["cell_accuracy"]}

    return Task(
        test_dataset=rows,
        judge=judge,
        summarise=summarise,
        instruct=lambda row: sudoku_instruction(row["puzzle"]),
        scorer="sudoku",
    )


def countdown_task(rows: Dataset) -> Task:
    """A task of Countdown: rows with `numbers` and a `target`."""

    def judge(completions: Completions, rows: Dataset) -> list[Verdict]:
        found = countdown_verdicts(completions.texts, list(rows["numbers"]), list(rows["target"]))
        return [
            Verdict(right is True, None, {"answer": extract_expression(text)})
            for right, text in zip(found, completions.texts, strict=True)
        ]

    def summarise(texts: list[str], rows: Dataset, verdicts: list[Verdict]) -> dict[str, float]:
        return CountdownMetric().compute(
            predictions=texts, references=list(rows["target"]), numbers=list(rows["numbers"])
        )

    return Task(
        test_dataset=rows,
        judge=judge,
        summarise=summarise,
        instruct=lambda row: countdown_instruction(row["numbers"], row["target"]),
        scorer="countdown",
    )


def arithmetic_task(rows: Dataset) -> Task:
    """A task of arithmetic: rows with a `solution`, a whole number."""
    return _solution_task(rows, "arithmetic", arithmetic_reward, final_answer, ArithmeticMetric)


def gsm8k_task(rows: Dataset) -> Task:
    """A task of GSM8K: rows with a `solution`, a number."""
    return _solution_task(rows, "gsm8k", gsm8k_verdicts, gsm8k_answer, GSM8KMetric)


def math_task(rows: Dataset) -> Task:
    """A task of MATH: rows with a `solution`, boxed or bare."""
    return _solution_task(rows, "math", math_verdicts, math_answer, MathMetric)


def _solution_task(rows: Dataset, scorer: str, verdicts: Callable, answer: Callable, metric: Callable) -> Task:
    """A task whose texts are compared with a column `solution`."""

    def judge(completions: Completions, rows: Dataset) -> list[Verdict]:
        found = verdicts(completions.texts, list(rows["solution"]))
        return [
            Verdict(bool(right), None, {"answer": answer(text)})
            for right, text in zip(found, completions.texts, strict=True)
        ]

    def summarise(texts: list[str], rows: Dataset, verdicts: list[Verdict]) -> dict[str, float]:
        return metric().compute(predictions=texts, references=list(rows["solution"]))

    return Task(test_dataset=rows, judge=judge, summarise=summarise, scorer=scorer)


def reward_task(rows: Dataset, reward_funcs: list[Callable]) -> Task:
    """A task that brings no verdict: a completion whose summed rewards reach 1 is right."""

    def judge(completions: Completions, rows: Dataset) -> list[Verdict]:
        # Imports TRL, which takes seconds.
        from trl.trainer.utils import get_callable_name

        from .rewards import as_completions, score_completions, total_rewards

        columns = {name: list(rows[name]) for name in rows.column_names} | {"unmask_step": completions.unmask_step}
        answers = as_completions(columns["prompt"], completions.texts)
        rewards = score_completions(reward_funcs, columns, answers, completions.ids)
        names = [f"rewards/{get_callable_name(reward_func)}" for reward_func in reward_funcs]
        totals = [total or 0.0 for total in total_rewards(rewards)]
        return [
            Verdict(total >= 1, total, dict(zip(names, own, strict=True)))
            for total, own in zip(totals, zip(*rewards, strict=True), strict=True)
        ]

    def summarise(texts: list[str], rows: Dataset, verdicts: list[Verdict]) -> dict[str, float]:
        return RewardMetric().compute(predictions=[verdict.score for verdict in verdicts])

    scorer = "rewards " + ", ".join(map(describe, reward_funcs))
    return Task(test_dataset=rows, judge=judge, summarise=summarise, scorer=scorer)
