# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""`trl-diffusion env`: what a bug report needs to say. Nothing heavy is imported before it runs."""

import io
import os
import re
from argparse import ArgumentParser, Namespace
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, requires, version

from .. import __version__


DESCRIPTION = (
    "Print versions, hardware, model families, installed extras and attention implementations, for a bug report: "
    "no tokens, and ~ for the home folder."
)


def add_arguments(parser: ArgumentParser):
    """There are none."""


def run(args: Namespace):
    """Print what TRL says of the environment, and ours."""
    print(describe())


def describe() -> str:
    """The report, as lines of Markdown."""
    from transformers.utils import logging as transformers_logging
    from trl.scripts.env import print_env
    from trl.scripts.utils import get_git_commit_hash

    from ..models.auto import supported_model_types

    transformers_logging.set_verbosity_error()
    text = io.StringIO()
    with redirect_stdout(text):
        print_env()
    lines = [line for line in text.getvalue().splitlines() if line.lstrip().startswith("- ")]
    commit = get_git_commit_hash("trl_diffusion")
    ours = {
        "TRL-diffusion version": f"{__version__}+{commit[:7]}" if commit else __version__,
        "Model families": ", ".join(supported_model_types()),
        "Attention implementations": ", ".join(_attention_implementations()),
        **_extras(),
    }
    lines = [*(f"- {name}: {value}" for name, value in ours.items()), *lines]
    return _without_home("\n".join(lines))


def _attention_implementations() -> list[str]:
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available, is_torch_flex_attn_available

    there = {
        "eager": True,
        "sdpa": True,
        "flex_attention": is_torch_flex_attn_available(),
        "flash_attention_2": is_flash_attn_2_available(),
        "flash_attention_3": is_flash_attn_3_available(),
    }
    return [name for name, is_there in there.items() if is_there]


def _extras() -> dict[str, str]:
    """For each extra of the package whether what it asks for is installed."""
    try:
        requirements = requires("trl-diffusion") or []
    except PackageNotFoundError:
        return {"Extras": "unknown, since the package is not installed"}
    missing: dict[str, list[str]] = {}
    for requirement in requirements:
        name, extra = re.match(r"[\w.-]+", requirement)[0], re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if extra is None:
            continue
        absent = missing.setdefault(extra[1], [])
        try:
            version(name)
        except PackageNotFoundError:
            absent.append(name)
    says = {extra: f"no ({', '.join(names)} not installed)" if names else "yes" for extra, names in missing.items()}
    return {"Extras": "; ".join(f"{extra}: {word}" for extra, word in says.items())}


def _without_home(text: str) -> str:
    """Paths in a bug report need not say who the user is."""
    home = os.path.expanduser("~").rstrip("/\\")
    return re.sub(re.escape(home) + r"(?=[/\\]|$)", "~", text, flags=re.MULTILINE) if home else text
