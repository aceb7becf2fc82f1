# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What an unmasking policy does at a step: which positions it reveals, and the exact likelihood of that (arXiv
2512.09106, section 3).

R rows, K positions, of which some are candidates; b are the policy's logits and τ its temperature. In the Bernoulli
policy each candidate is revealed with probability σ(b/τ), independently. The ordered policy (DPLS) picks a first
candidate from softmax(b/τ), and goes on picking among what is left and STOP, whose logit is 0, until STOP is picked.
"""

import torch
from torch.nn.functional import logsigmoid, pad


# In the place of −∞, which a cumulative logsumexp has no gradient at.
_NEVER = -1e30


def sample_bernoulli(
    logits: torch.Tensor, candidates: torch.Tensor, noise: torch.Tensor, temperature: float = 1.0, beta: float = 1.0
) -> torch.Tensor:
    """Reveal each candidate with probability min(1, β · σ(b/τ)).

    Args:
        logits (`torch.FloatTensor` of shape (R, K)):
            b.
        candidates (`torch.BoolTensor` of shape (R, K)):
            Positions that may be revealed.
        noise (`torch.DoubleTensor` of shape (R, K)):
            Uniform numbers in [0, 1).
        temperature (`float`, *optional*, defaults to 1.0):
            τ; 0 reveals the positions with b > 0.
        beta (`float`, *optional*, defaults to 1.0):
            β.

    Returns:
        `torch.BoolTensor` of shape (R, K), possibly without any True in a row.
    """
    if temperature == 0:
        return candidates & (logits > 0)
    return candidates & (noise < beta * torch.sigmoid(logits.double() / temperature))


def bernoulli_log_prob(
    logits: torch.Tensor, chosen: torch.Tensor, candidates: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """log π(u) = Σ over candidates of u log s + (1 − u) log(1 − s), s = σ(b/τ).

    Args:
        logits (`torch.FloatTensor` of shape (…, K)):
            b.
        chosen, candidates (`torch.BoolTensor` of shape (…, K)):
            u, and what could be chosen.
        temperature (`float`, *optional*, defaults to 1.0):
            τ > 0.

    Returns:
        `torch.FloatTensor` of shape (…,), of the dtype of `logits`.
    """
    scaled = logits / temperature
    terms = logsigmoid(torch.where(chosen, scaled, -scaled))
    return terms.masked_fill(~candidates, 0.0).sum(dim=-1)


def sample_ordered(
    logits: torch.Tensor,
    candidates: torch.Tensor,
    noise: torch.Tensor,
    row_noise: torch.Tensor,
    temperature: float = 1.0,
    beta: float = 1.0,
) -> torch.Tensor:
    """Pick candidates in an order until STOP.

    Going on from the first pick is a Plackett-Luce draw: candidates sorted by logit plus Gumbel noise, as far as they
    come before STOP. The first pick has a number of its own, since STOP does not take part in it.

    Args:
        logits, candidates, noise, temperature:
            As in [`sample_bernoulli`]; at temperature 0 the largest logit is picked, and then those above 0.
        row_noise (`torch.DoubleTensor` of shape (R, 2)):
            Uniform numbers in [0, 1), for the first pick and for STOP.
        beta (`float`, *optional*, defaults to 1.0):
            Divides the weight of STOP: more than 1 goes on longer.

    Returns:
        `torch.LongTensor` of shape (R, K): 1 for the first pick, 2 for the next, …; 0 where nothing is picked. Rows
        without candidates get none.
    """
    scaled = logits.double() if temperature == 0 else logits.double() / temperature
    scaled = scaled.masked_fill(~candidates, float("-inf"))
    stop = torch.zeros_like(scaled[:, :1])
    if temperature == 0:
        first, keys = scaled.argmax(dim=1, keepdim=True), scaled
    else:
        largest = scaled.amax(dim=1, keepdim=True).clamp(min=_NEVER)  # of rows without candidates it is −∞
        cumulative = (scaled - largest).exp().cumsum(dim=1)
        wanted = row_noise[:, :1] * cumulative[:, -1:]
        first = (cumulative <= wanted).sum(dim=1, keepdim=True).clamp(max=scaled.size(1) - 1)
        keys = scaled + _gumbel(noise)
        stop = _gumbel(row_noise[:, 1:]) - torch.tensor(beta, dtype=torch.float64).log()
    keys = keys.masked_fill(keys <= stop, float("-inf")).scatter(1, first, float("inf"))
    keys = keys.masked_fill(~candidates, float("-inf"))
    order = keys.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(1, order.size(1) + 1, device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    return rank.masked_fill(keys == float("-inf"), 0)


def _gumbel(noise: torch.Tensor) -> torch.Tensor:
    return -torch.log(-torch.log(noise.clamp(min=torch.finfo(noise.dtype).tiny)))


def ordered_log_prob(
    logits: torch.Tensor, rank: torch.Tensor, candidates: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Log-probability of an ordered pick i_1 … i_n among the candidates M, with w = exp(b/τ):

        w_{i_1} / Σ_M w  ·  Π_{j ≥ 2} w_{i_j} / (1 + Σ_{M without i_1 … i_{j−1}} w)  ·  1 / (1 + Σ_{what is left} w)

    Args:
        logits (`torch.FloatTensor` of shape (…, K)):
            b.
        rank (`torch.LongTensor` of shape (…, K)):
            As [`sample_ordered`] returns it.
        candidates (`torch.BoolTensor` of shape (…, K)):
            M.
        temperature (`float`, *optional*, defaults to 1.0):
            τ > 0.

    Returns:
        `torch.FloatTensor` of shape (…,), of the dtype of `logits`; 0 where nothing is picked.
    """
    scaled = (logits / temperature).masked_fill(~candidates, _NEVER)
    picked = rank > 0
    # The picks in their order, then the rest: what is left at pick j is what stands from j on.
    order = torch.where(picked, rank, rank.size(-1) + 1).argsort(dim=-1, stable=True)
    ordered, is_pick = scaled.gather(-1, order), picked.gather(-1, order)
    left = torch.logcumsumexp(ordered.flip(-1), dim=-1).flip(-1)  # (…, K): of j, j + 1, …
    left = pad(left, (0, 1), value=_NEVER)  # behind the last candidate nothing is left
    with_stop = torch.logaddexp(left, torch.zeros_like(left))
    first = torch.arange(ordered.size(-1), device=logits.device) == 0
    terms = ordered - torch.where(first, left[..., :-1], with_stop[..., :-1])
    count = is_pick.sum(dim=-1)
    stop = with_stop.gather(-1, count[..., None]).squeeze(-1)
    return torch.where(count > 0, terms.masked_fill(~is_pick, 0.0).sum(dim=-1) - stop, torch.zeros_like(stop))
