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
)


def convert_state_dict(model: nn.Module, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights under a family's Hub names, or the library's, as the model holds them.

    `from_pretrained` does this while it reads the files; this is for tensors that are in memory already.

    Args:
        model:
            A model of transformers.
        state_dict (`dict[str, torch.Tensor]`):
            Whole or a part, but with all the experts of a layer, where it has any.

    Returns:
        `dict[str, torch.Tensor]`; tensors whose name the model knows are the same objects.
    """
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    converted, pending = {}, {}
    for key in sorted(state_dict, key=dot_natural_key):  # experts in the order of their numbers
        name, pattern = rename_source_key(key, renamings, converters)
        if pattern is None:
            converted[name] = state_dict[key]
            continue
        converter = pending.setdefault(name, copy.deepcopy(by_pattern[pattern]))
        converter.add_tensor(name, key, pattern, state_dict[key])
    for name, converter in pending.items():
        for target, tensor in converter.convert(name, model=model, config=model.config).items():
            converted[target] = tensor[0] if isinstance(tensor, list) else tensor
    return converted


def convert_name(model: nn.Module, name: str) -> str:
    """The library's name of a module or parameter that may bear its Hub name."""
    rules = get_model_conversion_mapping(model)
    return apply_renamings(name, [rule for rule in rules if isinstance(rule, WeightRenaming)])
