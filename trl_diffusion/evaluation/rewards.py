# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Calling reward functions outside a trainer, and checks on what they return."""

import asyncio
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import nn
from trl.trainer.utils import get_callable_name, is_async_callable


def checked_reward(reward_func: Callable | str | nn.Module, take_token_rewards: Callable | None = None):
    """Wrap a reward function so that a wrong result is reported at once, with the function's name and the value.

    Args:
        reward_func (`Callable`, `str` or `torch.nn.Module`):
            TRL's reward function, synchronous or not. Reward models (a name or a module) are passed through.
        take_token_rewards (`Callable`, *optional*):
            The function may then return a list of rewards for each completion, one for each of its tokens (EOS
            included). These lists are passed on to `take_token_rewards`, and the wrapper returns their sums.

    Returns:
        The same, or a wrapper with the same name.

    Raises (when the wrapper is called):
        ValueError: the number of rewards is not the number of completions, or of tokens, or one is NaN or infinite.
        TypeError: the result is no list, or a reward is neither a number nor None (nor a list, where lists are taken).
    """
    if isinstance(reward_func, (str, nn.Module)):
        return reward_func
    if not callable(reward_func):
        raise TypeError(
            f"reward_funcs has {reward_func!r}, a {type(reward_func).__name__}: give a function, a model or its name."
        )
    name = get_callable_name(reward_func)
    # What TRL does not pass must not break a function that takes just what TRL passes.
    withheld = () if _accepts(reward_func, "unmask_step") else ("unmask_step",)

    def check(result, kwargs) -> list[float | None]:
        rewards = _as_list(name, result, len(kwargs["completions"]))
        if take_token_rewards is None or not any(_is_list(reward) for reward in rewards):
            return [_check_number(name, reward, f"completion {row}") for row, reward in enumerate(rewards)]
        token_rewards = _check_token_rewards(name, rewards, kwargs["completion_ids"])
        take_token_rewards(token_rewards)
        return [None if own is None else float(sum(own)) for own in token_rewards]

    if is_async_callable(reward_func):

        async def wrapper(**kwargs):
            return check(await reward_func(**{k: v for k, v in kwargs.items() if k not in withheld}), kwargs)

    else:

        def wrapper(**kwargs):
            return check(reward_func(**{k: v for k, v in kwargs.items() if k not in withheld}), kwargs)

    # Not functools.wraps: a partial or a callable object has no __name__ of its own.
    functools.update_wrapper(wrapper, reward_func, assigned=("__doc__",), updated=())
    wrapper.__name__ = name
    return wrapper


def _accepts(function: Callable, argument: str) -> bool:
    try:
        takes = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a built-in without a signature
        return False
    return argument in takes or any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())


def _is_list(reward) -> bool:
    # Tensors and arrays of no dimension are numbers.
    return isinstance(reward, Sequence) and not isinstance(reward, str) or getattr(reward, "ndim", 0) > 0


def _as_list(name: str, rewards, expected: int) -> list:
    rewards = rewards.tolist() if hasattr(rewards, "tolist") else rewards
    if not isinstance(rewards, Sequence) or isinstance(rewards, str):
        raise TypeError(
            f"reward function {name!r} returned {rewards!r}: return a list with one reward per completion."
        )
    if len(rewards) != expected:
        raise ValueError(
            f"reward function {name!r} returned {len(rewards)} rewards for {expected} completions. Return one per "
            "completion, in order."
        )
    return list(rewards)


def _check_number(name: str, reward, place: str) -> float | None:
    if reward is None:
        return None
    if not isinstance(reward, (int, float)) and not _is_list(reward):
        reward = getattr(reward, "item", lambda bad=reward: bad)()
    if not isinstance(reward, (int, float)):
        raise TypeError(f"reward function {name!r} returned {reward!r} for {place}: give a number or None.")
    if not math.isfinite(reward):
        raise ValueError(
            f"reward function {name!r} returned {reward} for {place}. Return a finite number, or None where the "
            "reward does not apply."
        )
    return float(reward)


def _check_token_rewards(name: str, rewards: list, completion_ids: list[list[int]]) -> list[list[float] | None]:
    """Rewards per token, None for a completion that gets none; a None among them counts as 0."""
    checked: list[list[float] | None] = []
    for row, (own, ids) in enumerate(zip(rewards, completion_ids, strict=True)):
        if own is None:
            checked.append(None)
            continue
        if not _is_list(own):
            raise TypeError(
                f"reward function {name!r} returned {own!r} for completion {row} and a list for another: give a list "
                "of rewards per token for each completion, or None."
            )
        if len(own) != len(ids):
            raise ValueError(
                f"reward function {name!r} returned {len(own)} rewards per token for completion {row}, which has "
                f"{len(ids)} tokens. Return one per token of `completion_ids`, EOS included."
            )
        checked.append([_check_number(name, r, f"token {i} of completion {row}") or 0.0 for i, r in enumerate(own)])
    return checked


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
    Asynchronous ones run side by side. A list of rewards per token counts as its sum.

    Args:
        reward_funcs (`list[Callable]`):
            TRL reward functions, checked by [`checked_reward`].
        columns (`dict[str, list]`):
            The dataset's columns, one entry per completion, `prompt` among them; and `unmask_step`, as the trainers
            give it.
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
    results = [checked_reward(reward_func, _ignore)(**kwargs) for reward_func in reward_funcs]
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
