# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

import json
import shutil

import pytest
import torch
from conftest import DATA, golden_model, random_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.trainer_utils import load_sharded_checkpoint

from trl_diffusion.models import LLaDAConfig, LLaDAModelLM, SDARConfig, diffusion_model, layout_mask, token_positions


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
    weights = load_file(tmp_path / "model.safetensors")
    model = golden_model(family)
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(weights)
    model.load_state_dict(weights, strict=False)  # the rest may come with the next shard
    with pytest.raises(ValueError, match="mlp.experts.*a shard of the checkpoint is missing"):
        model(torch.zeros(1, 3, dtype=torch.long))


@pytest.mark.parametrize("size", ["20KB", "60KB"])
def test_a_trainer_resumes_from_shards(every_family, size, tmp_path):
    """transformers' Trainer reads a sharded checkpoint shard by shard; the experts of a layer lie in several."""
    expected = golden_model(every_family)
    expected.save_pretrained(tmp_path, max_shard_size=size)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    model = type(expected)(expected.config)
    load_sharded_checkpoint(model, str(tmp_path), strict=False)
    model.tie_weights()
    assert not model._incomplete_weights
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in expected.state_dict().items())
    assert torch.equal(logits(model.eval(), torch.arange(9)[None]), logits(expected, torch.arange(9)[None]))


@pytest.mark.parametrize(
    "family, name", [("llada", "model.transformer.blocks.0.q_proj.bias"), ("sdar", "extra.weight")]
)
def test_names_of_another_wrapper_are_unexpected_not_fatal():
    model = golden_model("llada2_moe")
    saved = load_file(DATA / "models" / "llada2_moe" / "model.safetensors")
    weights = {f"module.{key}": value for key, value in saved.items()}
    result = model.load_state_dict(weights, strict=False)
    assert len(result.unexpected_keys) == len(weights)


def test_the_class_of_another_family_is_refused():
    with pytest.raises(ValueError, match="LLaDAMoEConfig, LLaDAModelLM takes a LLaDAConfig"):
        LLaDAModelLM.from_pretrained(DATA / "models" / "lladamoe")


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


def test_explicit_positions_do_not_move_where_shifted_logits_are_read():
    model = golden_model("dream")
    ids = torch.randint(0, 200, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    wanted = mask.bool()
    with torch.no_grad():
        found = model.token_logits(ids, wanted, attention_mask=mask, position_ids=torch.arange(9)[None])
        raw = model(ids, attention_mask=mask, position_ids=torch.arange(9)[None]).logits
    expected = [raw[0, max(i - 1, 4)] for i in range(4, 9)] + [raw[1, max(i - 1, 0)] for i in range(9)]
    assert torch.allclose(found, torch.stack(expected), atol=1e-6)
    with pytest.raises(ValueError, match="past_key_values"):
        model.token_logits(ids, wanted, past_key_values=DynamicCache())


def test_labels_follow_the_documents_of_a_ready_mask():
    """The same two documents, described by document_ids and by a mask of four dimensions with positions."""
    model = golden_model("dream")
    ids = torch.randint(0, 200, (1, 8))
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    labels = torch.full_like(ids, -100)
    labels[0, [0, 2, 3, 4]] = torch.tensor([5, 6, 7, 8])
    ready = (documents[:, :, None] == documents[:, None])[:, None]
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
    with torch.no_grad():
        described = model(ids, document_ids=documents, labels=labels).loss
        masked = model(ids, attention_mask=ready, position_ids=positions, labels=labels).loss
        log_probs = model(ids, document_ids=documents).logits[0].log_softmax(-1)
    assert torch.allclose(described, masked, atol=1e-5)
    expected = -sum(log_probs[at, token] for at, token in ((0, 5), (1, 6), (3, 7), (3, 8))) / 4
    assert torch.allclose(described, expected, atol=1e-5)


def test_the_loss_counts_the_items_of_the_whole_step(every_family):
    """transformers' Trainer divides the sum of all micro-batches by what it counted."""
    model = golden_model(every_family)
    ids = torch.randint(0, 200, (4, 7))
    labels = torch.where(torch.rand(4, 7) < 0.5, ids, -100)
    with torch.no_grad():
        whole = model(ids, labels=labels).loss
        items = (labels != -100).sum()
        parts = sum(model(ids[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=items).loss for i in range(4))
        as_tuple = model(ids, labels=labels, return_dict=False)
    assert torch.allclose(whole, parts, atol=1e-5)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], whole)


def test_router_logits():
    ids = torch.arange(6)[None]
    blocks = golden_model("sdar_moe")
    with pytest.raises(ValueError, match="output_router_logits"):
        blocks(ids, output_router_logits=True)
    expected = logits(blocks, ids)
    blocks.config.output_router_logits = True  # a checkpoint may say so
    assert torch.equal(logits(blocks, ids), expected)
    full = golden_model("lladamoe")
    with torch.no_grad():
        plain = full(ids, labels=ids)
        routed = full(ids, labels=ids, output_router_logits=True)
    expected = plain.loss + full.config.router_aux_loss_coef * routed.aux_loss
    assert routed.aux_loss > 0 and torch.allclose(routed.loss, expected)


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
