# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Which masked positions a step commits, and the distribution tokens are drawn from."""

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
    if top_k:
        logits = TopKLogitsWarper(top_k)(None, logits)
    if top_p is not None and top_p < 1:
        logits = TopPLogitsWarper(top_p)(None, logits)
    return logits.log_softmax(dim=-1)


def draw(log_probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draw one token per position by inverting the cumulative distribution, in fp64.

    One uniform number a position, instead of one per vocabulary entry: a row's noise costs little and does not depend
    on its batch. fp64 keeps the tail of large vocabularies.

    Args:
        log_probs (`torch.FloatTensor` of shape (n, V)):
            Normalised log-probabilities.
        uniform (`torch.DoubleTensor` of shape (n,)):
            Uniform numbers in [0, 1).

    Returns:
        `torch.LongTensor` of shape (n,). A token of probability 0 is never drawn.
    """
    cumulative = log_probs.exp().cumsum(dim=-1, dtype=torch.float64)
    # Scaled by the total, which rounding leaves a little off 1. The first entry above the number is the token; an
    # entry of probability 0 has no width.
    point = uniform.to(cumulative.dtype)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, point, right=True).squeeze(-1).clamp(max=log_probs.size(-1) - 1)


def even_share(num_masked: torch.Tensor, step: int, num_steps: torch.Tensor) -> torch.Tensor:
    """Tokens to commit at a step, when a block's tokens are shared out evenly over its steps.

    Args:
        num_masked (`torch.LongTensor` of shape (R,)):
            Masked positions of the block at its first step.
        step (`int`):
            0-based step within the block.
        num_steps (`torch.LongTensor` of shape (R,)):
            Steps of the block.

    Returns:
        `torch.LongTensor` of shape (R,); the first steps take the remainder, steps past the last get 0.
    """
    steps = num_steps.clamp(min=1)
    share = num_masked // steps + (step < num_masked % steps).long()
    return share * (step < num_steps)


def commit(
    scores: torch.Tensor, candidates: torch.Tensor, share: torch.Tensor, threshold: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the positions a step commits: the `share` best, and all that reach the threshold.

    Args:
        scores (`torch.FloatTensor` of shape (R, C)):
            Higher is committed earlier: the confidence, or noise for a random order.
        candidates (`torch.BoolTensor` of shape (R, C)):
            Masked positions of the current block.
        share (`torch.LongTensor` of shape (R,)):
            Positions to commit at least.
        threshold (`float`, *optional*):
            Every candidate with a score ≥ this is committed too.

    Returns:
        Two `torch.BoolTensor` of shape (R, C): the committed positions, and those of them below the threshold.
    """
    ranked = scores.masked_fill(~candidates, float("-inf")).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(ranked.size(1), device=ranked.device).expand_as(ranked)
    rank = torch.empty_like(ranked).scatter_(1, ranked, places)
    best = (rank < share[:, None]) & candidates
    if threshold is None:
        return best, torch.zeros_like(best)
    above = (scores >= threshold) & candidates
    return best | above, best & ~above
