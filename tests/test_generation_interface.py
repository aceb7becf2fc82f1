# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What `generate` offers beyond a batch of prompts: infilling, hints, copies, streamers, rules of one's own, files."""

import math

import numpy as np
import pytest
import torch
from conftest import random_model
from torch import nn

from trl_diffusion import DiffusionGenerationConfig
from trl_diffusion.generation.noise import row_noise, row_seeds
from trl_diffusion.generation.unmasking import commit


PROMPT = torch.tensor([[3, 4, 5, 6, 7]])


def full_rollout(model, ids=PROMPT, **kwargs):
    settings = {"max_new_tokens": 8, "eos_token_id": None, "return_dict_in_generate": True, **kwargs}
    return model.generate(ids, **settings)


# Infilling and hints; against the slow loop in test_generation_properties.py


@pytest.mark.parametrize("places", [[0, 1], [2], [4], [0, 2, 4], [0, 1, 2, 3, 4]], ids=str)
def test_infilling_returns_the_input_with_its_gaps_filled(family, tokenizer, places):
    model = random_model(family, tokenizer)
    infill = torch.zeros_like(PROMPT, dtype=torch.bool)
    infill[0, places] = True
    output = model.generate(PROMPT, infill_mask=infill, return_dict_in_generate=True)
    assert output.sequences.shape == PROMPT.shape
    assert torch.equal(output.sequences[~infill], PROMPT[~infill])
    rollout = output.rollout
    assert rollout.prompt_ids.size(1) == places[0]
    assert torch.equal(rollout.unmask_step > 0, infill[:, places[0] :])
    assert torch.equal(rollout.fixed, ~infill[:, places[0] :])
    assert rollout.completions() == output.sequences[:, places[0] :].tolist()
    # What stands at the positions to fill does not matter.
    other = PROMPT.masked_fill(infill, 6)
    assert torch.equal(model.generate(other, infill_mask=infill), output.sequences)


def test_infilling_appends_what_is_asked_for(tokenizer):
    model = random_model("llada", tokenizer)
    infill = torch.tensor([[False, True, False, False, False]])
    kwargs = {"infill_mask": infill, "eos_token_id": None}
    assert model.generate(PROMPT, **kwargs, max_new_tokens=3).shape == (1, 8)
    config = DiffusionGenerationConfig(max_new_tokens=4)
    assert model.generate(PROMPT, generation_config=config, **kwargs).shape == (1, 9)
    # An EOS inside the input is text; one in the canvas ends it.
    ids = PROMPT.clone()
    ids[0, 3] = 1
    sequence = model.generate(ids, infill_mask=infill, max_new_tokens=3, eos_token_id=1, suppress_tokens=[1])
    assert (sequence[0, 5:] > 2).all()


def test_a_mask_token_of_the_input_that_is_not_to_be_filled_stays(family, tokenizer):
    model = random_model(family, tokenizer)
    ids = PROMPT.clone()
    ids[0, 1] = ids[0, 3] = tokenizer.mask_token_id
    infill = torch.zeros_like(ids, dtype=torch.bool)
    infill[0, 3] = True
    filled = model.generate(ids, infill_mask=infill)
    assert filled[0, 1] == tokenizer.mask_token_id and filled[0, 3] != tokenizer.mask_token_id


def test_hints_stay_and_count_as_given(family, tokenizer):
    model = random_model(family, tokenizer)
    hints = torch.full((1, 8), -100)
    hints[0, 2], hints[0, 7] = 4, 5
    rollout = full_rollout(model, hint_ids=hints).rollout
    assert rollout.canvas_ids[0, 2] == 4 and rollout.canvas_ids[0, 7] == 5
    assert torch.equal(rollout.fixed, hints >= 0) and torch.equal(rollout.unmask_step == 0, hints >= 0)
    assert rollout.completions()[0] == rollout.canvas_ids[0].tolist()
    assert (rollout.logprobs[hints >= 0] == 0).all() and not rollout.forced.any()
    everything = model.generate(PROMPT, max_new_tokens=2, hint_ids=torch.tensor([[4, 5]]), eos_token_id=None)
    assert everything[0, 5:].tolist() == [4, 5]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"infill_mask": torch.ones(1, 4, dtype=torch.bool)}, "infill_mask is torch.bool of shape"),
        ({"infill_mask": torch.ones(1, 5, dtype=torch.long)}, "infill_mask is torch.int64"),
        ({"hint_ids": torch.full((1, 3), -100)}, r"hint_ids has shape \(1, 3\)"),
        ({"hint_ids": torch.full((1, 8), 99)}, "hint_ids has the id 99"),
        ({"hint_ids": torch.full((1, 8), -1)}, "hint_ids has the id -1"),
        ({"hint_ids": torch.full((1, 8), 2)}, "hint_ids has the id 2; .* other than the mask"),
        ({"hint_ids": torch.full((1, 8), -100.0)}, "hint_ids is torch.float32"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"attention_mask": torch.tensor([[0, 1, 1, 2, 1]])}, "attention_mask must hold 1 on real tokens"),
        ({"token_type_ids": torch.zeros(1, 5)}, "generate.. got token_type_ids=.*Leave it out"),
        ({"streamer": 3}, "streamer is a int"),
        ({"eos_token_id": 99}, "eos_token_ids has the id 99"),
        ({"attention_mask": torch.full((1, 5), 0.5)}, "attention_mask must hold"),
        ({"seed": "3"}, "seed='3' must be an integer"),
        ({"seed": [1.5]}, "seed=.1.5. must be an integer"),
        ({"temperature": 1e-38}, "temperature=1e-38 must be 0, or lie in"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"guidance_scale": math.nan}, "guidance_scale=nan"),
        ({"attention_mask": torch.ones(1, 4)}, r"attention_mask has shape \(1, 4\)"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 would give the same row"),
        ({"suppress_tokens": [99]}, "suppress_tokens has the id 99"),
        ({"suppress_tokens": [0, 1, 3, 4, 5, 6, 7]}, "leave no token"),
        ({"unmasking": "somewhere.rule"}, "unmasking='somewhere.rule' says where a rule came from"),
    ],
    ids=str,
)
def test_wrong_calls_are_named(tokenizer, arguments, message):
    assert tokenizer.mask_token_id == 2
    with pytest.raises(ValueError, match=message):
        full_rollout(random_model("llada", tokenizer), **arguments)


def test_an_infilled_span_may_be_longer_than_the_canvas(tokenizer):
    ids = torch.full((1, 20), 5)
    infill = torch.ones_like(ids, dtype=torch.bool)
    rollout = full_rollout(
        random_model("llada", tokenizer),
        ids,
        infill_mask=infill,
        max_new_tokens=2,
        block_length=11,
        num_denoising_steps=22,
    ).rollout
    assert sorted(rollout.unmask_step[0].tolist()) == list(range(1, 23))
    with pytest.raises(ValueError, match="max_new_tokens=-1"):
        full_rollout(random_model("llada", tokenizer), ids, infill_mask=infill, max_new_tokens=-1)


def test_more_steps_than_16_bits_number_are_refused(tokenizer):
    model = random_model("llada", tokenizer, max_position_embeddings=50_000)
    with pytest.raises(ValueError, match="40000 positions to fill are more than 32767"):
        full_rollout(model, max_new_tokens=40_000)


def test_no_rows_and_nothing_to_fill_are_refused(tokenizer):
    model = random_model("llada", tokenizer)
    for wrong, message in [
        (PROMPT.tolist(), "input_ids is a list"),
        (PROMPT.float(), "input_ids is torch.float32"),
        (PROMPT[0], r"input_ids has shape \(5,\)"),
        (PROMPT + 99, "input_ids has the id 10"),
    ]:
        with pytest.raises(ValueError, match=message):
            full_rollout(model, wrong)
    with pytest.raises(ValueError, match="input_ids has no row"):
        full_rollout(model, PROMPT[:0])
    with pytest.raises(ValueError, match="infill_mask is False everywhere"):
        model.generate(PROMPT, infill_mask=torch.zeros_like(PROMPT, dtype=torch.bool))


def test_logits_that_are_no_numbers_are_an_error(tokenizer):
    model = random_model("llada", tokenizer)
    nn.init.constant_(model.lm_head.weight, math.nan)
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="NaN"):
            full_rollout(model, temperature=temperature)


def test_of_equal_scores_the_left_one_is_first():
    for width in (4, 40, 400):
        committed, _ = commit(
            torch.zeros(2, width), torch.ones(2, width, dtype=torch.bool), torch.tensor([1, width // 2])
        )
        assert committed[0].nonzero().tolist() == [[0]]
        assert committed[1].tolist() == [True] * (width // 2) + [False] * (width // 2)


def test_generation_leaves_the_mode_of_every_module(tokenizer):
    model = random_model("llada", tokenizer).train()
    model.model.layers[0].eval()
    modes = set()
    model.model.layers[1].register_forward_hook(lambda module, inputs, output: modes.add(module.training))
    before = [module.training for module in model.modules()]
    full_rollout(model)
    assert [module.training for module in model.modules()] == before
    assert modes == {False}


def test_a_padded_batch_is_filled_row_by_row(family, tokenizer):
    model = random_model(family, tokenizer)
    ids = torch.tensor([[3, 4, 5, 6, 7], [0, 0, 0, 4, 5]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]], dtype=torch.bool)
    infill = torch.tensor([[True, False, True, False, False], [False, False, False, False, True]])
    rollout = model.generate(ids, attention_mask=mask, infill_mask=infill, return_dict_in_generate=True).rollout
    assert torch.equal(rollout.completion_mask, mask.long())
    assert torch.equal(rollout.fixed, mask & ~infill)
    assert [len(ids) for ids in rollout.completions()] == [5, 2]
    assert rollout.prompt_mask.dtype == torch.long and rollout.num_forward_passes.tolist() == [2, 1]
    fewer = model.generate(
        PROMPT, infill_mask=torch.ones_like(PROMPT, dtype=torch.bool), block_length=8, num_denoising_steps=2,
        return_dict_in_generate=True,
    )  # fmt: skip
    assert fewer.rollout.num_forward_passes.tolist() == [2]


def test_guidance_hides_what_is_given_in_the_input_and_not_what_is_filled(tokenizer):
    """Filling the end of the input is generating a canvas of that length."""
    model = random_model("llada", tokenizer)
    infill = torch.tensor([[False, False, True, True, True]])
    filled = model.generate(PROMPT, infill_mask=infill, guidance_scale=2.0, return_dict_in_generate=True).rollout
    canvas = full_rollout(model, PROMPT[:, :2], max_new_tokens=3, guidance_scale=2.0).rollout
    assert torch.equal(filled.canvas_ids, canvas.canvas_ids) and torch.equal(filled.unmask_step, canvas.unmask_step)
    assert torch.allclose(filled.logprobs, canvas.logprobs, atol=1e-5)


def test_an_eos_of_the_prompt_ends_nothing(family, tokenizer):
    ids = torch.tensor([[5, 1, 6]])
    rollout = full_rollout(
        random_model(family, tokenizer), ids, block_length=4, eos_token_id=1, suppress_tokens=[1]
    ).rollout
    assert (rollout.unmask_step > 0).all() and rollout.completion_mask.all()


def test_eos_and_padding_come_from_the_model_where_a_config_has_none(tokenizer):
    model = random_model("llada", tokenizer)
    free = full_rollout(model, block_length=4).rollout.canvas_ids[0]
    eos = free[1].item()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = [eos, 1], 7
    config = DiffusionGenerationConfig(max_new_tokens=8, block_length=4, return_dict_in_generate=True)
    output = model.generate(PROMPT, generation_config=config)
    end = 5 + output.rollout.completion_mask.sum()
    assert end < 13 and (output.sequences[0, end:] == 7).all() and (output.rollout.canvas_ids[0, 4:] == 2).all()
    model.generation_config.pad_token_id = None
    assert (model.generate(PROMPT, generation_config=config).sequences[0, end:] == eos).all()
    assert model.generate(PROMPT, generation_config=config, eos_token_id=[]).sequences[0, 5:].tolist() == free.tolist()
    assert config.eos_token_id is None and config.pad_token_id is None


def test_blocks_draw_numbers_of_their_own(tokenizer):
    """With flat logits every token is the row's number; blocks of one token each take their first."""
    model = random_model("llada", tokenizer, vocab_size=101)
    nn.init.zeros_(model.lm_head.weight)
    rollout = full_rollout(model, max_new_tokens=16, block_length=1, temperature=1.0, seed=1).rollout
    assert len(rollout.canvas_ids.unique()) > 8


def test_copies_may_differ_by_the_order_alone(tokenizer):
    model = random_model("llada", tokenizer)
    rollout = full_rollout(model, alg_temp=1.0, num_return_sequences=8, seed=1).rollout
    assert len(rollout.unmask_step.unique(dim=0)) > 1
    one = full_rollout(model, PROMPT.int()).rollout
    assert one.prompt_ids.dtype == one.canvas_ids.dtype == torch.long


def test_filling_padding_is_refused(tokenizer):
    mask = torch.tensor([[0, 1, 1, 1, 1]])
    with pytest.raises(ValueError, match="infill_mask is True on padding"):
        random_model("llada", tokenizer).generate(
            PROMPT, attention_mask=mask, infill_mask=torch.ones_like(PROMPT, dtype=torch.bool)
        )


# Copies and seeds


def test_copies_of_a_prompt_are_rows_of_their_own(family, tokenizer):
    model = random_model(family, tokenizer)
    ids = torch.cat([PROMPT, PROMPT.flip(1)])
    hints = torch.full((2, 8), -100)
    hints[1, 3] = 6
    seeds = [5, 6, 7, 8, 9, 10]
    kwargs = {"temperature": 1.0, "hint_ids": hints}
    copies = full_rollout(model, ids, num_return_sequences=3, seed=seeds, **kwargs).sequences
    assert copies.shape == (6, 13)
    repeated = full_rollout(
        model, ids.repeat_interleave(3, 0), seed=seeds, temperature=1.0, hint_ids=hints.repeat_interleave(3, 0)
    ).sequences
    assert torch.equal(copies, repeated) and len(copies.unique(dim=0)) == 6
    with pytest.raises(ValueError, match="seed has 2 entries for 6 rows"):
        full_rollout(model, ids, num_return_sequences=3, seed=[1, 2], **kwargs)


def test_random_numbers_are_those_of_numpys_philox():
    seeds, steps = row_seeds([np.int64(5), 2**63 + 7, -3], 3), range(4, 8)
    assert row_seeds(-1, 2) == row_seeds(np.int64(-1), 2) != row_seeds(1, 2)
    found = row_noise(seeds, block=3, steps=steps, width=6, stream=1)
    for row, seed in enumerate(seeds):
        for place, step in enumerate(steps):
            bits = np.random.Philox(key=seed % 2**64, counter=[0, step, 3, 1])
            assert found[place, row].tolist() == np.random.Generator(bits).random(6).tolist()


def test_without_a_seed_torchs_generator_decides(family, tokenizer):
    model = random_model(family, tokenizer)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(full_rollout(model, temperature=1.5).sequences)
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


# Rules of one's own


def rightmost_first(state):
    """Commits the last mask of the block."""
    last = state.candidates.long().cumsum(1) == state.candidates.sum(1, keepdim=True)
    return last & state.candidates


class SmallPolicy(nn.Module):
    """A network as a rule: commits where a linear layer of the confidence is positive."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, state):
        return self.layer(state.confidence[..., None]).squeeze(-1) > 0


def test_a_callable_decides(family, tokenizer):
    rollout = full_rollout(random_model(family, tokenizer), unmasking=rightmost_first, block_length=8).rollout
    steps = rollout.unmask_step[0].tolist()
    pieces = [steps] if family == "llada" else [steps[:3], steps[3:]]  # five of the prompt in the first block of 8
    for piece in pieces:
        assert piece == sorted(piece, reverse=True) and len(set(piece)) == len(piece)
    assert not rollout.forced.any()


def test_a_module_that_commits_nothing_is_overruled(family, tokenizer):
    policy = SmallPolicy()
    nn.init.zeros_(policy.layer.weight)
    nn.init.constant_(policy.layer.bias, -1.0)
    rollout = full_rollout(random_model(family, tokenizer), unmasking=policy).rollout
    assert rollout.forced.all() and sorted(rollout.unmask_step[0].tolist()) == list(range(1, 9))
    nn.init.constant_(policy.layer.bias, 1.0)
    eager = full_rollout(random_model("llada", tokenizer), unmasking=policy).rollout
    assert (eager.unmask_step == 1).all() and not eager.forced.any()


def test_what_a_rule_sees(tokenizer):
    model = random_model("llada", tokenizer)
    seen = []

    def rule(state):
        expected = model(state.input_ids[:, : PROMPT.size(1) + 8]).logits[:, state.block].detach()
        expected[..., tokenizer.mask_token_id] = -math.inf
        probabilities = expected.softmax(-1)
        for name, values in {
            "tokens": probabilities.argmax(-1),
            "confidence": probabilities.amax(-1),
            "logprobs": probabilities.amax(-1).log(),
            "entropy": torch.special.entr(probabilities).sum(-1),
        }.items():
            found = getattr(state, name)[state.candidates]
            assert torch.allclose(found.float(), values[state.candidates].float(), atol=1e-5), name
        assert ((state.noise >= 0) & (state.noise < 1)).all()
        seen.append((state.step.tolist(), int(state.candidates.sum()), state.share.tolist()))
        return state.candidates & (state.slots < 2)

    full_rollout(model, unmasking=rule, num_denoising_steps=4)
    assert seen == [([1], 8, [2]), ([2], 6, [2]), ([3], 4, [2]), ([4], 2, [2])]


def test_a_rule_may_write_into_what_it_sees_and_keep_it(tokenizer):
    kept = []

    def rule(state):
        kept.append((state.input_ids, state.step, state.candidates.clone()))
        chosen = state.candidates
        chosen &= state.confidence > 0.5
        for values in (state.tokens, state.logprobs, state.share, state.fraction, state.draw.tokens):
            values.fill_(2)  # the mask token
        return chosen

    model = random_model("llada", tokenizer)
    rollout = full_rollout(model, unmasking=rule).rollout
    assert (rollout.unmask_step > 0).all() and (rollout.canvas_ids != tokenizer.mask_token_id).all()
    assert (rollout.logprobs < 0).all()
    for number, (ids, step, candidates) in enumerate(kept, start=1):
        assert step.tolist() == [number]
        assert torch.equal(ids[:, 5:] == tokenizer.mask_token_id, candidates)


def test_a_rule_may_take_more_steps_than_the_schedule_has(tokenizer):
    def hesitant(state):
        return torch.zeros_like(state.candidates)

    rollout = full_rollout(random_model("llada", tokenizer), unmasking=hesitant, num_denoising_steps=1).rollout
    assert rollout.num_forward_passes.tolist() == [8] and rollout.forced.all()


@pytest.mark.parametrize("returned", [None, [True], torch.ones(1, 8), torch.ones(2, 8, dtype=torch.bool)], ids=repr)
def test_a_rule_that_returns_nonsense_is_named(tokenizer, returned):
    with pytest.raises(ValueError, match="must return a bool tensor of shape"):
        full_rollout(random_model("llada", tokenizer), unmasking=lambda state: returned)
