# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The distribution that tokens are drawn from, and drawing from it."""

import math
from dataclasses import dataclass

import torch
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper


def token_distribution(
    logits: torch.Tensor,
    mask_token_id: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> torch.Tensor:
    """Log-probabilities that tokens are drawn from, and that a trace is replayed with.

    Args:
        logits (`torch.Tensor` of shape (n, V)):
            Logits of n positions, any dtype.
        mask_token_id (`int`):
            [MASK] is never drawn: its logit becomes −inf.
        temperature (`float`):
            Divides the logits; 0 is taken as 1, since a greedy choice has no distribution of its own.
        top_k (`int`, *optional*), top_p (`float`, *optional*):
            transformers' filters, after the temperature.

    Returns:
        `torch.FloatTensor` of shape (n, V), fp32 (fp64 for fp64 logits): normalised log-probabilities.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    is_mask = torch.arange(logits.size(-1), device=logits.device) == mask_token_id
    logits = logits.masked_fill(is_mask, float("-inf")) / (temperature or 1.0)
    return filter_logits(logits, top_k, top_p).log_softmax(dim=-1)


def filter_logits(logits: torch.Tensor, top_k: int | None, top_p: float | None) -> torch.Tensor:
    """transformers' top-k and top-p: (n, V) logits with −inf for what they cut off."""
    if top_k:
        logits = TopKLogitsWarper(top_k)(None, logits)
    if top_p is not None and top_p < 1:
        logits = TopPLogitsWarper(top_p)(None, logits)
    return logits


@dataclass
class TokenDraw:
    """Tokens drawn for n positions.

    Args:
        tokens (`torch.LongTensor` of shape (n,)):
            The drawn tokens.
        logprobs (`torch.FloatTensor` of shape (n,)):
            Their log-probabilities under the distribution they were drawn from (at temperature 0 that at 1).
        confidence (`torch.FloatTensor` of shape (n,)):
            Their probabilities at temperature 1, unfiltered: exp(logit − logsumexp).
        logits (`torch.FloatTensor` of shape (n, V)), log_norm (`torch.FloatTensor` of shape (n,)):
            The distribution they were drawn from: log p = logits − log_norm.
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor
    confidence: torch.Tensor
    logits: torch.Tensor
    log_norm: torch.Tensor

    def entropy(self) -> torch.Tensor:
        """(n,), nats: −Σ p log p."""
        log_probs = self.logits - self.log_norm[:, None]
        # Tokens of probability 0 add nothing; 0 · −inf would be a NaN.
        return -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(dim=-1)

    def margin(self) -> torch.Tensor:
        """(n,): difference of the two largest probabilities."""
        largest = (self.logits.topk(2, dim=-1).values - self.log_norm[:, None]).exp()
        return largest[:, 0] - largest[:, 1]


def draw_tokens(
    logits: torch.Tensor,
    uniform: torch.Tensor | None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> TokenDraw:
    """Draw one token per position. No tensor is larger than the logits, in bytes (but for a single position with
    top-p): what needs 8 bytes an entry, the sort of top-p, runs on halves of them.

    Args:
        logits (`torch.FloatTensor` of shape (n, V)):
            fp32 or fp64, −inf for tokens never drawn. Overwritten.
        uniform (`torch.DoubleTensor` of shape (n,), *optional*):
            Uniform numbers in [0, 1); `None` with `temperature=0`.
        temperature (`float`), top_k (`int`, *optional*), top_p (`float`, *optional*):
            As in [`token_distribution`]; temperature 0 takes the most probable token and ignores the filters.

    Returns:
        [`TokenDraw`].
    """
    largest, best = logits.max(dim=-1)
    weights = (logits - largest[:, None]).exp_()
    log_norm = largest + weights.sum(dim=-1).log()
    if temperature == 0:
        logprobs = largest - log_norm
        return TokenDraw(best, logprobs, logprobs.exp(), logits, log_norm)
    drawn_norm = log_norm
    filters = bool(top_k) or (top_p is not None and top_p < 1)
    if temperature != 1 or filters:
        logits.div_(temperature)
        if filters:
            for piece in logits.split(max(1, len(logits) // 2)):
                piece.copy_(filter_logits(piece, top_k, top_p))
        # No filter takes the most probable token away.
        largest = largest / temperature
        weights = torch.sub(logits, largest[:, None], out=weights).exp_()
        drawn_norm = largest + weights.sum(dim=-1).log()
    tokens = draw(weights, uniform)
    chosen = logits.gather(1, tokens[:, None]).squeeze(1)
    return TokenDraw(tokens, chosen - drawn_norm, (chosen * temperature - log_norm).exp(), logits, drawn_norm)


def draw(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draw one token per position by inverting the cumulative distribution, with fp64 sums.

    One uniform number a position, instead of one per vocabulary entry: a row's noise costs little and does not depend
    on its batch. Two levels, groups of √V tokens and the tokens of a group, so that the fp64 sums, which keep the tail
    of large vocabularies, are never as long as the vocabulary.

    Args:
        weights (`torch.FloatTensor` of shape (n, V)):
            Probabilities, up to a factor.
        uniform (`torch.DoubleTensor` of shape (n,)):
            Uniform numbers in [0, 1).

    Returns:
        `torch.LongTensor` of shape (n,). A token of probability 0 is never drawn.
    """
    count, size = weights.shape
    width = max(1, math.isqrt(size))
    whole = size // width * width
    sums = weights[:, :whole].view(count, -1, width).sum(dim=-1)  # (n, V/width)
    if whole < size:
        sums = torch.cat([sums, weights[:, whole:].sum(dim=-1, keepdim=True)], dim=1)
    group, rest = _invert(sums, uniform)
    column = group[:, None] * width + torch.arange(width, device=weights.device)  # (n, width)
    inside = weights.gather(1, column.clamp(max=size - 1)).masked_fill(column >= size, 0.0)
    return group * width + _invert(inside, rest)[0]


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The entry of each row at `uniform` of its cumulative sum, and where inside that entry, in [0, 1)."""
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1]
    # Strictly below the total, whatever the rounding: the first sum above the point then exists, and an entry of
    # weight 0 is never the first.
    point = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))[:, None]
    index = torch.searchsorted(cumulative, point, right=True).clamp(max=weights.size(1) - 1)  # of NaN: beyond the end
    upper = cumulative.gather(1, index)
    lower = torch.where(index > 0, cumulative.gather(1, (index - 1).clamp(min=0)), 0.0)
    return index.squeeze(1), ((point - lower) / (upper - lower)).squeeze(1)
