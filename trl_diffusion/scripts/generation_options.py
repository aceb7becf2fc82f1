# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Options of the commands that generate: which model, and every setting of [`DiffusionGenerationConfig`]."""

import copy
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import find_adapter_config_file

from ..checkpoints import tiny_checkpoint, tiny_checkpoints, tiny_policies, tiny_policy
from ..generation import DiffusionGenerationConfig
from ..generation.checks import check_settings
from ..generation.configuration import CACHES, STEP_SCHEDULES, rule_path
from ..generation.unmasking import RULES
from ..hub import hub_advice
from ..models import AutoModelForDiffusionLM, DiffusionModelMixin, diffusion_model
from .dotted_path import import_dotted


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _token_ids(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _rule(text: str) -> str | Callable:
    """The name of a rule as it is, that of a tiny policy as its folder; a dotted path is imported, since the user
    typed it."""
    if text in tiny_policies() and not os.path.exists(text):
        return str(tiny_policy(text))
    if text in RULES or "." not in text or "/" in text or os.path.isdir(text):
        return text
    rule = import_dotted("unmasking", text)
    if not callable(rule):
        raise ValueError(f"unmasking={text!r} is a {type(rule).__name__}. Name a function of an UnmaskingState.")
    return rule


# Parser → what its text must be. "none" is read as None, but by `str` and `_rule`, whose values are words.
_KINDS = {
    int: "a whole number, or none",
    float: "a number, or none",
    _boolean: "true or false",
    _token_ids: "token ids joined by commas, or none",
}
# Setting → parser, placeholder and help.
SETTINGS: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "max_new_tokens": (int, "N", "Length of the canvas, in tokens."),
    "block_length": (int, "N", "Tokens per block; blocks are filled from left to right."),
    "num_denoising_steps": (int, "N", "Steps over the whole canvas; none: one token per step."),
    "unmasking": (
        _rule,
        "RULE",
        f"Which positions a step commits: {', '.join(RULES)}, the folder or Hub id of a learned policy, or the "
        "dotted path of a function (package.module.function, also of a module in the current folder).",
    ),
    "threshold": (float, "X", "Of unmasking=threshold: confidence from which a position is committed."),
    "factor": (float, "X", "Of unmasking=factor."),
    "entropy_bound": (float, "NATS", "Of unmasking=entropy_bounded."),
    "alg_temp": (float, "X", "Temperature of the choice of positions; 0: the best ones."),
    "policy_temperature": (float, "X", "Of a learned policy: divides its logits; none: as it was trained."),
    "policy_beta": (float, "X", "Of a learned policy: multiplies its probabilities; more than 1 is faster."),
    "step_schedule": (str, "NAME", f"How tokens are shared out over the steps: {', '.join(STEP_SCHEDULES)}."),
    "cache": (str, "NAME", f"Keys and values that steps reuse: {', '.join(CACHES)}."),
    "cache_refresh_interval": (int, "N", "Steps after which cache=prefix or dual computes everything anew."),
    "torch_compile": (_boolean, "BOOL", "Compile the forward pass of a step: true or false."),
    "temperature": (float, "X", "Divides the logits; 0 takes the most probable token."),
    "top_k": (int, "N", "Draw among the N most probable tokens."),
    "top_p": (float, "P", "Draw among the most probable tokens that make up P."),
    "guidance_scale": (float, "X", "Classifier-free guidance; 1: off."),
    "seed": (int, "N", "Seed of the draws; none: another one at every run."),
    "suppress_tokens": (_token_ids, "IDS", "Ids of tokens never drawn, joined by commas."),
    "begin_suppress_tokens": (_token_ids, "IDS", "Ids never drawn at the first position, joined by commas."),
}


def add_arguments(parser: ArgumentParser, needs_model: bool = True):
    """The options of the model and of the generation; texts of settings are read by [`given_settings`]."""
    loading = parser.add_argument_group("model")
    loading.add_argument(
        "--model",
        required=needs_model,
        help=f"Folder or Hub id of a model or a PEFT adapter, or a tiny checkpoint: {', '.join(tiny_checkpoints())}.",
    )
    loading.add_argument("--revision", help="Revision on the Hub.")
    loading.add_argument("--dtype", default="auto", help="Of the weights (default: the checkpoint's).")
    loading.add_argument("--device", help="E.g. cpu or cuda:1 (default: cuda where there is a GPU, else cpu).")
    loading.add_argument("--attn_implementation", help="E.g. sdpa, eager, flex_attention (default: transformers').")
    group = parser.add_argument_group(
        "generation settings",
        "Those not given are the model's own (generation_config.json); `none` takes back a number it sets.",
    )
    for name, (_, metavar, text) in SETTINGS.items():
        group.add_argument(f"--{name}", metavar=metavar, help=text)


def parse_setting(name: str, text: str) -> Any:
    """Value of a setting, from its text on the command line or in the chat.

    Raises:
        ValueError: there is no setting of this name, the text does not say such a value, or the dotted path of a rule
            cannot be imported.
    """
    if name not in SETTINGS:
        raise ValueError(f"{name}={text!r} is not a setting. There are: {', '.join(SETTINGS)}.")
    parse = SETTINGS[name][0]
    if parse not in _KINDS:
        return parse(text)
    if text.lower() == "none":
        return None
    try:
        return parse(text)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{name}={text!r} must be {_KINDS[parse]}.") from error


def given_settings(args: Namespace) -> dict[str, Any]:
    """The settings that stand on the command line.

    Raises:
        ValueError: as [`parse_setting`].
    """
    texts = {name: getattr(args, name) for name in SETTINGS}
    return {name: parse_setting(name, text) for name, text in texts.items() if text is not None}


def describe_setting(config: DiffusionGenerationConfig, name: str) -> str:
    """`name=value`, as [`parse_setting`] reads it."""
    value = getattr(config, name)
    if value is None:
        return f"{name}=none"
    if isinstance(value, bool):
        return f"{name}={str(value).lower()}"
    if isinstance(value, (list, tuple)):
        return f"{name}={','.join(map(str, value))}"
    if callable(value):
        return f"{name}={rule_path(value) or type(value).__name__}"
    return f"{name}={value}"


def with_settings(
    model: DiffusionModelMixin, config: DiffusionGenerationConfig, settings: dict[str, Any]
) -> DiffusionGenerationConfig:
    """A copy of the config with other values, checked together, and against the model.

    Raises:
        ValueError: a value is out of range, does not go with another, or is nothing that the model can serve.
    """
    config = copy.copy(config)
    for name, value in settings.items():
        setattr(config, name, value)
    config.validate()
    check_settings(model, config)
    return config


def load_model(args: Namespace) -> tuple[DiffusionModelMixin, PreTrainedTokenizerBase]:
    """The model on its device, and its tokenizer: an adapter's own, or else that of its base model.

    Raises:
        ValueError: `dtype`, `device` or `model` names nothing that can be loaded.
        TypeError: the model has no mask token (DiffusionGemma).
    """
    name, dtype = args.model, args.dtype
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"dtype={dtype!r} must be auto, or one of torch's: float32, bfloat16, float16.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's own, for a word it does not know and for a missing GPU
        raise ValueError(f"device={device!r} cannot be used: {str(error).splitlines()[0]}") from error
    path = str(tiny_checkpoint(name)) if name in tiny_checkpoints() and not os.path.exists(name) else name
    try:
        model = AutoModelForDiffusionLM.from_pretrained(
            path,
            revision=args.revision,
            dtype=dtype,
            device_map=device,
            attn_implementation=args.attn_implementation,
        )
        source, revision = path, args.revision
        adapter = find_adapter_config_file(path, revision=revision)
        if adapter is not None and not get_tokenizer_config(path, revision=revision):
            source, revision = model.config.name_or_path, None
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, padding_side="left", trust_remote_code=False
        )
    except OSError as error:
        if os.path.isdir(path):
            raise
        # transformers' message for an id that is not there names no id.
        raise ValueError(
            f"model={name!r} is no folder and no tiny checkpoint ({', '.join(tiny_checkpoints())}), and did not come "
            f"from the Hub: {hub_advice(error, path) or str(error).splitlines()[0]}"
        ) from error
    return diffusion_model(model).eval(), tokenizer
