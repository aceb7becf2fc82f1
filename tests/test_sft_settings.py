# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The SFT trainer's settings that are refused, its card, and the hooks it relies on."""

import inspect

import pytest
from conftest import random_model
from datasets import Dataset
from sft import sft_config, sft_trainer
from transformers import Trainer
from trl import SFTTrainer


# Hooks


def test_the_hooks_have_their_signatures():
    def parameters(function):
        return list(inspect.signature(function).parameters)

    prepare = ["self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"]
    assert parameters(SFTTrainer._prepare_dataset) == prepare
    assert parameters(SFTTrainer._set_signature_columns_if_needed) == ["self"]
    assert parameters(Trainer._get_num_items_in_batch) == ["self", "batch_samples", "device"]
    loop = ["self", "dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"]
    assert parameters(Trainer.evaluation_loop) == loop


# Errors


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"masking": "all"}, "masking='all' must be one of random, block, trace"),
        ({"loss_weighting": "1/t"}, "loss_weighting='1/t' must be one of"),
        ({"loss_normalization": "row"}, "loss_normalization='row' must be one of"),
        ({"num_masks": 0}, "num_masks=0 must be at least 1"),
        ({"canvas_length": 0}, "canvas_length=0 must be at least 1"),
        ({"max_noise_level": 1.5}, r"max_noise_level=1.5 must lie in \[min_noise_level, 1\]"),
        ({"min_noise_level": 0.5, "max_noise_level": 0.4}, r"max_noise_level=0.4 must lie in .* \[0.5, 1\]"),
        ({"num_blocks": 2}, "num_blocks=2 is not supported.*masking='block'"),
        ({"shrinkage": 2}, "shrinkage=2 is not supported.*masking='trace'"),
        ({"masking": "block", "step_map_column": "steps"}, "step_map_column='steps' is not supported"),
        ({"masking": "trace", "num_masks": 2}, "num_masks=2 is not supported.*Leave it at 1"),
        ({"masking": "trace", "min_noise_level": 0.1}, "min_noise_level=0.1 is not supported"),
        ({"masking": "trace", "canvas_length": 8}, "canvas_length=8 is not supported"),
        ({"masking": "trace", "loss_weighting": "inverse"}, "loss_weighting='inverse'.*'uniform'"),
        ({"masking": "trace", "completion_only_loss": False}, "completion_only_loss=False has no effect"),
    ],
)
def test_settings_that_contradict_the_masking_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        sft_config(tmp_path, **settings)


@pytest.mark.parametrize(
    "kind, settings, message",
    [
        ("llada", {"block_length": 4}, "block_length=4 is not supported.*masking='random' has no blocks"),
        ("llada", {"masking": "trace", "block_length": 4}, "block_length=4 is not supported.*masking='trace'"),
        ("llada", {"masking": "block"}, "block_length=None: masking='block' under full attention needs"),
        (
            "llada",
            {"masking": "block", "block_length": 8, "canvas_length": 4},
            "block_length=8 is longer than canvas_length=4",
        ),
        ("sdar", {"masking": "block", "num_blocks": 1}, "num_blocks=1 is not supported.*all blocks in one pass"),
        ("sdar", {"canvas_length": 4}, "canvas_length=4 is not supported.*block-causal"),
    ],
)
def test_settings_that_contradict_the_attention_are_refused(kind, settings, message, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=message):
        sft_trainer(random_model(kind, tokenizer), tokenizer, tmp_path, **settings)


def test_the_card_lists_what_was_set(tokenizer, tmp_path):
    dataset = Dataset.from_dict({"prompt": ["01"], "completion": ["23"]})
    sft = sft_trainer(random_model("sdar", tokenizer), tokenizer, tmp_path, dataset=dataset, masking="block")
    sft.create_model_card(model_name="tiny")
    card = (tmp_path / "README.md").read_text()
    assert "masking" in card and "loss_normalization" in card and "shrinkage" not in card
