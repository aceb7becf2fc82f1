# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""LoRA adapters that were trained on a family's remote code, under the names of its modules there."""

import copy
import re
from typing import Any

import torch
from torch import nn

from .conversion import convert_name


# "base_model.model.model.transformer.blocks.0.q_proj.lora_A.weight" -> module, and what belongs to LoRA
_LORA_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+?)\.(?P<rest>lora_[A-Za-z_]+(?:\..+)?)")


class RemoteCodeAdapterMixin:
    """Adapters are loaded whole, under the library's names or the remote code's, or not at all."""

    def load_adapter(
        self,
        peft_model_id: str | None = None,
        adapter_name: str | None = None,
        peft_config: Any = None,
        adapter_state_dict: dict[str, torch.Tensor] | None = None,
        local_files_only: bool = False,
        adapter_kwargs: dict[str, Any] | None = None,
        load_config: Any = None,
        **kwargs,
    ):
        """[`~transformers.integrations.PeftAdapterMixin.load_adapter`] that knows the remote code's names too.

        The Auto classes call it when they are given an adapter. Arguments as in transformers.

        Raises:
            ValueError: the adapter cannot be translated, or its weights and the model's modules do not match.
        """
        if peft_model_id is not None:
            from peft import PeftConfig
            from peft.utils import load_peft_weights

            hub_kwargs = {**(getattr(load_config, "download_kwargs", None) or {}), **(adapter_kwargs or {})}
            hub_kwargs = {
                name: hub_kwargs[name]
                for name in ("cache_dir", "force_download", "revision", "subfolder", "token")
                if hub_kwargs.get(name) is not None
            }
            if local_files_only:
                hub_kwargs["local_files_only"] = True
            peft_config = peft_config or PeftConfig.from_pretrained(peft_model_id, **hub_kwargs)
            adapter_state_dict = load_peft_weights(peft_model_id, device="cpu", **hub_kwargs)
        if peft_config is not None and adapter_state_dict is not None:
            # DoRA's vectors are modules in the model and bare tensors in PEFT's files.
            adapter_state_dict = {
                f"{key}.weight" if key.endswith(".lora_magnitude_vector") else key: value
                for key, value in adapter_state_dict.items()
            }
            peft_config, adapter_state_dict = translate_adapter(self, peft_config, adapter_state_dict)
        adapter_name = adapter_name or "default"
        had = adapter_name in getattr(self, "peft_config", {})
        before = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        modes = [(module, module.training) for module in self.modules()]
        swapped = {
            name: parameter.detach().clone()
            for name, parameter in self.named_parameters()
            if had and _belongs_to(name, adapter_name)
        }
        try:
            info = super().load_adapter(
                adapter_name=adapter_name,
                peft_config=peft_config,
                adapter_state_dict=adapter_state_dict,
                load_config=load_config,
                **kwargs,
            )
            self._check_loaded(info, adapter_name, peft_model_id)
        except Exception:
            # transformers puts the adapter's modules in place, and swaps weights, before it sees what is missing.
            if not had and adapter_name in getattr(self, "peft_config", {}):
                self.delete_adapter(adapter_name)
            for name, parameter in self.named_parameters():
                if name in swapped:
                    parameter.data = swapped[name]
            for parameter, requires_grad in before:
                parameter.requires_grad_(requires_grad)
            for module, training in modes:
                module.training = training
            raise
        return info

    def _check_loaded(self, info, adapter_name: str, source: str | None):
        """Raise where the weights and the modules of one adapter do not match."""
        wrong = {
            "lacks": {key for key in info.missing_keys if _belongs_to(key, adapter_name)},
            "has weights without a place for": info.unexpected_keys,
            "has weights of other shapes for": {key[0] for key in info.mismatched_keys},
        }
        for what, keys in wrong.items():
            if keys:
                raise ValueError(
                    f"The adapter {source or adapter_name!r} {what} {len(keys)} weights of {type(self).__name__} (the "
                    f"first: {', '.join(sorted(keys)[:3])}). It was trained on another model, or is incomplete."
                )

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """`PeftModel.from_pretrained` puts adapters on the modules it finds, and drops the weights of the others
        without a word. Here is where those weights come by."""
        names = {name for name, _ in self.named_parameters()} | {name for name, _ in self.named_buffers()}
        adapted = any(".base_layer." in name or ".modules_to_save." in name for name in names)
        for key in state_dict if adapted else ():
            name = key.removeprefix(prefix)
            if name in names or not key.startswith(prefix):
                continue
            if ".lora_" in name or convert_name(self, name) != name:
                raise ValueError(
                    f"The adapter has weights for {name}, and its target_modules name no such module of "
                    f"{type(self).__name__}: it would be loaded in part. If it was trained on the model's remote "
                    "code, load it with `AutoModelForDiffusionLM.from_pretrained(adapter)`, which translates the "
                    "names; `save_pretrained` then writes an adapter that PEFT loads."
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _belongs_to(name: str, adapter_name: str) -> bool:
    """Whether a parameter is one of an adapter's."""
    return ".base_layer." not in name and adapter_name in name.split(".")[1:]


def translate_adapter(model: nn.Module, peft_config: Any, weights: dict[str, torch.Tensor]):
    """A LoRA adapter under the library's module names.

    Which modules it has is read off its weights: `target_modules` on the remote code may name modules that are called
    otherwise here, or two modules at once (LLaDA's `ff_out` is both a projection and the head).

    Args:
        model:
            The model the adapter is for.
        peft_config ([`~peft.PeftConfig`]):
            Its config.
        weights (`dict[str, torch.Tensor]`):
            Its weights, as PEFT saves them.

    Returns:
        The config and the weights; the same objects where the names are the library's already.

    Raises:
        ValueError: the adapter has remote-code names and is of a kind that has no translation.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer  # peft takes seconds to import

    keys = {key: _LORA_KEY.fullmatch(key) for key in weights}
    native = {match["module"]: convert_name(model, match["module"]) for match in keys.values() if match is not None}
    single = next((module for module in native if re.search(r"\.experts\.\d+\.", module)), None)
    if single is not None:
        raise ValueError(
            f"The adapter adapts {single}, a single expert of the remote code of {type(model).__name__}; experts are "
            "stacked in the native model: it is not translated."
        )
    others = [key for key, match in keys.items() if match is None]
    renamed_others = [key for key in others if convert_name(model, key) != key]
    if all(name == module for module, name in native.items()) and not renamed_others:
        return peft_config, weights

    family = type(model).__name__
    if peft_config.peft_type != "LORA":
        raise ValueError(
            f"The adapter is a {peft_config.peft_type} trained on the remote code of {family}; only LoRA adapters are "
            "translated to its native modules."
        )
    if others:
        raise ValueError(
            f"The adapter was trained on the remote code of {family} and holds weights that are not LoRA's "
            f"({', '.join(others[:3])}): modules_to_save and trained biases are not translated."
        )
    for field in ("rank_pattern", "alpha_pattern", "target_parameters"):
        if getattr(peft_config, field, None):
            raise ValueError(
                f"The adapter was trained on the remote code of {family} and its {field}="
                f"{getattr(peft_config, field)!r} names modules of it: that is not translated."
            )
    # Under an adapter that is there already, a module is inside PEFT's.
    modules = {
        name: module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        for name, module in model.named_modules()
        if ".base_layer" not in name and ".lora_" not in name
    }
    for module, name in native.items():
        if not isinstance(modules.get(name), (nn.Linear, nn.Embedding)):
            raise ValueError(
                f"The adapter was trained on the remote code of {family} and adapts {module}, which has no module of "
                "its own in the native model (fused there and split here, or the other way round): it is not "
                "translated."
            )
    config = copy.deepcopy(peft_config)
    config.target_modules = _short_names(set(native.values()), modules)
    # The weights say exactly which modules: what narrowed the choice down on the remote code has done its work.
    for field in ("layers_to_transform", "layers_pattern", "exclude_modules"):
        setattr(config, field, None)
    translated = {
        f"base_model.model.{native[match['module']]}.{match['rest']}": weights[key] for key, match in keys.items()
    }
    return config, translated


def _short_names(wanted: set[str], modules: dict[str, nn.Module]) -> set[str]:
    """`target_modules` for the modules wanted: the last part of their names, where that means no others."""
    short = set()
    for name in wanted:
        last = name.rpartition(".")[2]
        alike = {module for module in modules if module.rpartition(".")[2] == last}
        short.add(last if alike <= wanted else name)
    return short
