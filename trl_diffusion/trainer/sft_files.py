# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What supervised fine-tuning saves beside the weights."""

from typing import Any

from ..generation import DiffusionGenerationConfig
from ..models import diffusion_model
from .hub import HubMixin


class SFTFilesMixin(HubMixin):
    """The prompt of the card's quick start, and how the model that is saved decodes. The first row of the training
    data waits in `_first_row`, as it was given."""

    _first_row: dict[str, Any] | None = None

    def _card_prompt(self) -> Any:
        """The prompt of the first row; of text without one its first half."""
        row = self._first_row
        if row.get("prompt"):
            return row["prompt"]
        if row.get("messages"):
            last = max(i for i, message in enumerate(row["messages"]) if message["role"] == "assistant")
            return row["messages"][:last]
        row = next(iter(self.train_dataset))
        ids = row["input_ids"]
        given = next((i for i, label in enumerate(row.get("labels") or []) if label != -100), 0)
        return self._tokenizer.decode(ids[: given or max(len(ids) // 2, 1)])

    def _hub_generation_config(self) -> DiffusionGenerationConfig:
        """The model's own, on the canvas and in the blocks that it was trained on."""
        args, family = self.args, diffusion_model(self.model)
        settings = family.generation_config.to_dict()
        if not isinstance(family.generation_config, DiffusionGenerationConfig):
            settings = {name: settings.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = DiffusionGenerationConfig.from_dict(settings)
        changes = {}
        if args.canvas_length is not None:
            changes["max_new_tokens"] = args.canvas_length
        if self._attention_block is None and args.block_length is not None:
            changes["block_length"] = args.block_length
        if changes:
            canvas = changes.get("max_new_tokens", config.max_new_tokens)
            block = changes.get("block_length", config.block_length)
            steps = config.num_denoising_steps
            # What was meant for another canvas than that of training: so many steps, and blocks that do not fit.
            changes["block_length"] = block if block is None or block <= canvas else None
            changes["num_denoising_steps"] = steps if canvas == config.max_new_tokens else None
            config.update(**changes)
        for name in ("eos_token_id", "pad_token_id"):
            if getattr(config, name) is None:
                setattr(config, name, getattr(self._tokenizer, name))
        return config
