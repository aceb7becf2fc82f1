# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What every diffusion language model here offers to the code above it."""

import os
import re
import sys
from typing import Literal

import torch
from accelerate.utils import extract_model_from_parallel
from safetensors import SafetensorError
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Split
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging

from ..generation import DiffusionGenerationConfig, DiffusionGenerationMixin
from .adapters import RemoteCodeAdapterMixin
from .attention import layout_mask
from .conversion import convert_state_dict
from .positions import (
    cached_length,
    check_not_packed,
    check_padding_mask,
    document_positions,
    is_padding_mask,
    logits_positions,
    token_positions,
)
from .unmask_policy import UnmaskPolicyModel
from .window import WindowForwardMixin


logger = logging.get_logger(__name__)

_SHIFTED_WITH_CACHE = (
    "{family} predicts a token from the place before it, which for the first token given lies in the cache: pass the "
    "tokens without past_key_values."
)


class DiffusionModelMixin(RemoteCodeAdapterMixin, WindowForwardMixin, DiffusionGenerationMixin):
    """Interface of a diffusion language model; a family inherits it before the transformers model it is made of.

    Nothing above `models/` asks which family a model is of. It asks for `mask_token_id`, `attention`, `block_length`
    and [`~DiffusionModelMixin.token_logits`].
    """

    # What `load_state_dict` has seen a part of; see there.
    _incomplete_weights: dict[str, dict[str, torch.Tensor]] = {}
    # Dream's position i holds the logits that predict position i + 1; families without the shift leave 0.
    logits_shift: int = 0

    def __init__(self, config, *args, **kwargs):
        if not isinstance(config, self.config_class):
            raise ValueError(
                f"config is a {type(config).__name__}, {type(self).__name__} takes a {self.config_class.__name__}. "
                "`AutoModelForDiffusionLM.from_pretrained` picks the class that belongs to a checkpoint."
            )
        super().__init__(config, *args, **kwargs)

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
            ValueError: the checkpoint lacks weights of the model, or has weights of other shapes (transformers would
                initialise those at random and go on), or weights beyond those of the model's layers (it would drop
                them).
            RuntimeError: as transformers, for weights of other shapes without `ignore_mismatched_sizes`.
        """
        if kwargs.pop("trust_remote_code", None):
            logger.warning(
                f"trust_remote_code=True has no effect: {cls.__name__} replaces the remote code of its family."
            )
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        # Weights that a layer of the model has no place for would be dropped: biases, norms, experts.
        surplus = [key for key in info["unexpected_keys"] if "inv_freq" not in key and not _in_other_layer(model, key)]
        if surplus:
            raise ValueError(
                f"{pretrained_model_name_or_path}: the checkpoint has {len(surplus)} weights that {cls.__name__} with "
                f"this config has no place for (the first: {', '.join(sorted(surplus)[:5])}). Check that its "
                "config.json belongs to them."
            )
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
        folder's tensors straight into the model, and would find none of them under the names it looks for.

        Without `strict` it may be called shard by shard: what a shard leaves incomplete waits for the next.
        """
        waiting = {} if strict else self.__dict__.setdefault("_incomplete_weights", {})
        converted = convert_state_dict(self, state_dict, waiting)
        result = super().load_state_dict(converted, strict=strict, assign=assign)
        for name in self._incomplete_weights.keys() & converted.keys():
            del self._incomplete_weights[name]  # given otherwise, under the library's name
        return result

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As [`~transformers.PreTrainedModel.save_pretrained`], in the Hub's format.

        Raises:
            ValueError: the model is quantized and its Hub format joins weights (LLaDA 2.x): packed weights cannot be
                joined; or `generation_config.unmasking` is a callable that no path leads to.
        """
        fuses = any(
            isinstance(operation, Split)
            for rule in get_model_conversion_mapping(self)
            for operation in getattr(rule, "operations", ())
        )
        if fuses and getattr(self, "hf_quantizer", None) is not None and not self._hf_peft_config_loaded:
            raise ValueError(
                f"{type(self).__name__} is quantized and cannot be saved in its Hub format, which joins the query, "
                "key and value weights. Save the adapter alone, or load the model without quantization_config."
            )
        if isinstance(self.generation_config, DiffusionGenerationConfig):
            self.generation_config.check_saveable()  # before anything is written
        return super().save_pretrained(save_directory, *args, **kwargs)

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
        if self._incomplete_weights:
            raise ValueError(
                f"load_state_dict was given some of the weights of {', '.join(sorted(self._incomplete_weights)[:3])} "
                "and never the others: a shard of the checkpoint is missing."
            )
        if kwargs.get("cu_seq_lens_q") is not None:
            raise ValueError(
                "cu_seq_lens_q (padding-free rows) is not supported: attention would reach from one document into "
                "the next. Pass `document_ids` (B, L)."
            )
        inputs_embeds = kwargs.get("inputs_embeds")
        tokens = input_ids if inputs_embeds is None else inputs_embeds[..., 0]  # (B, L)
        attention_mask, position_ids, counted = self._layout(
            tokens, attention_mask, position_ids, block_length, document_ids, kwargs.get("past_key_values")
        )
        if not is_padding_mask(attention_mask) and hasattr(self.config, "output_router_logits"):
            if kwargs.get("output_router_logits"):
                raise ValueError(
                    "output_router_logits=True: the library's load-balancing loss takes no mask of blocks or "
                    "documents. Leave it out, and read the routers' outputs with hooks."
                )
            kwargs["output_router_logits"] = False  # whatever the config says, for the same reason
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        return_dict = kwargs.pop("return_dict", None)
        output = super().forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )
        if labels is not None:
            if self.logits_shift and cached_length(kwargs.get("past_key_values")):
                raise ValueError(_SHIFTED_WITH_CACHE.format(family=type(self).__name__))
            loss = self.masked_token_loss(output.logits, labels, counted, num_items_in_batch)
            if output.get("aux_loss") is not None:
                loss = loss + self.config.router_aux_loss_coef * output.aux_loss
            output = type(output)(**{**output, "loss": loss})
        return output.to_tuple() if return_dict is False else output

    def _layout(self, tokens, attention_mask, position_ids, block_length, document_ids, cache):
        """The mask and the positions that the library's forward is given, and each token's position in its document.
        Arguments as in [`forward`]; `tokens` are (B, L), whatever they hold."""
        if block_length is not None and self.attention == "full":
            raise ValueError(
                f"block_length={block_length}: {type(self).__name__} attends to the whole sequence; leave it out."
            )
        if block_length is not None and block_length < 1:
            raise ValueError(f"block_length={block_length} must be at least 1.")
        cached = cached_length(cache) > 0
        plain = is_padding_mask(attention_mask)
        if document_ids is not None and (cached or not plain):
            raise ValueError(
                "document_ids go with a mask of two dimensions (or none) and without past_key_values; a mask of four "
                "dimensions says by itself what each token sees."
            )
        if plain and attention_mask is not None:
            check_padding_mask(attention_mask)
        if cached and plain and attention_mask is not None and position_ids is None:
            position_ids = token_positions(attention_mask)[:, -tokens.size(1) :]  # the mask covers the cache too
        if cached or not plain:
            return (
                attention_mask,
                position_ids,
                document_positions(tokens, attention_mask, position_ids, cached=cached),
            )

        counted = document_positions(tokens, attention_mask, None, document_ids)
        valid = torch.ones_like(counted) if attention_mask is None else attention_mask
        if position_ids is not None and document_ids is None:
            check_not_packed(position_ids.expand_as(counted), valid)
        if self.attention == "block_causal" or document_ids is not None:
            block_length = block_length or self.block_length
            blocks = torch.zeros_like(counted) if block_length is None else counted // block_length
            documents = None if document_ids is None else document_ids.expand_as(counted)
            attention_mask = layout_mask(self.config, blocks, valid, None, documents, self.dtype)
        elif cache is not None:
            attention_mask = valid  # a static cache is longer than what is in it
        # Rotary embeddings depend on distances alone in exact arithmetic, not quite in bf16: a row must get the same
        # positions whatever it is padded with.
        return attention_mask, counted if position_ids is None else position_ids, counted

    def token_logits(self, input_ids: torch.Tensor, positions: torch.Tensor, **kwargs) -> torch.Tensor:
        """See [`token_logits`]."""
        return token_logits(self, input_ids, positions, **kwargs)

    def unmasking_policy(self, name_or_path: str) -> UnmaskPolicyModel:
        """The unmasking policy of a folder or of the Hub (`user/name`, `user/name@branch`), on the model's device; a
        policy is loaded once, and again when its folder changes.

        Raises:
            ValueError: there is none.
        """
        loaded = self.__dict__.setdefault("_unmasking_policies", {})
        changed = None
        if os.path.isdir(name_or_path):
            files = [(entry.name, entry.stat()) for entry in os.scandir(name_or_path) if entry.is_file()]
            changed = sorted((name, stat.st_mtime_ns, stat.st_size) for name, stat in files)
        if name_or_path not in loaded or loaded[name_or_path][0] != changed:
            try:
                repo_id, _, revision = (name_or_path, "", "") if changed is not None else name_or_path.partition("@")
                policy = UnmaskPolicyModel.from_pretrained(repo_id, **({"revision": revision} if revision else {}))
            except (OSError, SafetensorError) as error:
                raise ValueError(
                    f"unmasking={name_or_path!r} is no unmasking policy that can be loaded: "
                    f"{str(error).splitlines()[0]}"
                ) from error
            loaded[name_or_path] = (changed, policy.eval())
        return loaded[name_or_path][1].to(self.device)

    def masked_token_loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        position_ids: torch.Tensor,
        num_items_in_batch: "int | torch.Tensor | None" = None,
    ) -> torch.Tensor:
        """Mean cross-entropy of the labels that are not -100, each predicted at its own position.

        Args:
            logits (`torch.Tensor` of shape (B, L, V)):
                As [`forward`] returns them.
            labels, position_ids (`torch.LongTensor` of shape (B, L)):
                Tokens, and their positions in their documents.
            num_items_in_batch (`int`, *optional*):
                Divides the sum instead of the number of labels here: the labels of all micro-batches of a step.

        Returns:
            `torch.FloatTensor`, a scalar.
        """
        wanted = labels != -100
        row, _ = wanted.nonzero(as_tuple=True)
        read_at = logits_positions(position_ids, self.logits_shift)[wanted]
        losses = nn.functional.cross_entropy(logits[row, read_at].float(), labels[wanted], reduction="none")
        return losses.mean() if num_items_in_batch is None else losses.sum() / num_items_in_batch


def _in_other_layer(model: nn.Module, key: str) -> bool:
    """Whether a weight belongs to a layer that the model does not have: it was made with fewer."""
    match = re.match(r"model\.layers\.(\d+)\.", key)
    return match is not None and int(match[1]) >= model.config.num_hidden_layers


class DiffusionModelWrapper(nn.Module):
    """A module around a diffusion language model, its `backbone`, which [`diffusion_model`] looks into."""

    backbone: DiffusionModelMixin


def diffusion_model(model: nn.Module) -> DiffusionModelMixin:
    """The diffusion language model inside the wrappers of DDP, FSDP, DeepSpeed, `torch.compile` and PEFT.

    Raises:
        TypeError: there is none.
    """
    inner = extract_model_from_parallel(model, keep_torch_compile=False)
    if isinstance(inner, DiffusionModelWrapper):
        inner = inner.backbone
    # peft takes seconds to import, and a model can only be one of its own once something has imported it.
    elif "peft" in sys.modules and isinstance(inner, sys.modules["peft"].PeftModel):
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
    if cached_length(kwargs.get("past_key_values")):
        raise ValueError(_SHIFTED_WITH_CACHE.format(family=type(diffusion_model(model)).__name__))
    counted = document_positions(
        input_ids, kwargs.get("attention_mask"), kwargs.get("position_ids"), kwargs.get("document_ids")
    )
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
