# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Model cards of trained diffusion language models and of unmasking policies."""

import json
import re
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .figures import MeasuredFigure, eval_results, measured_text
from .files import DLLM_FOLDER
from .licence import Licence


# What stands in the card of an adapter, and of a model that one was merged into.
HOLDS_ADAPTER = "This repository holds a PEFT adapter, which is loaded onto its base model."
HOLDS_MERGED = "It was trained as a PEFT adapter, which is merged into the weights."
_PACKAGES = ("trl-diffusion", "trl", "transformers", "torch", "datasets", "tokenizers", "peft")


@dataclass(kw_only=True)
class CardContent:
    """What a card says.

    Args:
        model_name (`str`):
            Title.
        repo_id (`str`):
            What the quick start loads: a Hub id or a folder.
        kind (`str`):
            `"model"`, `"adapter"`, `"merged"` (an adapter that was merged), `"policy"`, or `"joint"`: a policy and the
            model that was trained with it.
        base (`str`, *optional*):
            What was trained from, of a policy the model that it decides for: a Hub id, a folder, or the name of a tiny
            checkpoint. `None` where it was built in memory.
        base_is_tiny (`bool`), base_is_local (`bool`):
            Whether `base` is the name of a tiny checkpoint, or a folder.
        licence ([`Licence`], *optional*):
            That of the base.
        dataset (`str`, *optional*):
            Hub id of the training data.
        data (`str`):
            What it was, in words.
        tags (`list[str]`):
            Tags.
        trainer_name, paper_title, paper_id, citation (`str`):
            The method.
        settings (`dict`), sampling (`dict`):
            Settings of the training and of generation to list.
        prompt (`Any`):
            A prompt for the quick start: text, or messages.
        template_kwargs (`dict`):
            For the chat template, of a prompt of messages.
        rewards (`list[str]`):
            Names of the reward functions.
        figures (`list[MeasuredFigure]`):
            As measured.
        limits (`list[str]`):
            What it is not known to do.
        command (`str`, *optional*):
            What it was trained by.
    """

    model_name: str
    repo_id: str
    kind: str
    base: str | None
    base_is_tiny: bool
    base_is_local: bool
    licence: Licence | None
    dataset: str | None
    data: str
    tags: list[str]
    trainer_name: str
    paper_title: str
    paper_id: str
    citation: str
    settings: dict[str, Any]
    sampling: dict[str, Any]
    prompt: Any
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    rewards: list[str] = field(default_factory=list)
    figures: list[MeasuredFigure] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    command: str | None = None

    @property
    def is_policy(self) -> bool:
        """Whether the repository is a policy's."""
        return self.kind in ("policy", "joint")

    @property
    def base_text(self) -> str | None:
        """The base in Markdown."""
        if self.base is None:
            return None
        if self.base_is_tiny:
            return f"`{self.base}`, a tiny checkpoint of the package"
        if self.base_is_local:
            return f"`{self.base.rstrip('/').rpartition('/')[2]}`, a folder of the machine that it was trained on"
        return f"[{self.base}](https://huggingface.co/{self.base})"


def quick_start(content: CardContent) -> str:
    """Python source that loads the repository and generates; it runs as it is.

    Args:
        content ([`CardContent`]):
            The card's.
    """
    repo = where = _quoted(content.repo_id)
    names = "AutoModelForDiffusionLM"
    lines = ["from transformers import AutoTokenizer", ""]
    if content.is_policy:
        names += ", DiffusionGenerationConfig"
        where = f'{repo}, subfolder="{DLLM_FOLDER}"' if content.kind == "joint" else _quoted(content.base)
    lines += [f"from trl_diffusion import {names}"]
    if content.kind == "policy" and content.base_is_tiny:
        lines += ["from trl_diffusion.checkpoints import tiny_checkpoint"]
        where = f"tiny_checkpoint({_quoted(content.base)})"
    lines += ["", "", f"tokenizer = AutoTokenizer.from_pretrained({where})"]
    lines += [f"model = AutoModelForDiffusionLM.from_pretrained({where})"]
    settings = ""
    if content.is_policy:
        lines += [f"config = DiffusionGenerationConfig.from_pretrained({repo})  # names the policy"]
        settings = ", generation_config=config"
    if isinstance(content.prompt, str):
        lines += [f'inputs = tokenizer([{content.prompt!r}], return_tensors="pt")']
    else:
        lines += [f"prompt = {content.prompt!r}", "inputs = tokenizer.apply_chat_template("]
        more = "".join(f", {name}={value!r}" for name, value in content.template_kwargs.items())
        lines += [f'    [prompt], add_generation_prompt=True, return_dict=True, return_tensors="pt"{more}', ")"]
    lines += [f"output = model.generate(**inputs{settings})"]
    lines += ['print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))']
    return "\n".join(lines) + "\n"


def _quoted(text: str | None) -> str:
    """As a literal of Python, in double quotes."""
    return json.dumps(text or "", ensure_ascii=False)


def licence_text(content: CardContent) -> str:
    """What a card says about the licence: what the base's card says, and nothing where that is not known."""
    if content.base is None:
        return "The model was not trained from a published one. Whoever shares it says under which licence."
    licence = content.licence
    if licence is None:
        return (
            f"Not known: the card of the base model, {content.base_text}, could not be read or names none. Find it "
            "out before you share this."
        )
    known = licence.name or licence.id
    known = f"[{known}]({licence.link})" if licence.link else f"`{known}`"
    if content.kind == "policy":
        return f"The model that the policy decides for, {content.base_text}, is under {known}."
    return f"That of the base model, {content.base_text}: {known}."


def diffusion_model_card(content: CardContent) -> ModelCard:
    """Write a card from the package's template.

    Args:
        content ([`CardContent`]):
            What it says.

    Returns:
        [`~huggingface_hub.ModelCard`].
    """
    licence = content.licence if content.kind != "policy" else None  # its own is its author's to choose
    base_model = None if content.base_is_tiny or content.base_is_local else content.base
    relation = {"adapter": "adapter"}.get(content.kind, "finetune") if base_model and not content.is_policy else None
    data = ModelCardData(
        base_model=base_model,
        base_model_relation=relation,
        datasets=content.dataset,
        eval_results=eval_results(content.figures),
        library_name={"model": "transformers", "merged": "transformers", "adapter": "peft"}.get(
            content.kind, "trl-diffusion"
        ),
        license=licence and licence.id,
        license_name=licence and licence.name,
        license_link=licence and licence.link,
        pipeline_tag=None if content.is_policy else "text-generation",
        model_name=content.model_name,
        tags=sorted({"generated_from_trainer", "diffusion-language-model", *content.tags}),
    )
    return ModelCard.from_template(
        data,
        template_str=files(__package__).joinpath("model_card.md").read_text(encoding="utf-8"),
        model_name=content.model_name,
        is_policy=content.is_policy,
        is_joint=content.kind == "joint",
        is_adapter=content.kind in ("adapter", "merged"),
        holds={"adapter": HOLDS_ADAPTER, "merged": HOLDS_MERGED}.get(content.kind, ""),
        base_text=content.base_text,
        trainer_name=content.trainer_name,
        paper_title=content.paper_title,
        paper_id=content.paper_id,
        citation=content.citation,
        quick_start=quick_start(content),
        sampling=content.sampling,
        settings=content.settings,
        data_text=content.data,
        rewards=content.rewards,
        command=content.command,
        measured=measured_text(content.figures),
        limits=content.limits,
        licence_text=licence_text(content),
        versions={package: version(package) for package in _PACKAGES},
    )


def merged_card(card: ModelCard, quantization: str | None = None) -> ModelCard:
    """The card of an adapter for the model that it was merged into.

    Args:
        card ([`~huggingface_hub.ModelCard`]):
            The adapter's.
        quantization (`str`, *optional*):
            How the base was quantized in training, which the merged model's is not.
    """
    holds = HOLDS_MERGED
    if quantization:
        holds += (
            f" The base was quantized in training ({quantization}), and is not here: what was measured was measured "
            "with the quantized one."
        )
    merged = ModelCard(str(card).replace(HOLDS_ADAPTER, holds))
    merged.data.library_name = "transformers"
    if merged.data.get("base_model_relation"):
        merged.data.base_model_relation = "finetune"
    return merged


def card_with_figures(card: ModelCard, figures: list[MeasuredFigure]) -> ModelCard:
    """A card that says these figures, in its text and its metadata, in the place of those that it said before.

    Args:
        card ([`~huggingface_hub.ModelCard`]):
            One of [`diffusion_model_card`].
        figures (`list[MeasuredFigure]`):
            As measured.

    Raises:
        ValueError: the card has no section "Measured".
    """
    text, found = re.subn(
        r"(?ms)^## Measured\n.*?(?=^## )",
        lambda match: f"## Measured\n\n{measured_text(figures)}\n",
        str(card),
        count=1,
    )
    if not found:
        raise ValueError("The card has no section '## Measured' with another section behind it, to put figures in.")
    card = ModelCard(text)
    card.data.eval_results = eval_results(figures)
    return card
