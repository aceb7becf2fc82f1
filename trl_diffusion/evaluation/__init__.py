# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Evaluation of models on tasks, through `generate()`."""

from .completion import Completions, complete
from .frontier import DecodingPoint, best_at, measure_frontier
from .frontier_file import FrontierRow, read_frontier, write_frontier
from .frontier_plot import plot_frontier
from .measurement import Measurement, measure, wilson_interval
from .trajectory_plot import plot_rollout
from .trajectory_view import RolloutView, show_rollout


__all__ = [
    "Completions",
    "DecodingPoint",
    "FrontierRow",
    "Measurement",
    "RolloutView",
    "best_at",
    "collect_traces",
    "complete",
    "measure",
    "measure_frontier",
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
