# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Masks of every layout, on every backend, against visibility written out pair by pair."""

import pytest
import torch
from conftest import golden_model, random_model
from transformers import DynamicCache, StaticCache

from trl_diffusion.models import SDARConfig, layout_mask, token_positions


# Two rows of eight tokens: padding on the left of the one, on the right of the other.
VALID = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 0]])
DOCUMENTS = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 2, 2, 2]])
NOISY = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1]])
COUNTED = token_positions(VALID)
LAYOUTS = {
    "full": {"block_ids": torch.zeros_like(VALID)},
    "block_causal": {"block_ids": COUNTED // 3},
    "noisy_clean": {"block_ids": torch.tensor([[0, 0, 0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 0, 0, 1, 1]]), "noisy": NOISY},
    "documents": {"block_ids": torch.zeros_like(VALID), "document_ids": DOCUMENTS},
    "documents_in_blocks": {"block_ids": token_positions(VALID, DOCUMENTS) // 2, "document_ids": DOCUMENTS},
}


def visible(row, query, key, block_ids, noisy=None, document_ids=None) -> bool:
    """What the docstring of `layout_mask` says, for one pair."""
    if query == key:
        return True
    if not (VALID[row, query] and VALID[row, key]):
        return False
    if document_ids is not None and document_ids[row, query] != document_ids[row, key]:
        return False
    query_block, key_block = block_ids[row, query], block_ids[row, key]
    query_noisy = noisy is not None and bool(noisy[row, query])
    key_noisy = noisy is not None and bool(noisy[row, key])
    if query_noisy and key_noisy:
        return bool(query_block == key_block)
    if query_noisy:
        return bool(key_block < query_block)
    return not key_noisy and bool(key_block <= query_block)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
def test_every_layout_on_every_backend(layout, implementation):
    config = SDARConfig()
    config._attn_implementation = implementation
    mask = layout_mask(config, valid=VALID, **LAYOUTS[layout])
    for row in range(2):
        for query in range(8):
            for key in range(8):
                if implementation == "sdpa":
                    found = bool(mask[row, 0, query, key])
                elif implementation == "eager":
                    found = bool(mask[row, 0, query, key] == 0)
                    assert found or mask[row, 0, query, key] < -1e30
                else:
                    index = [torch.tensor(value) for value in (row, 0, query, key)]
                    found = bool(mask.mask_mod(*index))
                assert found == visible(row, query, key, **LAYOUTS[layout]), (row, query, key)


def test_positions_start_again_with_every_document():
    assert token_positions(VALID).tolist() == [[0, 0, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 6]]
    assert token_positions(VALID, DOCUMENTS).tolist() == [[0, 0, 0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 0, 1, 1]]


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
def test_packed_documents_equal_rows_of_their_own(every_family, implementation):
    model = golden_model(every_family, attn_implementation=implementation)
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(0, 200, (length,), generator=generator) for length in (7, 5, 9)]
    packed = torch.cat([*documents, torch.zeros(3, dtype=torch.long)])[None]
    mask = torch.tensor([[1] * 21 + [0] * 3])
    document_ids = torch.tensor([[0] * 7 + [1] * 5 + [2] * 9 + [3] * 3])
    with torch.no_grad():
        found = model(packed, attention_mask=mask, document_ids=document_ids).logits[0]
        expected = torch.cat([model(document[None]).logits[0] for document in documents])
    assert (found[:21] - expected).abs().max() <= 2e-5


def test_packing_without_document_ids_is_refused(every_family):
    model = golden_model(every_family)
    ids = torch.randint(0, 200, (1, 8))
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
    with pytest.raises(ValueError, match="go back from 4 to 0 inside row 0.*document_ids"):
        model(ids, position_ids=positions)
    with pytest.raises(ValueError, match="go back from 4 to 0 inside row 0"):
        model(ids, attention_mask=torch.ones_like(ids), position_ids=positions)
    with pytest.raises(ValueError, match="cu_seq_lens_q"):
        model(ids, cu_seq_lens_q=torch.tensor([0, 5, 8]))
    padded, anything = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]]), torch.tensor([[1, 1, 1, 0, 1, 2, 3, 4]])
    with torch.no_grad():  # padding may have any positions
        model(ids, attention_mask=padded, position_ids=anything)


def test_packing_is_seen_across_padding(tokenizer):
    ids, mask = torch.randint(3, 8, (2, 7)), torch.tensor([[1, 1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]])
    positions = torch.tensor([[0, 1, 2, 0, 0, 1, 2], [0, 1, 2, 3, 4, 0, 0]])
    with pytest.raises(ValueError, match="go back from 2 to 0 inside row 0"):
        random_model("llada", tokenizer)(ids, attention_mask=mask, position_ids=positions)


@pytest.mark.parametrize("values", [[0.0, 0.0, -10000.0, 0.0], [1, 1, -1, 1]])
def test_an_additive_mask_of_two_dimensions_is_refused(values, tokenizer):
    with pytest.raises(ValueError, match="attention_mask has the value -1"):
        random_model("llada", tokenizer)(torch.randint(3, 8, (1, 4)), attention_mask=torch.tensor([values]))


def test_masks_may_have_any_dtype(family, tokenizer):
    model, ids = random_model(family, tokenizer), torch.randint(3, 8, (2, 5))
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        for dtype in (torch.bool, torch.int32, torch.uint8, torch.float32, torch.bfloat16):
            assert torch.equal(model(ids, attention_mask=mask.to(dtype)).logits[mask.bool()], expected[mask.bool()])


def test_a_static_cache_is_not_seen_beyond_what_is_in_it(tokenizer):
    model, ids = random_model("llada", tokenizer), torch.randint(3, 8, (1, 6))
    with torch.no_grad():
        found = model(ids, past_key_values=StaticCache(config=model.config, max_cache_len=20), use_cache=True).logits
        assert torch.allclose(found, model(ids).logits, atol=1e-5)


def test_labels_with_a_cache(tokenizer):
    ids = torch.randint(3, 8, (1, 7))
    for family in ("llada", "sdar", "dream"):
        model, cache = random_model(family, tokenizer), DynamicCache()
        with torch.no_grad():
            model(ids[:, :4], past_key_values=cache, use_cache=True)
            given = {"past_key_values": cache, "attention_mask": torch.ones_like(ids), "labels": ids[:, 4:]}
            if family == "dream":
                with pytest.raises(ValueError, match="DreamModel predicts a token from the place before it"):
                    model(ids[:, 4:], **given)
            else:
                output = model(ids[:, 4:], **given)
                expected = torch.nn.functional.cross_entropy(output.logits[0], ids[0, 4:])
                assert torch.allclose(output.loss, expected)


def test_a_mask_that_numbers_documents_is_refused(family, tokenizer):
    with pytest.raises(ValueError, match="attention_mask has the value 2.*document_ids"):
        random_model(family, tokenizer)(torch.randint(3, 8, (1, 4)), attention_mask=torch.tensor([[1, 1, 2, 2]]))


def test_one_row_of_document_ids_and_positions_serves_the_batch(family, tokenizer):
    model = random_model(family, tokenizer)
    ids, documents = torch.randint(3, 8, (3, 6)), torch.tensor([[0, 0, 0, 1, 1, 1]])
    with torch.no_grad():
        broadcast = model(ids, document_ids=documents).logits
        assert torch.equal(broadcast, model(ids, document_ids=documents.expand(3, -1)).logits)
        assert torch.equal(model(ids, position_ids=torch.arange(6)[None]).logits, model(ids).logits)


@pytest.mark.parametrize("family", ["llada", "dream", "sdar", "llada2_moe"])
def test_a_padded_row_with_a_cache_equals_the_row_alone(family, tokenizer):
    """The cached tokens, then three more that see them and one another."""
    model = random_model(family, tokenizer, **({"block_length": 8} if family in ("sdar", "llada2_moe") else {}))
    row = torch.randint(3, 8, (1, 11))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), row], dim=1)
    mask = torch.cat([torch.zeros(1, 3, dtype=torch.long), torch.ones_like(row)], dim=1)
    found = []
    for ids, attention_mask in ((row, torch.ones_like(row)), (padded, mask)):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(ids[:, :-3], attention_mask=attention_mask[:, :-3], past_key_values=cache, use_cache=True)
            found.append(
                model(ids[:, -3:], attention_mask=attention_mask, past_key_values=cache, use_cache=True).logits
            )
    assert torch.allclose(*found, atol=1e-5)
    if model.attention == "block_causal":  # the prefill is block-causal too
        with torch.no_grad():
            assert torch.allclose(found[0], model(row).logits[:, -3:], atol=1e-5)


def test_documents_exclude_a_cache(tokenizer):
    model, cache = random_model("llada", tokenizer), DynamicCache()
    ids = torch.randint(3, 8, (1, 4))
    model(ids, past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="document_ids.*past_key_values"):
        model(ids, past_key_values=cache, document_ids=torch.zeros_like(ids))


def test_documents_and_a_ready_mask_exclude_each_other(tokenizer):
    ids = torch.randint(3, 8, (1, 4))
    with pytest.raises(ValueError, match="document_ids"):
        random_model("llada", tokenizer)(
            ids, attention_mask=torch.ones(1, 1, 4, 4, dtype=torch.bool), document_ids=torch.zeros_like(ids)
        )


@pytest.mark.parametrize("family", ["sdar", "sdar_moe", "llada2_moe", "a2d-qwen3"])
def test_flash_attention_is_refused_for_blocks(family, tokenizer):
    model = random_model(family, tokenizer)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2.*no mask of blocks or documents"):
        model(torch.randint(3, 8, (1, 4)))


def test_flash_attention_is_refused_for_documents(tokenizer):
    model = random_model("llada", tokenizer)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2.*no mask of blocks or documents"):
        model(torch.randint(3, 8, (1, 4)), document_ids=torch.tensor([[0, 0, 1, 1]]))
