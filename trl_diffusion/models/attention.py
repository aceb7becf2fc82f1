# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Attention masks of diffusion language models: one description, every backend.

A layout is described by four tensors over the tokens of a row: the block each token belongs to, whether the token
stands in the noisy copy of the sequence, the document it belongs to, and whether it is real. `layout_mask` turns that
description into the mask of the attention implementation the model runs with, through transformers' own mask
interface.
"""

import torch
from transformers import PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS


def layout_mask(
    config: PreTrainedConfig,
    block_ids: torch.Tensor,
    valid: torch.Tensor,
    noisy: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
):
    """Mask of a layout for the attention implementation in `config`.

    Within a copy of the sequence attention is bidirectional inside a block; one block for all is full attention. A
    clean token sees the clean tokens of its own and of earlier blocks. A noisy token sees its own noisy block and the
    clean tokens of strictly earlier blocks (block diffusion, arXiv 2503.09573; TraceRL, arXiv 2509.06949, section 4).
    Documents that share a row do not see one another. Padding sees itself alone, so that no row of the softmax is
    empty.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            The model's config; its `_attn_implementation` decides the mask's form.
        block_ids (`torch.LongTensor` of shape (B, L)):
            Block of each token, ascending from the row's first real token.
        valid (`torch.Tensor` of shape (B, L)):
            True on real tokens.
        noisy (`torch.Tensor` of shape (B, L), *optional*):
            True on the tokens of the noisy copy. `None`: the sequence has one, clean, copy.
        document_ids (`torch.Tensor` of shape (B, L), *optional*):
            Document of each token. `None`: a row is one document.
        dtype (`torch.dtype`):
            Dtype of the hidden states, used by additive masks.

    Returns:
        Bool (B, 1, L, L) for sdpa, additive float for eager, a `BlockMask` for flex attention.

    Raises:
        ValueError: the attention implementation takes no arbitrary mask (flash attention).
    """
    # Integer arithmetic on lookup tensors throughout: boolean `==` and `~` inside an index function crash Inductor on
    # CPU, and the same function serves the dense masks and flex attention's.
    block = block_ids.to(torch.int32)
    real = valid.to(torch.int32)
    stream = torch.zeros_like(block) if noisy is None else noisy.to(torch.int32)
    document = torch.zeros_like(block) if document_ids is None else document_ids.to(torch.int32)

    def visible(batch_idx, head_idx, q_idx, kv_idx):
        q_block, kv_block = block[batch_idx, q_idx], block[batch_idx, kv_idx]
        q_noisy, kv_noisy = stream[batch_idx, q_idx], stream[batch_idx, kv_idx]
        clean_key = (1 - kv_noisy) * (kv_block <= q_block - q_noisy).to(torch.int32)
        noisy_key = kv_noisy * q_noisy * (kv_block == q_block).to(torch.int32)
        together = (document[batch_idx, kv_idx] == document[batch_idx, q_idx]).to(torch.int32)
        both_real = real[batch_idx, kv_idx] * real[batch_idx, q_idx]
        itself = (q_idx == kv_idx).to(torch.int32)
        return (clean_key + noisy_key) * together * both_real + itself > 0

    return _backend_mask(config, visible, (*block.shape, block.size(1)), dtype, block.device)


def window_mask(
    config: PreTrainedConfig,
    key_mask: torch.Tensor,
    query_columns: torch.Tensor,
    block_length: int | None = None,
    dtype: torch.dtype = torch.float32,
):
    """Mask of a few columns that look at all columns of a cache, for the attention implementation in `config`.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            The model's config.
        key_mask (`torch.BoolTensor` of shape (B, kv)):
            True on real tokens.
        query_columns (`torch.LongTensor` of shape (q,)):
            Columns of the queries, among the keys'.
        block_length (`int`, *optional*):
            Blocks begin at its multiples, and a token sees its own and those before; `None`: a token sees every key.
        dtype (`torch.dtype`):
            Dtype of the hidden states, used by additive masks.

    Returns:
        As [`layout_mask`], for q queries and kv keys. A query sees itself, padding or not.

    Raises:
        ValueError: as [`layout_mask`].
    """
    real = key_mask.to(torch.int32)
    column = query_columns.to(torch.int32)
    key = torch.arange(real.size(1), dtype=torch.int32, device=real.device)
    # One block for all where there are none.
    length = block_length or real.size(1)
    query_block, key_block = column // length, key // length

    def visible(batch_idx, head_idx, q_idx, kv_idx):
        before = (key_block[kv_idx] <= query_block[q_idx]).to(torch.int32)
        itself = (key[kv_idx] == column[q_idx]).to(torch.int32)
        return real[batch_idx, kv_idx] * before + itself > 0

    shape = (len(real), len(column), real.size(1))
    return _backend_mask(config, visible, shape, dtype, real.device)


def _backend_mask(config, mask_function, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device):
    implementation = config._attn_implementation
    if implementation not in ("sdpa", "eager", "flex_attention"):
        raise ValueError(
            f"attn_implementation={implementation!r} takes no mask of blocks or documents. Load the model with "
            "attn_implementation='sdpa', 'eager' or 'flex_attention'."
        )
    batch_size, q_length, kv_length = shape
    return ALL_MASK_ATTENTION_FUNCTIONS[implementation](
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=0,
        kv_offset=0,
        mask_function=mask_function,
        attention_mask=None,
        allow_is_causal_skip=False,
        dtype=dtype,
        config=config,
        use_vmap=False,
        device=device,
    )
