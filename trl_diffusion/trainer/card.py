# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Model cards of the trainers."""

import os
import tempfile
from functools import lru_cache
from typing import Any

import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from trl.trainer.utils import get_config_model_id

from ..generation import DiffusionGenerationConfig
from ..hub import (
    CardContent,
    Licence,
    MeasuredFigure,
    base_licence,
    diffusion_model_card,
    own_command,
    tiny_name,
)


# What a card need not say of the way it decodes.
_UNSAID = ("transformers_version", "do_sample", "bos_token_id", "eos_token_id", "pad_token_id", "output_entropies")


class DiffusionCardMixin:
    """Replaces TRL's model card, whose quick start runs an autoregressive pipeline."""

    # Set by whoever knows: what was measured, and what the training data is called where it is not on the Hub.
    card_figures: list[MeasuredFigure] | None = None
    card_dataset: str | None = None

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
        name = self.args.hub_model_id or os.path.abspath(self.args.output_dir)
        card = self._card(model_name or os.path.basename(name), dataset_name, tags)
        # Whole or not at all: an interrupted run must not leave half a card.
        with tempfile.NamedTemporaryFile("w", dir=self.args.output_dir, delete=False, encoding="utf-8") as file:
            file.write(str(card))
        os.chmod(file.name, 0o644)
        os.replace(file.name, os.path.join(self.args.output_dir, "README.md"))

    def _card(self, model_name: str, dataset_name: str | None, tags: str | list[str] | None) -> ModelCard:
        source = get_config_model_id(self._card_model.config) or None
        tiny = tiny_name(source)
        tags = [tags] if isinstance(tags, str) else list(tags or [])
        by_steps = self.args.max_steps > 0  # then the number of epochs has no meaning
        settings = {
            name: getattr(self.args, name)
            for name in self._card_settings
            if getattr(self.args, name, None) is not None and name != ("num_train_epochs" if by_steps else "max_steps")
        }
        sampling = {
            name: value
            for name, value in self._hub_generation_config().to_dict().items()
            if value not in (None, False) and name not in _UNSAID and value not in ("even", "none")
        }
        content = CardContent(
            model_name=model_name,
            repo_id=self.hub_model_id or self.args.output_dir,
            kind=self._card_kind(),
            base=tiny or source,
            base_is_tiny=tiny is not None,
            base_is_local=tiny is None and bool(source) and os.path.isdir(source),
            licence=Licence("apache-2.0") if tiny else _licence(source, self.args.hub_token),
            dataset=dataset_name,
            data=self._card_data(dataset_name),
            tags=[*self._tag_names, *tags],
            trainer_name=self._name,
            paper_title=self._paper["title"],
            paper_id=self._paper["id"],
            citation=self._paper["citation"],
            settings=settings,
            sampling=self._card_sampling(sampling),
            prompt=self._card_prompt(),
            template_kwargs=getattr(self.args, "chat_template_kwargs", None) or {},
            rewards=getattr(self, "reward_func_names", []),
            figures=self.card_figures or [],
            limits=self._card_limits(),
            command=own_command(),
        )
        return diffusion_model_card(content)

    def _card_kind(self) -> str:
        """As [`CardContent`] calls what is saved."""
        return "adapter" if isinstance(self.model, PeftModel) else "model"

    @property
    def _card_model(self) -> torch.nn.Module:
        """The diffusion language model of the card's quick start."""
        return self.model

    def _card_prompt(self) -> Any:
        """A prompt of the training data."""
        return next(iter(self.train_dataset))["prompt"]

    def _card_data(self, dataset_name: str | None) -> str:
        """The training data in words."""
        if dataset_name is not None:
            name = f"[{dataset_name}](https://huggingface.co/datasets/{dataset_name})"
        else:
            name = f"`{self.card_dataset}`" if self.card_dataset else "a dataset that is not named"
        try:
            return f"{name}, {len(self.train_dataset):,} rows"
        except TypeError:  # a streaming dataset
            return name

    def _card_sampling(self, sampling: dict[str, Any]) -> dict[str, Any]:
        """Sampling defaults to list, of those of [`_hub_generation_config`] that say something."""
        if sampling.get("temperature") is None:
            sampling = {**sampling, "temperature": "0 (greedy)"}
        return sampling

    def _card_limits(self) -> list[str]:
        """What the model is not known to do."""
        limits = [
            f"An answer fits a canvas of {self._hub_generation_config().max_new_tokens} tokens, which does not grow. "
            "Another length, or another number of steps, is another setting than that of training.",
            "What is not under Measured was not measured: other tasks, languages and prompts, safety and bias.",
        ]
        rewards = getattr(self, "reward_func_names", [])
        if rewards:
            limits.append(
                f"It was trained to please {', '.join(rewards)} and nothing else; what those do not check may have "
                "become worse."
            )
        return limits

    def _hub_generation_config(self) -> DiffusionGenerationConfig:
        """How the saved model decodes unless it is told otherwise."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its models decode.")


@lru_cache(maxsize=8)
def _licence(source: str | None, token: str | None) -> Licence | None:
    """Asked once: a card is written with every checkpoint."""
    return base_licence(source, token)
