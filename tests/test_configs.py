# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Configs between the Hub's fields and the library's."""

import json

import pytest
from conftest import DATA, golden_model
from transformers import AutoConfig, AutoModelForCausalLM

from trl_diffusion.models import LLaDAConfig, LLaDAMoEConfig, SDARConfig


def test_the_hubs_attention_choice_is_left_to_the_caller():
    assert json.loads((DATA / "models" / "sdar" / "config.json").read_text())["attn_implementation"]
    assert golden_model("sdar").config._attn_implementation == "sdpa"
    eager = AutoModelForCausalLM.from_pretrained(DATA / "models" / "sdar", attn_implementation="eager")
    assert eager.config._attn_implementation == "eager"


def test_scaled_rope_is_written_in_the_hubs_fields(tmp_path):
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config = SDARConfig(rope_theta=1e6, rope_scaling=dict(rope), max_position_embeddings=131072)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["rope_theta"] == 1e6 and saved["rope_scaling"] == rope and "rope_parameters" not in saved
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == config.rope_parameters


@pytest.mark.parametrize(
    "field, value", [("include_bias", True), ("alibi", True), ("layer_norm_type", "default"), ("rope", False)]
)
def test_llada_fields_that_would_change_the_arithmetic_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        LLaDAConfig(**{field: value})


def test_sdar_block_length_must_be_positive():
    with pytest.raises(ValueError, match="block_length=0"):
        SDARConfig(block_size=0)
    assert SDARConfig(block_size=None).block_length == 4
    with pytest.raises(ValueError, match="block_length=0"):
        SDARConfig(block_length=0)


def test_dense_layers_of_llada_moe():
    config = LLaDAMoEConfig.from_dict({"num_hidden_layers": 3, "moe_layer_freq": [0, 1, 0], "num_experts": 4})
    assert config.mlp_only_layers == [0, 2] and config.to_dict()["moe_layer_freq"] == [0, 1, 0]


def test_published_sdar_configs_get_the_mask_token_of_their_tokenizer():
    assert SDARConfig(vocab_size=151936, mask_token_id=7).mask_token_id == 7  # what a config says counts
    assert SDARConfig(vocab_size=151936).mask_token_id == 151669
    assert SDARConfig(vocab_size=256).mask_token_id is None


@pytest.mark.parametrize(
    "family, arguments, expected",
    [
        ("sdar", {"block_size": 8}, {"block_length": 8}),
        ("sdar", {"block_length": 8}, {"block_length": 8}),
        ("llada", {"n_layers": 1}, {"num_hidden_layers": 1}),
        ("llada", {"num_hidden_layers": 1}, {"num_hidden_layers": 1}),
        ("llada", {"weight_tying": True}, {"tie_word_embeddings": True}),
        ("sdar_moe", {"num_experts_per_tok": 1, "mask_token_id": 7}, {"num_experts_per_tok": 1, "mask_token_id": 7}),
    ],
)
def test_keywords_replace_fields_of_the_file(family, arguments, expected):
    config = AutoConfig.from_pretrained(DATA / "models" / family, **arguments)
    assert {name: getattr(config, name) for name in expected} == expected


def test_keywords_of_rope_are_merged_with_the_files():
    scaling = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
    config = AutoConfig.from_pretrained(DATA / "models" / "sdar", rope_scaling=scaling)
    assert config.rope_parameters == {**scaling, "rope_theta": 1000000}
    assert AutoConfig.from_pretrained(DATA / "models" / "sdar", rope_theta=5.0).rope_parameters["rope_theta"] == 5.0


@pytest.mark.parametrize(
    "family, arguments, message",
    [
        ("llada", {"is_causal": True}, "is_causal=True contradicts"),
        ("llada", {"include_bias": True}, "include_bias=True"),
        ("sdar", {"block_length": 0}, "block_length=0"),
        ("sdar", {"block_size": -3}, "block_length=-3"),
        ("dream", {"use_sliding_window": True}, "use_sliding_window"),
        ("dream", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ],
)
def test_keywords_are_checked_as_the_files_fields_are(family, arguments, message):
    with pytest.raises(ValueError, match=message):
        golden_model(family, **arguments)


def test_fields_of_llada_that_are_null_mean_what_the_original_makes_of_them():
    config = LLaDAConfig.from_dict(
        {
            "d_model": 32,
            "n_heads": 4,
            "n_kv_heads": None,
            "mlp_hidden_size": None,
            "mlp_ratio": 3,
            "bias_for_layer_norm": None,
            "include_qkv_bias": None,
            "embedding_size": None,
            "vocab_size": 11,
        }
    )
    assert (config.intermediate_size, config.num_key_value_heads, config.vocab_size) == (96, 4, 11)
    assert LLaDAConfig.from_dict({"multi_query_attention": True}).num_key_value_heads == 1


def test_config_round_trips_through_auto_config(every_family, tmp_path):
    config = AutoConfig.from_pretrained(DATA / "models" / every_family)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert {**again.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
