# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Making a family known to transformers."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightTransform

from .configuration import DiffusionConfigMixin
from .modeling import DiffusionModelMixin


def register_family(
    config_class: type[DiffusionConfigMixin],
    model_class: type[DiffusionModelMixin],
    conversions: list[WeightTransform] | None = None,
):
    """Make the Auto classes load a family's Hub checkpoints natively, whatever `trust_remote_code` says.

    `AutoModel` and `AutoModelForMaskedLM` give the model with its language-model head too: that is what the model
    cards on the Hub load through them.

    Args:
        config_class, model_class:
            The family.
        conversions (`list[WeightTransform]`, *optional*):
            Rules from the Hub's weight names to the library's, run backwards when saving. They must leave the
            library's own names alone: PEFT runs them on the keys of every adapter it loads.
    """
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for auto_class in (AutoModelForCausalLM, AutoModelForMaskedLM, AutoModel):
        auto_class.register(config_class, model_class, exist_ok=True)
    if conversions:
        register_checkpoint_conversion_mapping(config_class.model_type, conversions, overwrite=True)
