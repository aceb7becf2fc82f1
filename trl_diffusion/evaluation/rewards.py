# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Calling reward functions outside a trainer, and checks on what they return."""

import asyncio
import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import nn
from trl.trainer.utils import get_callable_name, is_async_callable


def checked_reward(reward_func: Callable | str | nn.Module):
    """Wrap a reward function so that a wrong result is reported at once, with the function's name and the value.

    Args:
        reward_func (`Callable`, `str` or `torch.nn.Module`):
            TRL's reward function, synchronous or not. Reward models (a name or a module) are passed through.

    Returns:
        The same, or a wrapper with the same name.

    Raises (when the wrapper is called):
        ValueError: the number of rewards is not the number of completions, or one is NaN or infinite.
        TypeError: the result is no list, or a reward is neither a number nor None.
    """
    if isinstance(reward_func, (str, nn.Module)):
        return reward_func
    if not callable(reward_func):
        raise TypeError(
            f"reward_funcs has {reward_func!r}, a {type(reward_func).__name__}: give a function, a model or its name."
        )
    name = get_callable_name(reward_func)

    if is_async_callable(reward_func):

        async def wrapper(**kwargs):
            return _check(name, await reward_func(**kwargs), len(kwargs["completions"]))

    else:

        def wrapper(**kwargs):
            return _check(name, reward_func(**kwargs), len(kwargs["completions"]))

    # Not functools.wraps: a partial or a callable object has no __name__ of its own.
    functools.update_wrapper(wrapper, reward_func, assigned=("__doc__",), updated=())
    wrapper.__name__ = name
    return wrapper


def _check(name: str, rewards, expected: int) -> list[float | None]:
    rewards = rewards.tolist() if hasattr(rewards, "tolist") else rewards
    if not isinstance(rewards, Sequence) or isinstance(rewards, str):
        raise TypeError(
            f"reward function {name!r} returned {rewards!r}: return a list with one reward per completion."
        )
    rewards = list(rewards)
    if len(rewards) != expected:
        raise ValueError(
            f"reward function {name!r} returned {len(rewards)} rewards for {expected} completions. Return one per "
            "completion, in order."
        )
    for row, reward in enumerate(rewards):
        if reward is None:
            continue
        if not isinstance(reward, (int, float)):
            reward = getattr(reward, "item", lambda bad=reward: bad)()
        if not isinstance(reward, (int, float)):
            raise TypeError(
                f"reward function {name!r} returned {reward!r} for completion {row}: give a number or None."
            )
        if not math.isfinite(reward):
            raise ValueError(
                f"reward function {name!r} returned {reward} for completion {row}. Return a finite number, or None "
                "where the reward does not apply."
            )
        rewards[row] = float(reward)
    return rewards


def as_completions(prompts: list[str] | list[list[dict[str, Any]]], texts: list[str]) -> list:
    """Texts as the prompts are: texts, or, for conversations, messages of the assistant."""
    if prompts and not isinstance(prompts[0], str):
        return [[{"role": "assistant", "content": text}] for text in texts]
    return texts


def score_completions(
    reward_funcs: Sequence[Callable],
    columns: dict[str, list],
    completions: list,
    completion_ids: list[list[int]],
) -> list[list[float | None]]:
    """Call reward functions as TRL's trainer does: `prompts`, `completions`, `completion_ids`, the dataset's other
    columns, and, as there is no trainer, `trainer_state=None` and a `log_extra` and a `log_metric` that do nothing.
    Asynchronous ones run side by side.

    Args:
        reward_funcs (`list[Callable]`):
            TRL reward functions, checked by [`checked_reward`].
        columns (`dict[str, list]`):
            The dataset's columns, one entry per completion; `prompt` is one of them.
        completions (`list[str]` or `list[list[dict]]`):
            Texts, or messages for conversational prompts ([`as_completions`]).
        completion_ids (`list[list[int]]`):
            Their tokens.

    Returns:
        `list[list[float | None]]`: for each function one reward per completion.

    Raises:
        TypeError: a reward model, which a trainer loads with a tokenizer of its own; or a result that is no list.
        ValueError: a wrong number of rewards, or one that is NaN or infinite.
    """
    for reward_func in reward_funcs:
        if isinstance(reward_func, (str, nn.Module)):
            raise TypeError(
                f"reward_funcs has {reward_func if isinstance(reward_func, str) else type(reward_func).__name__!r}: "
                "outside a trainer, wrap a reward model in a function f(prompts, completions, **kwargs)."
            )
    kwargs = {name: values for name, values in columns.items() if name not in ("prompt", "completion")}
    kwargs |= {"prompts": columns["prompt"], "completions": completions, "completion_ids": completion_ids}
    kwargs |= {"trainer_state": None, "log_extra": _ignore, "log_metric": _ignore}
    results = [checked_reward(reward_func)(**kwargs) for reward_func in reward_funcs]
    places = [place for place, result in enumerate(results) if asyncio.iscoroutine(result)]
    if places:
        # In a thread of its own: a notebook has a running loop already.
        with ThreadPoolExecutor(1) as thread:
            found = thread.submit(asyncio.run, _gather([results[place] for place in places])).result()
        for place, rewards in zip(places, found, strict=True):
            results[place] = rewards
    return results


async def _gather(coroutines: list) -> list:
    return await asyncio.gather(*coroutines)


def _ignore(*args, **kwargs):
    """In the place of a trainer's logging."""


def total_rewards(rewards: list[list[float | None]], weights: Sequence[float] | None = None) -> list[float | None]:
    """Weighted sum of the rewards of each completion, over the functions that score it (TRL's convention).

    Args:
        rewards (`list[list[float | None]]`):
            Those of [`score_completions`].
        weights (`list[float]`, *optional*):
            One per function; 1 by default.

    Returns:
        `list[float | None]`: `None` for a completion that no function scores.
    """
    weights = [1.0] * len(rewards) if weights is None else weights
    totals: list[float | None] = []
    for row in zip(*rewards, strict=True):
        terms = [weight * reward for weight, reward in zip(weights, row, strict=True) if reward is not None]
        totals.append(sum(terms) if terms else None)
    return totals
