# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What the commands that generate have in common: prompts to tokens, tokens to answers."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..generation import CanvasStreamer, DiffusionGenerationConfig
from ..models import DiffusionModelMixin


@dataclass
class Answer:
    """What the model wrote for a prompt.

    Args:
        text (`str`):
            Completion up to EOS, without special tokens. Where positions of the prompt were filled, the prompt stands
            before it.
        num_tokens (`int`):
            Tokens the model drew for it, EOS included.
        num_forward_passes (`int`):
            Model calls in which its row took part.
    """

    text: str
    num_tokens: int
    num_forward_passes: int


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str | list[dict[str, Any]]) -> list[int]:
    """Tokens of a text, or of a conversation through the chat template, ready for the assistant's turn."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    encoded = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)
    return encoded["input_ids"]


def exceeds_positions(model: DiffusionModelMixin, ids: list[int], config: DiffusionGenerationConfig) -> str | None:
    """Says by how much a prompt and its canvas are too long for the model; `None` where they are not."""
    limit, length = model.config.max_position_embeddings, config.max_new_tokens
    if len(ids) + length <= limit:
        return None
    return f"{len(ids)} tokens and a canvas of max_new_tokens={length} exceed the model's {limit} positions"


def generate_answers(
    model: DiffusionModelMixin,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    config: DiffusionGenerationConfig,
    streamer: CanvasStreamer | None = None,
    infill: bool = False,
    **kwargs,
) -> list[Answer]:
    """One batch through `model.generate`.

    Args:
        model ([`DiffusionModelMixin`]), tokenizer:
            As loaded.
        prompts (`list[list[int]]`):
            Tokens of each prompt.
        config ([`DiffusionGenerationConfig`]):
            Settings.
        streamer ([`CanvasStreamer`], *optional*):
            Shows the canvas.
        infill (`bool`, *optional*, defaults to `False`):
            Fill the mask tokens inside the prompts.
        kwargs:
            Further settings of the call.

    Returns:
        `list[Answer]`: `num_return_sequences` for each prompt, side by side.
    """
    width = max(map(len, prompts))
    # Padding is masked out, so that it does not matter which token stands there.
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts], dtype=torch.long)
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in prompts], dtype=torch.bool)
    rollout = model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=config,
        streamer=streamer,
        infill_mask=((ids == model.mask_token_id) & mask).to(model.device) if infill else None,
        return_dict_in_generate=True,
        **kwargs,
    ).rollout.to("cpu")
    drawn = (rollout.unmask_step > 0) & rollout.completion_mask.bool()
    answers = []
    for row, completion in enumerate(rollout.completions()):
        # Only with `infill` does the rest of the prompt belong to the answer.
        before = rollout.prompt_ids[row][rollout.prompt_mask[row].bool()].tolist() if infill else []
        text = tokenizer.decode(before + completion, skip_special_tokens=True)
        answers.append(Answer(text, int(drawn[row].sum()), int(rollout.num_forward_passes[row])))
    return answers
