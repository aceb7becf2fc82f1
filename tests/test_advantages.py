# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

import json

import pytest
import torch
from conftest import DATA

from trl_diffusion.likelihood import canvas_blocks, merge_steps, on_last_step, stepwise_gae


CASES = json.loads((DATA / "training" / "gae.json").read_text())


@pytest.mark.parametrize("index", range(len(CASES)))
def test_returns_and_advantages_equal_the_original_implementation(index):
    case = CASES[index]
    # Their steps start at 0, ours at 1, since 0 means "not drawn".
    steps = torch.tensor([case["step_map"]]) + 1
    blocks = canvas_blocks(steps.shape, case["block_size"], None, steps.device)
    merged = merge_steps(steps, case["shrink"], blocks)
    assert (merged - 1).tolist() == [case["step_map_after_shrink"]]
    mask = torch.tensor([case["trainable"]])
    values = torch.tensor([case["old_values"]])
    if case["per_token_reward"] is None:
        rewards = on_last_step(torch.tensor([case["sequence_reward"]]), merged, mask)
    else:
        rewards = torch.tensor([case["per_token_reward"]])
    returns, advantages = stepwise_gae(rewards, values, merged, mask, case["gamma"], case["lam"])
    assert torch.allclose(returns[0], torch.tensor(case["returns"]), atol=5e-5)
    assert torch.allclose(advantages[0], torch.tensor(case["advantages"]), atol=5e-5)


def test_the_goldens_cover_both_kinds_of_reward_and_every_constant():
    assert {case["sequence_reward"] is None for case in CASES} == {True, False}
    assert {case["shrink"] for case in CASES} >= {1, 2}
    assert any(case["gamma"] < 1 for case in CASES) and any(case["lam"] < 1 for case in CASES)
    assert any(not all(case["trainable"]) for case in CASES)


def random_case(rows=5, length=11, seed=0):
    torch.manual_seed(seed)
    steps = torch.randint(0, 8, (rows, length))
    steps[-1] = 0  # nothing drawn
    mask = torch.rand(rows, length) < 0.8
    rewards, values = torch.randn(2, rows, length, dtype=torch.float64)
    return rewards, values, steps, mask


def slow_gae(rewards, values, steps, mask, gamma, lam):
    """One row by the formulas, in plain Python."""
    counted = [bool(m) and s > 0 for m, s in zip(mask, steps, strict=True)]
    order = sorted({s for s, keep in zip(steps, counted, strict=True) if keep})

    def mean(tokens, step):
        own = [x for x, s, keep in zip(tokens, steps, counted, strict=True) if keep and s == step]
        return sum(own) / len(own)

    R, V, A = {None: 0.0}, {None: 0.0}, {None: 0.0}
    following = {step: order[i + 1] if i + 1 < len(order) else None for i, step in enumerate(order)}
    for step in reversed(order):
        after = following[step]
        r, V[step] = mean(rewards, step), mean(values, step)
        R[step] = r + gamma * R[after]
        A[step] = r - V[step] + gamma * V[after] + gamma * lam * A[after]
    returns, advantages = [], []
    for r, v, s, keep in zip(rewards, values, steps, counted, strict=True):
        after = following.get(s)
        returns.append(r + gamma * R[after] if keep else 0.0)
        advantages.append(r - v + gamma * V[after] + gamma * lam * A[after] if keep else 0.0)
    return returns, advantages


@pytest.mark.parametrize("gamma, lam", [(1.0, 1.0), (0.9, 0.7), (1.0, 0.0), (0.0, 1.0)])
def test_random_trajectories_equal_a_slow_loop(gamma, lam):
    rewards, values, steps, mask = random_case()
    found = stepwise_gae(rewards, values, steps.to(torch.int16), mask.long(), gamma, lam)
    for row in range(len(steps)):
        expected = slow_gae(*(x[row].tolist() for x in (rewards, values, steps, mask)), gamma, lam)
        for tensor, wanted in zip(found, expected, strict=True):
            assert tensor[row].tolist() == pytest.approx(wanted, abs=1e-12)


def test_without_discount_an_outcome_gives_reward_minus_value():
    _, values, steps, mask = random_case(seed=1)
    outcome = torch.randn(len(steps), dtype=torch.float64)
    rewards = on_last_step(outcome, steps, mask)
    returns, advantages = stepwise_gae(rewards.float(), values.float(), steps, mask)
    counted = mask & (steps > 0)
    assert counted.any() and returns.dtype == torch.float32
    expected = torch.where(counted, outcome[:, None].float() - values.float(), 0.0)
    assert (advantages - expected).abs().max() <= 1e-6
    assert (returns - torch.where(counted, outcome[:, None].float(), 0.0)).abs().max() <= 1e-6


def test_an_outcome_stands_on_the_last_step_that_counts():
    steps = torch.tensor([[3, 1, 2, 2, 0]])
    mask = torch.tensor([[0, 1, 1, 1, 1]])  # the token of step 3 lies behind EOS
    assert on_last_step(torch.tensor([5.0]), steps, mask).tolist() == [[0.0, 0.0, 5.0, 5.0, 0.0]]


@pytest.mark.parametrize("shrinkage", [1, 2, 3, 50])
def test_merged_steps_equal_a_slow_loop(shrinkage):
    torch.manual_seed(shrinkage)
    steps = torch.randint(0, 9, (4, 13))
    offset = torch.tensor([0, 1, 2, 3])
    for block_length in (4, 100):
        blocks = canvas_blocks(steps.shape, block_length, offset, steps.device)
        found = merge_steps(steps.to(torch.int16), shrinkage, blocks)
        for row in range(4):
            own = blocks[row].tolist()
            for position, step in enumerate(steps[row].tolist()):
                distinct = sorted(
                    {s for s, b in zip(steps[row].tolist(), own, strict=True) if b == own[position]} - {0}
                )
                wanted = 0
                if step:
                    last = distinct.index(step) // shrinkage * shrinkage + shrinkage - 1
                    wanted = distinct[min(last, len(distinct) - 1)]
                assert found[row, position] == wanted
    assert torch.equal(merge_steps(steps, shrinkage), merge_steps(steps, shrinkage, torch.zeros_like(steps)))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="shrinkage=0"):
        merge_steps(torch.ones(1, 3), 0)


def test_nothing_drawn_gives_zeros():
    nothing = torch.zeros(2, 3)
    for tensor in stepwise_gae(nothing, nothing + 1, nothing.long(), nothing + 1):
        assert torch.equal(tensor, nothing)
    empty = torch.zeros(2, 0)
    assert stepwise_gae(empty, empty, empty.long(), empty)[0].shape == (2, 0)
