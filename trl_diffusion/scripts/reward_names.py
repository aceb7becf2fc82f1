# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Reward functions by their names."""

import inspect
from collections.abc import Callable

from ..tasks import (
    arithmetic_format_reward,
    arithmetic_reward,
    countdown_reward,
    sudoku_reward,
    sudoku_solved_reward,
)
from .dotted_path import import_dotted


_REWARDS = {
    "sudoku_reward": sudoku_reward,
    "sudoku_solved_reward": sudoku_solved_reward,
    "countdown_reward": countdown_reward,
    "arithmetic_reward": arithmetic_reward,
    "arithmetic_format_reward": arithmetic_format_reward,
}


def load_reward(name: str) -> Callable:
    """A reward function by name: `sudoku_reward`, `sudoku_solved_reward`, `countdown_reward`, `arithmetic_reward`,
    `arithmetic_format_reward`, one of `trl.rewards`, or a dotted path.

    Raises:
        ValueError: there is no such function, or it makes a reward function instead of being one.
    """
    import trl.rewards

    if name in _REWARDS:
        return _REWARDS[name]
    if name in trl.rewards.__all__:
        return _reward_function(getattr(trl.rewards, name), name)
    if "." not in name:
        raise ValueError(
            f"reward_funcs has {name!r}: give {', '.join(map(repr, _REWARDS))}, the name of a function in "
            "trl.rewards, or a dotted path such as 'my_rewards.length_reward'."
        )
    return _reward_function(import_dotted("reward_funcs", name), name)


def _reward_function(found, name: str) -> Callable:
    try:
        takes = inspect.signature(found).parameters
    except (TypeError, ValueError):  # not callable, or a built-in without a signature
        takes = {}
    if "completions" not in takes and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        raise ValueError(
            f"reward_funcs has {name!r}, which is no reward function: it takes no `completions`. Name a function "
            "f(prompts, completions, completion_ids, **kwargs); wrap one that first needs settings in your own module."
        )
    return found
