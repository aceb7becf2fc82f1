# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Model cards of trained diffusion language models."""

from importlib.metadata import version
from importlib.resources import files
from typing import Any

from huggingface_hub import ModelCard, ModelCardData


def diffusion_model_card(
    *,
    model_name: str,
    repo_id: str,
    base_model: str | None,
    adapter_base: str | None,
    policy_base: str | None,
    is_joint: bool,
    tiny_base: bool,
    dataset_name: str | None,
    tags: list[str],
    trainer_name: str,
    paper_title: str,
    paper_id: str,
    citation: str,
    settings: dict[str, Any],
    generation: dict[str, Any],
    rewards: list[str],
    figures: dict[str, tuple[float, float]] | None,
) -> ModelCard:
    """Write the card of a trained model from the package's template.

    Args:
        model_name (`str`):
            Title.
        repo_id (`str`):
            What the quick start loads: a Hub id or a folder.
        base_model (`str`, *optional*):
            Hub id of the model that was trained further.
        adapter_base (`str`, *optional*):
            Python source of what the base of an adapter is loaded from; `None` if the repository holds a whole model.
        policy_base (`str`, *optional*):
            Python source of what the model of an unmasking policy is loaded from; `None` where the repository holds
            none.
        is_joint (`bool`):
            Whether that model was trained with the policy, and lies beside it.
        tiny_base (`bool`):
            Whether that source calls `tiny_checkpoint`.
        dataset_name (`str`, *optional*):
            Hub id of the training data.
        tags (`list[str]`):
            Tags.
        trainer_name, paper_title, paper_id, citation (`str`):
            The method.
        settings (`dict`):
            Training settings to list.
        generation (`dict`):
            `prompt`, `conversational` and `settings` of the quick start.
        rewards (`list[str]`):
            Names of the reward functions.
        figures (`dict[str, tuple[float, float]]`, *optional*):
            Metric -> (before, after), as measured.

    Returns:
        [`~huggingface_hub.ModelCard`].
    """
    data = ModelCardData(
        base_model=base_model,
        datasets=dataset_name,
        library_name="transformers" if policy_base is None else "trl-diffusion",
        pipeline_tag="text-generation" if policy_base is None else None,
        model_name=model_name,
        tags=sorted({"generated_from_trainer", "diffusion-language-model", *tags}),
    )
    packages = ("trl-diffusion", "trl", "transformers", "torch", "datasets", "tokenizers", "peft")
    return ModelCard.from_template(
        data,
        template_str=files(__package__).joinpath("model_card.md").read_text(encoding="utf-8"),
        model_name=model_name,
        repo_id=repo_id,
        base_model=base_model,
        is_adapter=adapter_base is not None,
        adapter_base=adapter_base,
        policy_base=policy_base,
        is_joint=is_joint,
        tiny_base=tiny_base,
        dataset_name=dataset_name,
        trainer_name=trainer_name,
        paper_title=paper_title,
        paper_id=paper_id,
        citation=citation,
        settings=settings,
        generation=generation,
        rewards=rewards,
        figures=figures,
        versions={package: version(package) for package in packages},
    )
