# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

import json
import shutil

import pytest
import torch
from conftest import DATA, golden_model, random_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from trl_diffusion.models import LLaDAConfig, SDARConfig, diffusion_model, layout_mask, token_positions


TOLERANCE = 2e-5  # of the goldens, see their README


@pytest.fixture
def golden(family):
    return load_file(DATA / "models" / family / "reference.safetensors")


def golden_of(family):
    return load_file(DATA / "models" / family / "reference.safetensors")


def logits(model, input_ids, **kwargs):
    with torch.no_grad():
        return model(input_ids, **kwargs).logits


def largest_difference(found, expected, mask=None):
    difference = (found - expected).abs()
    return (difference if mask is None else difference * mask[..., None]).max().item()


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
def test_logits_equal_the_original_implementation(every_family, implementation):
    golden = golden_of(every_family)
    model = golden_model(every_family, attn_implementation=implementation)
    full = {} if model.attention == "full" else {"block_length": golden["input_ids"].size(1)}
    assert largest_difference(logits(model, golden["input_ids"], **full), golden["logits"]) <= TOLERANCE


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("block_length", [4, 8])
@pytest.mark.parametrize("family", ["sdar", "sdar_moe", "llada2_moe", "a2d-llama", "a2d-qwen2", "a2d-qwen3"])
def test_block_causal_logits_equal_the_original_implementation(family, block_length, implementation):
    golden = golden_of(family)
    model = golden_model(family, block_length=block_length, attn_implementation=implementation)
    found = logits(model, golden["input_ids"])
    assert largest_difference(found, golden[f"logits_block{block_length}"]) <= TOLERANCE


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("family", ["llada", "dream", "sdar"])
def test_padded_logits_equal_those_of_single_rows(family, implementation):
    golden = golden_of(family)
    mask = golden["padded_attention_mask"]
    model = golden_model(family, attn_implementation=implementation)
    found = logits(model, golden["padded_input_ids"], attention_mask=mask)
    expected = golden["padded_logits_block4" if family == "sdar" else "padded_logits"]
    assert largest_difference(found, expected, mask) <= TOLERANCE


@pytest.mark.parametrize("layout", ["noisy_clean", "prompt_resp_noisy"])
def test_noisy_layouts_equal_the_original_implementation(layout):
    golden = load_file(DATA / "models" / "sdar" / "reference.safetensors")
    ids, expected = golden[f"{layout}_input_ids"], golden[f"{layout}_logits"]
    mask = golden[f"{layout}_mask"].bool()[None, None]
    found = logits(golden_model("sdar"), ids, attention_mask=mask, position_ids=golden[f"{layout}_position_ids"])
    length = expected.size(1)
    found = found[:, :length] if layout == "noisy_clean" else found[:, -length:]
    assert largest_difference(found, expected) <= TOLERANCE


def test_layout_mask_equals_the_originals_noisy_clean_mask():
    golden = load_file(DATA / "models" / "sdar" / "reference.safetensors")
    expected = golden["noisy_clean_mask"].bool()
    length = len(expected) // 2
    blocks = torch.arange(length).repeat(2)[None] // 4
    noisy = torch.arange(2 * length)[None] < length
    mask = layout_mask(golden_model("sdar").config, blocks, torch.ones_like(blocks), noisy)
    assert torch.equal(mask[0, 0], expected)


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


def test_the_hubs_attention_choice_is_left_to_the_caller():
    assert json.loads((DATA / "models" / "sdar" / "config.json").read_text())["attn_implementation"]
    assert golden_model("sdar").config._attn_implementation == "sdpa"
    eager = AutoModelForCausalLM.from_pretrained(DATA / "models" / "sdar", attn_implementation="eager")
    assert eager.config._attn_implementation == "eager"


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
    with pytest.raises(RuntimeError):
        golden_model(family).load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)


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


def test_scaled_rope_is_written_in_the_hubs_fields(tmp_path):
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config = SDARConfig(rope_theta=1e6, rope_scaling=dict(rope), max_position_embeddings=131072)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["rope_theta"] == 1e6 and saved["rope_scaling"] == rope and "rope_parameters" not in saved
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == config.rope_parameters


def test_padded_rows_get_the_positions_of_unpadded_ones(family, tokenizer):
    """In bf16 rotary embeddings feel a shift of all positions: sampler and scorer must give a row the same ones."""
    model = random_model(family, tokenizer).to(torch.bfloat16)
    mask = torch.cat([torch.zeros(1, 60), torch.ones(1, 8)], dim=1)
    ids = torch.randint(3, 8, (1, 68))
    implicit = logits(model, ids, attention_mask=mask)
    explicit = logits(model, ids, attention_mask=mask, position_ids=token_positions(mask))
    assert torch.equal(implicit[:, 60:], explicit[:, 60:])


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


def test_published_sdar_configs_get_the_mask_token_of_their_tokenizer():
    assert SDARConfig(vocab_size=151936).mask_token_id == 151669
    assert SDARConfig(vocab_size=256).mask_token_id is None


def test_config_round_trips_through_auto_config(every_family, tmp_path):
    config = AutoConfig.from_pretrained(DATA / "models" / every_family)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert {**again.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}


def test_token_logits_are_the_rows_of_the_whole_forward(every_family, tokenizer):
    model = random_model(every_family, tokenizer)
    ids = torch.randint(3, 8, (3, 10))
    positions = torch.rand(3, 10) < 0.4
    with torch.no_grad():
        found = model.token_logits(ids, positions)
    read_at = (torch.arange(10) - model.logits_shift).clamp(min=0)
    assert torch.allclose(found, logits(model, ids)[:, read_at][positions], atol=1e-6)


def test_shifted_logits_are_read_per_row_and_document():
    """A first token has no token before it: padding in front of it, or another document, does not count."""
    model = golden_model("dream")
    ids = torch.randint(0, 200, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    documents = torch.tensor([[0] * 9, [0] * 3 + [1] * 6])
    kwargs = {"attention_mask": mask, "document_ids": documents}
    wanted = mask.bool()
    with torch.no_grad():
        found = model.token_logits(ids, wanted, **kwargs)
    raw = logits(model, ids, **kwargs)
    expected = [raw[0, max(i - 1, 4)] for i in range(4, 9)] + [raw[1, max(i - 1, 0 if i < 3 else 3)] for i in range(9)]
    assert torch.allclose(found, torch.stack(expected), atol=1e-6)


def test_labels_are_predicted_in_place(every_family, tokenizer):
    model = random_model(every_family, tokenizer)
    ids = torch.randint(3, 8, (2, 6))
    labels = torch.full_like(ids, -100)
    labels[0, 2], labels[1, 5] = 4, 7
    with torch.no_grad():
        output = model(ids, labels=labels)
    log_probs = output.logits.log_softmax(-1)
    shift = model.logits_shift
    expected = -(log_probs[0, 2 - shift, 4] + log_probs[1, 5 - shift, 7]) / 2
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_an_autoregressive_model_is_no_diffusion_model():
    config = LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    with pytest.raises(TypeError, match="LlamaForCausalLM"):
        diffusion_model(LlamaForCausalLM(config))


def test_full_attention_has_no_block_length(tokenizer):
    with pytest.raises(ValueError, match="block_length=4"):
        random_model("llada", tokenizer)(torch.randint(3, 8, (1, 4)), block_length=4)
