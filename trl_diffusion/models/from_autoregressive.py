# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Making a diffusion language model of an autoregressive one."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from ..generation import DiffusionGenerationConfig
from .modeling import DiffusionModelMixin


# Diffusion format -> {the autoregressive model's model_type: that of the result}.
TARGETS = {
    "a2d": {"llama": "a2d-llama", "qwen2": "a2d-qwen2", "qwen3": "a2d-qwen3"},
    "sdar": {"qwen3": "sdar", "qwen3_moe": "sdar_moe"},
}
# Fields that say what the autoregressive checkpoint was, not how it computes.
_DROPPED_FIELDS = ("model_type", "architectures", "auto_map", "is_causal", "use_cache", "transformers_version")


def convert_autoregressive(
    model: str,
    to: str,
    output_dir: str,
    block_length: int | None = None,
    mask_token: str | None = None,
    dtype: "str | torch.dtype" = "auto",
    revision: str | None = None,
) -> DiffusionModelMixin:
    """Write an autoregressive checkpoint in a diffusion format, ready for `DiffusionSFTTrainer`.

    The weights stay as they are; attention is opened, a mask token is added to the tokenizer, and its rows in the
    embedding and in the head become the mean of the others. It cannot fill in masks yet: that is what it is trained
    for next.

    Args:
        model (`str`):
            Hub id or folder of a Llama, Qwen2, Qwen3 or Qwen3-MoE checkpoint.
        to (`str`):
            `"a2d"`: full attention, or block-causal with `block_length`. `"sdar"` (Qwen3 and Qwen3-MoE): block-causal.
        output_dir (`str`):
            Folder to write; it must not exist, or be empty. Written whole or not at all.
        block_length (`int`, *optional*):
            Tokens per attention block. Defaults to full attention for `"a2d"` and to 4 for `"sdar"`.
        mask_token (`str`, *optional*):
            How the tokenizer writes [MASK]. Defaults to the mask token it has, or else to the format's own
            (`<|mask|>`, SDAR: `<|MASK|>`).
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
            Of the weights written; `"auto"` keeps the checkpoint's.
        revision (`str`, *optional*):
            Revision of the checkpoint.

    Returns:
        The model that was written.

    Raises:
        ValueError: a format or architecture that has no conversion, a quantized checkpoint, a tokenizer with another
            mask token, a mask token that means something else, or a field out of range.
        FileExistsError: `output_dir` holds something.
    """
    if to not in TARGETS:
        raise ValueError(f"to={to!r} must be one of {', '.join(TARGETS)}.")
    target = Path(output_dir).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"output_dir={str(target)!r} exists and is not an empty folder. Choose another.")
    source = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    if source.model_type not in TARGETS[to]:
        raise ValueError(f"{model!r} has model_type={source.model_type!r}; to={to!r} takes {', '.join(TARGETS[to])}.")
    if getattr(source, "quantization_config", None) is not None:
        raise ValueError(f"{model!r} is quantized: convert the checkpoint it was made from.")
    config_class = CONFIG_MAPPING[TARGETS[to][source.model_type]]
    tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
    known = len(tokenizer)
    _add_mask_token(tokenizer, mask_token or tokenizer.mask_token or config_class.mask_token)
    config = _diffusion_config(source, config_class, block_length)

    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    converted = model_class.from_pretrained(model, config=config, dtype=dtype, revision=revision)
    converted.generation_config = _generation_config(model, revision, converted.config, tokenizer)
    _give_mask_token_rows(converted, tokenizer, known)
    converted.config.mask_token_id = tokenizer.mask_token_id

    target.parent.mkdir(parents=True, exist_ok=True)
    written = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        converted.save_pretrained(written)
        tokenizer.save_pretrained(written)
        written.chmod(0o755)  # mkdtemp's folders are private
        written.replace(target)
    finally:
        shutil.rmtree(written, ignore_errors=True)
    return converted


def _add_mask_token(tokenizer: PreTrainedTokenizerBase, mask_token: str):
    if tokenizer.mask_token not in (None, mask_token):
        raise ValueError(
            f"mask_token={mask_token!r}, but the tokenizer's mask token is {tokenizer.mask_token!r}: leave mask_token "
            "out to use it."
        )
    uses = [name for name in ("bos", "eos", "pad", "unk") if getattr(tokenizer, f"{name}_token") == mask_token]
    if not uses and mask_token in tokenizer.get_vocab() and mask_token not in tokenizer.get_added_vocab():
        uses = ["an ordinary token of its text"]
    if uses:
        raise ValueError(
            f"mask_token={mask_token!r} is {uses[0]} in this tokenizer; [MASK] must be a token of its own, such as "
            "'<|mask|>'."
        )
    tokenizer.add_special_tokens({"mask_token": mask_token})


def _diffusion_config(source, config_class, block_length: int | None):
    fields: dict[str, Any] = {name: value for name, value in source.to_dict().items() if name not in _DROPPED_FIELDS}
    if block_length is not None:
        fields.update(block_length=block_length)
    return config_class.from_dict(fields)


def _generation_config(model: str, revision: str | None, config, tokenizer) -> DiffusionGenerationConfig:
    """The special tokens alone: how the autoregressive model was sampled says nothing about the diffusion model."""
    try:
        source = GenerationConfig.from_pretrained(model, revision=revision)
    except OSError:  # the checkpoint has none
        source = config
    eos = source.eos_token_id if source.eos_token_id is not None else tokenizer.eos_token_id
    pad = source.pad_token_id if source.pad_token_id is not None else tokenizer.pad_token_id
    return DiffusionGenerationConfig(eos_token_id=eos, pad_token_id=pad, bos_token_id=source.bos_token_id)


@torch.no_grad()
def _give_mask_token_rows(model: DiffusionModelMixin, tokenizer: PreTrainedTokenizerBase, known: int):
    """Rows for a token that the tokenizer did not have: appended, or, where the vocabulary has rows to spare (Qwen),
    one of those. Both matrices' rows are the mean of the rows of the tokens there were."""
    if len(tokenizer) == known and len(tokenizer) <= model.config.vocab_size:
        return
    known = min(known, model.config.vocab_size)
    if len(tokenizer) > model.config.vocab_size:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for matrix in (model.get_input_embeddings(), model.get_output_embeddings()):
        matrix.weight[tokenizer.mask_token_id] = matrix.weight[:known].float().mean(dim=0).to(matrix.weight.dtype)
