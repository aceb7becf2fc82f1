# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Loading a checkpoint of whichever family."""

import json
import os
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import GENERATION_CONFIG_NAME, cached_file, find_adapter_config_file, logging

from ..checkpoints import tiny_checkpoint, tiny_checkpoints
from ..generation import DiffusionGenerationConfig
from ..hub import hub_errors, tiny_name
from .configuration import DiffusionConfigMixin
from .modeling import DiffusionModelMixin


logger = logging.get_logger(__name__)

# transformers' own diffusion language model: uniform corruption, no mask token, a generation mixin of its own.
UNIFORM_MODEL_TYPE = "diffusion_gemma"
_HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def supported_model_types() -> list[str]:
    """`model_type`s of the families with a mask token, sorted."""
    extra = CONFIG_MAPPING._extra_content.items()
    return sorted(name for name, config_class in extra if issubclass(config_class, DiffusionConfigMixin))


def check_model_type(name_or_path: "str | os.PathLike", **hub_kwargs) -> str:
    """`model_type` of a checkpoint, read without executing anything of it.

    Args:
        name_or_path (`str` or `os.PathLike`):
            Hub id or folder of a model, or of a PEFT adapter, whose base model is then looked at.
        hub_kwargs:
            `revision`, `token`, `cache_dir`, `local_files_only`, … of transformers.

    Returns:
        `str`: one of [`supported_model_types`], or "diffusion_gemma".

    Raises:
        ValueError: it is another model.
        HubError: it cannot be read from the Hub; the message says what to do.
    """
    with hub_errors(str(name_or_path)):
        return _supported_model_type(*_base_model(name_or_path, hub_kwargs))


def _supported_model_type(source: str, hub_kwargs: dict[str, Any]) -> str:
    """The same for what is known to be a model."""
    config, _ = PreTrainedConfig.get_config_dict(source, **hub_kwargs)
    model_type = config.get("model_type")
    if model_type in (*supported_model_types(), UNIFORM_MODEL_TYPE):
        return model_type
    if not config:
        raise ValueError(f"{source!r} has no config.json: it is not the folder or repository of a model.")
    remedy = ""
    if f"a2d-{model_type}" in supported_model_types():
        remedy = (
            f" It is autoregressive; `trl-diffusion convert --model {source} --to a2d --output_dir …` makes a "
            "diffusion language model of it."
        )
    raise ValueError(
        f"{source!r} has model_type={model_type!r} (architectures={config.get('architectures')}), which is not a "
        f"diffusion language model supported here. Supported: {', '.join(supported_model_types())}, "
        f"{UNIFORM_MODEL_TYPE}.{remedy}"
    )


def _base_model(name_or_path: "str | os.PathLike", hub_kwargs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The model an adapter belongs to, and where to find it; what was given where it is no adapter."""
    found = _read_adapter_base(name_or_path, **hub_kwargs)
    if found is None:
        return str(name_or_path), hub_kwargs
    # These two say which version of the adapter is meant; that of the base is the adapter's to say.
    kwargs = {name: value for name, value in hub_kwargs.items() if name not in ("revision", "subfolder")}
    base, revision = found
    return base, kwargs if revision is None else {**kwargs, "revision": revision}


def adapter_base(name_or_path: "str | os.PathLike", **hub_kwargs) -> str | None:
    """The model that an adapter belongs to; `None` where it is no adapter.

    Args:
        name_or_path (`str` or `os.PathLike`), hub_kwargs:
            As in [`check_model_type`].

    Returns:
        `str`, *optional*: folder or Hub id. An adapter that was pushed calls a tiny checkpoint by its name.

    Raises:
        ValueError: the adapter does not say which model it belongs to.
    """
    found = _read_adapter_base(name_or_path, **hub_kwargs)
    return None if found is None else found[0]


def _read_adapter_base(name_or_path: "str | os.PathLike", **hub_kwargs) -> tuple[str, str | None] | None:
    """The same, and the branch, tag or commit of it that the adapter was trained on, where that is said."""
    adapter_config = find_adapter_config_file(name_or_path, **hub_kwargs)
    if adapter_config is None:
        return None
    with open(adapter_config, encoding="utf-8") as file:
        config = json.load(file)
    base = config.get("base_model_name_or_path")
    if base is None:
        raise ValueError(
            f"{str(name_or_path)!r} is an adapter whose adapter_config.json names no base_model_name_or_path. Load "
            "the base model, then `model.load_adapter(...)`."
        )
    if base in tiny_checkpoints() and not os.path.exists(base):
        base = str(tiny_checkpoint(base))
    return base, None if os.path.isdir(base) else config.get("revision")


def find_mask_token_id(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of [MASK] according to a tokenizer: its mask token, or else the token that the family's published
    tokenizers use without declaring it (LLaDA's `<|mdm_mask|>`). `None` where there is neither."""
    if tokenizer.mask_token_id is not None:
        return tokenizer.mask_token_id
    return tokenizer.get_vocab().get(config.mask_token)


class AutoModelForDiffusionLM:
    """Loads a diffusion language model of any supported family; see [`~AutoModelForDiffusionLM.from_pretrained`]."""

    def __init__(self):
        raise OSError("AutoModelForDiffusionLM is loaded with `AutoModelForDiffusionLM.from_pretrained(...)`.")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: "str | os.PathLike", *args, **kwargs) -> PreTrainedModel:
        """Load a checkpoint, or a PEFT adapter with its base model, natively and ready to generate.

        Beyond what [`~transformers.AutoModelForCausalLM`] does: the mask token is resolved (config, else the family's
        documented constant, else the tokenizer), special tokens that the generation config lacks are taken from the
        config or else the tokenizer, an adapter's own `generation_config.json` is taken, and a model that is none of
        the supported families is refused by name. No code of the repository is ever executed.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Hub id or folder of a model or of an adapter.
            kwargs:
                Those of [`~transformers.PreTrainedModel.from_pretrained`] (`dtype`, `device_map`,
                `attn_implementation`, `quantization_config`, `revision`, …) and fields of the config (`block_length`,
                …).

        Returns:
            [`~trl_diffusion.models.DiffusionModelMixin`]; for DiffusionGemma transformers' own class.

        Raises:
            ValueError: an unsupported `model_type`; no mask token; missing or mismatched weights.
            HubError: it cannot be read from the Hub (gated, private, no such name, offline); the message says what to
                do.
        """
        if kwargs.pop("trust_remote_code", None):
            logger.warning("trust_remote_code=True has no effect: no code of the repository is executed.")
        with hub_errors(str(pretrained_model_name_or_path)):
            return cls._load(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _load(cls, name: "str | os.PathLike", *args, **kwargs) -> PreTrainedModel:
        hub_kwargs = {key: kwargs[key] for key in _HUB_KWARGS if key in kwargs}
        base = _base_model(name, hub_kwargs)
        config = kwargs.get("config")
        known = isinstance(config, PreTrainedConfig)
        model_type = config.model_type if known else _supported_model_type(*base)
        if model_type == UNIFORM_MODEL_TYPE:
            return AutoModelForImageTextToText.from_pretrained(name, *args, **kwargs)
        is_adapter = base[0] != str(name)
        # transformers would look for the adapter's branch and folder in the base's repository too.
        own_place = {key: hub_kwargs[key] for key in ("revision", "subfolder") if hub_kwargs.get(key)}
        base_place = {"revision": base[1]["revision"]} if is_adapter and base[1].get("revision") else {}
        apart = is_adapter and (bool(own_place) or bool(base_place) or tiny_name(base[0]) is not None)
        source = base[0] if apart else name
        kept = {key: value for key, value in kwargs.items() if not (apart and key in own_place)}
        loaded = AutoModelForCausalLM.from_pretrained(source, *args, **{**kept, **base_place})
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # output_loading_info
        if not isinstance(model, DiffusionModelMixin):
            raise ValueError(f"config is a {type(config).__name__}, which is not that of a diffusion language model.")
        if apart:
            model.load_adapter(str(name), adapter_kwargs=hub_kwargs)
        if is_adapter and "generation_config" not in kwargs:
            _take_generation_config(model, name, hub_kwargs)
        _settle_special_tokens(model, *base)
        return loaded


def _take_generation_config(model: DiffusionModelMixin, adapter: "str | os.PathLike", hub_kwargs: dict[str, Any]):
    """Let a model decode as its adapter was trained to, where that says so; those of other tools say nothing."""
    kwargs = {name: value for name, value in hub_kwargs.items() if name != "subfolder" or value}
    try:
        file = cached_file(adapter, GENERATION_CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **kwargs)
    except OSError as error:
        logger.warning(
            f"{adapter}: whether it has a {GENERATION_CONFIG_NAME} could not be found out ({error}). The model "
            "decodes with the settings of its base; give its own to `generate`."
        )
        return
    if file is None:
        return
    config = DiffusionGenerationConfig.from_pretrained(adapter, **kwargs)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(config, name) is None:
            setattr(config, name, getattr(model.generation_config, name))
    model.generation_config = config


def _settle_special_tokens(model: DiffusionModelMixin, source: str, hub_kwargs: dict[str, Any]):
    """Fill in the mask token and the special tokens of generation, from the tokenizer where the configs lack them.

    Raises:
        ValueError: nothing names a mask token.
    """
    generation = model.generation_config
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(generation, name) is None:
            setattr(generation, name, getattr(model.config, name, None))
    if None not in (model.config.mask_token_id, generation.eos_token_id, generation.pad_token_id):
        return
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, config=model.config, trust_remote_code=False, **hub_kwargs)
    except (OSError, ValueError) as error:
        if model.config.mask_token_id is not None:
            if generation.eos_token_id is None:
                logger.warning(
                    f"{source}: no config names an EOS token and no tokenizer was found "
                    f"({str(error).splitlines()[0]}): generation will run to the end of the canvas."
                )
            return
        raise ValueError(
            f"{source}: config.mask_token_id is None and no tokenizer was found that could name the mask token "
            f"({str(error).splitlines()[0]}). Pass `mask_token_id=` to from_pretrained."
        ) from error
    if model.config.mask_token_id is None:
        model.config.mask_token_id = find_mask_token_id(model.config, tokenizer)
    if model.config.mask_token_id is None:
        raise ValueError(
            f"{source}: neither the config nor the tokenizer names a mask token. Pass `mask_token_id=` to "
            "from_pretrained."
        )
    if generation.eos_token_id is None:
        generation.eos_token_id = tokenizer.eos_token_id
    if generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id
