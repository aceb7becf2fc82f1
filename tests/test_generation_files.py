# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Settings of a generation in files, and what becomes of live rules there."""

import json

import numpy as np
import pytest
from conftest import random_model
from test_generation_interface import PROMPT, SmallPolicy, full_rollout, rightmost_first
from transformers import AutoModelForCausalLM, GenerationConfig

from trl_diffusion import DiffusionGenerationConfig


CONFIGS = [
    {},
    {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "num_return_sequences": 4},
    {"unmasking": "random", "num_return_sequences": 2},
    {"unmasking": "factor", "factor": 1.0, "cache": "dual", "cache_refresh_interval": 4, "block_length": 32},
    {"unmasking": "entropy", "alg_temp": 0.5, "step_schedule": "linear_time", "num_denoising_steps": 64},
    {"guidance_scale": 1.5, "suppress_tokens": [1, 2], "begin_suppress_tokens": [3], "seed": [1, 2]},
    {"unmasking": "entropy_bounded", "entropy_bound": 0.3, "eos_token_id": [1, 2], "pad_token_id": 0},
]


@pytest.mark.parametrize("fields", CONFIGS, ids=str)
def test_the_config_round_trips_through_transformers(tokenizer, tmp_path, fields):
    config = DiffusionGenerationConfig(**fields)
    config.save_pretrained(tmp_path / "ours")
    loaded = DiffusionGenerationConfig.from_pretrained(tmp_path / "ours")
    assert loaded == config and repr(loaded) == repr(config)
    for name, value in fields.items():
        assert getattr(loaded, name) == value
    # transformers' own class reads the file, and writes it again.
    GenerationConfig.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = DiffusionGenerationConfig.from_pretrained(tmp_path / "theirs")
    for name in set(vars(config)) - {"transformers_version"}:
        assert getattr(again, name) == getattr(config, name), name
    # With the model: saved, loaded, used.
    model = random_model("llada", tokenizer)
    model.generation_config = config
    model.save_pretrained(tmp_path / "model")
    loaded_model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded_model.generation_config == config
    assert DiffusionGenerationConfig.from_dict(config.to_dict()) == config


def test_a_live_rule_is_saved_by_its_path(tokenizer, tmp_path):
    config = DiffusionGenerationConfig(unmasking=rightmost_first)
    assert "rightmost_first" in repr(config)
    config.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "generation_config.json").read_text())
    assert content["unmasking"] == "test_generation_interface.rightmost_first"
    assert DiffusionGenerationConfig.from_pretrained(tmp_path).unmasking == content["unmasking"]
    for unsaved in (lambda state: state.candidates, SmallPolicy()):
        with pytest.raises(ValueError, match="(?s)unmasking=.* cannot be written"):
            DiffusionGenerationConfig(unmasking=unsaved).save_pretrained(tmp_path / "other")
        model = random_model("llada", tokenizer)
        model.generation_config.unmasking = unsaved
        with pytest.raises(ValueError, match="(?s)unmasking=.* cannot be written"):
            model.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    policy = SmallPolicy()
    policy.name_or_path = "someone/policy"
    DiffusionGenerationConfig(unmasking=policy).save_pretrained(tmp_path / "policy")
    assert DiffusionGenerationConfig.from_pretrained(tmp_path / "policy").unmasking == "someone/policy"


def test_a_folder_that_is_called_like_a_rule_is_no_policy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("random", "my-policy"):
        (tmp_path / name).mkdir()
    assert DiffusionGenerationConfig(unmasking="random").to_dict()["unmasking"] == "random"
    assert DiffusionGenerationConfig(unmasking="my-policy").to_dict()["unmasking"] == str(tmp_path / "my-policy")


@pytest.mark.parametrize(
    "fields",
    [
        {"threshold": 0.5},
        {"repetition_penalty": 1.2},
        {"max_new_tokens": -1},
        {"pad_token_id": [0]},
        {"eos_token_id": "x"},
    ],
    ids=str,
)
def test_a_model_with_a_wrong_setting_is_not_saved_by_halves(tokenizer, tmp_path, fields):
    model = random_model("llada", tokenizer)
    for name, value in fields.items():
        setattr(model.generation_config, name, value)
    with pytest.raises(ValueError, match=next(iter(fields))):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_numbers_of_numpy_are_saved_and_errors_change_nothing(tmp_path):
    config = DiffusionGenerationConfig(temperature=np.float64(0.5), max_new_tokens=np.int64(8), seed=np.int64(3))
    config.save_pretrained(tmp_path)
    assert DiffusionGenerationConfig.from_pretrained(tmp_path) == config and "0.5" in repr(config)
    with pytest.raises(ValueError, match="temperature=-1"):
        config.update(temperature=-1, seed=4)
    assert config.temperature == 0.5 and config.seed == 3
    assert config.update(seed=4) == {} and config.seed == 4
    one, other = (DiffusionGenerationConfig(unmasking=lambda state: state.candidates) for _ in range(2))
    assert one == one and one != other


def test_a_live_rule_given_on_loading_stays_alive(tokenizer, tmp_path):
    random_model("llada", tokenizer).save_pretrained(tmp_path)
    config = DiffusionGenerationConfig(unmasking=rightmost_first, eos_token_id=1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, generation_config=config)
    assert model.generation_config.unmasking is rightmost_first
    model.generate(PROMPT, max_new_tokens=4)


def test_fields_of_dream_s_config_are_explained(tmp_path, caplog):
    (tmp_path / "generation_config.json").write_text(json.dumps({"alg": "entropy", "steps": 64, "cache": None}))
    with caplog.at_level("WARNING", logger="trl_diffusion"):
        config = DiffusionGenerationConfig.from_pretrained(tmp_path)
    assert "`alg` is `unmasking` here" in caplog.text and config.cache == "none"


def test_what_changes_the_distribution_is_reported(tokenizer):
    model = random_model("llada", tokenizer)
    for settings, filtered in [
        ({"temperature": 1.0}, False),
        ({"temperature": 1.0, "top_k": 3}, True),
        ({"top_k": 3}, False),
        ({"guidance_scale": 2.0}, True),
        ({"guidance_scale": 1.0}, False),
        ({"suppress_tokens": [3]}, True),
        ({"begin_suppress_tokens": [3]}, True),
    ]:
        assert full_rollout(model, **settings).rollout.filtered == filtered, settings
