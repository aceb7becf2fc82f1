# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What a policy sees, draws and costs in rollouts, step by step against slow loops; whose rewards count for what."""

import numpy as np
import pytest
import torch
from conftest import random_model
from policies import CANVAS, policy_trainer, slow_logits, small_policy
from rl import generated_batch

from trl_diffusion import DiffusionGenerationConfig
from trl_diffusion.generation import policy as policy_module
from trl_diffusion.generation.actions import sample_bernoulli, sample_ordered
from trl_diffusion.generation.distribution import draw_tokens
from trl_diffusion.generation.noise import row_noise
from trl_diffusion.generation.policy import PolicyInputs, confidence_features
from trl_diffusion.generation.recording import RecordingPolicy


# Streams of a row's noise: written out, since two that are one would make tokens and places depend on each other.
TOKENS, POSITIONS, ROWS = 0, 1, 2


def noise(seed, block, step, width, stream):
    """(1, width)."""
    return torch.from_numpy(row_noise([seed], block, range(step, step + 1), width, stream)[0])


def slow_choice(policy, logits, candidates, seed, block, step, temperature):
    """Ranks of what a policy reveals, (K,), of the logits of a block and its row's own noise."""
    width = len(candidates)
    arguments = (logits[None], candidates[None], noise(seed, block, step, width, POSITIONS))
    if policy.config.action == "ordered":
        return sample_ordered(*arguments, noise(seed, block, step, 2, ROWS), temperature)[0]
    return sample_bernoulli(*arguments, temperature)[0].long()


def token_logits(model, prompt, canvas):
    """Logits of a canvas behind a prompt, (C, V), by a plain forward pass."""
    with torch.no_grad():
        logits = model(torch.cat([prompt, canvas])[None]).logits[0, len(prompt) :].float()
    logits[:, model.mask_token_id] = -torch.inf
    return logits


def told(model, prompt, canvas):
    """The largest probability of each place, 1 where a token stands: (C,)."""
    largest = token_logits(model, prompt, canvas).softmax(dim=1).amax(dim=1)
    return torch.where(canvas == model.mask_token_id, largest, 1.0)


def slow_generation(model, policy, prompt, seed, length=CANVAS, block=CANVAS, tau=1.0, temperature=0.0):
    """The steps and tokens of one row, by loops: what the model says, what the policy draws of it, and where it draws
    nothing its largest logit."""
    canvas = torch.full((length,), model.mask_token_id)
    unmask_step, taken = torch.zeros(length, dtype=torch.long), 0
    for index, start in enumerate(range(0, length, block)):
        end, in_block = min(start + block, length), 0
        limit = end - start
        while (canvas[start:end] == model.mask_token_id).any():
            masked = canvas == model.mask_token_id
            logits = slow_logits(policy, told(model, prompt, canvas)[:, None], masked, taken / length)[start:end]
            candidates = masked[start:end]
            chosen = slow_choice(policy, logits, candidates, seed, index, in_block, tau) > 0
            if not chosen.any():
                places = candidates.nonzero().flatten().tolist()
                chosen[max(places, key=lambda place: logits[place].item())] = True
            if in_block + 1 == limit:
                chosen = candidates
            uniform = noise(seed, index, in_block, limit, TOKENS)[0] if temperature else None
            drawn = draw_tokens(token_logits(model, prompt, canvas)[start:end], uniform, temperature, None, None)
            in_block, taken = in_block + 1, taken + 1
            canvas[start:end] = torch.where(chosen, drawn.tokens, canvas[start:end])
            unmask_step[start:end] = torch.where(chosen, taken, unmask_step[start:end])
    return unmask_step, canvas


def generate(model, inputs, length=CANVAS, **kwargs):
    settings = {"max_new_tokens": length, "eos_token_id": [], "return_dict_in_generate": True, **kwargs}
    return model.generate(**inputs, generation_config=DiffusionGenerationConfig(pad_token_id=0), **settings).rollout


def some_prompts(tokenizer, texts=("01234012", "31", "0123")):
    return tokenizer(list(texts), padding=True, padding_side="left", return_tensors="pt")


# Generation


CASES = {
    "bernoulli": ({}, {}, {}),
    "ordered": ({"action": "ordered"}, {}, {}),
    "blocks": ({}, {"block_length": 4}, {"block": 4}),
    "tau of the call": ({}, {"policy_temperature": 0.2}, {"tau": 0.2}),
    "its own tau": ({"policy_temperature": 0.2}, {}, {"tau": 0.2}),
    "the call's before its own": ({"policy_temperature": 0.2}, {"policy_temperature": 3.0}, {"tau": 3.0}),
    "tokens at random": ({}, {"temperature": 0.9}, {"temperature": 0.9}),
    "never of itself": ({"initial_bias": -50.0}, {}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_generation_equals_a_slow_loop(tokenizer, case):
    of_policy, of_call, of_loop = CASES[case]
    model, policy = random_model("llada", tokenizer), small_policy(**of_policy).double()
    inputs, seeds = some_prompts(tokenizer), [3, 14, 15]
    found = generate(model, inputs, length=8, unmasking=policy, seed=seeds, **of_call)
    for row, seed in enumerate(seeds):
        prompt = found.prompt_ids[row][found.prompt_mask[row].bool()]
        unmask_step, canvas = slow_generation(model, policy, prompt, seed, 8, **{"block": 8, **of_loop})
        assert found.unmask_step[row].tolist() == unmask_step.tolist()
        assert found.canvas_ids[row].tolist() == canvas.tolist()


# What it is told


def recorded(model, inputs, policy, length, **kwargs):
    recorder = RecordingPolicy(policy, policy.inputs, temperature=1.0, beta=1.0)
    rollout = generate(model, inputs, length=length, unmasking=recorder, seed=1, **kwargs)
    return rollout, recorder.record(len(rollout.canvas_ids), int(rollout.num_forward_passes.max()))


def test_rows_with_different_numbers_of_later_masks_are_told_what_a_softmax_says(tokenizer):
    """The first place of a later block is given in the row with fewest masks: what fills up its places would land
    there."""
    model, policy = random_model("llada", tokenizer), small_policy(initial_bias=-1.5)
    hints = torch.full((3, 10), -100)
    hints[0, [4, 5, 8, 9]], hints[1, [7]] = torch.tensor([3, 4, 5, 6]), 5
    hints[2, [1, 4]] = 4
    rollout, record = recorded(model, some_prompts(tokenizer), policy, 10, hint_ids=hints, block_length=4)
    for row in range(3):
        prompt = rollout.prompt_ids[row][rollout.prompt_mask[row].bool()]
        for step in range(1, int(rollout.num_forward_passes[row]) + 1):
            canvas = rollout.canvas_ids[row].masked_fill(rollout.unmask_step[row] >= step, model.mask_token_id)
            assert torch.allclose(record.features[row, step - 1, :, 0], told(model, prompt, canvas), atol=2e-5)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_the_dual_cache_sees_nothing_of_later_blocks(tokenizer, cache):
    """Not at a block's first step either, which computes them: a policy would see them come and go."""
    model, policy = random_model("llada", tokenizer), small_policy(initial_bias=-1.5)
    rollout, record = recorded(model, some_prompts(tokenizer), policy, 10, cache=cache, block_length=4)
    looked = 0
    for row in range(3):
        for step in range(1, int(rollout.num_forward_passes[row]) + 1):
            masked = rollout.unmask_step[row] >= step
            later = masked & (torch.arange(10) >= (int(masked.nonzero()[0]) // 4 + 1) * 4)
            features = record.features[row, step - 1, :, 0]
            assert (features[later] > 0).all() if cache == "prefix" else not features[later].any()
            assert (features[masked & ~later] > 0).all()
            looked += int(later.sum())
    assert looked > 30


def test_chunks_of_features_are_those_of_one_piece(monkeypatch):
    torch.manual_seed(0)
    logits, inputs = torch.randn(13, 9), PolicyInputs(num_confidences=2, entropy=True)
    whole = confidence_features(logits, inputs)
    for chunk in (1, 9, 5 * 9 + 1):  # less than a row, one row, five
        monkeypatch.setattr(policy_module, "_CHUNK", chunk)
        assert torch.allclose(confidence_features(logits, inputs), whole, atol=1e-7)


# Rollouts of the trainer


def numbered(rewards):
    """A reward function that gives the completions of a batch these rewards, in their order."""
    return lambda completions, **kwargs: [rewards[row % len(rewards)] for row in range(len(completions))]


def by_hand_seeds(*generation):
    """Of the rows of the first generation: (seed, step, generation, 0 in training and 1 in evaluation, row)."""
    sequences = [np.random.SeedSequence((42, *generation, row)) for row in range(8)]
    return [int(sequence.generate_state(1, np.uint64)[0]) for sequence in sequences]


def trainer_of(tokenizer, tmp_path, policy=None, spread=0.3, **kwargs):
    policy = small_policy().double() if policy is None else policy
    trainer = policy_trainer(random_model("llada", tokenizer, spread=spread), tokenizer, tmp_path, policy, **kwargs)
    trainer.current_gradient_accumulation_steps = 1  # set by the training loop
    return trainer


@pytest.mark.parametrize("action", ["bernoulli", "ordered"])
def test_the_rollouts_of_a_batch_are_drawn_as_they_are_scored(tokenizer, tmp_path, action):
    """What each step revealed, drawn again from what the loss is told, at the temperature that it scores with, with
    each row's own noise."""
    policy = small_policy(action=action).double()
    trainer = trainer_of(tokenizer, tmp_path, policy, policy_temperature=0.7, block_length=3)
    inputs = generated_batch(trainer)
    seeds, drawn = by_hand_seeds(0, 0, 0), {0.7: 0, 1.0: 0}
    assert trainer._rollout_seeds == seeds
    for row in range(8):
        unmask_step, rank = inputs["unmask_step"][row].long(), inputs["rank"][row].long()
        for step in range(1, int(inputs["num_steps"][row]) + 1):
            if not inputs["decided"][row, step - 1]:
                continue
            masked = unmask_step >= step
            block = int(masked.nonzero()[0]) // 3
            places = slice(3 * block, 3 * block + 3)
            before = int(unmask_step[: 3 * block].max()) if block else 0  # steps of the blocks before
            b = slow_logits(policy, inputs["features"][row, step - 1], masked, (step - 1) / CANVAS)[places]
            known = torch.where(unmask_step == step, rank, 0)[places]
            for tau in drawn:
                found = slow_choice(policy, b, masked[places], seeds[row], block, step - 1 - before, tau)
                drawn[tau] += not torch.equal(found, known)
    assert drawn[0.7] == 0 < drawn[1.0]


def test_rows_of_a_group_differ(tokenizer, tmp_path):
    trainer = trainer_of(tokenizer, tmp_path)
    for group in generated_batch(trainer)["unmask_step"].view(2, 4, -1):
        assert len({tuple(row) for row in group.tolist()}) > 1


def test_an_evaluation_is_a_generation_with_the_rows_seeds(tokenizer, tmp_path):
    policy = small_policy().double()
    trainer = trainer_of(tokenizer, tmp_path, policy, policy_temperature=0.7)
    trainer.model.eval()
    inputs = [trainer.train_dataset[row] for row in range(2) for _ in range(4)]
    output = trainer._generate_and_score_completions(inputs)
    for row, seed in enumerate(by_hand_seeds(0, 0, 1)):
        prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()]
        unmask_step, _ = slow_generation(trainer.dllm, policy, prompt, seed, tau=0.7)
        assert output["unmask_step"][row].tolist() == unmask_step.tolist()


# The expert


@pytest.mark.parametrize("threshold", [0.3, 0.95])
def test_the_expert_goes_by_its_threshold(tokenizer, tmp_path, threshold):
    trainer = trainer_of(
        tokenizer, tmp_path, spread=0.6, expert_steering=True, expert_block_length=3, expert_threshold=threshold
    )
    inputs = generated_batch(trainer)
    model, differs = trainer.dllm, False
    for row in (3, 7):
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
        steps = {}
        for tau in (threshold, 0.5):
            canvas, steps[tau] = torch.full((CANVAS,), model.mask_token_id), torch.zeros(CANVAS, dtype=torch.long)
            for start in (0, 3):
                while (canvas[start : start + 3] == model.mask_token_id).any():
                    confidence = told(model, prompt, canvas)
                    open_places = [place for place in range(start, start + 3) if canvas[place] == model.mask_token_id]
                    chosen = [place for place in open_places if confidence[place] >= tau]
                    chosen = chosen or [max(open_places, key=lambda place: confidence[place].item())]
                    tokens = token_logits(model, prompt, canvas).argmax(dim=1)
                    canvas[chosen], steps[tau][chosen] = tokens[chosen], steps[tau].max() + 1
        assert inputs["unmask_step"][row].tolist() == steps[threshold].tolist()
        differs |= steps[threshold].tolist() != steps[0.5].tolist()
    assert differs


def test_all_steps_of_an_expert_are_scored_whose_blocks_leave_it_no_choice(tokenizer, tmp_path):
    trainer = trainer_of(
        tokenizer, tmp_path, reward=numbered([0.0, 1.0, 0.0, 1.0]), expert_steering=True, expert_block_length=1,
        expert_threshold=1.0,
    )  # fmt: skip
    inputs = generated_batch(trainer)
    for row in (3, 7):
        steps = int(inputs["num_steps"][row])
        assert steps == int(inputs["unmask_step"][row].max()) > 1
        assert inputs["decided"][row].tolist() == [step < steps for step in range(inputs["decided"].size(1))]
    scored = torch.cat(trainer._states(inputs, inputs["is_expert"]))
    assert len(scored) == int(inputs["num_steps"][[3, 7]].sum())


def test_the_experts_rewards_and_passes_are_not_in_the_log(tokenizer, tmp_path):
    rewards = [0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.5, 0.0]
    trainer = trainer_of(
        tokenizer, tmp_path, reward=numbered(rewards), expert_steering=True, expert_block_length=1,
        expert_threshold=1.0,
    )  # fmt: skip
    inputs, metrics = generated_batch(trainer), trainer._metrics["train"]
    own = [0, 1, 2, 4, 5, 6]
    mean = next(values for name, values in metrics.items() if name.startswith("rewards/") and name.endswith("/mean"))
    assert mean == [pytest.approx(sum(rewards[row] for row in own) / 6)]
    steps = inputs["num_steps"].double()
    assert metrics["generation/forward_passes"] == [pytest.approx(steps[own].mean().item())]
    assert steps[own].mean() != steps.mean()


def test_the_experts_reward_does_not_say_how_hard_a_problem_is(tokenizer, tmp_path):
    """Of the policy's own completions 2/3 and all are right; with the expert's they would be 1/2 and 3/4."""
    trainer = trainer_of(
        tokenizer, tmp_path, reward=numbered([1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0]), expert_steering=True,
        expert_block_length=3, difficulty_range=[0.6, 0.8],
    )  # fmt: skip
    inputs = generated_batch(trainer)
    assert inputs["advantages"][:4].any() and not inputs["advantages"][4:].any()


# Rewards


def test_steps_are_counted_in_places_of_the_canvas(tokenizer, tmp_path):
    rewards = [1.0, 0.5, 0.2, 0.8]
    trainer = trainer_of(tokenizer, tmp_path, reward=numbered(rewards), num_denoising_steps=3, alpha=2.0)
    steps = generated_batch(trainer)["num_steps"].tolist()
    assert max(steps) <= 3 < CANVAS
    expected = [rewards[row % 4] * (1 - taken / CANVAS) ** 2 for row, taken in enumerate(steps)]
    assert trainer._rewards_for_steps.flatten().tolist() == pytest.approx(expected, abs=1e-6)


OUT_OF_THE_LOSS = {
    "truncated": ([1.0, 0.0, 0.5, 0.0], {"mask_truncated_completions": True}, [1, 2, 6]),
    "no reward": ([1.0, None, 0.7, 0.0, 1.0, 0.0, None, 0.3], {}, [1, 6]),
    "too hard": ([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0], {"difficulty_range": [0.4, 0.6]}, [0, 1, 2, 3]),
}


@pytest.mark.parametrize("case", OUT_OF_THE_LOSS)
def test_what_is_left_out_of_the_loss_has_no_advantage_and_is_not_looked_at(tokenizer, tmp_path, monkeypatch, case):
    rewards, settings, out = OUT_OF_THE_LOSS[case]
    trainer = trainer_of(tokenizer, tmp_path, reward=numbered(rewards), alpha=0.5, **settings)
    if case == "truncated":
        monkeypatch.setattr(trainer, "_truncated", lambda ids: torch.tensor([row in out for row in range(len(ids))]))
    inputs = generated_batch(trainer)
    kept = [row for row in range(8) if row not in out]
    assert not inputs["advantages"][out].any() and inputs["advantages"][kept].all()
    assert not inputs["completion_mask"][out].any()  # which joint training of the model goes by
    looked, log_probs = [], trainer._log_probs
    monkeypatch.setattr(trainer, "_log_probs", lambda *args: looked.append(args[2][:, 0]) or log_probs(*args))
    trainer._compute_loss(trainer.model, inputs)
    trainer._old_log_probs(inputs)
    assert set(torch.cat(looked).tolist()) == set(kept)


def test_a_group_in_which_only_a_missing_reward_differs_is_skipped(tokenizer, tmp_path):
    rewards = [0.5, 0.5, None, 0.5, 0.5, 0.5, None, 0.7]
    trainer = trainer_of(tokenizer, tmp_path, reward=numbered(rewards), alpha=0.0)
    inputs = generated_batch(trainer)
    assert trainer._metrics["train"]["skipped_groups"] == [0.5]
    assert not inputs["advantages"][:4].any()


def test_the_loss_of_an_evaluation_is_its_reward_where_some_are_missing(tokenizer, tmp_path):
    trainer = trainer_of(
        tokenizer, tmp_path, reward=numbered([0.5, None, 1.0, 0.2, 0.9]), alpha=1.0, eval_strategy="steps"
    )
    row = trainer.evaluate()
    assert row["eval_loss"] == pytest.approx(-row["eval_reward"], abs=1e-6) and row["eval_reward"] > 0
