# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Accuracy against forward passes, for several unmasking rules and policies."""

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..generation import DiffusionGenerationConfig
from ..generation.configuration import rule_path
from ..tasks.fingerprint import describe, digest
from .fingerprint import model_fingerprint, rule_identity
from .frontier_file import FrontierFile, FrontierRow
from .measurement import Measurement, Prompts, Score, check_measurable, measure


@dataclass
class DecodingPoint:
    """One way to decode: a point of a curve.

    Args:
        curve (`str`):
            Label of the curve that it belongs to, such as `"threshold"`.
        fields (`dict[str, Any]`):
            Fields of [`DiffusionGenerationConfig`] that differ from the settings all points share, such as
            `{"unmasking": "threshold", "threshold": 0.9}` or `{"unmasking": "path/to/policy", "policy_beta": 2.0}`.
    """

    curve: str
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def setting(self) -> str:
        """The fields in words, without the rule: `"threshold=0.9"`."""
        return ", ".join(f"{name}={value}" for name, value in self.fields.items() if name != "unmasking")

    def config(self, generation_config: DiffusionGenerationConfig) -> DiffusionGenerationConfig:
        """The shared settings with this point's fields in them.

        Raises:
            ValueError: one is no field of the config, or a value is out of range or does not go with another; names
                the point.
        """
        config = copy.copy(generation_config)
        try:
            unknown = config.update(**self.fields)
        except ValueError as error:
            raise ValueError(f"points has ({self.curve}: {self.setting}): {error}") from error
        if unknown:
            name, value = next(iter(unknown.items()))
            raise ValueError(
                f"points has {name}={value!r} in {self.curve!r}, which is not a field of DiffusionGenerationConfig."
            )
        return config


def measure_frontier(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    points: Sequence[DecodingPoint],
    score: Score,
    generation_config: DiffusionGenerationConfig,
    batch_size: int = 64,
    seeds: Sequence[int] = (0,),
    file: str | os.PathLike | None = None,
    settings: dict[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = False,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[FrontierRow]:
    """Accuracy and forward passes of each point. All points are checked before the first is measured.

    Args:
        model (`torch.nn.Module`):
            A diffusion language model, with or without an adapter.
        tokenizer:
            Its tokenizer; conversational prompts go through its chat template.
        prompts (`list[str]` or `list[list[dict]]`):
            Texts, or conversations that end with the user's message.
        points (`list[DecodingPoint]`):
            What to measure.
        score (`Callable[[Completions], Sequence[float]]`):
            Takes the completions of all prompts, and returns for each 1 where it is right and 0 where it is not, or a
            grade between.
        generation_config ([`DiffusionGenerationConfig`]):
            Settings that the points share, `seed` unset.
        batch_size (`int`, *optional*, defaults to 64):
            Prompts per batch; decides the seconds, and nothing else.
        seeds (`Sequence[int]`, *optional*, defaults to `(0,)`):
            Seeds of points whose completions depend on one. The others are measured once.
        file (`str`, *optional*):
            A CSV file that gets a row as soon as a point is measured, and is whole at any time; a JSON file beside it
            holds what the rows were measured with. A second call with the same settings measures only the points that
            are missing, and leaves rows of other points alone. One process at a time.
        settings (`dict`, *optional*):
            Further values for JSON that decide the result, such as which data the score knows: the file remembers and
            compares them, as it does the weights, the tokenizer, the prompts, `generation_config` and `seeds`, and
            the config and weights of each policy, but for one named by its Hub id. What a function does is not in it,
            its name is.
        overwrite (`bool`, *optional*, defaults to `False`):
            Measure everything anew, whatever the file holds.
        progress (`bool`, *optional*, defaults to `False`):
            Show progress bars.
        chat_template_kwargs (`dict`, *optional*):
            Passed to the chat template.

    Returns:
        `list[FrontierRow]`, in the order of the points.

    Raises:
        ValueError: a point or another setting is wrong, two points cannot be told apart, `file` is of another call
            (names the first setting that differs) or cannot be written, or `score` returns a wrong result.
    """
    configs = [point.config(generation_config) for point in points]
    if not points:
        raise ValueError("points is empty: give at least one DecodingPoint.")
    check_measurable(model, tokenizer, prompts, configs, seeds, chat_template_kwargs)
    keys = [
        (point.curve, _name(config.unmasking), point.setting) for point, config in zip(points, configs, strict=True)
    ]
    for place, key in enumerate(keys):
        if key in keys[:place]:
            raise ValueError(f"points has {key} twice: rows of a file could not be told apart. Give another `curve`.")
    kept = None
    if file is not None:
        fingerprint = model_fingerprint(model, tokenizer, generation_config)
        fingerprint["generation_config"].pop("do_sample")  # follows from the others, and is no field of ours
        first = {"model": fingerprint.pop("model"), **(settings or {})}
        fingerprint |= {
            "prompts": digest(prompts),
            "score": describe(score),
            "seeds": [int(seed) for seed in seeds],
        }
        if chat_template_kwargs:
            fingerprint["chat_template_kwargs"] = chat_template_kwargs
        rules: dict[str, str] = {}
        for config in configs:
            name, identity = _name(config.unmasking), rule_identity(config.unmasking)
            if rules.setdefault(name, identity) != identity:
                raise ValueError(
                    f"points has two rules that are both called {name!r}: a file could not tell them apart. Save one "
                    "of them elsewhere, and name it by its folder."
                )
        kept = FrontierFile(file, first, fingerprint, rules, overwrite)
    found = {} if kept is None else kept.rows_by_key()
    bar = tqdm(list(zip(keys, configs, strict=True)), desc="Points", disable=not progress)
    for key, config in bar:
        if key in found:
            continue
        bar.set_postfix_str(" ".join((key[0], key[2])))
        options = (batch_size, seeds, progress, chat_template_kwargs)
        found[key] = _row(key, measure(model, tokenizer, prompts, score, config, *options))
        if kept is not None:
            kept.add(found[key])
    return [found[key] for key in keys]


def best_at(rows: Iterable[FrontierRow], forward_passes: float) -> dict[str, float | None]:
    """The best accuracy that each curve reaches with at most so many forward passes per completion.

    A curve is its points joined by straight lines, in the order of their forward passes; of several points with the
    same number the best counts. So a curve that falls again keeps its best accuracy so far, and one that is not
    measured at exactly `forward_passes` is interpolated between the two neighbouring points. Nothing is extrapolated.

    Args:
        rows (`list[FrontierRow]`):
            Points of any number of curves.
        forward_passes (`float`):
            Limit of the mean number of model calls per completion.

    Returns:
        `dict[str, float | None]`: curve → accuracy; `None` where all its points need more.
    """
    curves: dict[str, dict[float, float]] = {}
    for row in rows:
        best = curves.setdefault(row.curve, {})
        best[row.forward_passes] = max(row.accuracy, best.get(row.forward_passes, 0.0))
    return {curve: _best_of(sorted(best.items()), forward_passes) for curve, best in curves.items()}


def _best_of(points: list[tuple[float, float]], limit: float) -> float | None:
    """The largest value left of `limit` of the line through points in ascending order."""
    reached = [accuracy for passes, accuracy in points if passes <= limit]
    for (left, low), (right, high) in pairwise(points):
        if left <= limit < right:
            reached.append(low + (high - low) * (limit - left) / (right - left))
    return max(reached, default=None)


def _row(key: tuple[str, str, str], measured: Measurement) -> FrontierRow:
    low, high = measured.interval
    return FrontierRow(
        *key,
        seeds=measured.seeds,
        num_problems=len(measured.correct),
        accuracy=measured.accuracy,
        accuracy_low=low,
        accuracy_high=high,
        forward_passes=measured.forward_passes,
        tokens_per_pass=measured.tokens_per_pass,
        length=measured.length,
        seconds=round(measured.seconds, 3),
    )


def _name(rule: Any) -> str:
    """An unmasking rule by its name, or where it is found."""
    if isinstance(rule, str):
        return rule
    return rule_path(rule) or getattr(rule, "__qualname__", type(rule).__name__)
