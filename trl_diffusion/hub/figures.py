# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Figures of a card: what was measured, on what, how surely, and by which command."""

import json
import os
import shlex
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult


@dataclass(frozen=True)
class MeasuredFigure:
    """A metric on a task, after training and, where it was measured, before.

    Args:
        task (`str`):
            What was asked, e.g. `"sudoku"` or `"gsm8k"`.
        metric (`str`):
            What was counted, e.g. `"accuracy"`.
        after (`float`):
            Of the model that the card is of. The mean over the seeds.
        before (`float`, *optional*):
            Of the model that it was trained from.
        dataset (`str`, *optional*):
            Hub id of the rows; `None` where they were generated, or lay in a file.
        num_examples (`int`, *optional*):
            How many rows.
        interval (`tuple[float, float]`, *optional*):
            Bounds of `after` at 95 % confidence over the rows.
        spread (`float`, *optional*):
            Standard deviation of `after` over the seeds.
        seeds (`tuple[int, ...]`, *optional*):
            Seeds of the runs.
        command (`str`, *optional*):
            What prints it.
        settings (`str`, *optional*):
            How was decoded, where it was not by the sampling defaults.
    """

    task: str
    metric: str
    after: float
    before: float | None = None
    dataset: str | None = None
    num_examples: int | None = None
    interval: tuple[float, float] | None = None
    spread: float | None = None
    seeds: tuple[int, ...] = ()
    command: str | None = None
    settings: str | None = None

    def __post_init__(self):
        if self.spread is not None and len(self.seeds) < 2:
            raise ValueError(
                f"spread={self.spread} of {self.metric!r} is over seeds, and seeds={self.seeds!r} are fewer than two."
            )

    @property
    def uncertainty(self) -> str:
        """Interval and spread as a card's cell."""
        parts = []
        if self.interval is not None:
            parts.append(f"{self.interval[0]:.3f} to {self.interval[1]:.3f}")
        if self.spread is not None:
            parts.append(f"± {self.spread:.3f} over seeds")
        return ", ".join(parts) or "–"

    def eval_result(self) -> EvalResult:
        """The figure as metadata of a card."""
        return EvalResult(
            task_type="text-generation",
            dataset_type=self.dataset or self.task,
            dataset_name=self.task,
            metric_type=self.metric,
            metric_value=round(self.after, 6),
            metric_name=self.metric.replace("_", " "),
        )


def eval_results(figures: list[MeasuredFigure]) -> list[EvalResult] | None:
    """Figures as metadata of a card: one of each metric on each data, those decoded by the sampling defaults first;
    `None` where there are none."""
    found: dict[tuple, EvalResult] = {}
    for figure in sorted(figures, key=lambda figure: figure.settings is not None):
        result = figure.eval_result()
        found.setdefault((result.dataset_type, result.dataset_name, result.metric_type), result)
    return list(found.values()) or None


def measured_text(figures: list[MeasuredFigure]) -> str:
    """What a card says under "Measured", in Markdown."""
    if not figures:
        return "No figure was measured by the run that wrote this card.\n"
    columns = ("task", "metric", "before", "after", "uncertainty", "examples", "seeds", "decoding")
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for figure in figures:
        cells = (
            figure.task,
            figure.metric,
            "–" if figure.before is None else f"{figure.before:.3f}",
            f"{figure.after:.3f}",
            figure.uncertainty,
            figure.num_examples or "–",
            ", ".join(map(str, figure.seeds)) or "–",
            figure.settings or "sampling defaults",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        "Held-out rows. An interval is that of 95 % confidence over the rows; ± is the standard deviation over",
    ]
    lines += ["training seeds. A single seed says nothing about how much another run would differ."]
    for command in dict.fromkeys(figure.command for figure in figures if figure.command):
        lines += ["", f"Printed by `{command}`."]
    return "\n".join(lines) + "\n"


def read_eval_results(folder: str | os.PathLike, model: str | None = None) -> list[MeasuredFigure]:
    """The figures of an evaluation, of `results.json` in the output folder of `trl-diffusion eval`.

    Args:
        folder (`str` or `os.PathLike`):
            That folder.
        model (`str`, *optional*):
            What the model is called in the command that prints them. Defaults to what it was called there.

    Raises:
        ValueError: there is no such file, or it holds no tasks.
    """
    path = os.path.join(folder, "results.json")
    if not os.path.isfile(path):
        raise ValueError(
            f"eval_results={str(folder)!r} has no results.json: `trl-diffusion eval --output_dir` writes it."
        )
    with open(path, encoding="utf-8") as file:
        results = json.load(file)
    tasks = results.get("tasks")
    if not isinstance(tasks, dict) or not tasks:
        raise ValueError(f"{path!r} holds no tasks: it is not the file that `trl-diffusion eval` writes.")
    return [figure for name, task in tasks.items() for figure in _task_figures(name, task, results, model)]


def _task_figures(name: str, task: dict[str, Any], results: dict[str, Any], model: str | None) -> list[MeasuredFigure]:
    """A task's accuracy, with its interval, and what it cost."""
    source = results.get("sources", {}).get(name, name)
    on_the_hub = source.count("/") == 1 and not os.path.exists(source) and not os.path.splitext(source)[1]
    shared = {
        "task": name,
        "dataset": source if on_the_hub else None,
        "num_examples": task["num_problems"],
        "command": _command(source, task, results, model or results.get("model")),
        "settings": _decoding(results, task.get("seeds") or []),
    }
    interval = (task["accuracy_low"], task["accuracy_high"])
    figures = [MeasuredFigure(metric="accuracy", after=task["accuracy"], interval=interval, **shared)]
    return figures + [
        MeasuredFigure(metric=metric, after=task[metric], **shared)
        for metric in ("forward_passes", "tokens_per_pass")
        if task.get(metric) is not None
    ]


def _settings(results: dict[str, Any]) -> dict[str, Any]:
    """Those of the generation that are not what is done anyway."""
    usual = (None, False, "even", "none", "low_confidence", 0.0)
    return {name: value for name, value in (results.get("generation") or {}).items() if value not in usual}


def _decoding(results: dict[str, Any], seeds: list[int]) -> str | None:
    """How was decoded, in a card's cell."""
    parts = [f"preset {results['preset']}"] if results.get("preset") else []
    parts += [f"{name}={value}" for name, value in _settings(results).items()]
    parts += [f"draws with seeds {', '.join(map(str, seeds))}"] if seeds else []
    return ", ".join(parts) or None


def _command(source: str, task: dict[str, Any], results: dict[str, Any], model: str | None) -> str:
    """The command that measures a task again."""
    words = ["trl-diffusion", "eval", "--model", model or "…", "--tasks", source]
    words += ["--preset", results["preset"]] if results.get("preset") else []
    for name, value in _settings(results).items():
        words += [f"--{name}", str(value)]
    words += ["--num_test", str(task["num_problems"])]
    seeds = task.get("seeds") or []
    words += ["--seeds", *map(str, seeds)] if seeds else []
    return shlex.join(words)
