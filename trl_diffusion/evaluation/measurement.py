# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Accuracy of a model at one setting of its generation, and what it costs in forward passes."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..generation import DiffusionGenerationConfig
from ..generation.checks import check_settings
from ..models import diffusion_model
from .completion import Completions, complete, encode_prompts


# Completions of all prompts, in their order → for each 1 where it is right and 0 where it is not, or a grade between.
Score = Callable[[Completions], Sequence[float]]
Prompts = list[str] | list[list[dict[str, Any]]]


@dataclass
class Measurement:
    """What a model achieved at one setting.

    Args:
        correct (`list[float]`):
            For each problem its score in [0, 1], the mean over the seeds: what a paired comparison of two settings
            needs.
        forward_passes (`float`):
            Mean number of model calls per completion (NFE). A step with guidance makes two.
        length (`float`):
            Mean tokens per completion, EOS included.
        seconds (`float`):
            Wall-clock time of all generation: of `len(correct)` completions per seed.
        seeds (`tuple[int, ...]`):
            Seeds that were drawn with; empty where nothing depends on a seed, and one run was made.
    """

    correct: list[float]
    forward_passes: float
    length: float
    seconds: float
    seeds: tuple[int, ...] = ()

    @property
    def accuracy(self) -> float:
        """Mean score over problems and seeds."""
        return sum(self.correct) / len(self.correct)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy: Wilson's for as many independent verdicts as there are problems,
        whatever the number of seeds.

        Completions of one problem resemble each other, so that problems × seeds are fewer verdicts than their number.
        Counting each problem once is the conservative bound: a mean of scores in [0, 1] has at most the variance of a
        coin with that mean, p(1 − p), however alike the seeds are. The interval says how far the accuracy is from
        that on all problems of this kind; two settings measured on the same problems can differ reliably though
        their intervals overlap.
        """
        return wilson_interval(self.accuracy, len(self.correct))

    @property
    def tokens_per_pass(self) -> float:
        """Tokens of the completions, EOS included, over the forward passes they took."""
        return self.length / self.forward_passes


def wilson_interval(rate: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a rate: all p with |rate − p| ≤ z · sqrt(p (1 − p) / count).

    Args:
        rate (`float`):
            Observed rate, in [0, 1].
        count (`int`):
            Independent observations.
        z (`float`, *optional*, defaults to 1.959964):
            Quantile of the normal distribution; the default is for 95 %.

    Returns:
        `tuple[float, float]`: lower and upper end, in [0, 1]. Never empty, not even at a rate of 0 or 1.

    Raises:
        ValueError: `rate` is outside of [0, 1], or `count` < 1.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate={rate} must lie in [0, 1].")
    if count < 1:
        raise ValueError(f"count={count} must be at least 1.")
    weight = z**2 / count
    middle = (rate + weight / 2) / (1 + weight)
    half = math.sqrt(rate * (1 - rate) * weight + weight**2 / 4) / (1 + weight)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def measure(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    score: Score,
    generation_config: DiffusionGenerationConfig,
    batch_size: int = 64,
    seeds: Sequence[int] = (0,),
    progress: bool = False,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> Measurement:
    """Complete all prompts and score them: with every seed, or once where no seed matters.

    Args:
        model (`torch.nn.Module`), tokenizer, prompts, batch_size, progress, chat_template_kwargs:
            As in [`complete`].
        score (`Callable[[Completions], Sequence[float]]`):
            Takes the completions of all prompts, and returns a number in [0, 1] for each.
        generation_config ([`DiffusionGenerationConfig`]):
            Settings, `seed` unset.
        seeds (`Sequence[int]`, *optional*, defaults to `(0,)`):
            Seeds of a stochastic generation. A prompt's draws depend on the seed and its place alone.

    Returns:
        [`Measurement`].

    Raises:
        ValueError: as [`check_measurable`], or `score` returns something other than a number in [0, 1] per prompt.
    """
    check_measurable(model, tokenizer, prompts, [generation_config], seeds, chat_template_kwargs)
    stochastic = generation_config.is_stochastic
    config = copy.copy(generation_config)
    scores, passes, lengths, seconds = [], [], [], 0.0
    for seed in seeds if stochastic else [0]:
        config.seed = int(seed)
        started = time.perf_counter()
        completions = complete(model, tokenizer, prompts, config, batch_size, progress, chat_template_kwargs)
        seconds += time.perf_counter() - started
        scores.append(_checked(score(completions), len(prompts)))
        passes.append(completions.forward_passes * (2 if config.guides else 1))
        lengths.append(sum(map(len, completions.ids)) / len(prompts))
    return Measurement(
        correct=[_mean(of_problem) for of_problem in zip(*scores, strict=True)],
        forward_passes=_mean(passes),
        length=_mean(lengths),
        seconds=seconds,
        seeds=tuple(map(int, seeds)) if stochastic else (),
    )


def check_measurable(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    configs: Sequence[DiffusionGenerationConfig],
    seeds: Sequence[int],
    chat_template_kwargs: dict[str, Any] | None = None,
):
    """What would otherwise fail after some of the work is done.

    Args:
        model (`torch.nn.Module`), tokenizer, prompts, seeds, chat_template_kwargs:
            As in [`measure`].
        configs (`list[DiffusionGenerationConfig]`):
            All settings that are going to be measured.

    Raises:
        ValueError: there is no prompt or no seed, a seed is none or there twice, a setting is wrong or nothing that
            the model can serve, says how many completions or which seed itself, or leaves no room for a prompt.
    """
    if not prompts:
        raise ValueError("prompts is empty: there is nothing to complete.")
    if not seeds:
        raise ValueError("seeds is empty: give at least one, such as (0,).")
    if not all(isinstance(seed, Integral) and not isinstance(seed, bool) for seed in seeds):
        raise ValueError(f"seeds={seeds!r} must be whole numbers.")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={seeds!r} has one of them twice, which would count its completions twice.")
    family = diffusion_model(model)
    for config in configs:
        config.validate()
        check_settings(family, config)
        if config.seed is not None:
            raise ValueError(f"generation_config.seed={config.seed!r} has no place here. Leave it out, and set seeds.")
        if (config.num_return_sequences or 1) != 1:
            raise ValueError(
                f"generation_config.num_return_sequences={config.num_return_sequences} must be 1: more completions "
                "of a problem come from more seeds."
            )
    try:
        width = encode_prompts(tokenizer, prompts, chat_template_kwargs)["input_ids"].size(1)
    except Exception as error:  # what tokenizers and templates raise is of no class of their own
        raise ValueError(f"the prompts, such as {str(prompts[0])[:60]!r}, cannot be tokenized: {error}") from error
    canvas, limit = max(config.max_new_tokens for config in configs), family.config.max_position_embeddings
    if width + canvas > limit:
        raise ValueError(
            f"the longest prompt ({width} tokens) and max_new_tokens={canvas} exceed the model's {limit} positions. "
            "Shorten one of them."
        )


def _checked(scores: Sequence[float], expected: int) -> list[float]:
    """Scores as floats; raises where one is no number in [0, 1], or their number is not that of the prompts."""
    scores = [float(value) for value in scores]
    if len(scores) != expected:
        raise ValueError(f"score returned {len(scores)} numbers for {expected} completions. Return one for each.")
    for row, value in enumerate(scores):
        if not 0 <= value <= 1:
            raise ValueError(
                f"score returned {value} for completion {row}: 1 is a right one, 0 a wrong one, and a grade lies "
                "between."
            )
    return scores


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
