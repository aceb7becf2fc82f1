# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Where tokens stand: in their documents, behind padding, and in the model's logits."""

import torch


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
    if attention_mask.dtype == torch.bool:
        return
    other = attention_mask[(attention_mask != 0) & (attention_mask != 1)]
    if len(other):
        raise ValueError(
            f"attention_mask has the value {other[0].item()}; it holds 1 on real tokens and 0 on padding. "
            "Number documents in `document_ids`."
        )


def cached_length(cache) -> int:
    """Tokens in a cache; 0 without one."""
    return 0 if cache is None else int(cache.get_seq_length())


def is_padding_mask(attention_mask) -> bool:
    """Whether a mask says which tokens are real (or is none), rather than which see each other."""
    return attention_mask is None or (isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2)


def document_positions(
    input_ids: torch.Tensor,
    attention_mask: "torch.Tensor | None" = None,
    position_ids: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
    cached: bool = False,
) -> torch.Tensor:
    """Position of each token in its document: (B, L).

    From a mask of padding and `document_ids`. A mask that is ready for attention says nothing of either, nor does one
    that covers a cache; then `position_ids` count, or else the row.
    """
    if is_padding_mask(attention_mask) and not cached:
        valid = torch.ones_like(input_ids, dtype=torch.long) if attention_mask is None else attention_mask
        return token_positions(valid, None if document_ids is None else document_ids.expand_as(input_ids))
    if position_ids is None:
        position_ids = torch.arange(input_ids.size(1), device=input_ids.device)
    return position_ids.expand_as(input_ids)


def logits_positions(position_ids: torch.Tensor, shift: int) -> torch.Tensor:
    """Where the logits that predict each token stand in the model's output.

    Args:
        position_ids (`torch.LongTensor` of shape (B, L)):
            Positions of the tokens in their documents.
        shift (`int`):
            The model's `logits_shift`.

    Returns:
        `torch.LongTensor` of shape (B, L): i − shift. The first token of a document has no token before it and keeps
        its own logits (Dream's sampler).
    """
    own = torch.arange(position_ids.size(1), device=position_ids.device).expand_as(position_ids)
    return own - position_ids.clamp(max=shift)
