# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Checks that the trainers make before any work is done."""

from typing import Any

from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file, logging

from ..models import (
    UNIFORM_MODEL_TYPE,
    DiffusionModelMixin,
    check_model_type,
    diffusion_model,
    find_mask_token_id,
)


logger = logging.get_logger(__name__)


# Keyword arguments of `from_pretrained` that say where files are found.
HUB_KWARGS = ("cache_dir", "local_files_only", "revision", "subfolder", "token")


def reject(args: Any, reasons: dict[str, tuple[Any, str]]):
    """Raise for the first field of a config that has no effect, or a wrong one, in this trainer.

    Args:
        args:
            The trainer's config.
        reasons (`dict[str, tuple[Any, str]]`):
            Field -> (the value that means "off", what to do instead).

    Raises:
        ValueError: a field has another value than "off".
    """
    for field, (off, remedy) in reasons.items():
        value = getattr(args, field)
        if value != off:
            raise ValueError(f"{field}={value!r} is not supported by {type(args).__name__}: {remedy}")


def check_model_source(
    model: "str | nn.Module", args: Any, init_kwargs: dict[str, Any] | None = None, argument: str = "model"
):
    """Refuse anything but a masked diffusion language model, before its weights are read.

    Args:
        model (`str` or `torch.nn.Module`):
            What the trainer was given.
        args:
            Its config. `trust_remote_code` is switched off: the families are native, and TRL would run the code of
            their tokenizers.
        init_kwargs (`dict`, *optional*):
            Keyword arguments that the model is loaded with; those of the config by default.
        argument (`str`, *optional*, defaults to `"model"`):
            What the trainer calls it.

    Raises:
        ValueError: a checkpoint of a family that is not supported.
        TypeError: a model that is not a masked diffusion language model.
    """
    if args.trust_remote_code:
        logger.warning("trust_remote_code=True has no effect: no code of the repository is executed.")
        args.trust_remote_code = False
    if isinstance(model, str):
        hub_kwargs = {
            name: value
            for name, value in ((args.model_init_kwargs if init_kwargs is None else init_kwargs) or {}).items()
            if name in HUB_KWARGS
        }
        model_type = check_model_type(model, **hub_kwargs)
    else:
        model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type == UNIFORM_MODEL_TYPE:
        raise ValueError(
            f"{argument} is of model_type={model_type!r}, which corrupts tokens uniformly and has no mask token. "
            f"{type(args).__name__.removesuffix('Config')}Trainer trains masked diffusion models; uniform corruption "
            "is not supported yet."
        )
    if isinstance(model, str):
        if find_adapter_config_file(model, **hub_kwargs) is not None:
            raise ValueError(
                f"{argument}={model!r} is an adapter. Load it onto its base model, "
                "`peft.PeftModel.from_pretrained(base, adapter, is_trainable=True)`, and pass the result."
            )
    else:
        family = diffusion_model(model)
        if getattr(family, "_hf_peft_config_loaded", False) and not isinstance(model, PeftModel):
            raise ValueError(
                "model has an adapter inside that was put there by `load_adapter` or an Auto class, which TRL does "
                "not know how to train. `model.save_pretrained(folder)`, then pass "
                "`peft.PeftModel.from_pretrained(base, folder, is_trainable=True)`."
            )


def check_peft_config(peft_config: PeftConfig | None):
    """Prompt-learning adapters add virtual tokens, which a canvas has no place for.

    Raises:
        ValueError: `peft_config` is of that kind.
    """
    if peft_config is not None and getattr(peft_config, "is_prompt_learning", False):
        raise ValueError(
            f"peft_config is a {type(peft_config).__name__}, which adds virtual tokens to the sequence. Use an "
            "adapter on the weights, such as `peft.LoraConfig`."
        )


def check_dataset(dataset: Any, name: str, column: str | None):
    """An empty dataset, or one without its column, fails here rather than inside the data loader.

    Raises:
        ValueError: it is empty or lacks `column` (`None`: any columns will do).
    """
    if isinstance(dataset, dict):
        for key, part in dataset.items():
            check_dataset(part, f"{name}[{key!r}]", column)
        return
    if dataset is None:
        return
    first = next(iter(dataset), None)  # a streaming dataset has no length
    if first is None:
        raise ValueError(f"{name} is empty (0 rows). Check the split and the filters that made it.")
    if column is None:
        return
    if not isinstance(dataset, Dataset):
        if column not in first:
            raise ValueError(f"{name} has no column {column!r}; its first row has {', '.join(first)}.")
        return
    if column not in dataset.column_names:
        raise ValueError(f"{name} has no column {column!r}; it has {', '.join(dataset.column_names)}.")


def map_style_datasets(trainer: Any) -> list[tuple[str, Dataset]]:
    """Names and datasets of a trainer that can be looked through before training, those of a dict one by one."""
    found = [("train_dataset", trainer.train_dataset)]
    evaluation = trainer.eval_dataset
    if isinstance(evaluation, dict):
        found += [(f"eval_dataset[{key!r}]", part) for key, part in evaluation.items()]
    else:
        found.append(("eval_dataset", evaluation))
    return [(name, dataset) for name, dataset in found if isinstance(dataset, Dataset)]


def settle_mask_token(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> DiffusionModelMixin:
    """Make sure that the model knows its mask token, from its config or else from the tokenizer.

    Returns:
        The diffusion language model inside `model`.

    Raises:
        ValueError: neither names a mask token, or they disagree.
    """
    family = diffusion_model(model)
    known, found = family.config.mask_token_id, tokenizer.mask_token_id
    if known is None:
        found = find_mask_token_id(family.config, tokenizer)
        if found is None:
            raise ValueError(
                "No mask token: config.mask_token_id and tokenizer.mask_token are both None. Set "
                "`model.config.mask_token_id` to the id of the token that stands for [MASK]."
            )
        family.config.mask_token_id = found
        logger.info(f"config.mask_token_id is taken from the tokenizer: {found} ({tokenizer.mask_token!r}).")
    elif found is not None and found != known:
        raise ValueError(
            f"config.mask_token_id={known} and tokenizer.mask_token_id={found} disagree. Set both to the id that the "
            "model was trained with."
        )
    return family


def switch_router_loss_off(trainer: Any):
    """TRL adds the load-balancing loss of models with experts, from a forward pass of its own; ours score masked
    views. The model's own coefficient stays in its config."""
    if trainer.aux_loss_enabled:
        logger.warning("The load-balancing loss of the experts is not added: router_aux_loss_coef has no effect here.")
    trainer.aux_loss_enabled = False
    config = diffusion_model(trainer.model).config
    if hasattr(config, "output_router_logits"):
        config.output_router_logits = False
