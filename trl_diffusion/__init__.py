# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Post-training of diffusion language models in the style of Hugging Face TRL.

Importing the package registers its model families with transformers' Auto classes. Trainers are imported on first
use, since TRL takes seconds to load.
"""

from importlib import import_module

from . import models  # noqa: F401  (registers the families)
from .generation import DiffusionGenerationConfig, Rollout


__version__ = "0.1.0"

_LAZY = {
    "AutoModelForDiffusionLM": "models",
    "DiffusionValueModel": "models",
    "MaskedView": "likelihood",
    "align_lengths": "tasks",
    "collect_traces": "evaluation.traces",
    "DiffusionSFTConfig": "trainer",
    "DiffusionSFTTrainer": "trainer",
    "DiffusionGRPOConfig": "trainer",
    "DiffusionGRPOTrainer": "trainer",
    "BGPOConfig": "trainer",
    "IGPOConfig": "trainer",
    "IGPOTrainer": "trainer",
    "BGPOTrainer": "trainer",
    "TraceRLConfig": "trainer",
    "TraceRLTrainer": "trainer",
    "UnmaskPolicyConfig": "trainer",
    "UnmaskPolicyModel": "models",
    "UnmaskPolicyModelConfig": "models",
    "UnmaskPolicyTrainer": "trainer",
}

__all__ = ["DiffusionGenerationConfig", "Rollout", *_LAZY]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__():
    return sorted(set(globals()) | set(__all__))
