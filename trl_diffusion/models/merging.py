# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""An adapter merged into its base: one model, in the Hub format of its family."""

import os
import shutil

from huggingface_hub import ModelCard

from ..hub import hub_files, merged_card, read_training_args
from .auto import AutoModelForDiffusionLM, adapter_base
from .modeling import DiffusionModelMixin


# Files of the adapter that the merged model does not have, or writes itself.
_OWN = ("adapter_config.json", "config.json", "README.md")


def merge_adapter(folder: str | os.PathLike, **kwargs) -> DiffusionModelMixin:
    """The base of a LoRA adapter with the adapter merged into its weights.

    Args:
        folder (`str` or `os.PathLike`):
            Folder or Hub id of the adapter.
        kwargs:
            For [`AutoModelForDiffusionLM.from_pretrained`], e.g. `dtype`. The base is loaded as it is on disk, also
            where it was quantized in training.

    Raises:
        ValueError: it is no adapter, its base is stored in a quantized form, or the adapter is of a kind that cannot
            be merged.
    """
    from peft import PeftConfig, PeftModel

    base = adapter_base(folder)
    if base is None:
        raise ValueError(f"{str(folder)!r} is no adapter: there is nothing to merge.")
    revision = None if os.path.isdir(base) else PeftConfig.from_pretrained(folder).revision
    if revision is not None:
        kwargs = {"revision": revision, **kwargs}
    model = AutoModelForDiffusionLM.from_pretrained(base, **kwargs)
    if getattr(model, "is_quantized", False):
        raise ValueError(
            f"The base {base!r} is stored in a quantized form: an adapter that is merged into it would be rounded. "
            "Push the adapter as it is."
        )
    adapted = PeftModel.from_pretrained(model, folder)
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except (AttributeError, NotImplementedError) as error:
        kind = adapted.peft_config["default"].peft_type
        raise ValueError(f"{str(folder)!r} is a {kind} adapter, which PEFT cannot merge: {error}") from error
    return merged


def merge_adapter_folder(folder: str | os.PathLike, output_dir: str | os.PathLike):
    """Write the merged model of an adapter's folder, with what lies beside the adapter: tokenizer, generation
    settings, training arguments and card.

    Args:
        folder (`str` or `os.PathLike`):
            As a trainer saved it.
        output_dir (`str` or `os.PathLike`):
            Where to.

    Raises:
        ValueError: as [`merge_adapter`].
    """
    folder = str(folder)
    model = merge_adapter(folder)
    os.makedirs(output_dir, exist_ok=True)
    model.save_pretrained(output_dir)
    for name in hub_files(folder):
        # Nor weights of another run.
        if name not in _OWN and "/" not in name and ".safetensors" not in name:
            shutil.copy(os.path.join(folder, name), os.path.join(output_dir, name))
    card = os.path.join(folder, "README.md")
    if os.path.isfile(card):
        quantization = read_training_args(folder).get("base_quantization")
        merged_card(ModelCard.load(card), quantization).save(os.path.join(output_dir, "README.md"))
