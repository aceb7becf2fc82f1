# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""A value for every token that is still to be drawn."""

import copy
import glob
import json
import os
import sys
from typing import Literal

import torch
from huggingface_hub import save_torch_state_dict, snapshot_download
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from .modeling import DiffusionModelMixin, DiffusionModelWrapper, diffusion_model


VALUE_CONFIG = "value_config.json"
_WEIGHTS = "value_model{suffix}.safetensors"
TRAINED_PARTS = ("full", "lora", "head")


class ValueHead(nn.Module):
    """A bias-free linear map to one number, zero at the start, in fp32 (fp64 stays fp64)."""

    def __init__(self, hidden_size: int, dtype: torch.dtype, device: torch.device):
        super().__init__()
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.weight = nn.Parameter(torch.zeros(1, hidden_size, dtype=dtype, device=device))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(…, H) → (…, 1)."""
        with torch.autocast(hidden_states.device.type, enabled=False):
            return nn.functional.linear(hidden_states.to(self.weight.dtype), self.weight)


class DiffusionValueModel(DiffusionModelWrapper):
    """The value model of TraceRL (arXiv 2509.06949, section 4.3), for any family: the policy's backbone, and a
    zero-initialised, bias-free linear head to one number in place of the vocabulary.

    It is called as the policy is, and its "logits" are values: [`~trl_diffusion.likelihood.value_view`] reads them
    where the policy's logits of the same tokens are read (of a family with shifted logits one place to the left).

    Args:
        backbone ([`DiffusionModelMixin`]):
            A diffusion language model of its own, whose head is replaced.
        trains (`str`, *optional*, defaults to `"full"`):
            Which weights are trained. `"full"`: all. `"lora"`: the head, and adapters on every linear layer of the
            backbone, which is frozen. `"head"`: the head alone.
        lora_r (`int`, *optional*, defaults to 16):
            Rank of the adapters; their alpha is twice that.

    Raises:
        ValueError: `trains` is none of these, or `"full"` with quantized weights.
    """

    def __init__(
        self, backbone: DiffusionModelMixin, trains: Literal["full", "lora", "head"] = "full", lora_r: int = 16
    ):
        super().__init__()
        if trains not in TRAINED_PARTS:
            raise ValueError(f"trains={trains!r} must be one of {', '.join(TRAINED_PARTS)}.")
        if trains == "full" and not all(parameter.is_floating_point() for parameter in backbone.parameters()):
            raise ValueError(
                "trains='full' cannot train quantized weights. Use 'lora' or 'head', or load the policy without "
                "quantization_config."
            )
        self.trains, self.lora_r = trains, lora_r
        # Parameters that are somebody else's: they are neither trained nor saved here.
        self.shared_names: set[str] = set()
        reference = next(backbone.get_input_embeddings().parameters())
        backbone.config.tie_word_embeddings = False  # whoever ties weights anew must not take the head for one
        backbone.requires_grad_(False)
        if trains == "full":
            backbone.requires_grad_(True)
        elif trains == "lora":
            from peft import LoraConfig, inject_adapter_in_model
            from peft.tuners.tuners_utils import cast_adapter_dtype

            settings = LoraConfig(r=lora_r, lora_alpha=2 * lora_r, target_modules="all-linear")
            backbone = inject_adapter_in_model(settings, backbone, adapter_name="value")
            cast_adapter_dtype(backbone, "value")  # fp32, as PEFT does where it wraps a model
        backbone.set_output_embeddings(ValueHead(backbone.config.hidden_size, reference.dtype, reference.device))
        self.backbone = backbone

    @classmethod
    def from_policy(
        cls, policy: nn.Module, trains: Literal["full", "lora", "head"] = "full", lora_r: int = 16
    ) -> "DiffusionValueModel":
        """A value model on the policy's backbone as it is now, without the policy's adapters.

        With `"lora"` and `"head"` the frozen weights of a policy that is an adapter itself are shared with it, so that
        the value model takes the memory of what it trains. Weights that the policy trains are copied.

        Args:
            policy (`torch.nn.Module`):
                A diffusion language model, with or without an adapter.
            trains, lora_r:
                As in the class.
        """
        family = diffusion_model(policy)
        memo = {} if trains == "full" else {id(p): p for p in family.parameters() if not p.requires_grad}
        shared = set(memo)
        # The head stays behind; it may be as large as several layers.
        memo[id(family.get_output_embeddings())] = nn.Identity()
        if "peft" in sys.modules:
            from peft.tuners.tuners_utils import BaseTunerLayer
            from peft.utils import AuxiliaryTrainingWrapper

            for module in family.modules():
                if isinstance(module, BaseTunerLayer):
                    memo[id(module)] = copy.deepcopy(module.get_base_layer(), memo)
                elif isinstance(module, AuxiliaryTrainingWrapper):
                    memo[id(module)] = copy.deepcopy(module.original_module, memo)
        backbone = copy.deepcopy(family, memo)
        # TRL's and accelerate's wrappers of the policy's forward pass are closures over the policy.
        for name in ("forward", "_original_forward", "peft_config"):
            vars(backbone).pop(name, None)
        # PEFT's, for activation checkpointing: through a frozen backbone nothing is to be back-propagated.
        hooks = backbone.get_input_embeddings()._forward_hooks
        for key, hook in list(hooks.items()):
            if getattr(hook, "__name__", None) == "make_inputs_require_grads":
                del hooks[key]
        value_model = cls(backbone, trains, lora_r)
        value_model.shared_names = {name for name, p in value_model.named_parameters() if id(p) in shared}
        return value_model

    def forward(self, *args, **kwargs):
        """The backbone's forward pass; its `logits` are values, one for each position asked for: (n, 1)."""
        return self.backbone(*args, **kwargs)

    # Files

    def own_state_dict(self) -> dict[str, torch.Tensor]:
        """The weights that are not shared with a policy."""
        # Of the state of quantized layers, which are always shared, much is neither a parameter nor a buffer.
        names = {name for name, _ in (*self.named_parameters(), *self.named_buffers())} - self.shared_names
        return {name: tensor for name, tensor in self.state_dict().items() if name in names}

    def save_pretrained(self, save_directory: str | os.PathLike, max_shard_size: str = "5GB"):
        """Write the weights that are the value model's own, the backbone's config and `value_config.json`.

        Args:
            save_directory (`str`):
                Folder; made where it is absent.
            max_shard_size (`str`, *optional*, defaults to `"5GB"`):
                Size of a file of weights.
        """
        os.makedirs(save_directory, exist_ok=True)
        self.backbone.config.dtype = next(self.backbone.get_input_embeddings().parameters()).dtype
        self.backbone.config.save_pretrained(save_directory)
        save_torch_state_dict(
            self.own_state_dict(), save_directory, filename_pattern=_WEIGHTS, max_shard_size=max_shard_size
        )
        content = {"trains": self.trains, "lora_r": self.lora_r, "shares_policy": bool(self.shared_names)}
        # Last: a folder that has it is whole.
        path = os.path.join(save_directory, VALUE_CONFIG)
        with open(f"{path}.tmp", "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
        os.replace(f"{path}.tmp", path)

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike, policy: nn.Module | None = None, revision: str | None = None
    ) -> "DiffusionValueModel":
        """Load what [`save_pretrained`] wrote.

        Args:
            path (`str`):
                A folder, or a repository on the Hub whose folder `value_model` is one.
            policy (`torch.nn.Module`, *optional*):
                Needed where the frozen weights were shared with a policy: that policy.
            revision (`str`, *optional*):
                Revision on the Hub.

        Raises:
            ValueError: the folder holds no value model, its weights are not all there or do not fit, or it shares
                weights with a policy and none is given.
        """
        folder = os.fspath(path)
        if not os.path.isdir(folder):
            folder = os.path.join(
                snapshot_download(folder, revision=revision, allow_patterns="value_model/*"), "value_model"
            )
        try:
            with open(os.path.join(folder, VALUE_CONFIG), encoding="utf-8") as file:
                content = json.load(file)
        except OSError as error:
            raise ValueError(f"{path}: no value model is there ({VALUE_CONFIG} is missing).") from error
        if content["shares_policy"]:
            if policy is None:
                raise ValueError(
                    f"{path}: this value model (trains={content['trains']!r}) shares frozen weights with its policy. "
                    "Pass policy=."
                )
            value_model = cls.from_policy(policy, content["trains"], content["lora_r"])
        else:
            config = AutoConfig.from_pretrained(folder)
            backbone = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
            value_model = cls(backbone, content["trains"], content["lora_r"])
        value_model.load_weights(folder)
        return value_model

    def load_weights(self, folder: str | os.PathLike):
        """Take the weights of a folder that [`save_pretrained`] wrote.

        Raises:
            ValueError: the weights of the folder are not those of this value model.
        """
        found: dict[str, torch.Tensor] = {}
        for file in sorted(glob.glob(os.path.join(glob.escape(folder), _WEIGHTS.format(suffix="*")))):
            found |= load_file(file)
        wanted = self.own_state_dict()
        wrong = sorted(
            {name for name in found.keys() | wanted.keys() if name not in found or name not in wanted}
            | {name for name in found.keys() & wanted.keys() if found[name].shape != wanted[name].shape}
        )
        if wrong:
            raise ValueError(
                f"{folder}: its weights are not those of this value model (trains={self.trains!r}, "
                f"lora_r={self.lora_r}); {len(wrong)} differ, the first: {', '.join(wrong[:3])}. It must be built as "
                "the saved one was: the same value_model and kind of policy."
            )
        nn.Module.load_state_dict(self, found, strict=False)
