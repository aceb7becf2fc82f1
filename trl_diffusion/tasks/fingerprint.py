# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Settings of a call as plain values that are the same in every process, so that a later call can be compared."""

import functools
import hashlib
import json
import re
import types
from pathlib import Path
from typing import Any

import torch
from torch import nn


def describe(value: Any) -> str:
    """A value, a callable above all, in words that are the same in every process.

    A function is its module and name, a `functools.partial` that and its arguments, a method that and its object, a
    module of torch its class and the digest of its weights, a number itself, and anything else its class and a digest
    of its `repr`: keys may be among arguments and attributes, and descriptions are written to files. What a
    function does, and what it closes over, is not in it.
    """
    if isinstance(value, functools.partial):
        arguments = [*map(describe, value.args), *(f"{k}={describe(v)}" for k, v in sorted(value.keywords.items()))]
        return f"partial({', '.join([describe(value.func), *arguments])})"
    if isinstance(value, types.MethodType):
        return f"{describe(value.__self__)}.{value.__name__}"
    if isinstance(value, nn.Module):
        return f"{_path(type(value))}(weights {weights_digest(value)})"
    # An object with __call__ has no name of its own.
    if callable(value) and hasattr(value, "__qualname__"):
        return _path(value)
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    return f"{_path(type(value))} {_repr_digest(value)}"


def digest(content: Any) -> str:
    """Of plain values; of others their description."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=describe).encode()).hexdigest()[:16]


def weights_digest(model: nn.Module) -> str:
    """Of every byte of every weight, so that it depends neither on the device nor on the order of a sum."""
    state = hashlib.sha256()
    saved = set(model.state_dict())  # buffers that are not saved can be computed
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name in saved]
    for name, weight in (*model.named_parameters(), *buffers):
        state.update(f"{name} {list(weight.shape)}\n".encode())
        # numpy has no bfloat16, and a scalar no other view.
        state.update(weight.detach().flatten().contiguous().view(torch.uint8).cpu().numpy())
    return state.hexdigest()[:16]


def _path(named: Any) -> str:
    return f"{named.__module__}.{named.__qualname__}"


def _repr_digest(value: Any) -> str:
    # An address is another one in the next process.
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def compare_settings(old: dict[str, Any], new: dict[str, Any], folder: Path, content: str, prefix: str = ""):
    """Refuse to go on in a folder that another call has written.

    Args:
        old, new (`dict`):
            Settings the folder was begun with, and those of this call. Dictionaries are compared entry by entry.
        folder (`Path`):
            The folder.
        content (`str`):
            What it holds, for the error.
        prefix (`str`, *optional*, defaults to `""`):
            Put before the names.

    Raises:
        ValueError: they differ; names the first setting that does.
    """
    found = first_difference(old, new, prefix)
    if found is not None:
        name, was, given = found
        raise ValueError(
            f"output_dir={str(folder)!r} has {content} of another call: {name} was {was!r} and is {given!r}. Give "
            "another folder, or the same settings."
        )


def first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> tuple[str, Any, Any] | None:
    """Name and values of the first setting that differs, dictionaries entry by entry; `None` where none does."""
    for name in sorted(old.keys() | new.keys()):
        was, given = old.get(name), new.get(name)
        if isinstance(was, dict) and isinstance(given, dict):
            found = first_difference(was, given, f"{prefix}{name}.")
            if found is not None:
                return found
        elif was != given:
            return f"{prefix}{name}", was, given
    return None
