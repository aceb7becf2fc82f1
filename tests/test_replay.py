# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The replay invariant: the log-probabilities of a rollout are those of a model that sees the same states."""

import pytest
import torch
from conftest import golden_model, random_model
from slow_sampler import visibility

from trl_diffusion.likelihood import MaskedView, block_trace_masks, score_views, trace_masks


TOLERANCE = 1e-4
LENGTHS = [5, 9, 12, 3]  # none but 12 a multiple of the block
CANVAS = 14  # ragged for blocks of 4


def slow_logprobs(model, rollout, row: int, temperature: float) -> torch.Tensor:
    """Replays one row step by step, alone, without padding and without any of the package's layouts."""
    prompt = rollout.prompt_ids[row][rollout.prompt_mask[row].bool()]
    canvas, steps = rollout.canvas_ids[row], rollout.unmask_step[row]
    found = torch.zeros(len(canvas))
    for step in range(1, int(steps.max()) + 1):
        state = torch.where(steps >= step, model.mask_token_id, canvas)
        ids = torch.cat([prompt, state])[None]
        kwargs = {}
        if model.attention == "block_causal":
            kwargs["attention_mask"] = visibility(ids.size(1), rollout.block_length)
            kwargs["position_ids"] = torch.arange(ids.size(1))[None]
        with torch.no_grad():
            start = len(prompt) - model.logits_shift
            logits = model(ids, **kwargs).logits[0, start : start + len(canvas)].clone()
        logits[:, model.mask_token_id] = float("-inf")
        log_probs = (logits / temperature).log_softmax(-1)
        for position in (steps == step).nonzero().flatten().tolist():
            found[position] = log_probs[position, canvas[position]]
    return found


def rollout_of(model, temperature, eos=None, unmasking="low_confidence", lengths=LENGTHS, **kwargs):
    generator = torch.Generator().manual_seed(7)
    width = max(lengths)
    ids = torch.full((len(lengths), width), 3)
    mask = torch.zeros_like(ids)
    top = min(model.config.vocab_size, 240)
    for row, length in enumerate(lengths):
        ids[row, width - length :] = torch.randint(3, top, (length,), generator=generator)
        mask[row, width - length :] = 1
    return model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=CANVAS,
        temperature=temperature,
        unmasking=unmasking,
        threshold=0.3 if unmasking == "threshold" else None,
        eos_token_id=eos,
        seed=1,
        return_dict_in_generate=True,
        **kwargs,
    ).rollout


def package_logprobs(model, rollout) -> torch.Tensor:
    if model.attention == "full":
        views = trace_masks(rollout.unmask_step)
    else:
        offset = rollout.prompt_mask.sum(1) % rollout.block_length
        views = block_trace_masks(rollout.unmask_step, rollout.block_length, offset=offset)
    kwargs = {"block_length": rollout.block_length} if model.attention == "block_causal" else {}
    return score_views(
        model,
        rollout.prompt_ids,
        rollout.prompt_mask,
        rollout.canvas_ids,
        [MaskedView(*view) for view in zip(*views, strict=True)],
        temperature=rollout.temperature,
        **kwargs,
    )


def check(model, rollout):
    drawn = rollout.unmask_step > 0
    assert (rollout.logprobs[drawn] < 0).any() and (rollout.logprobs[~drawn] == 0).all()
    for row in range(len(rollout.canvas_ids)):
        slow = slow_logprobs(model, rollout, row, rollout.temperature)
        assert (slow - rollout.logprobs[row]).abs().max() <= TOLERANCE
    assert (package_logprobs(model, rollout) - rollout.logprobs).abs().max() <= TOLERANCE


@pytest.mark.parametrize("unmasking", ["low_confidence", "random", "threshold"])
@pytest.mark.parametrize("block_length", [4, 8])
def test_replay_of_a_padded_batch_with_a_ragged_block(every_family, unmasking, block_length):
    model = golden_model(every_family)
    check(model, rollout_of(model, 0.7, unmasking=unmasking, block_length=block_length, num_denoising_steps=9))


def test_replay_with_an_eos_in_the_middle(every_family):
    model = golden_model(every_family)
    free = rollout_of(model, 0.7, block_length=4)
    eos = free.canvas_ids[1, 6].item()
    rollout = rollout_of(model, 0.7, eos=eos, block_length=4)
    ended = rollout.completion_mask.sum(1) < CANVAS
    assert ended.any()
    # An EOS inside its block: tokens behind it were drawn, blocks behind that one were not.
    assert (rollout.canvas_ids[ended] == model.mask_token_id).any()
    check(model, rollout)


def test_replay_of_one_block_over_the_whole_canvas(family):
    model = golden_model(family)
    check(model, rollout_of(model, 1.0, block_length=CANVAS, num_denoising_steps=5))


def test_greedy_log_probabilities_are_at_temperature_one(family):
    model = golden_model(family)
    rollout = rollout_of(model, 0.0, block_length=4)
    assert rollout.temperature == 1.0
    check(model, rollout)


@pytest.mark.parametrize("family", ["a2d-llama", "a2d-qwen2", "a2d-qwen3"])
def test_replay_of_a_converted_model_with_blocks(family):
    model = golden_model(family, block_length=4)
    assert model.attention == "block_causal"
    check(model, rollout_of(model, 0.7, num_denoising_steps=9))


def test_replay_of_an_empty_prompt_with_shifted_logits(tokenizer):
    """Nothing stands before the first token of the canvas: it keeps its own logits, which predict the second too."""
    model = random_model("dream", tokenizer)
    rollout = model.generate(
        torch.zeros(2, 0, dtype=torch.long), max_new_tokens=5, temperature=0.8, seed=3, return_dict_in_generate=True
    ).rollout
    for row in range(2):
        steps, canvas = rollout.unmask_step[row], rollout.canvas_ids[row]
        for step in range(1, 6):
            state = torch.where(steps >= step, model.mask_token_id, canvas)
            with torch.no_grad():
                logits = model(state[None]).logits[0].clone()
            logits[:, model.mask_token_id] = float("-inf")
            position = (steps == step).nonzero().item()
            expected = (logits[max(position - 1, 0)] / 0.8).log_softmax(-1)[canvas[position]]
            assert abs(expected - rollout.logprobs[row, position]) <= TOLERANCE
    assert (package_logprobs(model, rollout) - rollout.logprobs).abs().max() <= TOLERANCE


def test_replay_of_the_same_prompt_without_a_prompt_before_the_block(tokenizer):
    # Prompts shorter than a block: the canvas shares the very first block with them.
    model = random_model("sdar", tokenizer)
    check(model, rollout_of(model, 0.9, lengths=[1, 2, 3], block_length=8))
