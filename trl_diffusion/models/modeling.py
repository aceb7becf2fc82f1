# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What every diffusion language model here offers to the code above it."""

import sys
from typing import Any, Literal

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, apply_renamings
from transformers.utils import logging

from ..generation.mixin import DiffusionGenerationMixin


logger = logging.get_logger(__name__)


class DiffusionModelMixin(DiffusionGenerationMixin):
    """Interface of a diffusion language model; a family inherits it before the transformers model it is made of.

    Nothing above `models/` asks which family a model is of. It asks for `mask_token_id`, `attention`, `block_length`
    and [`~DiffusionModelMixin.token_logits`].
    """

    attention: Literal["full", "block_causal"]
    # Dream reads the logits that predict position i at position i - 1; families without the shift leave 0.
    logits_shift: int = 0

    @property
    def mask_token_id(self) -> int:
        """Id of [MASK]. Raises a ValueError when the config names none."""
        mask_token_id = getattr(self.config, "mask_token_id", None)
        if mask_token_id is None:
            raise ValueError(
                f"config.mask_token_id is None: {type(self).__name__} cannot tell which token is [MASK]. Set "
                "`model.config.mask_token_id` to the id of the tokenizer's mask token."
            )
        return mask_token_id

    @property
    def block_length(self) -> int | None:
        """Tokens per attention block; `None` for models with full attention."""
        return None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """Load a checkpoint in the family's Hub format, whole or not at all.

        Takes the arguments of [`~transformers.PreTrainedModel.from_pretrained`].

        Raises:
            ValueError: the checkpoint lacks weights of the model, or has weights of other shapes. transformers would
                initialise those at random and go on.
            RuntimeError: as transformers, for weights of other shapes without `ignore_mismatched_sizes`.
        """
        if kwargs.pop("trust_remote_code", None):
            logger.warning(
                f"trust_remote_code=True has no effect: {cls.__name__} replaces the remote code of its family."
            )
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        # Mismatched weights come as (name, shape found, shape wanted).
        absent = sorted(str(key) for key in {*info["missing_keys"], *info["mismatched_keys"]})
        if absent:
            raise ValueError(
                f"{pretrained_model_name_or_path}: the checkpoint lacks {len(absent)} weights of {cls.__name__} "
                f"(the first: {', '.join(absent[:5])}). Check that all files of the checkpoint are there and that its "
                "config.json belongs to them."
            )
        return (model, info) if output_loading_info else model

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """Take the family's Hub names as well as the library's: a trainer that resumes reads a saved folder's tensors
        straight into the model, and would find none of them under the names it looks for."""
        renamings = [rule for rule in get_model_conversion_mapping(self) if isinstance(rule, WeightRenaming)]
        renamed = {apply_renamings(key, renamings): value for key, value in state_dict.items()}
        return super().load_state_dict(renamed, strict=strict, assign=assign)

    def token_logits(self, input_ids: torch.Tensor, positions: torch.Tensor, **kwargs) -> torch.Tensor:
        """See [`token_logits`]."""
        return token_logits(self, input_ids, positions, **kwargs)

    def masked_token_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the labels that are not -100, each at its own position (no shift to the right)."""
        return nn.functional.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=-100)


def hub_rope_fields(rope_parameters: dict[str, Any] | None) -> dict[str, Any]:
    """transformers 5's `rope_parameters` in the fields that the Hub's configs and other tools use."""
    rope = dict(rope_parameters or {})
    theta = rope.pop("rope_theta", 10000.0)
    return {"rope_theta": theta, **({"rope_scaling": rope} if rope.keys() - {"rope_type"} else {})}


def diffusion_model(model: nn.Module) -> DiffusionModelMixin:
    """The diffusion language model inside the wrappers of DDP, FSDP, DeepSpeed, `torch.compile` and PEFT.

    Raises:
        TypeError: there is none.
    """
    inner = extract_model_from_parallel(model)
    # peft takes seconds to import, and a model can only be one of its own once something has imported it.
    if "peft" in sys.modules and isinstance(inner, sys.modules["peft"].PeftModel):
        inner = inner.get_base_model()
    if not isinstance(inner, DiffusionModelMixin):
        raise TypeError(
            f"model is a {type(inner).__name__}, which is not a diffusion language model. Load a LLaDA or SDAR/TraDo "
            "checkpoint through `AutoModelForCausalLM.from_pretrained` after `import trl_diffusion`."
        )
    return inner


def token_logits(model: nn.Module, input_ids: torch.Tensor, positions: torch.Tensor, **kwargs) -> torch.Tensor:
    """Logits of the tokens at chosen positions, and of no others.

    Args:
        model (`torch.nn.Module`):
            A diffusion language model, wrapped (DDP, PEFT, …) or not. The wrapper's forward is the one called.
        input_ids (`torch.LongTensor` of shape (B, L)):
            Tokens, [MASK] where nothing is known yet.
        positions (`torch.BoolTensor` of shape (B, L)):
            True where the token's distribution is wanted: n positions in all.
        kwargs:
            Passed to the model's forward (`attention_mask`, `position_ids`, `block_length`).

    Returns:
        `torch.Tensor` of shape (n, V), row by row, in the model's dtype. The head runs on n positions, not on B·L.
    """
    shift = diffusion_model(model).logits_shift
    if shift:
        # The logits that predict position i are read at i - shift; position 0 keeps its own.
        positions = torch.cat([positions[:, shift:], torch.zeros_like(positions[:, :shift])], dim=1)
    return model(input_ids=input_ids, logits_to_keep=positions, use_cache=False, **kwargs).logits
