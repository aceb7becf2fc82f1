# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Dream (arXiv 2508.15487) and DiffuCoder (arXiv 2506.20639): a Qwen2 whose attention sees the whole sequence. Its
logits are shifted, as those of the autoregressive model it was made from: position i holds the prediction of i + 1."""

from huggingface_hub.dataclasses import strict
from transformers import AutoTokenizer, PreTrainedConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from ..configuration import DiffusionConfigMixin
from ..modeling import DiffusionModelMixin
from ..registration import register_family


@strict
class DreamConfig(DiffusionConfigMixin, Qwen2Config):
    """Config of Dream and DiffuCoder; fields as in [`~transformers.Qwen2Config`] and [`DiffusionConfigMixin`]."""

    model_type = "Dream"
    known_mask_token_ids = {152064: 151666}


class DreamModel(DiffusionModelMixin, Qwen2ForCausalLM):
    """Dream with a language-model head. The name is the Hub's `architectures` entry."""

    config_class = DreamConfig
    logits_shift = 1


class DreamTokenizer(Qwen2Tokenizer):
    """Tokenizer of Dream: Qwen2's, under the name that the Hub's `tokenizer_config.json` gives."""


class _DreamTokenizerConfig(PreTrainedConfig):
    # A class registered for the model's own config would give way to the repository's code under
    # `trust_remote_code=True`; one that is registered elsewhere and bears the right name does not.
    model_type = "dream-tokenizer"


AutoTokenizer.register(_DreamTokenizerConfig, DreamTokenizer, exist_ok=True)
register_family(DreamConfig, DreamModel)
