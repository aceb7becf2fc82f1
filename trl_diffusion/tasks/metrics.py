# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Task metrics as `evaluate` metrics that need no download."""

import shutil
import tempfile
import weakref
from typing import Any

import datasets
import evaluate

from .arithmetic import arithmetic_solve_rate
from .countdown import countdown_solve_rate
from .math_scores import check_math_verify, gsm8k_verdicts, math_verdicts
from .sudoku import cell_accuracy, solve_rate


class _LocalMetric(evaluate.Metric):
    """A metric whose data directory is its own and goes with it."""

    def __init__(self, *, keep_in_memory: bool = True, cache_dir: str | None = None, **kwargs: Any):
        # `evaluate` makes its data directory even when it writes nothing there. Processes that share a metric need a
        # directory they all see, so only the in-memory one goes to a directory of its own.
        if keep_in_memory and cache_dir is None:
            cache_dir = tempfile.mkdtemp(prefix="trl_diffusion_metric_")
            weakref.finalize(self, shutil.rmtree, cache_dir, ignore_errors=True)
        super().__init__(keep_in_memory=keep_in_memory, cache_dir=cache_dir, **kwargs)


class SudokuMetric(_LocalMetric):
    """
    Pooled accuracy over blank cells and full-solve rate of 4x4 Sudoku, see [`cell_accuracy`] and [`solve_rate`].

    Inputs of `compute`, `add_batch` and `add` are strings: `predictions` (completion texts), `references` (solutions)
    and `puzzles`. The result is `{"cell_accuracy": float, "solve_rate": float}`, both in [0, 1].

    Args:
        keep_in_memory (`bool`, *optional*, defaults to `True`):
            Keep the inputs in memory. Pass `False` when several processes (`num_process`) share one metric.
        cache_dir (`str`, *optional*):
            Where the inputs go if not in memory. Defaults to a temporary directory, removed with the metric, when
            `keep_in_memory=True`, and to the cache of `evaluate` otherwise.
        **kwargs:
            Other arguments of `evaluate.Metric`.

    Example:

    ```python
    >>> metric = SudokuMetric()
    >>> metric.add_batch(predictions=texts, references=batch["solution"], puzzles=batch["puzzle"])
    >>> metric.compute()
    {'cell_accuracy': 0.75, 'solve_rate': 0.5}
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy over the blank cells (pooled) and full-solve rate of 4x4 Sudoku.",
            citation="",
            inputs_description="`predictions`: completion texts; `references`: solutions; `puzzles`: 0 = empty cell.",
            features=datasets.Features(
                {name: datasets.Value("string") for name in ("predictions", "references", "puzzles")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str], puzzles: list[str]) -> dict[str, float]:
        return {
            "cell_accuracy": cell_accuracy(predictions, puzzles, references),
            "solve_rate": solve_rate(predictions, puzzles, references),
        }


class CountdownMetric(_LocalMetric):
    """
    Solve rate of Countdown, see [`countdown_solve_rate`].

    Inputs of `compute`, `add_batch` and `add` are `predictions` (completion texts), `references` (targets) and
    `numbers` (lists of integers). The result is `{"solve_rate": float}`, in [0, 1]. Arguments: see [`SudokuMetric`].
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of the completions that reach the target with exactly the given numbers.",
            citation="",
            inputs_description="`predictions`: completion texts; `references`: targets; `numbers`: given numbers.",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Value("int64"),
                    "numbers": datasets.List(datasets.Value("int64")),
                }
            ),
        )

    def _compute(self, predictions: list[str], references: list[int], numbers: list[list[int]]) -> dict[str, float]:
        return {"solve_rate": countdown_solve_rate(predictions, numbers, references)}


class ArithmeticMetric(_LocalMetric):
    """
    Solve rate of the arithmetic task, see [`arithmetic_solve_rate`].

    Inputs of `compute`, `add_batch` and `add` are strings: `predictions` (completion texts) and `references` (final
    numbers). The result is `{"solve_rate": float}`, in [0, 1]. Arguments: see [`SudokuMetric`].
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of the completions whose final answer is right.",
            citation="",
            inputs_description="`predictions`: completion texts; `references`: final numbers.",
            features=datasets.Features({name: datasets.Value("string") for name in ("predictions", "references")}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"solve_rate": arithmetic_solve_rate(predictions, references)}


class GSM8KMetric(_LocalMetric):
    """
    Solve rate of GSM8K, see [`gsm8k_verdicts`].

    Inputs of `compute`, `add_batch` and `add` are strings: `predictions` (completion texts) and `references` (right
    numbers). The result is `{"solve_rate": float}`, in [0, 1]. Arguments: see [`SudokuMetric`].
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of the completions whose answer is the right number.",
            citation="",
            inputs_description="`predictions`: completion texts; `references`: the right numbers.",
            features=datasets.Features({name: datasets.Value("string") for name in ("predictions", "references")}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"solve_rate": _mean(gsm8k_verdicts(predictions, references))}


class MathMetric(_LocalMetric):
    """
    Solve rate of MATH, see [`math_verdicts`]. Needs math-verify.

    Inputs of `compute`, `add_batch` and `add` are strings: `predictions` (completion texts) and `references` (right
    answers, boxed or bare). The result is `{"solve_rate": float}`, in [0, 1]. Arguments: see [`SudokuMetric`].
    """

    def __init__(self, **kwargs: Any):
        check_math_verify()
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of the completions whose answer equals the right one, as text or as mathematics.",
            citation="",
            inputs_description="`predictions`: completion texts; `references`: the right answers.",
            features=datasets.Features({name: datasets.Value("string") for name in ("predictions", "references")}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"solve_rate": _mean(math_verdicts(predictions, references))}


class RewardMetric(_LocalMetric):
    """
    Mean reward, and the share of completions whose reward reaches 1, for tasks that have rewards and no verdict.

    Inputs of `compute`, `add_batch` and `add` are `predictions`, the summed rewards of the completions. The result is
    `{"reward": float, "solve_rate": float}`. Arguments: see [`SudokuMetric`].
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean of the rewards, and the share of them that is at least 1.",
            citation="",
            inputs_description="`predictions`: rewards.",
            features=datasets.Features({"predictions": datasets.Value("float64")}),
        )

    def _compute(self, predictions: list[float]) -> dict[str, float]:
        return {"reward": _mean(predictions), "solve_rate": _mean([reward >= 1 for reward in predictions])}


def _mean(values: list[float] | list[bool]) -> float:
    if not len(values):
        raise ValueError("predictions=[] has nothing to score: pass at least one.")
    return float(sum(values) / len(values))
