# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""TraceRL straight from its formulas: one completion, one step, one token at a time, in fp64.

Takes a batch of completions as the trainer makes them, and the models' plain forward passes; none of the package's
views, layouts, advantages or objectives.
"""

import math
from dataclasses import dataclass

import torch
from slow_sampler import visibility


@dataclass
class Token:
    """A token of a completion: where it is, which (block, merged step) it belongs to, and that step's number."""

    row: int
    position: int
    key: tuple[int, int]
    step: int


def tokens_of(inputs, row: int, block_length: int | None, shrinkage: int) -> list[Token]:
    """The completion's tokens. `block_length` is `None` for full attention, whose row is one block."""
    prompt_length = int(inputs["prompt_mask"][row].sum())
    steps, mask = inputs["unmask_step"][row].tolist(), inputs["completion_mask"][row].tolist()
    blocks = [(prompt_length + c) // block_length if block_length else 0 for c in range(len(steps))]
    merged, label = {}, {}
    for block in set(blocks):
        distinct = sorted({s for s, b in zip(steps, blocks, strict=True) if b == block and s > 0})
        for start in range(0, len(distinct), shrinkage):
            for step in distinct[start : start + shrinkage]:
                merged[block, step] = start // shrinkage
                label[block, step] = distinct[start : start + shrinkage][-1]
    return [
        Token(row, c, (blocks[c], merged[blocks[c], steps[c]]), label[blocks[c], steps[c]])
        for c in range(len(steps))
        if mask[c] and steps[c] > 0
    ]


def state_of(model, inputs, token: Token, block_length: int | None, shrinkage: int):
    """The row in which the token was (or, with shrinkage, might have been) drawn: prompt and canvas, unpadded, and
    the keyword arguments of the forward pass."""
    row = token.row
    prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
    canvas = inputs["completion_ids"][row].clone()
    everything = {**inputs, "completion_mask": torch.ones_like(inputs["completion_mask"])}
    for other in tokens_of(everything, row, block_length, shrinkage):
        if other.key >= token.key:  # a later step, or a later block, which nothing here sees
            canvas[other.position] = model.mask_token_id
    ids = torch.cat([prompt, canvas])[None]
    kwargs = {}
    if block_length:
        kwargs = {"attention_mask": visibility(ids.size(1), block_length)}
        kwargs["position_ids"] = torch.arange(ids.size(1))[None]
    return ids, len(prompt) + token.position, kwargs


def logprob(model, inputs, token: Token, temperature, block_length, shrinkage) -> torch.Tensor:
    ids, place, kwargs = state_of(model, inputs, token, block_length, shrinkage)
    logits = model(ids, **kwargs).logits[0, place - model.logits_shift].double() / temperature
    keep = torch.arange(len(logits)) != model.mask_token_id
    index = inputs["completion_ids"][token.row, token.position]
    return logits[index] - logits[keep].logsumexp(0)


def value(model, inputs, token: Token, block_length, shrinkage) -> torch.Tensor:
    ids, place, kwargs = state_of(model, inputs, token, block_length, shrinkage)
    return model(ids, **kwargs).logits[0, place - model.logits_shift, 0].double()


def advantages_of(tokens: list[Token], rewards: list[float], values: list[float], gamma: float, lam: float):
    """(returns, advantages) of the tokens of one completion, with V and r of each."""
    order = sorted({token.step for token in tokens})

    def mean(numbers, step):
        own = [number for number, token in zip(numbers, tokens, strict=True) if token.step == step]
        return sum(own) / len(own)

    R, V, A = {None: 0.0}, {None: 0.0}, {None: 0.0}
    following = {step: order[i + 1] if i + 1 < len(order) else None for i, step in enumerate(order)}
    for step in reversed(order):
        after, r = following[step], mean(rewards, step)
        V[step] = mean(values, step)
        R[step] = r + gamma * R[after]
        A[step] = (r - V[step] + gamma * V[after]) + gamma * lam * A[after]
    returns, advantages = [], []
    for token, r, v in zip(tokens, rewards, values, strict=True):
        after = following[token.step]
        returns.append(r + gamma * R[after])
        advantages.append(r - v + gamma * V[after] + gamma * lam * A[after])
    return returns, advantages


def policy_term(logprob, old, ref, advantage, epsilon, beta, estimator, clamp=math.inf):
    """−min(ρA, clip(ρ)A) + β KL of one token, and whether the clip is active."""
    ratio = torch.exp((logprob - old).clamp(-clamp, clamp))
    unclipped, clipped = ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage
    difference = (logprob - ref).clamp(-clamp, clamp)
    if estimator == "k1":
        kl = difference
    elif estimator == "k2":
        kl = difference * difference / 2
    else:
        kl = 1 / torch.exp(difference) - 1 + difference
    return -torch.min(unclipped, clipped) + beta * kl, bool(clipped < unclipped)


def policy_weight(token: Token, tokens: list[Token], loss_type: str, num_rows: int, num_tokens: int) -> float:
    """What a token's term counts in the loss of a batch of completions; `tokens` are those of its own completion."""
    if loss_type == "step":
        return 1 / sum(other.key == token.key for other in tokens) / num_rows
    if loss_type == "grpo":
        return 1 / len(tokens) / num_rows
    return 1 / num_tokens


def value_term(value, old, target, epsilon):
    """½ max((V − R)², (V_clip − R)²) of one token, and whether the clip is active."""
    clipped = old + (value - old).clamp(-epsilon, epsilon)
    return torch.max((value - target) ** 2, (clipped - target) ** 2) / 2, bool((clipped != value).item())
