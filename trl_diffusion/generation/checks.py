# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What `generate` refuses, before any work is done."""

import torch
from transformers.generation.streamers import BaseStreamer

from .configuration import DiffusionGenerationConfig, names_policy
from .policy import UnmaskingPolicy
from .streamers import CanvasStreamer
from .unmasking import RULES


def check_settings(model, config: DiffusionGenerationConfig):
    """Settings that a model cannot serve, or that only make sense together.

    Raises:
        ValueError: names the field, the value and the remedy.
    """
    rule = config.unmasking
    if isinstance(rule, str) and names_policy(rule):
        rule = model.unmasking_policy(rule)
    elif isinstance(rule, str) and rule not in RULES:
        raise ValueError(
            f"unmasking={rule!r} says where a rule came from, and nothing is imported because a file says so: import "
            "the rule, and pass it itself as `unmasking`."
        )
    if isinstance(rule, UnmaskingPolicy):
        hidden_size = rule.inputs.hidden_size
        if hidden_size not in (0, model.config.hidden_size):
            raise ValueError(
                f"unmasking is a policy for hidden states of size {hidden_size}; the model's have "
                f"{model.config.hidden_size}. Train one for this model, or one that sees confidences alone."
            )
    full = model.attention == "full"
    if config.cache == "block" and full:
        raise ValueError(
            "cache='block' needs block-causal attention, whose finished blocks never change; this model attends to "
            "the whole row. Use cache='prefix' or 'dual' (approximate), or 'none'."
        )
    if config.cache in ("prefix", "dual") and not full:
        raise ValueError(
            f"cache={config.cache!r} is an approximation for full attention; this model has block-causal attention. "
            "Use cache='block', which is exact."
        )
    if config.torch_compile and config.cache not in (("none", "dual") if full else ("block",)):
        needed = "cache='dual' or 'none'" if full else "cache='block'"
        raise ValueError(
            f"torch_compile=True needs steps of one shape, which cache={config.cache!r} does not have. Use {needed}."
        )
    if config.cache != "none" and model.config._attn_implementation == "flex_attention" and model.device.type == "cpu":
        raise ValueError(
            f"cache={config.cache!r} does not work with flex attention on a CPU: torch's compiler fails on masks of a "
            "few queries. Load the model with attn_implementation='sdpa'."
        )
    if (config.num_return_sequences or 1) > 1 and not config.is_stochastic:
        raise ValueError(
            f"num_return_sequences={config.num_return_sequences} would give the same row every time at temperature=0. "
            "Set a temperature, alg_temp, or unmasking='random'."
        )
    vocabulary = model.config.vocab_size
    for name in ("suppress_tokens", "begin_suppress_tokens", "eos_token_ids", "pad_token_id"):
        tokens = getattr(config, name) or []
        tokens = [tokens] if isinstance(tokens, int) else tokens
        if any(token >= vocabulary for token in tokens):
            raise ValueError(f"{name} has the id {max(tokens)}; the model has {vocabulary} tokens.")
    forbidden = {*(config.suppress_tokens or []), *(config.begin_suppress_tokens or []), model.mask_token_id}
    if len(forbidden) >= vocabulary:
        raise ValueError("suppress_tokens and begin_suppress_tokens leave no token to draw.")


def check_inputs(
    model,
    config: DiffusionGenerationConfig,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    infill_mask: torch.Tensor | None,
    hint_ids: torch.Tensor | None,
    streamer,
):
    """Tensors of a call of `generate`; arguments as there.

    Raises:
        ValueError: names the argument and the remedy.
    """
    vocabulary = model.config.vocab_size
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; it must be (B, P).")
    if input_ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"input_ids is {input_ids.dtype}; token ids are int64.")
    if streamer is not None and not isinstance(streamer, BaseStreamer):
        raise ValueError(
            f"streamer is a {type(streamer).__name__}; it must be a CanvasStreamer, or a streamer of transformers."
        )
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}; they must "
            "be the same."
        )
    batch_size, width = input_ids.shape
    length = config.max_new_tokens
    if batch_size == 0:
        raise ValueError("input_ids has no row: there is nothing to generate.")
    if ((attention_mask != 0) & (attention_mask != 1)).any():
        raise ValueError("attention_mask must hold 1 on real tokens and 0 on padding, and nothing else.")
    if width and (attention_mask.long().diff(dim=1) < 0).any():
        raise ValueError(
            "attention_mask has 0 to the right of 1: the canvas follows the prompt, so pad prompts on the left "
            "(tokenizer.padding_side='left')."
        )
    limit = model.config.max_position_embeddings
    if width + length > limit:
        raise ValueError(
            f"the prompt ({width} tokens) and max_new_tokens={length} exceed the model's {limit} positions. Shorten "
            "one of them."
        )
    wrong = input_ids[attention_mask.bool() & ((input_ids < 0) | (input_ids >= vocabulary))]
    if len(wrong):
        raise ValueError(f"input_ids has the id {wrong[0].item()}; the model has {vocabulary} tokens.")
    if infill_mask is not None:
        if infill_mask.shape != input_ids.shape or infill_mask.dtype != torch.bool:
            raise ValueError(
                f"infill_mask is {infill_mask.dtype} of shape {tuple(infill_mask.shape)}; it must be bool of "
                f"input_ids' shape {tuple(input_ids.shape)}."
            )
        if (infill_mask & ~attention_mask.bool()).any():
            raise ValueError("infill_mask is True on padding (attention_mask 0): there is nothing to fill there.")
        if config.cache == "dual" and "flash" in model.config._attn_implementation:
            raise ValueError(
                "cache='dual' with infill_mask does not work with flash attention, which knows padding on one side "
                "only. Use cache='prefix', or load the model with attn_implementation='sdpa'."
            )
        if not infill_mask.any() and length == 0:
            raise ValueError("infill_mask is False everywhere, and max_new_tokens=0: there is nothing to fill.")
    elif length == 0:
        raise ValueError("max_new_tokens=0 must be at least 1, unless infill_mask says what to fill in the input.")
    # Steps are numbered in 16 bits.
    most = length + (0 if infill_mask is None else int(infill_mask.sum(dim=1).max()))
    if most > torch.iinfo(torch.int16).max:
        raise ValueError(f"{most} positions to fill are more than {torch.iinfo(torch.int16).max}. Shorten the canvas.")
    if hint_ids is not None:
        if hint_ids.is_floating_point() or hint_ids.dtype == torch.bool:
            raise ValueError(f"hint_ids is {hint_ids.dtype}; token ids are integers.")
        if hint_ids.shape != (batch_size, length):
            raise ValueError(
                f"hint_ids has shape {tuple(hint_ids.shape)}; it must be (B, max_new_tokens) = "
                f"{(batch_size, length)}, with -100 where the model fills."
            )
        given = hint_ids[hint_ids != -100]
        wrong = given[(given < 0) | (given >= vocabulary) | (given == model.mask_token_id)]
        if len(wrong):
            raise ValueError(
                f"hint_ids has the id {wrong[0].item()}; hints are tokens of the vocabulary other than the mask "
                "token, and -100 where the model fills."
            )
    if streamer is not None and not isinstance(streamer, CanvasStreamer):
        if batch_size * (config.num_return_sequences or 1) > 1:
            raise ValueError(
                f"streamer is a {type(streamer).__name__}, which writes one row; the batch has "
                f"{batch_size * (config.num_return_sequences or 1)}. Use CanvasStreamer, or one prompt."
            )
