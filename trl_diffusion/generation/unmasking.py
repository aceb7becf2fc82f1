# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Unmasking rules: which masked positions of the current block a step commits.

A rule takes an [`UnmaskingState`] and returns the positions to commit, and those of them that it would not have
committed but for the schedule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from .distribution import TokenDraw
from .policy import CanvasState, UnmaskingPolicy


@dataclass
class UnmaskingState:
    """What a rule sees at a step: R rows, K positions of the current block, a vocabulary of V.

    Values at positions that are no candidates mean nothing.

    Args:
        candidates (`torch.BoolTensor` of shape (R, K)):
            Masked positions of the block.
        slots (`torch.LongTensor` of shape (R, K)):
            Where a candidate stands in `draw`.
        draw ([`TokenDraw`]):
            Tokens drawn for the candidates: n = R · M, M for each row.
        share (`torch.LongTensor` of shape (R,)):
            Positions the schedule commits at this step.
        fraction (`torch.FloatTensor` of shape (R,)):
            The same as a share of the masks left.
        noise (`torch.DoubleTensor` of shape (R, K), *optional*):
            Uniform numbers in [0, 1) of each row's own generator; `None` for rules that do not ask for it.
        input_ids (`torch.LongTensor` of shape (R, L)):
            The rows as the model saw them at this step, masks included, padded on both sides.
        block (`slice`):
            Where the block stands in `input_ids`.
        step (`torch.LongTensor` of shape (R,)):
            This step's number in each row, 1-based, counted over all blocks.
        canvas ([`CanvasState`], *optional*):
            For an [`UnmaskingPolicy`]: the whole canvas.
    """

    candidates: torch.Tensor
    slots: torch.Tensor
    draw: TokenDraw
    share: torch.Tensor
    fraction: torch.Tensor
    noise: torch.Tensor | None
    input_ids: torch.Tensor
    block: slice
    step: torch.Tensor
    canvas: CanvasState | None = None

    def at_positions(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the n drawn tokens, (n,), at the positions of the block: (R, K)."""
        return values.view(len(self.slots), -1).gather(1, self.slots)

    @cached_property
    def tokens(self) -> torch.Tensor:
        """(R, K), long: the token drawn for each candidate."""
        return self.at_positions(self.draw.tokens)

    @cached_property
    def logprobs(self) -> torch.Tensor:
        """(R, K), fp32: its log-probability under the distribution it was drawn from."""
        return self.at_positions(self.draw.logprobs)

    @cached_property
    def confidence(self) -> torch.Tensor:
        """(R, K), fp32: its probability at temperature 1."""
        return self.at_positions(self.draw.confidence)

    @cached_property
    def entropy(self) -> torch.Tensor:
        """(R, K), fp32, nats: entropy of the distribution it was drawn from."""
        return self.at_positions(self.draw.entropy())

    @cached_property
    def margin(self) -> torch.Tensor:
        """(R, K), fp32: difference of that distribution's two largest probabilities."""
        return self.at_positions(self.draw.margin())


def commit(
    scores: torch.Tensor,
    candidates: torch.Tensor,
    share: torch.Tensor,
    accepts: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the positions a step commits: the `share` best, and all that are accepted. One sort.

    Args:
        scores (`torch.FloatTensor` of shape (R, K)):
            Higher is committed earlier; of equal scores the left one.
        candidates (`torch.BoolTensor` of shape (R, K)):
            Masked positions of the current block.
        share (`torch.LongTensor` of shape (R,)):
            Positions to commit at least.
        accepts (callable, *optional*):
            Takes the scores from best to worst, (R, K), −inf behind the candidates, and returns which are accepted.

    Returns:
        Two `torch.BoolTensor` of shape (R, K): the committed positions, and those of them not accepted.
    """
    ordered, order = scores.masked_fill(~candidates, float("-inf")).sort(dim=1, descending=True, stable=True)
    places = torch.arange(order.size(1), device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    best = (rank < share[:, None]) & candidates
    if accepts is None:
        return best, torch.zeros_like(best)
    accepted = accepts(ordered).gather(1, rank) & candidates
    return best | accepted, best & ~accepted


def _gumbel_order(scores: torch.Tensor, alg_temp: float, noise: torch.Tensor) -> torch.Tensor:
    """Scores whose n largest are n draws without replacement from softmax(scores / alg_temp) (the Gumbel-top-k
    trick), fp64."""
    tiny = torch.finfo(torch.float64).tiny
    return scores.double() / alg_temp - torch.log(-torch.log(noise.clamp(min=tiny)))


def _ranking(score: Callable[[UnmaskingState], torch.Tensor]):
    """The rule that commits the share with the highest scores."""

    def rule(state: UnmaskingState, config) -> tuple[torch.Tensor, torch.Tensor]:
        scores = score(state)
        if config.alg_temp:
            scores = _gumbel_order(scores, config.alg_temp, state.noise)
        return commit(scores, state.candidates, state.share)

    return rule


def _leftmost(state: UnmaskingState) -> torch.Tensor:
    width = state.candidates.size(1)
    return -torch.arange(width, device=state.candidates.device, dtype=torch.float32).expand_as(state.candidates)


def threshold_rule(state: UnmaskingState, config) -> tuple[torch.Tensor, torch.Tensor]:
    """Every position with confidence ≥ τ, and at least the share (Fast-dLLM, arXiv 2505.22618; at temperature 1
    without filters SDAR's dynamic decoding, whose confidence is that of the distribution drawn from)."""
    return commit(state.confidence, state.candidates, state.share, lambda ordered: ordered >= config.threshold)


def factor_rule(state: UnmaskingState, config) -> tuple[torch.Tensor, torch.Tensor]:
    """The n most confident positions while (n + 1)(1 − c_n) ≤ f, and at least the share (Fast-dLLM, arXiv
    2505.22618). The limit rises with n while c_n falls, so that those accepted are the first."""

    def accepts(ordered):
        n = torch.arange(1, ordered.size(1) + 1, device=ordered.device)
        return ordered >= 1 - config.factor / (n + 1)

    return commit(state.confidence, state.candidates, state.share, accepts)


def entropy_bounded_rule(state: UnmaskingState, config) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest set U of the surest positions with Σ_U H − max_U H ≤ γ, and at least the share (EB-sampler, arXiv
    2505.24857). Entropies ascend, so that the sum without the largest is that of those before.

    SDAR's code counts the largest too, and commits fewer at the same bound.
    """

    def accepts(ordered):
        before = torch.nn.functional.pad(-ordered, (1, 0))[:, :-1]
        return before.cumsum(dim=1) <= config.entropy_bound

    return commit(-state.entropy, state.candidates, state.share, accepts)


def origin_rule(state: UnmaskingState, config) -> tuple[torch.Tensor, torch.Tensor]:
    """Each position with the schedule's fraction as its probability; possibly none (Dream's `origin`)."""
    committed = (state.noise < state.fraction[:, None]) & state.candidates
    return committed, torch.zeros_like(committed)


def custom_rule(state: UnmaskingState, config, candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A callable's, or a policy's, choice among the candidates. Where it commits nothing of a row, the most confident
    position is, so that every generation ends; a policy that may wait is let.

    Raises:
        ValueError: it returns something other than a bool tensor of shape (R, K).
    """
    rule, fallback = config.unmasking, torch.zeros_like(candidates)
    if isinstance(rule, UnmaskingPolicy):
        chosen, fallback = rule.choose(state, config)
    else:
        chosen = rule(state)
    if (
        not isinstance(chosen, torch.Tensor)
        or chosen.dtype != torch.bool
        or chosen.shape != candidates.shape
    ):  # fmt: skip
        got = f"{chosen.dtype} {tuple(chosen.shape)}" if isinstance(chosen, torch.Tensor) else type(chosen).__name__
        raise ValueError(
            f"unmasking={config.unmasking!r} returned {got}; it must return a bool tensor of shape "
            f"{tuple(candidates.shape)}, True at the positions to commit."
        )
    chosen = chosen & candidates
    if isinstance(rule, UnmaskingPolicy) and rule.may_wait:
        return chosen, fallback & chosen
    empty = ~chosen.any(dim=1)
    forced, _ = commit(state.confidence, candidates, empty.long())
    return chosen | forced, forced | (fallback & chosen)


# Rules that commit the schedule's share, no more and no less: how many masks a step leaves is known in advance.
_SCHEDULED_RULES = {
    "low_confidence": _ranking(lambda state: state.confidence),
    "maskgit_plus": _ranking(lambda state: state.logprobs.exp()),
    "entropy": _ranking(lambda state: -state.entropy),
    "topk_margin": _ranking(lambda state: state.margin),
    "random": _ranking(lambda state: state.noise),
    "sequential": _ranking(_leftmost),
}
_ADAPTIVE_RULES = {
    "threshold": threshold_rule,
    "factor": factor_rule,
    "entropy_bounded": entropy_bounded_rule,
    "origin": origin_rule,
}
RULES = {**_SCHEDULED_RULES, **_ADAPTIVE_RULES}


def is_scheduled(config) -> bool:
    """Whether every step commits exactly the schedule's share."""
    return isinstance(config.unmasking, str) and config.unmasking in _SCHEDULED_RULES


def needs_noise(config) -> bool:
    """Whether the rule draws numbers of its own."""
    return not isinstance(config.unmasking, str) or config.unmasking in ("random", "origin") or bool(config.alg_temp)
