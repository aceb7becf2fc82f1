# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""A family's conversion rules applied to a state dict in memory."""

import copy

import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    apply_renamings,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)


def convert_state_dict(
    model: nn.Module, state_dict: dict[str, torch.Tensor], pending: dict[str, dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Weights under a family's Hub names, or the library's, as the model holds them.

    `from_pretrained` does this while it reads the files; this is for tensors that are in memory already.

    Args:
        model:
            A model of transformers.
        state_dict (`dict[str, torch.Tensor]`):
            Whole, or a part (a shard).
        pending (`dict[str, dict[str, torch.Tensor]]`):
            Parameter → the tensors there are of those it is put together from. What `state_dict` completes is taken
            out, what it leaves incomplete (a layer whose experts lie in several shards) is put in.

    Returns:
        `dict[str, torch.Tensor]`; tensors whose name the model knows are the same objects.
    """
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    renamed = {key: rename_source_key(key, renamings, converters) for key in state_dict}
    if not pending and all(pattern is None for _, pattern in renamed.values()):
        return {name: state_dict[key] for key, (name, _) in renamed.items()}
    whole = _hub_keys_by_name(model, renamings, converters)
    converted = {}
    for key, (name, pattern) in renamed.items():
        if pattern is None:
            converted[name] = state_dict[key]
        elif key in whole.get(name, set()):
            pending.setdefault(name, {})[key] = state_dict[key]
        else:
            converted[key] = state_dict[key]  # of another model: load_state_dict reports it
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    for name in [name for name, tensors in pending.items() if tensors.keys() == whole[name]]:
        tensors, converter = pending.pop(name), None
        for key in sorted(tensors, key=dot_natural_key):  # experts in the order of their numbers
            _, pattern = rename_source_key(key, renamings, converters)
            converter = converter or copy.deepcopy(by_pattern[pattern])
            converter.add_tensor(name, key, pattern, tensors[key])
        for target, tensor in converter.convert(name, model=model, config=model.config).items():
            converted[target] = tensor[0] if isinstance(tensor, list) else tensor
    return converted


def _hub_keys_by_name(model: nn.Module, renamings, converters) -> dict[str, set[str]]:
    """Name that a converter's result is collected under → the Hub keys of a whole checkpoint that go into it."""
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in model.state_dict().items()}
    keys: dict[str, set[str]] = {}
    for key in revert_weight_conversion(model, shapes):
        name, pattern = rename_source_key(key, renamings, converters)
        if pattern is not None:
            keys.setdefault(name, set()).add(key)
    return keys


def convert_name(model: nn.Module, name: str) -> str:
    """The library's name of a module or parameter that may bear its Hub name."""
    rules = get_model_conversion_mapping(model)
    return apply_renamings(name, [rule for rule in rules if isinstance(rule, WeightRenaming)])
