# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Figures of a card: what was measured, on what, how surely, and by which command."""

from dataclasses import dataclass

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
