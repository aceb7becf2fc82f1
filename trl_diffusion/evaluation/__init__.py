# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Evaluation of models on tasks, through `generate()`."""

from .completion import Completions, complete


__all__ = ["Completions", "collect_traces", "complete"]


def __getattr__(name: str):
    # The checks on rewards import TRL, which takes seconds.
    if name == "collect_traces":
        from .traces import collect_traces

        return collect_traces
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
