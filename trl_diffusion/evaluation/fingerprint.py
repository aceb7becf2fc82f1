# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What a folder of traces was made with, as plain values that are the same in every process."""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..generation import DiffusionGenerationConfig
from ..generation.unmasking import RULES
from ..models import diffusion_model
from ..tasks.fingerprint import describe, digest, weights_digest


# Fields of a model's config that say where it came from, or that the fingerprint has elsewhere (the block length as it
# is used, the dtype in the bytes of the weights).
_NO_SETTINGS = {
    "_name_or_path", "architectures", "auto_map", "block_length", "block_size", "dtype", "name_or_path",
    "transformers_version", "use_cache",
}  # fmt: skip


def model_fingerprint(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, generation_config: DiffusionGenerationConfig
) -> dict[str, Any]:
    """What decides, besides the data and the seed, what a model writes.

    Args:
        model (`torch.nn.Module`):
            A diffusion language model, with or without an adapter.
        tokenizer:
            Its tokenizer.
        generation_config ([`DiffusionGenerationConfig`]):
            Settings; what they leave to the model is filled in.

    Returns:
        `dict[str, Any]`: values for JSON, or that [`describe`] makes such.
    """
    family = diffusion_model(model)
    settings = generation_config.to_dict()
    settings.pop("transformers_version", None)
    settings["block_length"] = generation_config.block_length or family.block_length
    if settings.get("eos_token_id") is None:
        settings["eos_token_id"] = family.generation_config.eos_token_id
    if not isinstance(generation_config.unmasking, str):
        settings["unmasking"] = describe(generation_config.unmasking)
    return {
        "model": weights_digest(family),
        "model_config": {k: v for k, v in family.config.to_dict().items() if k not in _NO_SETTINGS},
        "adapters": _adapters(family),
        "tokenizer": digest([tokenizer.get_vocab(), tokenizer.all_special_ids]),
        "chat_template": digest(tokenizer.chat_template),
        "generation_config": settings,
    }


def _adapters(model: nn.Module) -> dict[str, Any]:
    """Which adapters take part; empty without any. Their weights are among the model's."""
    # peft takes seconds to import, and a model can only have its layers once something has imported it.
    if "peft" not in sys.modules:
        return {}
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    layers = []
    for name, module in model.named_modules():
        if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper)):
            scaling = module.scaling if isinstance(module, LoraLayer) else {}
            layers.append((name, list(module.active_adapters), not module.disable_adapters, scaling))
    if not layers:
        return {}
    return {
        "active": sorted({adapter for _, active, _, _ in layers for adapter in active}),
        "enabled": all(enabled for _, _, enabled, _ in layers),
        "layers": digest(layers),  # where they differ from each other
    }


def rule_identity(rule: Any) -> str:
    """What makes a rule the same one in a later call: of a policy its config and weights, in a folder their bytes. A
    Hub id stands for itself."""
    if isinstance(rule, PreTrainedModel):
        return digest([describe(rule), rule.config.to_dict()])
    if not isinstance(rule, str):
        return describe(rule)
    if rule in RULES or not os.path.isdir(rule):
        return rule
    files = [path for pattern in ("config.json", "*.safetensors") for path in sorted(Path(rule).glob(pattern))]
    return digest([[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in files])
