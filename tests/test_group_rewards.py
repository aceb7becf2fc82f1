# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Rewards per token, truncated completions, groups that are too easy or too hard."""

import math

import pytest
import slow_tracerl as slow
import torch
from conftest import random_model
from rl import generated_batch, rl_config, rl_trainer, share_of_ones

from trl_diffusion import TraceRLTrainer
from trl_diffusion.evaluation.rewards import checked_reward


def per_token(completion_ids, unmask_step, **kwargs):
    """A number for each token that depends on the token and on its step."""
    return [
        [(token % 3 - 1) * 0.5 + 0.1 * step for token, step in zip(ids, steps, strict=True)]
        for ids, steps in zip(completion_ids, unmask_step, strict=True)
    ]


def trainer_of(rewards, tokenizer, tmp_path, family="llada", seed=6, **kwargs):
    settings = {"max_completion_length": 9, "num_denoising_steps": 7, **kwargs}
    return rl_trainer("tracerl", random_model(family, tokenizer, seed=seed), tokenizer, tmp_path, rewards, **settings)


def returns_to_go(trainer, inputs, rewards, gamma, shrinkage=1):
    """{(row, position): R}, one row at a time."""
    block = 4 if trainer.model.attention == "block_causal" else None
    found = {}
    for row, own in enumerate(rewards):
        tokens = slow.tokens_of(inputs, row, block, shrinkage)
        numbers = [own[token.position] for token in tokens]
        returns, _ = slow.advantages_of(tokens, numbers, [0.0] * len(tokens), gamma, 1.0)
        found |= {(row, t.position): r for t, r in zip(tokens, returns, strict=True)}
    return found


def inside(inputs, name):
    """A tensor of the batch at the tokens of each completion."""
    masks = inputs["completion_mask"].bool()
    return [values[mask].tolist() for values, mask in zip(inputs[name], masks, strict=True)]


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_returns_of_token_rewards_are_group_normalised(family, tokenizer, tmp_path, scale_rewards):
    trainer = trainer_of(per_token, tokenizer, tmp_path, family, gamma=0.9, shrinkage=2, scale_rewards=scale_rewards)
    inputs = generated_batch(trainer)
    rewards = per_token(inside(inputs, "completion_ids"), inside(inputs, "unmask_step"))
    returns = returns_to_go(trainer, inputs, rewards, 0.9, shrinkage=2)
    spread_of = {group: [r for (row, _), r in returns.items() if row // 4 == group] for group in (0, 1)}
    for (row, position), r in returns.items():
        group = spread_of[row // 4]
        mean = sum(group) / len(group)
        pool = group if scale_rewards == "group" else spread_of[0] + spread_of[1]
        center = sum(pool) / len(pool)
        scale = math.sqrt(sum((x - center) ** 2 for x in pool) / len(pool)) + 1e-4
        wanted = (r - mean) / (1 if scale_rewards == "none" else scale)
        assert inputs["advantages"][row, position].item() == pytest.approx(wanted, abs=1e-4)
    assert not inputs["advantages"][inputs["completion_mask"] == 0].any()
    # TRL's figures are of the sums.
    metrics = trainer._metrics["train"]
    sums = torch.tensor([sum(own) for own in rewards])
    assert metrics["rewards/per_token/mean"] == [pytest.approx(sums.mean().item(), rel=1e-4)]
    assert metrics["rewards/per_token/std"] == [pytest.approx(sums.std().item(), rel=1e-4)]
    assert metrics["reward"] == [pytest.approx(sums.mean().item(), rel=1e-4)]
    assert list(trainer._logs["rewards"]["per_token"]) == pytest.approx(sums.tolist(), rel=1e-4)


def test_token_rewards_and_outcomes_meet_in_the_value_models_returns(family, tokenizer, tmp_path):
    trainer = trainer_of(
        [share_of_ones, per_token],
        tokenizer,
        tmp_path,
        family,
        gamma=0.9,
        gae_lambda=0.8,
        value_model="head",
        reward_weights=[2.0, 0.5],
    )
    torch.nn.init.normal_(trainer.value.model.backbone.get_output_embeddings().weight, std=0.3)
    inputs = generated_batch(trainer)
    ids = inside(inputs, "completion_ids")
    texts = [tokenizer.decode(own, skip_special_tokens=True) for own in ids]
    outcome = torch.tensor(share_of_ones(texts)).double().view(2, 4) * 2
    outcome = ((outcome - outcome.mean(1, keepdim=True)) / (outcome.std(1, keepdim=True) + 1e-4)).flatten()
    rewards = per_token(ids, inside(inputs, "unmask_step"))
    block = 4 if family == "sdar" else None
    for row, own in enumerate(rewards):
        tokens = slow.tokens_of(inputs, row, block, 1)
        last = max(token.step for token in tokens)
        numbers = [0.5 * own[t.position] + (outcome[row].item() if t.step == last else 0.0) for t in tokens]
        values = [inputs["old_values"][row, t.position].item() for t in tokens]
        returns, advantages = slow.advantages_of(tokens, numbers, values, 0.9, 0.8)
        for token, wanted, gain in zip(tokens, returns, advantages, strict=True):
            assert inputs["returns"][row, token.position].item() == pytest.approx(wanted, abs=1e-4)
            assert inputs["advantages"][row, token.position].item() == pytest.approx(gain, abs=1e-4)
    # The summed reward, of both functions.
    total = torch.tensor(share_of_ones(texts)) * 2 + 0.5 * torch.tensor([sum(own) for own in rewards])
    assert trainer._metrics["train"]["reward"] == [pytest.approx(total.mean().item(), rel=1e-4)]


def test_discounted_outcomes_count_less_in_earlier_steps(tokenizer, tmp_path):
    trainer = trainer_of(share_of_ones, tokenizer, tmp_path, gamma=0.5)
    plain = generated_batch(trainer_of(share_of_ones, tokenizer, tmp_path))
    inputs = generated_batch(trainer)
    assert torch.equal(inputs["completion_ids"], plain["completion_ids"])
    for row, steps in enumerate(inputs["unmask_step"].tolist()):
        own = [t.step for t in slow.tokens_of(inputs, row, None, 1)]
        for position, (step, counts) in enumerate(zip(steps, inputs["completion_mask"][row].tolist(), strict=True)):
            later = len({s for s in own if s > step})
            wanted = plain["advantages"][row].item() * 0.5**later if counts else 0.0
            assert inputs["advantages"][row, position].item() == pytest.approx(wanted, abs=1e-6)


def test_some_completions_may_get_no_token_rewards(tokenizer, tmp_path):
    def only_even(completion_ids, **kwargs):
        return [[1.0] * len(ids) if row % 2 == 0 else None for row, ids in enumerate(completion_ids)]

    inputs = generated_batch(trainer_of([only_even, share_of_ones], tokenizer, tmp_path))
    assert inputs["advantages"].ndim == 2 and torch.isfinite(inputs["advantages"]).all()


@pytest.mark.parametrize("settings", [{}, {"value_model": "head"}])
def test_completions_without_any_reward_are_not_trained_on(tokenizer, tmp_path, settings):
    """Nor do they count in their group's mean."""

    def some(completion_ids, **kwargs):
        return [None if row % 4 == 0 else [0.1 * row] * len(ids) for row, ids in enumerate(completion_ids)]

    trainer = trainer_of(some, tokenizer, tmp_path, **settings)
    inputs = generated_batch(trainer)
    assert inputs["completion_mask"].any(1).tolist() == [row % 4 != 0 for row in range(8)]
    assert not inputs["advantages"][[0, 4]].any() and inputs["advantages"][1].any()
    assert inputs["num_items_in_batch"] == inputs["completion_mask"].sum()
    # The table of completions shows each one's mean.
    mask = inputs["completion_mask"]
    means = (inputs["advantages"] * mask).sum(1) / mask.sum(1).clamp(min=1)
    assert list(trainer._logs["advantages"]) == pytest.approx(means.tolist())
    if not settings:
        for group in (slice(1, 4), slice(5, 8)):
            kept = inputs["advantages"][group][mask[group].bool()]
            assert kept.mean().item() == pytest.approx(0.0, abs=1e-5)
            assert kept.std(correction=0).item() == pytest.approx(1.0, abs=1e-2)


def test_training_with_token_rewards_raises_them(family, tokenizer, tmp_path):
    one = tokenizer("1")["input_ids"][0]

    def ones(completion_ids, **kwargs):
        return [[float(token == one) for token in ids] for ids in completion_ids]

    trainer = trainer_of(ones, tokenizer, tmp_path, family, seed=0, max_steps=20)
    trainer.train()
    rewards = [log["reward"] for log in trainer.state.log_history if "reward" in log]
    assert sum(rewards[-5:]) > sum(rewards[:5]) + 3.0


@pytest.mark.parametrize(
    "rewards, error, message",
    [
        ([[0.0], [0.0, 1.0]], ValueError, "1 rewards per token for completion 0, which has 2 tokens"),
        ([[0.0, float("nan")], [0.0, 1.0]], ValueError, "nan for token 1 of completion 0"),
        ([[0.0, "x"], [0.0, 1.0]], TypeError, "'x' for token 1 of completion 0"),
        ([[0.0, 1.0], 1.0], TypeError, "1.0 for completion 1 and a list for another"),
    ],
)
def test_wrong_token_rewards_are_named(rewards, error, message):
    wrapper = checked_reward(lambda **kwargs: rewards, lambda taken: None)
    with pytest.raises(error, match=message):
        wrapper(completions=["a", "b"], completion_ids=[[1, 2], [3, 4]])


def test_token_rewards_of_any_sequence_are_taken():
    taken = []
    wrapper = checked_reward(lambda **kwargs: [torch.tensor([1.0, 2.0]), (3, None)], taken.extend)
    assert wrapper(completions=["a", "b"], completion_ids=[[1, 2], [3, 4]]) == [3.0, 3.0]
    assert taken == [[1.0, 2.0], [3.0, 0.0]]


def test_other_trainers_take_one_number(tokenizer, tmp_path):
    trainer = rl_trainer("grpo", random_model("llada", tokenizer), tokenizer, tmp_path, per_token)
    with pytest.raises(TypeError, match="for completion 0: give a number or None"):
        generated_batch(trainer)


# Truncated completions


def test_truncated_completions_can_count_as_wrong(tokenizer, tmp_path):
    def right(completions, **kwargs):
        return [1.0] * len(completions)

    def sometimes(completions, **kwargs):
        return [None] * len(completions)

    trainer = trainer_of([right, sometimes], tokenizer, tmp_path, truncated_reward=-1.0)
    inputs = generated_batch(trainer)
    ended = (inputs["completion_ids"] == tokenizer.eos_token_id).any(1)
    assert ended.any() and not ended.all()
    assert trainer._all_rewards[:, 0].tolist() == [1.0 if end else -1.0 for end in ended.tolist()]
    assert trainer._all_rewards[:, 1].isnan().all()  # a function that does not apply still does not
    assert ((inputs["advantages"] > 0) == ended).all()


def test_truncated_completions_are_wrong_to_the_difficulty_filter_too(tokenizer, tmp_path):
    def right(completions, **kwargs):
        return [1.0] * len(completions)

    settings = {"truncated_reward": -1.0, "difficulty_range": [0.1, 0.9]}
    trainer = trainer_of(right, tokenizer, tmp_path, **settings)
    inputs = generated_batch(trainer)
    ended = (inputs["completion_ids"] == tokenizer.eos_token_id).any(1)
    share = ended.float().view(2, 4).mean(1)
    kept = (share >= 0.1) & (share <= 0.9)
    assert torch.equal(inputs["completion_mask"].any(1), kept.repeat_interleave(4)) and kept.any()


# Difficulty


def by_prompt(prompts, completions, **kwargs):
    """Groups of the first prompt are always right, the others sometimes."""
    return [1.0 if prompt == "0123" else float(row % 2) for row, prompt in enumerate(prompts)]


@pytest.mark.parametrize("name", ["tracerl", "grpo"])
def test_groups_outside_the_range_are_not_trained_on(tokenizer, tmp_path, name):
    settings = {"difficulty_range": [0.2, 0.8], "loss_type": "dapo", "max_steps": 1, "optim": "sgd"}
    trainer = rl_trainer(name, random_model("llada", tokenizer), tokenizer, tmp_path, by_prompt, **settings)
    inputs = generated_batch(trainer)  # a group of prompt "0123", one of "012"
    assert inputs["completion_mask"].any(1).tolist() == [False] * 4 + [True] * 4
    assert inputs["num_items_in_batch"] == inputs["completion_mask"].sum()
    assert trainer._metrics["train"]["difficulty/kept_groups"] == [0.5]
    # Evaluation looks at all.
    trainer.model.eval()
    evaluated = trainer._generate_and_score_completions([trainer.train_dataset[0]] * 4)
    assert evaluated["completion_mask"].any(1).all()


def test_a_batch_without_a_group_in_the_range_moves_nothing(family, tokenizer, tmp_path):
    trainer = rl_trainer(
        "tracerl",
        random_model(family, tokenizer),
        tokenizer,
        tmp_path,
        [share_of_ones, lambda completions, **kwargs: [1.0] * len(completions)],
        difficulty_range=[0.2, 0.8],
        correctness_reward="<lambda>",
        value_model="full",
    )
    before = [p.clone() for p in [*trainer.model.parameters(), *trainer.value.model.parameters()]]
    trainer.train()
    after = [*trainer.model.parameters(), *trainer.value.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize(
    "settings, rewards, message",
    [
        ({"difficulty_range": [0.2, 0.8]}, [share_of_ones, by_prompt], "must name the reward function"),
        ({"difficulty_range": [0.2, 0.8], "correctness_reward": "x"}, [by_prompt], "correctness_reward='x'"),
        ({"difficulty_range": [0.8, 0.2]}, [by_prompt], "difficulty_range="),
        ({"difficulty_range": [0.5]}, [by_prompt], "difficulty_range="),
        ({"correctness_reward": "by_prompt"}, [by_prompt], "has no effect without difficulty_range"),
    ],
)
def test_wrong_difficulty_settings_are_named(tokenizer, tmp_path, settings, rewards, message):
    with pytest.raises(ValueError, match=message):
        rl_trainer("tracerl", random_model("llada", tokenizer), tokenizer, tmp_path, rewards, **settings)


def test_correctness_outside_0_and_1_is_named(tokenizer, tmp_path):
    def two(completions, **kwargs):
        return [2.0] * len(completions)

    trainer = rl_trainer(
        "tracerl", random_model("llada", tokenizer), tokenizer, tmp_path, two, difficulty_range=[0.2, 0.8]
    )
    with pytest.raises(ValueError, match="reward function 'two' returned 2.0"):
        generated_batch(trainer)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kl_estimator": "k4"}, "kl_estimator='k4' must be one of k1, k2, k3"),
        ({"kl_estimator": "k1"}, "kl_estimator='k1' has no effect with beta=0.0"),
        ({"kl_reference": "old"}, "kl_reference='old' has no effect with beta=0.0"),
        ({"kl_reference": "now", "beta": 0.1}, "kl_reference='now' must be one of"),
        ({"kl_reference": "old", "beta": 0.1, "sync_ref_model": True}, "sync_ref_model=True has no effect"),
        ({"log_ratio_clamp": 0.0}, "log_ratio_clamp=0.0 must be positive"),
    ],
)
def test_wrong_settings_of_the_objective_are_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        rl_config(TraceRLTrainer, tmp_path, **settings)
