# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Evaluation of a model on tasks: figures of each, and a row per completion."""

import copy
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..generation import DiffusionGenerationConfig
from ..tasks.fingerprint import digest
from .completion import Completions, complete
from .fingerprint import model_fingerprint, rule_identity
from .measurement import check_measurable, wilson_interval
from .run_folder import RunFolder, locked
from .task import Task, Verdict


@dataclass
class TaskResult:
    """What a model achieved on a task.

    Args:
        num_problems (`int`):
            Problems, each completed once per seed.
        seeds (`list[int]`):
            Seeds that were drawn with; empty where nothing depends on a seed, and each problem was completed once.
        accuracy (`float`), accuracy_low, accuracy_high (`float`):
            Share of the completions that are right, and the ends of its 95 % confidence interval: Wilson's, with each
            problem counted once, see [`Measurement.interval`].
        metrics (`dict[str, float]`):
            The task's metrics, computed by `evaluate`, each the mean over the seeds; `solve_rate` is the accuracy.
        forward_passes (`float`):
            Mean number of model calls per completion. A step with guidance makes two.
        length (`float`):
            Mean tokens per completion, EOS included.
        tokens_per_pass (`float`):
            Tokens of the completions over the forward passes they took.
        seconds (`float`):
            Wall-clock time of the generation.
        tokens_per_second (`float` or `None`):
            Tokens of the completions over the seconds; of those that were timed, which a run that was killed between
            a batch and its time has fewer of.
        rows (`list[dict]`):
            A row per completion, as in the file: `id`, the place of the problem; `seed`; `prompt`, `completion`;
            `correct`, `score`; `forward_passes`, `length` (of the completion, in tokens); what the task knows, such as
            the `answer` that was read; and `problem`, the other columns of the data.
    """

    num_problems: int
    seeds: list[int]
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    metrics: dict[str, float]
    forward_passes: float
    length: float
    tokens_per_pass: float
    seconds: float
    tokens_per_second: float | None
    rows: list[dict[str, Any]] = field(repr=False)

    def figures(self) -> dict[str, Any]:
        """The fields without the rows, for JSON."""
        return {name: value for name, value in vars(self).items() if name != "rows"}


def evaluate_tasks(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: dict[str, Task],
    generation_config: DiffusionGenerationConfig,
    batch_size: int = 64,
    seeds: Sequence[int] = (0,),
    chat_template_kwargs: dict[str, Any] | None = None,
    output_dir: str | os.PathLike | None = None,
    about: dict[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, TaskResult]:
    """Complete the problems of tasks, and score the completions. All tasks are checked before the first is begun.

    Args:
        model (`torch.nn.Module`):
            A diffusion language model, with or without an adapter.
        tokenizer:
            Its tokenizer. Where it has a chat template, conversational prompts go through it, and tasks that are bare
            puzzles are put into words.
        tasks (`dict[str, Task]`):
            What to evaluate on, by the names of the files.
        generation_config ([`DiffusionGenerationConfig`]):
            Settings, `seed` unset.
        batch_size (`int`, *optional*, defaults to 64):
            Prompts per batch; decides the seconds, and, but for rounding (in bfloat16 above all), nothing else.
        seeds (`Sequence[int]`, *optional*, defaults to `(0,)`):
            Seeds of a stochastic generation. A prompt's draws depend on the seed and its place alone.
        chat_template_kwargs (`dict`, *optional*):
            Passed to the chat template.
        output_dir (`str`, *optional*):
            Folder for the files of [`RunFolder`]. Rows are on the disk batch by batch, and a second call with the same
            settings goes on behind them. The code of the scorers is no setting that can be compared.
        about (`dict`, *optional*):
            What `results.json` says besides the figures, for JSON.
        overwrite (`bool`, *optional*, defaults to `False`):
            Start anew, whatever the folder holds.
        progress (`bool`, *optional*, defaults to `False`):
            Show a progress bar.

    Returns:
        `dict[str, TaskResult]`, in the order of the tasks.

    Raises:
        ValueError: a setting is wrong, a prompt is too long, or `output_dir` is of another call (names the first
            setting that differs).
    """
    if not tasks:
        raise ValueError("tasks is empty: there is nothing to evaluate on.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    problems = {}
    for name, task in tasks.items():
        try:
            problems[name] = task.rows_for(tokenizer)
            prompts = list(problems[name]["prompt"])
            check_measurable(model, tokenizer, prompts, [generation_config], seeds, chat_template_kwargs)
        except ValueError as error:
            raise ValueError(f"task {name!r}: {error}") from error
    with nullcontext() if output_dir is None else locked(output_dir):
        folder = None
        if output_dir is not None:
            settings = model_fingerprint(model, tokenizer, generation_config)
            settings["generation_config"].pop("do_sample")  # follows from the others, and is no field of ours
            # The weights' digest has it too, but would be all that an error names.
            settings["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
            settings["unmasking"] = rule_identity(generation_config.unmasking)
            settings["seeds"] = [int(seed) for seed in seeds] if generation_config.is_stochastic else []
            settings["chat_template_kwargs"] = chat_template_kwargs or {}
            contents = {name: problem_fingerprint(problems[name], task.scorer) for name, task in tasks.items()}
            folder = RunFolder(output_dir, settings, contents, overwrite)
        results: dict[str, TaskResult] = {}
        for name, task in tasks.items():
            run = _Run(model, tokenizer, task, problems[name], generation_config, batch_size, chat_template_kwargs)
            results[name] = run(name, seeds, folder, progress)
            if folder is not None:
                folder.write_results({**(about or {}), "tasks": {n: r.figures() for n, r in results.items()}})
    return results


def problem_fingerprint(rows: Dataset, scorer: str) -> dict[str, Any]:
    """What makes the problems of two runs the same, and the verdicts on them."""
    columns = {name: digest(list(rows[name])) for name in rows.column_names}
    return {"num_problems": len(rows), "scorer": scorer, "columns": columns}


@dataclass
class _Run:
    """Of one task."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    task: Task
    problems: Dataset
    config: DiffusionGenerationConfig
    batch_size: int
    chat_template_kwargs: dict[str, Any] | None

    def __call__(self, name: str, seeds: Sequence[int], folder: RunFolder | None, progress: bool) -> TaskResult:
        drawn: list[int | None] = [int(seed) for seed in seeds] if self.config.is_stochastic else [None]
        count = len(self.problems)
        order = [(seed, place) for seed in drawn for place in range(count)]
        kept = None if folder is None else folder.rows(name, order)
        rows, tokens, seconds = [] if kept is None else kept.rows, 0, 0.0
        with tqdm(total=len(order), initial=len(rows), desc=name, disable=not progress, leave=False) as bar:
            while len(rows) < len(order):
                started = time.perf_counter()
                seed, first = order[len(rows)]
                places = range(first, min(first + self.batch_size, count))
                made, of_batch = self._complete(seed, places)
                took = time.perf_counter() - started
                judged = self._judged(seed, places, made)
                tokens, seconds = tokens + of_batch, seconds + took
                if kept is None:
                    rows += judged
                else:
                    kept.append(judged)
                    rows = kept.rows
                    folder.add_seconds(name, len(places), of_batch, took)
                bar.update(len(places))
        if folder is not None:
            tokens, seconds = folder.seconds(name)
        return self._result(rows, [seed for seed in drawn if seed is not None], tokens, seconds)

    def _complete(self, seed: int | None, places: range) -> tuple[Completions, int]:
        """Completions of some problems, and how many tokens they have."""
        config = copy.copy(self.config)
        config.seed = 0 if seed is None else seed
        prompts = list(self.problems[places.start : places.stop]["prompt"])
        made = complete(
            self.model,
            self.tokenizer,
            prompts,
            config,
            len(prompts),
            chat_template_kwargs=self.chat_template_kwargs,
            first=places.start,
        )
        return made, sum(map(len, made.ids))

    def _judged(self, seed: int | None, places: range, made: Completions) -> list[dict[str, Any]]:
        """A row per completion."""
        problems = self.problems.select(places)
        calls = 2 if self.config.guides else 1
        rows = []
        for place, problem, text, ids, passes, verdict in zip(
            places,
            problems,
            made.texts,
            made.ids,
            made.num_forward_passes,
            self.task.judge(made, problems),
            strict=True,
        ):
            prompt = problem.pop("prompt")
            own = {"id": place, "seed": seed, "prompt": prompt, "completion": text}
            own |= {"correct": verdict.correct, "score": verdict.score}
            own |= {"forward_passes": passes * calls, "length": len(ids)}
            rows.append({**own, **verdict.details, "problem": problem})
        return rows

    def _result(self, rows: list[dict[str, Any]], seeds: list[int], tokens: int, seconds: float) -> TaskResult:
        count = len(self.problems)
        found: list[dict[str, float]] = []
        for start in range(0, len(rows), count):
            own = rows[start : start + count]
            verdicts = [Verdict(row["correct"], row["score"]) for row in own]
            found.append(self.task.summarise([row["completion"] for row in own], self.problems, verdicts))
        metrics = {name: _mean([of_seed[name] for of_seed in found]) for name in found[0]}
        low, high = wilson_interval(metrics["solve_rate"], count)
        passes, lengths = (sum(row[name] for row in rows) for name in ("forward_passes", "length"))
        return TaskResult(
            num_problems=count,
            seeds=seeds,
            accuracy=metrics["solve_rate"],
            accuracy_low=low,
            accuracy_high=high,
            metrics=metrics,
            forward_passes=passes / len(rows),
            length=lengths / len(rows),
            tokens_per_pass=lengths / passes,
            seconds=round(seconds, 3),
            tokens_per_second=tokens / seconds if seconds > 0 else None,
            rows=rows,
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
