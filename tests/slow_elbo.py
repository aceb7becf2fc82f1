# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Monte-Carlo likelihoods straight from their formulas: one completion, one masked copy at a time, in fp64.

Takes a batch of completions, which positions a copy masks and which it scores, and the model's plain forward pass;
none of the package's layouts, scores or objectives.
"""

import torch
from slow_sampler import visibility


def copy_logprobs(model, inputs, row: int, view, block_length=None, temperature=1.0, exclude_mask=False):
    """log p of the tokens that a masked copy of a row scores: {position: scalar with graph}."""
    prompt = inputs["prompt_ids"][row].clone()
    if view.prompt_masked is not None:
        prompt[view.prompt_masked[row]] = model.mask_token_id
    prompt = prompt[inputs["prompt_mask"][row].bool()]
    canvas, masked = inputs["completion_ids"][row], view.masked[row]
    targets = view.target[row].nonzero().flatten().tolist()
    blocks = {position: (len(prompt) + position) // block_length if block_length else 0 for position in targets}
    found = {}
    for block in sorted(set(blocks.values())):
        state, kwargs = canvas.clone(), {}
        own = [c for c in range(len(canvas)) if not block_length or (len(prompt) + c) // block_length == block]
        for position in own:  # blocks before are clean, and those behind are out of sight
            if masked[position]:
                state[position] = model.mask_token_id
        ids = torch.cat([prompt, state])[None]
        if block_length:
            kwargs = {"attention_mask": visibility(ids.size(1), block_length)}
            kwargs["position_ids"] = torch.arange(ids.size(1))[None]
        logits = model(ids, **kwargs).logits[0].double() / temperature
        for position in own:
            if blocks.get(position) != block:
                continue
            row_logits = logits[len(prompt) + position - model.logits_shift]
            keep = torch.ones(len(row_logits), dtype=torch.bool)
            keep[model.mask_token_id] = not exclude_mask
            found[position] = row_logits[canvas[position]] - row_logits[keep].logsumexp(0)
    return found


def elbo_samples(model, inputs, row: int, views, block_length=None) -> list[torch.Tensor]:
    """ℓ_j of a row, for each copy j."""
    samples = []
    for view in views:
        total = torch.zeros((), dtype=torch.float64)
        for position, logprob in copy_logprobs(model, inputs, row, view, block_length).items():
            total = total + view.weight[row, position].double() * logprob
        samples.append(total)
    return samples


def gain(ratio, advantage, epsilon=None, dual=None):
    """ρA with the clips, and whether one is active."""
    value = ratio * advantage
    if epsilon is not None:
        low, high = epsilon
        clipped = min(max(ratio, torch.tensor(1 - low).double()), torch.tensor(1 + high).double()) * advantage
        value = clipped if clipped < value else value
    if dual is not None and advantage < 0 and dual * advantage > value:
        value = dual * advantage + 0 * ratio
    return value, bool(value != ratio * advantage)


def objective(kind, samples, old, advantage, length, **clip):
    """What a completion adds to the objective, from the whole graph of all its samples, and the clips."""
    count = len(samples)
    if kind == "bgpo":
        found = []
        for sample, before in zip(samples, old, strict=True):
            difference = (sample - before) / length
            found.append(gain(1 + difference if advantage >= 0 else torch.exp(difference), advantage, **clip))
        return sum(value for value, _ in found) / count, [clipped for _, clipped in found]
    difference = (sum(samples) / count - sum(old) / count) / length
    value, clipped = gain(torch.exp(difference), advantage, **clip)
    return value, [clipped]
