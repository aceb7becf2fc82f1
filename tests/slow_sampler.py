# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Denoising written out: one row, no padding, no cache, loops over positions and steps, fp64. Shares no code with the
package. Greedy; every rule but those that draw."""

import math
from dataclasses import dataclass

import torch


@dataclass
class SlowRow:
    """A row after denoising: input and canvas."""

    ids: list[int]
    steps: list[int]
    logprobs: list[float]
    forced: list[bool]
    passes: int


def visibility(length: int, block_length: int) -> torch.Tensor:
    """Block-causal visibility of one unpadded row, written out: (1, 1, L, L)."""
    mask = torch.zeros(1, 1, length, length, dtype=torch.bool)
    for query in range(length):
        for key in range(length):
            mask[0, 0, query, key] = key // block_length <= query // block_length
    return mask


def row_logits(model, ids: list[int], block_length: int) -> torch.Tensor:
    """(L, V): the logits that predict each token of one row."""
    kwargs = {}
    if model.attention == "block_causal":
        kwargs = {
            "attention_mask": visibility(len(ids), block_length),
            "position_ids": torch.arange(len(ids))[None],
        }
    with torch.no_grad():
        logits = model(torch.tensor([ids]), **kwargs).logits[0].double()
    if model.logits_shift:
        logits = torch.cat([logits[:1], logits[:-1]])
    return logits


def quota(schedule: str, at_start: int, left: int, step: int, steps: int) -> int:
    """Positions that a step commits by the schedule."""
    if schedule == "even":
        return at_start // steps + (1 if step < at_start % steps else 0) if step < steps else 0
    if step == steps - 1:
        return left
    times = torch.linspace(1, 1e-3, steps + 1)
    return int(left * (1 - times[step + 1] / times[step]))


def choose(rule: str, score: dict[int, float], share: int, entropies: dict[int, float], settings: dict) -> list[int]:
    """Positions to commit, and whether the rule wanted each of them."""
    order = sorted(score, key=lambda place: (-score[place], place))
    chosen = dict.fromkeys(order[:share], rule not in ("threshold", "factor", "entropy_bounded"))
    spent = 0.0
    for count, place in enumerate(order, start=1):
        if rule == "threshold":
            wanted = score[place] >= settings["threshold"]
        elif rule == "factor":
            wanted = score[place] >= 1 - settings["factor"] / (count + 1)
        elif rule == "entropy_bounded":
            wanted = spent <= settings["entropy_bound"]
            spent += entropies[place]
        else:
            break
        if wanted:
            chosen[place] = True
    return chosen


def slow_generate(
    model, prompt: list[int], length: int, fill_prompt=(), hints: dict[int, int] | None = None, **settings
) -> SlowRow:
    """Denoise one row greedily.

    `fill_prompt` are places of the prompt to fill, `hints` places of the canvas with their tokens. `settings` bear the
    names of DiffusionGenerationConfig.
    """
    mask_id, hints = model.mask_token_id, hints or {}
    rule, schedule = settings.get("unmasking", "low_confidence"), settings.get("step_schedule", "even")
    total = len(prompt) + length
    to_fill = sorted([*fill_prompt, *(len(prompt) + place for place in range(length) if place not in hints)])
    ids = [*prompt, *(hints.get(place, mask_id) for place in range(length))]
    for place in to_fill:
        ids[place] = mask_id
    begin = min([*fill_prompt, len(prompt)])
    region = total - begin
    block_length = settings.get("block_length") or (
        model.block_length if model.attention == "block_causal" else region
    )
    anchor = begin // block_length * block_length if model.attention == "block_causal" else begin
    eos = settings.get("eos_token_id")
    steps_of, logprobs, forced, passes = [0] * total, [0.0] * total, [False] * total, 0
    num_steps = settings.get("num_denoising_steps") or region
    whole = min(block_length, region)
    base = max(1, num_steps * whole // region)
    extra = max(0, (num_steps * whole - base * region) // whole)
    for number, start in enumerate(range(anchor, total, block_length)):
        left = [place for place in to_fill if start <= place < start + block_length]
        at_start = len(left)
        steps = min(base + (1 if number < extra else 0), at_start)
        step = 0
        while left:
            end = min(start + block_length, total) if model.attention == "block_causal" else total
            logits = row_logits(model, ids[:end], block_length)
            scale = settings.get("guidance_scale")
            if scale is not None:
                hidden = [
                    mask_id if place < len(prompt) and place not in fill_prompt else token
                    for place, token in enumerate(ids[:end])
                ]
                unconditional = row_logits(model, hidden, block_length)
                logits = unconditional + scale * (logits - unconditional)
            passes += 1
            score, token_of, logprob_of, entropies = {}, {}, {}, {}
            for place in left:
                row = logits[place].clone()
                banned = [mask_id, *(settings.get("suppress_tokens") or [])]
                if place == to_fill[0]:
                    banned += settings.get("begin_suppress_tokens") or []
                row[banned] = -math.inf
                log_probs = row - row.exp().sum().log()
                probabilities = log_probs.exp()
                token_of[place] = int(probabilities.argmax())
                logprob_of[place] = float(log_probs[token_of[place]])
                entropies[place] = -sum(float(p * p.log()) for p in probabilities if p > 0)
                two = probabilities.sort(descending=True).values[:2]
                score[place] = {
                    "entropy": -entropies[place],
                    "entropy_bounded": -entropies[place],
                    "topk_margin": float(two[0] - two[1]),
                    "sequential": float(-place),
                }.get(rule, float(probabilities[token_of[place]]))
            share = quota(schedule, at_start, len(left), step, steps)
            for place, wanted in choose(rule, score, share, entropies, settings).items():
                ids[place], steps_of[place] = token_of[place], passes
                logprobs[place], forced[place] = logprob_of[place], not wanted
                left.remove(place)
            step += 1
        if eos is not None and eos in ids[len(prompt) : max(len(prompt), start + block_length)]:
            break
    return SlowRow(ids, steps_of, logprobs, forced, passes)
