# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Checks on what reward functions return."""

import functools
import math
from collections.abc import Callable, Sequence

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
