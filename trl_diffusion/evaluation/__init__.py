# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Evaluation of models on tasks, through `generate()`."""

from .comparison import Comparison, bootstrap_interval, compare_runs, mcnemar_test, paired_interval, permutation_test
from .completion import Completions, complete
from .frontier import DecodingPoint, best_at, measure_frontier
from .frontier_file import FrontierRow, read_frontier, write_frontier
from .frontier_plot import plot_frontier
from .measurement import Measurement, measure, wilson_interval
from .task import Task, Verdict
from .task_run import TaskResult, evaluate_tasks
from .trajectory_plot import plot_rollout
from .trajectory_view import RolloutView, show_rollout


__all__ = [
    "Comparison",
    "Completions",
    "DecodingPoint",
    "FrontierRow",
    "Measurement",
    "RolloutView",
    "Task",
    "TaskResult",
    "Verdict",
    "best_at",
    "bootstrap_interval",
    "collect_traces",
    "compare_runs",
    "complete",
    "evaluate_tasks",
    "mcnemar_test",
    "measure",
    "measure_frontier",
    "paired_interval",
    "permutation_test",
    "plot_frontier",
    "plot_rollout",
    "read_frontier",
    "show_rollout",
    "wilson_interval",
    "write_frontier",
]


def __getattr__(name: str):
    # The checks on rewards import TRL, which takes seconds.
    if name == "collect_traces":
        from .traces import collect_traces

        return collect_traces
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
