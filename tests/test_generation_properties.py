# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Properties of a generation, over random lengths, blocks, steps, batches, paddings and hints."""

import math
import os

import pytest
import torch
from conftest import random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_sampler import row_logits, slow_generate

from trl_diffusion.tasks import character_tokenizer


TOKENIZER = character_tokenizer("01234")
TOKENS = list(range(3, len(TOKENIZER)))  # no special ones
EOS = 1
# One model of each kind, in fp64: equal to a loop that adds in another order, up to far less than any margin.
MODELS = {name: random_model(name, TOKENIZER).double() for name in ("llada", "dream", "sdar", "a2d-qwen3")}
GREEDY_RULES = (
    "low_confidence", "maskgit_plus", "entropy", "topk_margin", "sequential", "threshold", "factor", "entropy_bounded"
)  # fmt: skip
RULE_FIELDS = {
    "threshold": {"threshold": 0.4},
    "factor": {"factor": 1.5},
    "entropy_bounded": {"entropy_bound": 1.0},
}
# The same examples every time; with TRL_DIFFUSION_TEST_EXAMPLES=1000 that many others.
EXAMPLES = int(os.environ.get("TRL_DIFFUSION_TEST_EXAMPLES", 0))
QUICKLY = settings(max_examples=EXAMPLES or 60, deadline=None, derandomize=not EXAMPLES, database=None)


@st.composite
def calls(draw, rules=GREEDY_RULES, infill=True):
    """A call of generate: rows as (prompt, places to fill in it, hints), and settings."""
    length = draw(st.integers(1, 13))
    fills = infill and draw(st.booleans())
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        prompt = draw(st.lists(st.sampled_from(TOKENS), min_size=1, max_size=9))
        places = draw(st.sets(st.integers(0, len(prompt) - 1), max_size=4)) if fills else set()
        hints = draw(st.dictionaries(st.integers(0, length - 1), st.sampled_from([*TOKENS, EOS]), max_size=4))
        rows.append((prompt, sorted(places), hints))
    rule = draw(st.sampled_from(rules))
    chosen = {
        "unmasking": rule,
        "block_length": draw(st.one_of(st.none(), st.integers(1, length))),
        "num_denoising_steps": draw(st.one_of(st.none(), st.integers(1, length))),
        "step_schedule": draw(st.sampled_from(["even", "linear_time"])),
        "eos_token_id": draw(st.sampled_from([None, EOS])),
        "suppress_tokens": draw(st.sampled_from([None, [4]])),
        "begin_suppress_tokens": draw(st.sampled_from([None, [5, EOS]])),
        **RULE_FIELDS.get(rule, {}),
    }
    return rows, length, chosen


def batch_of(rows, length):
    """Tensors of a call: left-padded, with junk in the padding and at positions to fill."""
    width = max(len(prompt) for prompt, _, _ in rows)
    ids = torch.full((len(rows), width), 7)
    mask, infill = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    hints = torch.full((len(rows), length), -100)
    for row, (prompt, places, given_tokens) in enumerate(rows):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
        infill[row, [width - len(prompt) + place for place in places]] = True
        for place, token in given_tokens.items():
            hints[row, place] = token
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "infill_mask": infill if infill.any() else None,
        "hint_ids": hints if (hints >= 0).any() else None,
        "max_new_tokens": length,
        "return_dict_in_generate": True,
    }


def row_of(output, row, prompt, length):
    """One row of an output, unpadded, as (ids, steps, log-probabilities, forced, passes)."""
    rollout = output.rollout
    whole = torch.cat([rollout.prompt_ids[row], rollout.canvas_ids[row]])
    cut = len(whole) - len(prompt) - length

    def unpadded(values):
        return torch.cat([torch.zeros(rollout.prompt_ids.size(1), dtype=values.dtype), values[row]])[cut:]

    return (
        whole[cut:].tolist(),
        unpadded(rollout.unmask_step).tolist(),
        unpadded(rollout.logprobs),
        unpadded(rollout.forced).tolist(),
        rollout.num_forward_passes[row].item(),
    )


@pytest.mark.parametrize("name", MODELS)
@QUICKLY
@given(call=calls())
def test_generation_equals_a_slow_loop(name, call):
    """Tokens, steps, log-probabilities, forced commits and forward passes of every row; and with them that rows do not
    depend on their batch, that every position is filled once, and that prompts and hints stay."""
    rows, length, chosen = call
    model = MODELS[name]
    output = model.generate(**batch_of(rows, length), **chosen)
    for row, (prompt, places, hints) in enumerate(rows):
        slow = slow_generate(model, prompt, length, places, hints, **chosen)
        ids, steps, logprobs, forced, passes = row_of(output, row, prompt, length)
        assert ids == slow.ids
        assert steps == slow.steps
        assert forced == slow.forced
        assert passes == slow.passes
        assert torch.allclose(logprobs, torch.tensor(slow.logprobs), atol=1e-5)
        for place, token in enumerate(prompt):
            assert place in places or ids[place] == token
        assert all(ids[len(prompt) + place] == token for place, token in hints.items())


@pytest.mark.parametrize("name", ["llada", "sdar"])
@QUICKLY
@given(call=calls(infill=False), scale=st.sampled_from([0.0, 0.5, 1.5, 3.0]))
def test_guidance_equals_a_slow_loop(name, call, scale):
    rows, length, chosen = call
    model = MODELS[name]
    cache = "block" if model.attention == "block_causal" else "none"
    output = model.generate(**batch_of(rows, length), **chosen, guidance_scale=scale, cache=cache)
    for row, (prompt, places, hints) in enumerate(rows):
        slow = slow_generate(model, prompt, length, places, hints, guidance_scale=scale, **chosen)
        assert row_of(output, row, prompt, length)[:2] == (slow.ids, slow.steps)


DRAWING = {
    "low_confidence": {"temperature": 0.8},
    "random": {"temperature": 0.0},
    "origin": {"temperature": 1.2},
    "topk_margin": {"temperature": 0.7, "alg_temp": 0.3, "top_k": 3},
    "entropy": {"temperature": 1.0, "alg_temp": 1.0, "top_p": 0.9},
    "threshold": {"temperature": 0.9, "threshold": 0.4},
}


@pytest.mark.parametrize("name", MODELS)
@QUICKLY
@given(call=calls(rules=tuple(DRAWING)), seed=st.integers(0, 2**32))
def test_rows_that_draw_do_not_depend_on_their_batch(name, call, seed):
    rows, length, chosen = call
    model = MODELS[name]
    chosen = {**chosen, **DRAWING[chosen["unmasking"]]}
    seeds = [seed + row for row in range(len(rows))]
    together = model.generate(**batch_of(rows, length), **chosen, seed=seeds)
    for row, (prompt, places, hints) in enumerate(rows):
        alone = model.generate(**batch_of([rows[row]], length), **chosen, seed=[seeds[row]])
        found, expected = row_of(together, row, prompt, length), row_of(alone, 0, prompt, length)
        assert found[:2] == expected[:2] and found[3:] == expected[3:]
        ids, steps = found[:2]
        fill = [*places, *(len(prompt) + place for place in range(length) if place not in hints)]
        drawn = [place for place, step in enumerate(steps) if step]
        assert set(drawn) <= set(fill)
        assert all(ids[place] != model.mask_token_id for place in drawn)
        assert all(ids[place] == model.mask_token_id for place in set(fill) - set(drawn))
        if chosen["eos_token_id"] is None:
            assert set(drawn) == set(fill)
        assert not set(drawn) or max(steps) <= expected[4]


@pytest.mark.parametrize("name, cache", [("llada", "none"), ("dream", "none"), ("sdar", "none"), ("sdar", "block")])
@QUICKLY
@given(call=calls(rules=("low_confidence", "origin", "threshold")), seed=st.integers(0, 2**32))
def test_replay_invariant(name, cache, call, seed):
    """For every step: mask what was committed at it or later, and the model gives each token committed at it the
    recorded log-probability."""
    rows, length, chosen = call
    model = MODELS[name]
    temperature = 0.8
    chosen = {**chosen, "temperature": temperature, "suppress_tokens": None, "begin_suppress_tokens": None}
    output = model.generate(**batch_of(rows, length), **chosen, cache=cache, seed=seed)
    assert not output.rollout.approximate and not output.rollout.filtered
    for row, (prompt, _, _) in enumerate(rows):
        ids, steps, logprobs, _, _ = row_of(output, row, prompt, length)
        for step in sorted(set(steps) - {0}):
            state = [model.mask_token_id if at >= step else token for token, at in zip(ids, steps, strict=True)]
            logits = row_logits(model, state, output.rollout.block_length)
            logits[:, model.mask_token_id] = -math.inf
            log_probs = (logits / temperature).log_softmax(-1)
            for place in [place for place, at in enumerate(steps) if at == step]:
                assert abs(log_probs[place, ids[place]] - logprobs[place]) <= 1e-4
