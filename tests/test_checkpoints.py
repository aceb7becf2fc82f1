# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Reading and writing checkpoints in the Hub's format: whole, or not at all."""

import json
import shutil

import pytest
import torch
from conftest import DATA, golden_model, random_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.trainer_utils import load_sharded_checkpoint

from trl_diffusion.models import LLaDAModelLM


def logits(model, input_ids):
    with torch.no_grad():
        return model(input_ids).logits


def test_round_trip_is_bit_equal_and_keeps_the_hubs_names(every_family, tmp_path):
    golden_model(every_family).save_pretrained(tmp_path)
    before = load_file(DATA / "models" / every_family / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    old = json.loads((DATA / "models" / every_family / "config.json").read_text())
    new = json.loads((tmp_path / "config.json").read_text())
    assert "auto_map" not in new
    kept = set(old) - {"auto_map", "attn_implementation", "torch_dtype", "dtype", "transformers_version", "use_cache"}
    kept -= {key for key, value in old.items() if value is None}  # "unset", where the library has a value
    assert {key: new.get(key) for key in kept} == {key: old[key] for key in kept}
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert all(
        torch.equal(a, b)
        for a, b in zip(reloaded.state_dict().values(), golden_model(every_family).state_dict().values(), strict=True)
    )


def test_a_saved_folders_tensors_can_be_read_straight_into_a_model(every_family, tokenizer):
    weights = load_file(DATA / "models" / every_family / "model.safetensors")
    model = type(golden_model(every_family))(AutoConfig.from_pretrained(DATA / "models" / every_family))
    model.load_state_dict(weights, strict=not model.config.tie_word_embeddings)
    model.tie_weights()
    expected = golden_model(every_family).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})


def test_remote_code_is_never_asked_for(every_family):
    model = AutoModelForCausalLM.from_pretrained(DATA / "models" / every_family, trust_remote_code=True)
    assert type(model).__module__.startswith("trl_diffusion.")


def spoil(family, folder, change):
    """A copy of a golden checkpoint with other weights."""
    shutil.copytree(DATA / "models" / family, folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_checkpoint_with_missing_weights_is_refused(every_family, tmp_path):
    spoil(every_family, tmp_path, lambda weights: weights.pop(next(key for key in weights if "norm" in key)))
    with pytest.raises(ValueError, match="lacks 1 weights"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("family", ["sdar_moe", "llada2_moe", "lladamoe"])
def test_a_checkpoint_that_lacks_an_expert_is_refused(family, tmp_path):
    spoil(family, tmp_path, lambda weights: weights.pop(next(key for key in weights if "experts.3.up_proj" in key)))
    with pytest.raises((ValueError, RuntimeError)):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    model = golden_model(family)
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(weights)
    model.load_state_dict(weights, strict=False)  # the rest may come with the next shard
    with pytest.raises(ValueError, match="mlp.experts.*a shard of the checkpoint is missing"):
        model(torch.zeros(1, 3, dtype=torch.long))


@pytest.mark.parametrize("family", ["llada", "sdar_moe", "llada2_moe", "lladamoe"])
def test_a_trainer_resumes_from_shards(family, tmp_path):
    """transformers' Trainer reads a sharded checkpoint shard by shard; the experts of a layer lie in several."""
    expected = golden_model(family)
    expected.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    model = type(expected)(expected.config)
    load_sharded_checkpoint(model, str(tmp_path), strict=False)
    model.tie_weights()
    assert not model._incomplete_weights
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in expected.state_dict().items())
    assert torch.equal(logits(model.eval(), torch.arange(9)[None]), logits(expected, torch.arange(9)[None]))


@pytest.mark.parametrize("family, experts", [("sdar_moe", "num_experts"), ("llada2_moe", "n_routed_experts")])
def test_more_than_ten_experts_keep_their_order(family, experts, tokenizer, tmp_path):
    expected = random_model(family, tokenizer, **{experts: 12})
    expected.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    model = type(expected)(expected.config)
    model.load_state_dict(dict(reversed(weights.items())))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in expected.state_dict().items())


@pytest.mark.parametrize("family", ["sdar_moe", "llada2_moe", "lladamoe"])
def test_weights_given_later_complete_what_was_begun(family):
    expected = golden_model(family)
    saved = load_file(DATA / "models" / family / "model.safetensors")
    part = {key: value for key, value in saved.items() if "experts.0." in key}
    for whole in (saved, expected.state_dict()):
        for strict in (True, False):
            model = golden_model(family)
            model.load_state_dict(part, strict=False)
            assert model._incomplete_weights
            model.load_state_dict(whole, strict=strict)
            assert torch.equal(logits(model, torch.arange(5)[None]), logits(expected, torch.arange(5)[None]))


def test_names_of_another_wrapper_are_unexpected_not_fatal():
    model = golden_model("llada2_moe")
    saved = load_file(DATA / "models" / "llada2_moe" / "model.safetensors")
    weights = {f"module.{key}": value for key, value in saved.items()}
    result = model.load_state_dict(weights, strict=False)
    assert len(result.unexpected_keys) == len(weights)


def test_the_class_of_another_family_is_refused():
    with pytest.raises(ValueError, match="LLaDAMoEConfig, LLaDAModelLM takes a LLaDAConfig"):
        LLaDAModelLM.from_pretrained(DATA / "models" / "lladamoe")


@pytest.mark.parametrize(
    "family, name", [("llada", "model.transformer.blocks.0.q_proj.bias"), ("sdar", "extra.weight")]
)
def test_weights_that_have_no_place_are_refused(family, name, tmp_path):
    spoil(family, tmp_path, lambda weights: weights.update({name: torch.ones(64)}))
    with pytest.raises(ValueError, match="1 weights that .* has no place for"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_model_may_be_loaded_with_fewer_layers(every_family):
    assert golden_model(every_family, num_hidden_layers=1).config.num_hidden_layers == 1


def test_weights_of_another_shape_are_refused(every_family, tmp_path):
    def cut(weights):
        name = next(key for key in weights if "norm" in key)
        weights[name] = weights[name][:-1].contiguous()

    spoil(every_family, tmp_path, cut)
    with pytest.raises(ValueError, match="lacks 1 weights"):
        AutoModelForCausalLM.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    with pytest.raises(RuntimeError):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_broken_generation_config_is_not_replaced_by_defaults(every_family, tmp_path):
    shutil.copytree(DATA / "models" / every_family, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text("{oops")
    with pytest.raises(OSError, match="valid JSON"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
