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


def token_positions(attention_mask: torch.Tensor, document_ids: torch.Tensor | None = None) -> torch.Tensor:
    """Positions of the real tokens of a padded batch, counted from the first real token of each row, or document.

    Args:
        attention_mask (`torch.Tensor` of shape (B, L)):
            1 on real tokens, 0 on padding (left or right).
        document_ids (`torch.Tensor` of shape (B, L), *optional*):
            Document of each token where several are packed into a row; the tokens of a document stand together.

    Returns:
        `torch.LongTensor` of shape (B, L); padding on the left gets position 0.
    """
    counted = attention_mask.long().cumsum(dim=1) - 1  # (B, L)
    if document_ids is not None:
        # What was counted before a document began; the count only grows, so the running maximum carries it along.
        begins = torch.ones_like(document_ids, dtype=torch.bool)
        begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
        before = (counted + 1 - attention_mask.long()) * begins
        counted = counted - before.cummax(dim=1).values
    return counted.clamp(min=0)


def check_not_packed(position_ids: torch.Tensor, attention_mask: torch.Tensor):
    """Refuse rows that hold several documents without saying so: each would attend to the others.

    Args:
        position_ids (`torch.LongTensor` of shape (B, L)):
            Positions of the tokens.
        attention_mask (`torch.Tensor` of shape (B, L)):
            1 on real tokens.

    Raises:
        ValueError: positions go back inside a row.
    """
    real = attention_mask.bool()
    seen = position_ids.masked_fill(~real, -1).cummax(dim=1).values  # largest position so far
    back = real[:, 1:] & (position_ids[:, 1:] <= seen[:, :-1])
    if back.any():
        row, column = back.nonzero()[0].tolist()
        raise ValueError(
            f"position_ids go back from {seen[row, column].item()} to {position_ids[row, column + 1].item()} inside "
            f"row {row}, as packed documents do, and attention would reach from one document into the next. "
            "Pass `document_ids` (B, L), or an attention mask of four dimensions."
        )


def check_padding_mask(attention_mask: torch.Tensor):
    """Refuse masks that number documents: only 0 and 1 mean something.

    Masks of dtype bool need no check; on a GPU that saves a synchronisation.

    Raises:
        ValueError: there is another value.
    """
    if attention_mask.dtype != torch.bool and attention_mask.numel() and attention_mask.max() > 1:
        raise ValueError(
            f"attention_mask has the value {attention_mask.max().item()}; it holds 1 on real tokens and 0 on padding. "
            "Number documents in `document_ids`."
        )


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
    implementation = config._attn_implementation
    if implementation not in ("sdpa", "eager", "flex_attention"):
        raise ValueError(
            f"attn_implementation={implementation!r} takes no mask of blocks or documents. Load the model with "
            "attn_implementation='sdpa', 'eager' or 'flex_attention'."
        )
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

    batch_size, length = block.shape
    return ALL_MASK_ATTENTION_FUNCTIONS[implementation](
        batch_size=batch_size,
        q_length=length,
        kv_length=length,
        q_offset=0,
        kv_offset=0,
        mask_function=visible,
        attention_mask=None,
        allow_is_causal_skip=False,
        dtype=dtype,
        config=config,
        use_vmap=False,
        device=block.device,
    )
