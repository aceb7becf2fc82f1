# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The field's evaluation protocol (d1's) as settings by name."""

from dataclasses import dataclass, field
from typing import Any

from ..generation import DiffusionGenerationConfig
from .generation_options import SETTINGS


# Settings that say how a model writes, not how it is decoded: they stay the model's own.
_OF_THE_MODEL = {"torch_compile", "suppress_tokens", "begin_suppress_tokens"}


@dataclass(frozen=True)
class Preset:
    """Settings of a published evaluation.

    Args:
        generation (`dict[str, Any]`):
            Fields of [`DiffusionGenerationConfig`].
        dtype (`str`):
            Of the weights.
        seed (`int`):
            Seed of what is drawn.
        num_test (`dict[str, int]`):
            Problems by task, the first ones; all of tasks that are not named.
    """

    generation: dict[str, Any]
    dtype: str
    seed: int
    num_test: dict[str, int] = field(default_factory=dict)


def _d1(length: int) -> Preset:
    # What the protocol does not name must not come from the model's generation_config.json either.
    defaults = vars(DiffusionGenerationConfig())
    generation = {name: defaults.get(name) for name in SETTINGS if name not in {*_OF_THE_MODEL, "seed"}}
    generation |= {
        "max_new_tokens": length,
        "num_denoising_steps": length // 2,
        "block_length": 32,
        "unmasking": "low_confidence",
        "temperature": 0.0,
    }
    sizes = {"gsm8k": 1319, "math500": 500, "countdown": 256, "countdown3": 256, "sudoku": 256}
    return Preset(generation, "bfloat16", 42, sizes)


PRESETS = {f"d1-{length}": _d1(length) for length in (128, 256, 512)}


def find_preset(name: str) -> Preset:
    """A preset by its name.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset={name!r} must be one of {', '.join(PRESETS)}.")
    return PRESETS[name]
