# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What every diffusion language model here offers to the code above it."""

import sys
from typing import Literal

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging

from ..generation.mixin import DiffusionGenerationMixin
from .adapters import RemoteCodeAdapterMixin
from .attention import check_not_packed, layout_mask, token_positions
from .conversion import convert_state_dict


logger = logging.get_logger(__name__)


class DiffusionModelMixin(RemoteCodeAdapterMixin, DiffusionGenerationMixin):
    """Interface of a diffusion language model; a family inherits it before the transformers model it is made of.

    Nothing above `models/` asks which family a model is of. It asks for `mask_token_id`, `attention`, `block_length`
    and [`~DiffusionModelMixin.token_logits`].
    """

    # Dream's position i holds the logits that predict position i + 1; families without the shift leave 0.
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
        """Tokens per attention block, from the config; `None` for models with full attention."""
        return getattr(self.config, "block_length", None)

    @property
    def attention(self) -> Literal["full", "block_causal"]:
        """Whether a token attends to the whole row, or to its own block and those before it."""
        return "full" if self.block_length is None else "block_causal"

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
        for module in model.modules():
            # On a CPU with AVX-512 bitsandbytes packs 4-bit weights at the first pass in eval mode, such as a rollout,
            # and multiplies by them in training too, through a kernel without a gradient.
            if getattr(module, "support_avx512bf16_for_cpu", False):
                module.support_avx512bf16_for_cpu = False
        return (model, info) if output_loading_info else model

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """Take the family's Hub names and layout as well as the library's: a trainer that resumes reads a saved
        folder's tensors straight into the model, and would find none of them under the names it looks for."""
        return super().load_state_dict(convert_state_dict(self, state_dict), strict=strict, assign=assign)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        block_length: int | None = None,
        document_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """The library model's forward pass with full or block-causal attention.

        Args:
            input_ids (`torch.LongTensor` of shape (B, L)):
                Tokens, [MASK] where nothing is known yet.
            attention_mask (`torch.Tensor`, *optional*):
                (B, L), 0 on padding, left or right: positions and blocks are counted from each row's first real
                token. Or a mask that is ready for the attention implementation (4-D, or a `BlockMask`): used as it
                is.
            position_ids (`torch.LongTensor` of shape (B, L), *optional*):
                Defaults to the positions counted from the first real token.
            labels (`torch.LongTensor` of shape (B, L), *optional*):
                Tokens to predict at their own positions, -100 elsewhere. The loss is their mean cross-entropy.
            block_length (`int`, *optional*):
                Overrides a block-causal model's block length; at least L gives full attention.
            document_ids (`torch.LongTensor` of shape (B, L), *optional*):
                Document of each token where several are packed into a row. They do not see one another, and each has
                positions and blocks of its own.
            kwargs:
                The library model's other arguments (`logits_to_keep`, `past_key_values`, …). With `past_key_values`
                the tokens given see the whole cache and one another.

        Returns:
            [`~transformers.modeling_outputs.CausalLMOutputWithPast`]. Its logits are as the model computes them: where
            `logits_shift` is 1, position i predicts i + 1.

        Raises:
            ValueError: `block_length` is smaller than 1, or given to a model with full attention; rows are packed
                without `document_ids`.
        """
        if block_length is not None and self.attention == "full":
            raise ValueError(
                f"block_length={block_length}: {type(self).__name__} attends to the whole sequence; leave it out."
            )
        if block_length is not None and block_length < 1:
            raise ValueError(f"block_length={block_length} must be at least 1.")
        if kwargs.get("cu_seq_lens_q") is not None:
            raise ValueError(
                "cu_seq_lens_q (padding-free rows) is not supported: attention would reach from one document into "
                "the next. Pass `document_ids` (B, L)."
            )
        if kwargs.get("output_router_logits") and self.attention == "block_causal":
            raise ValueError(
                "output_router_logits=True: the library's load-balancing loss takes no mask of blocks. Read the "
                "routers' outputs with hooks, or leave it out."
            )
        plain = attention_mask is None or (isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2)
        if document_ids is not None and not plain:
            raise ValueError("document_ids and an attention mask of four dimensions exclude each other: pass one.")
        counted = None
        if plain and kwargs.get("past_key_values") is None:
            inputs_embeds = kwargs.get("inputs_embeds")
            tokens = input_ids if inputs_embeds is None else inputs_embeds[..., 0]
            valid = torch.ones_like(tokens, dtype=torch.long) if attention_mask is None else attention_mask
            if position_ids is not None and document_ids is None:
                check_not_packed(position_ids.expand_as(tokens), valid)
            counted = token_positions(valid, document_ids)
            if self.attention == "block_causal":
                blocks = counted // (block_length or self.block_length)
                attention_mask = layout_mask(self.config, blocks, valid, document_ids=document_ids, dtype=self.dtype)
            elif document_ids is not None:
                attention_mask = layout_mask(
                    self.config, torch.zeros_like(counted), valid, document_ids=document_ids, dtype=self.dtype
                )
            # Rotary embeddings depend on distances alone in exact arithmetic, not quite in bf16: a row must get the
            # same positions whatever it is padded with.
            position_ids = counted if position_ids is None else position_ids
        output = super().forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )
        if labels is not None:
            if counted is None:
                counted = torch.arange(labels.size(1), device=labels.device).expand_as(labels)
            output["loss"] = self.masked_token_loss(output.logits, labels, counted)
        return output

    def token_logits(self, input_ids: torch.Tensor, positions: torch.Tensor, **kwargs) -> torch.Tensor:
        """See [`token_logits`]."""
        return token_logits(self, input_ids, positions, **kwargs)

    def masked_token_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """Mean cross-entropy of the labels that are not -100, each predicted at its own position.

        Args:
            logits (`torch.Tensor` of shape (B, L, V)):
                As [`forward`] returns them.
            labels, position_ids (`torch.LongTensor` of shape (B, L)):
                Tokens, and their positions in their documents.

        Returns:
            `torch.FloatTensor`, a scalar.
        """
        wanted = labels != -100
        row, _ = wanted.nonzero(as_tuple=True)
        read_at = logits_positions(position_ids, self.logits_shift)[wanted]
        return nn.functional.cross_entropy(logits[row, read_at].float(), labels[wanted])


def logits_positions(position_ids: torch.Tensor, shift: int) -> torch.Tensor:
    """Where the logits that predict each token stand in the model's output.

    Args:
        position_ids (`torch.LongTensor` of shape (B, L)):
            Positions of the tokens in their documents.
        shift (`int`):
            The model's `logits_shift`.

    Returns:
        `torch.LongTensor` of shape (B, L): i − shift. The first token of a document has no token before it and keeps
        its own logits (Dream's sampler).
    """
    own = torch.arange(position_ids.size(1), device=position_ids.device).expand_as(position_ids)
    return own - position_ids.clamp(max=shift)


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
            f"model is a {type(inner).__name__}, which is not a masked diffusion language model. Load a checkpoint of "
            "a supported family with `trl_diffusion.AutoModelForDiffusionLM.from_pretrained`."
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
    if not shift:
        return model(input_ids=input_ids, logits_to_keep=positions, use_cache=False, **kwargs).logits
    counted, mask = kwargs.get("position_ids"), kwargs.get("attention_mask")
    if counted is None:
        plain = isinstance(mask, torch.Tensor) and mask.ndim == 2
        counted = token_positions(mask if plain else torch.ones_like(input_ids), kwargs.get("document_ids"))
    row, _ = positions.nonzero(as_tuple=True)
    column = logits_positions(counted, shift)[positions]
    read_at = torch.zeros_like(positions)
    read_at[row, column] = True
    logits = model(input_ids=input_ids, logits_to_keep=read_at, use_cache=False, **kwargs).logits
    if len(logits) == len(row):
        return logits
    # The first two tokens of a document are predicted from the same place.
    rank = read_at.flatten().cumsum(dim=0).view_as(read_at) - 1
    return logits[rank[row, column]]
