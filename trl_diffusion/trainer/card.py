# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Model cards of the trainers."""

import os
import tempfile
from typing import Any

import torch
from peft import PeftModel
from trl.trainer.utils import get_config_model_id

from ..checkpoints import tiny_checkpoint, tiny_checkpoints
from ..hub import diffusion_model_card
from .denoising_config import GENERATION_FIELDS


class DiffusionCardMixin:
    """Replaces TRL's model card, whose quick start runs an autoregressive pipeline."""

    # Figures for the card, metric -> (before, after), set by whoever measured them.
    card_figures: dict[str, tuple[float, float]] | None = None

    # Fields of the training config that the card lists, where the config has them.
    _card_settings = (
        "learning_rate",
        "max_steps",
        "num_train_epochs",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "num_generations",
        "num_iterations",
        "max_completion_length",
        "block_length",
        "num_denoising_steps",
        "unmasking",
        "threshold",
        "temperature",
        "likelihood",
        "loss_type",
        "epsilon",
        "beta",
        "kl_estimator",
        "kl_reference",
        "log_ratio_clamp",
        "truncated_reward",
        "difficulty_range",
        "correctness_reward",
        "shrinkage",
        "block_length_schedule",
        "gamma",
        "gae_lambda",
        "value_model",
        "value_learning_rate",
        "objective",
        "num_mc_samples",
        "noise_levels",
        "antithetic",
        "normalize_length",
        "delta",
        "importance_sampling_level",
        "trace_column",
        "answer_format",
        "hint_ratio_range",
        "hint_chunk_length",
        "hint_placement",
        "hint_tail_length",
        "max_replaced_fraction",
        "hint_entropy_quantile",
        "min_noise_level",
        "alpha",
        "reward_form",
        "policy_temperature",
        "expert_steering",
        "dllm_learning_rate",
        "seed",
    )

    def create_model_card(self, model_name: str | None = None, dataset_name: str | None = None, tags=None):
        """Write README.md into the output folder; see [`~trl.GRPOTrainer`]'s method of the same name."""
        if not self.is_world_process_zero():
            return
        source = get_config_model_id(self._card_model.config)
        is_local = bool(source) and os.path.isdir(source)
        # A folder's name means nothing on the Hub: it is no base model there. The quick start of what is no whole
        # model, an adapter or a policy, still loads it.
        base, tiny_base = self._card_base()
        is_policy = self._card_model is not self.model
        is_adapter = isinstance(self.model, PeftModel)
        tags = [tags] if isinstance(tags, str) else list(tags or [])
        by_steps = self.args.max_steps > 0  # then the number of epochs has no meaning
        card = diffusion_model_card(
            model_name=model_name or os.path.basename(os.path.abspath(self.args.output_dir)),
            repo_id=self.hub_model_id or self.args.output_dir,
            base_model=None if is_local else source or None,
            adapter_base=base if is_adapter else None,
            policy_base=base if is_policy else None,
            is_joint=getattr(self.args, "dllm_learning_rate", None) is not None,
            tiny_base=tiny_base and (is_adapter or is_policy),
            dataset_name=dataset_name,
            tags=[*self._tag_names, *tags],
            trainer_name=self._name,
            paper_title=self._paper["title"],
            paper_id=self._paper["id"],
            citation=self._paper["citation"],
            settings={
                name: getattr(self.args, name)
                for name in self._card_settings
                if getattr(self.args, name, None) is not None
                and name != ("num_train_epochs" if by_steps else "max_steps")
            },
            generation=self._card_generation(),
            rewards=getattr(self, "reward_func_names", []),
            figures=self.card_figures,
        )
        # Whole or not at all: an interrupted run must not leave half a card.
        with tempfile.NamedTemporaryFile("w", dir=self.args.output_dir, delete=False, encoding="utf-8") as file:
            file.write(str(card))
        os.chmod(file.name, 0o644)
        os.replace(file.name, os.path.join(self.args.output_dir, "README.md"))

    def _card_base(self) -> tuple[str, bool]:
        """Python source of what the quick start's model is loaded from, and whether it is a tiny checkpoint."""
        source = get_config_model_id(self._card_model.config)
        for name in tiny_checkpoints():
            if source and os.path.isdir(source) and os.path.samefile(source, tiny_checkpoint(name)):
                return f'tiny_checkpoint("{name}")', True
        return repr(source), False

    @property
    def _card_model(self) -> torch.nn.Module:
        """The diffusion language model of the card's quick start."""
        return self.model

    def _card_generation(self) -> dict[str, Any]:
        """A prompt of the training data, and keyword arguments of `generate`, both as Python source."""
        row = next(iter(self.train_dataset))
        prompt = row.get("prompt", "")
        settings = {"max_new_tokens": getattr(self.args, "max_completion_length", None)}
        for name in GENERATION_FIELDS:
            settings[name] = getattr(self.args, name, None)
        # The card decodes greedily; what is the default goes without saying.
        settings = {name: value for name, value in settings.items() if value not in ("even", "none")}
        settings |= {"temperature": None, "top_p": None}
        return {
            "prompt": repr(prompt),
            "conversational": not isinstance(prompt, str),
            "settings": {name: repr(value) for name, value in settings.items() if value is not None},
        }
