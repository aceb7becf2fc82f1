# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0


import pytest
import torch
from conftest import DATA, golden_model, random_model
from safetensors.torch import load_file
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from trl_diffusion.models import diffusion_model, layout_mask, token_positions


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
    largest = (difference if mask is None else difference * mask[..., None]).max().item()
    print(f"largest difference: {largest:.1e}")  # pytest -rP shows it
    return largest


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


def test_padded_rows_get_the_positions_of_unpadded_ones(family, tokenizer):
    """In bf16 rotary embeddings feel a shift of all positions: sampler and scorer must give a row the same ones."""
    model = random_model(family, tokenizer).to(torch.bfloat16)
    mask = torch.cat([torch.zeros(1, 60), torch.ones(1, 8)], dim=1)
    ids = torch.randint(3, 8, (1, 68))
    implicit = logits(model, ids, attention_mask=mask)
    explicit = logits(model, ids, attention_mask=mask, position_ids=token_positions(mask))
    assert torch.equal(implicit[:, 60:], explicit[:, 60:])


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
    cache = DynamicCache()
    model(ids, past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="past_key_values"):
        model.token_logits(ids, wanted, past_key_values=cache)


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
