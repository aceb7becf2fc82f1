# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Settings of a run as JSON, without what must not be shared."""

import json
import math
import os
import re
import shlex
import sys
from enum import Enum
from importlib.metadata import version
from typing import Any


TRAINING_ARGS = "training_args.json"
# What tokens of the Hub and other keys look like, wherever they stand, and where addresses hold some.
_SECRETS = (
    (re.compile(r"hf_(?:oauth|jwt)_[\w.-]{20,}|hf_[A-Za-z0-9]{20,}"), "hf_…"),
    (re.compile(r"\bapi_org_[A-Za-z0-9]{20,}"), "api_org_…"),
    (re.compile(r"\bsk-[\w-]{20,}"), "sk-…"),
    (re.compile(r"(?<=://)[^/\s@]+(?=@)"), "…"),
    (re.compile(r"(?i)(?<=[?&])([\w.-]*(?:token|key|signature|sig|secret|password)=)[^&\s'\"]+"), r"\1…"),
)
# What `trl-diffusion` is in processes that `accelerate launch` starts, and without the console command.
_OWN_MODULES = ("trl_diffusion.scripts.training", "trl_diffusion.scripts.cli")
_SPECIAL_TOKENS = ("pad_token", "eos_token", "bos_token", "mask_token")
_SECRET_ENDINGS = (
    "token",
    "api_key",
    "access_key",
    "private_key",
    "apikey",
    "password",
    "passwd",
    "secret",
    "credentials",
    "authorization",
)


def without_secrets(content: Any) -> Any:
    """The same settings as JSON types, without tokens, at any depth."""
    if isinstance(content, dict):
        kept = {str(key): value for key, value in content.items() if not _is_secret(str(key).lower())}
        return {key: without_secrets(value) for key, value in kept.items()}
    if isinstance(content, (list, tuple)):
        return [without_secrets(value) for value in content]
    if isinstance(content, Enum):
        return without_secrets(content.value)
    if content is None or isinstance(content, (bool, int)):
        return content
    if isinstance(content, float) and math.isfinite(content):
        return content
    return _masked(str(content))


def _masked(text: str) -> str:
    """A text without what looks like a secret."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def _masked_argument(argument: str) -> str:
    """An argument of a command line; JSON in it may name a secret."""
    before, brace, after = argument.partition("{")
    if brace and (not before or before.endswith("=")):
        try:
            return before + json.dumps(without_secrets(json.loads(brace + after)), ensure_ascii=False)
        except ValueError:
            pass
    return _masked(argument)


def _is_secret(name: str) -> bool:
    return name not in _SPECIAL_TOKENS and name.endswith(_SECRET_ENDINGS)


def write_json(content: Any, path: str):
    """Whole, or not at all."""
    with open(f"{path}.tmp", "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    os.replace(f"{path}.tmp", path)


def write_training_args(
    folder: str, repo_id: str, trainer: str, arguments: dict[str, Any], quantization: str | None = None
):
    """Write `training_args.json`: which trainer, and its arguments without secrets.

    Args:
        folder (`str`):
            Where the model is.
        repo_id (`str`):
            What its card's quick start loads: a Hub id or a folder.
        trainer (`str`):
            Name of the trainer's class.
        arguments (`dict`):
            Its config, as a dict.
        quantization (`str`, *optional*):
            How the base of an adapter was quantized in training.
    """
    content = {"repo_id": repo_id, "trainer": trainer, "trl_diffusion": version("trl-diffusion")}
    content["base_quantization"] = quantization
    write_json({**content, "arguments": without_secrets(arguments)}, os.path.join(folder, TRAINING_ARGS))


def read_training_args(folder: str) -> dict[str, Any]:
    """What [`write_training_args`] wrote; empty where there is none."""
    path = os.path.join(folder, TRAINING_ARGS)
    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def own_command() -> str | None:
    """The command that started this process, for a card, without the values of options that are secrets; `None` where
    it is no script or console command, but another's module or a notebook's kernel."""
    program = sys.argv[0]
    module = getattr(sys.modules.get("__main__"), "__spec__", None)  # of `python -m`
    as_module = module is not None and module.origin == program
    if os.path.basename(program) == "trl-diffusion" or (as_module and module.name in _OWN_MODULES):
        words = ["trl-diffusion"]
    elif (
        not as_module
        and program.endswith(".py")
        and os.path.basename(program) not in ("__main__.py", "ipykernel_launcher.py")
    ):
        words = ["python", program]
    else:
        return None
    words = [shlex.quote(word) for word in words]
    hidden = False
    for argument in sys.argv[1:]:
        name, equals, _ = argument.lstrip("-").partition("=")
        is_option = argument.startswith("-")
        secret = is_option and _is_secret(name.lower().replace("-", "_"))
        if hidden and not is_option:
            words.append("…")
        elif secret and equals:
            words.append(f"--{name}=…")
        else:
            words.append(shlex.quote(_masked_argument(argument)))
        hidden = secret and not equals
    return " ".join(words)
