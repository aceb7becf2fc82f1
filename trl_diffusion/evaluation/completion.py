# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Completions of a model over a dataset."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import BatchEncoding, PreTrainedTokenizerBase

from ..generation import DiffusionGenerationConfig
from ..models import diffusion_model


@dataclass
class Completions:
    """What a model wrote for a list of prompts.

    Args:
        texts (`list[str]`):
            One completion per prompt, cut at EOS, without special tokens.
        forward_passes (`float`):
            Mean number of model calls per completion.
        ids (`list[list[int]]`):
            Tokens of each completion, EOS included.
        unmask_step (`list[list[int]]`):
            At which step each of them was committed.
        num_forward_passes (`list[int]`, *optional*):
            Model calls of each completion.
    """

    texts: list[str]
    forward_passes: float
    ids: list[list[int]]
    unmask_step: list[list[int]]
    num_forward_passes: list[int] | None = None


def complete(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str] | list[list[dict[str, Any]]],
    generation_config: DiffusionGenerationConfig,
    batch_size: int = 64,
    progress: bool = False,
    chat_template_kwargs: dict[str, Any] | None = None,
    first: int = 0,
) -> Completions:
    """Generate one completion per prompt, in batches of prompts padded on the left.

    Args:
        model (`torch.nn.Module`):
            A diffusion language model, with or without an adapter.
        tokenizer:
            Its tokenizer; conversational prompts go through its chat template.
        prompts (`list[str]` or `list[list[dict]]`):
            Texts, or conversations that end with the user's message.
        generation_config ([`DiffusionGenerationConfig`]):
            Settings. An int `seed` is taken per prompt, so that the result does not depend on `batch_size`.
        batch_size (`int`, *optional*, defaults to 64):
            Prompts per batch.
        progress (`bool`, *optional*, defaults to `False`):
            Show a progress bar.
        chat_template_kwargs (`dict`, *optional*):
            Passed to the chat template.
        first (`int`, *optional*, defaults to 0):
            Place of the first prompt among those that a seed is for, where the prompts are some of them.

    Returns:
        [`Completions`], in the order of the prompts.

    Raises:
        ValueError: there is no prompt, `batch_size` < 1, or the settings do not fit the model.
    """
    if not prompts:
        raise ValueError("prompts is empty: there is nothing to complete.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    family = diffusion_model(model)
    device = next(family.parameters()).device
    texts, passes, ids_out, steps = [], [], [], []
    for start in tqdm(range(0, len(prompts), batch_size), desc="Evaluating", disable=not progress, leave=False):
        batch = prompts[start : start + batch_size]
        padded = encode_prompts(tokenizer, batch, chat_template_kwargs).to(device)
        kwargs = {}
        if isinstance(generation_config.seed, int):
            kwargs["seed"] = [generation_config.seed * 1_000_003 + first + start + row for row in range(len(batch))]
        output = family.generate(
            padded["input_ids"],
            attention_mask=padded["attention_mask"],
            generation_config=generation_config,
            return_dict_in_generate=True,
            **kwargs,
        )
        completions = output.rollout.completions()
        texts += tokenizer.batch_decode(completions, skip_special_tokens=True)
        ids_out += completions
        written = output.rollout.written()
        steps += [row[keep].tolist() for row, keep in zip(output.rollout.unmask_step, written, strict=True)]
        passes.append(output.rollout.num_forward_passes.cpu())
    counts = torch.cat(passes)
    return Completions(texts, counts.float().mean().item(), ids_out, steps, counts.tolist())


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str] | list[list[dict[str, Any]]],
    chat_template_kwargs: dict[str, Any] | None = None,
) -> BatchEncoding:
    """`input_ids` and `attention_mask` of prompts, (B, P), padded on the left. Arguments as in [`complete`]."""
    if isinstance(prompts[0], str):
        ids = tokenizer(prompts)["input_ids"]
    else:
        ids = tokenizer.apply_chat_template(
            prompts, add_generation_prompt=True, tokenize=True, return_dict=True, **(chat_template_kwargs or {})
        )["input_ids"]
    return tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
