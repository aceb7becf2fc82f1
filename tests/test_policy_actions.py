# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What a policy's step may reveal, and how likely that is."""

import itertools
import math

import pytest
import torch
from policies import slow_log_prob

from trl_diffusion.generation.actions import (
    bernoulli_log_prob,
    ordered_log_prob,
    sample_bernoulli,
    sample_ordered,
)


PLACES = 6


def random_logits(rows=1, seed=0, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(rows, PLACES, dtype=torch.float64, generator=generator)


def orders(places):
    """Every ordered pick of at least one of the places."""
    return [pick for n in range(1, len(places) + 1) for pick in itertools.permutations(places, n)]


def ranks(picks):
    rank = torch.zeros(len(picks), PLACES, dtype=torch.long)
    for row, pick in enumerate(picks):
        for place, position in enumerate(pick):
            rank[row, position] = place + 1
    return rank


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("candidates", [[0, 1, 2, 3, 4, 5], [1, 4], [0, 2, 5], [3]])
def test_probabilities_of_all_actions_sum_to_one_and_equal_the_definition(candidates, temperature):
    logits = random_logits()
    among = torch.zeros(1, PLACES, dtype=torch.bool)
    among[0, candidates] = True
    subsets = [pick for n in range(len(candidates) + 1) for pick in itertools.combinations(candidates, n)]
    chosen = torch.zeros(len(subsets), PLACES, dtype=torch.bool)
    for row, pick in enumerate(subsets):
        chosen[row, list(pick)] = True
    found = bernoulli_log_prob(logits.expand(len(subsets), -1), chosen, among.expand(len(subsets), -1), temperature)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-9)
    slow = [slow_log_prob("bernoulli", logits[0], pick, candidates, temperature) for pick in subsets]
    assert (found - torch.tensor(slow, dtype=torch.float64)).abs().max() < 1e-9

    picks = orders(candidates)
    assert len(candidates) < 6 or len(picks) == 1956
    args = (logits.expand(len(picks), -1), ranks(picks), among.expand(len(picks), -1), temperature)
    found = ordered_log_prob(*args)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-9)
    slow = [slow_log_prob("ordered", logits[0], pick, candidates, temperature) for pick in picks]
    assert (found - torch.tensor(slow, dtype=torch.float64)).abs().max() < 1e-9


@pytest.mark.parametrize("action", ["bernoulli", "ordered"])
def test_draws_have_the_frequencies_that_the_likelihood_says(action):
    rows, candidates = 40_000, [0, 2, 3, 5]
    logits = random_logits(seed=3, spread=1.0).expand(rows, -1)
    among = torch.zeros(rows, PLACES, dtype=torch.bool)
    among[:, candidates] = True
    generator = torch.Generator().manual_seed(1)
    noise, row_noise = (torch.rand(rows, n, dtype=torch.float64, generator=generator) for n in (PLACES, 2))
    if action == "bernoulli":
        drawn = sample_bernoulli(logits, among, noise, 0.7).long()
        log_prob = bernoulli_log_prob(logits, drawn > 0, among, 0.7)
    else:
        drawn = sample_ordered(logits, among, noise, row_noise, 0.7)
        log_prob = ordered_log_prob(logits, drawn, among, 0.7)
    assert not drawn[~among].any()
    kinds, inverse, counts = drawn.unique(dim=0, return_inverse=True, return_counts=True)
    expected = torch.zeros(len(kinds), dtype=torch.float64)
    expected[inverse] = log_prob.exp() * rows
    assert expected.sum() / rows > 0.99  # nearly all of the actions were met
    # Each count within five standard deviations of a binomial, where it is not tiny.
    large = expected > 20
    deviation = (counts - expected).abs() / (expected * (1 - expected / rows)).sqrt()
    assert deviation[large].max() < 5


def test_beta_multiplies_probabilities_and_divides_the_weight_of_stop():
    rows = 40_000
    logits = random_logits(seed=3, spread=1.0).expand(rows, -1)
    among = torch.ones(rows, PLACES, dtype=torch.bool)
    generator = torch.Generator().manual_seed(1)
    noise, row_noise = (torch.rand(rows, n, dtype=torch.float64, generator=generator) for n in (PLACES, 2))
    share = sample_bernoulli(logits, among, noise, 1.0, 1.7).double().mean(dim=0)
    assert (share - (1.7 * logits[0].sigmoid()).clamp(max=1)).abs().max() < 0.02
    picked = sample_ordered(logits, among, noise, row_noise, 1.0, 5.0)
    first = [row.exp() for row in logits[:1]][0]
    # After the first pick i, STOP is next with probability (1/β) / (1/β + Σ of the others).
    stops = sum(first[i] / first.sum() * 0.2 / (0.2 + first.sum() - first[i]) for i in range(PLACES))
    assert ((picked > 0).sum(dim=1) == 1).double().mean().item() == pytest.approx(stops.item(), abs=0.01)


def test_at_temperature_zero_the_likelier_is_done():
    logits = torch.tensor([[0.5, -1.0, 2.0, -0.1, 3.0, 1.0], [-3.0, -1.0, -2.0, -5.0, -4.0, -6.0]])
    among = torch.ones(2, PLACES, dtype=torch.bool)
    among[0, 4] = False
    noise, row_noise = torch.full((2, PLACES), 0.999, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    assert sample_bernoulli(logits, among, noise, 0.0).long().tolist() == [[1, 0, 1, 0, 0, 1], [0] * 6]
    assert sample_ordered(logits, among, noise, row_noise, 0.0).tolist() == [[3, 0, 1, 0, 0, 2], [0, 1, 0, 0, 0, 0]]


def test_a_row_without_candidates_reveals_nothing():
    logits, among = random_logits(2), torch.zeros(2, PLACES, dtype=torch.bool)
    among[1, 3] = True
    noise, row_noise = torch.rand(2, PLACES, dtype=torch.float64), torch.rand(2, 2, dtype=torch.float64)
    for temperature in (0.0, 1.0):
        rank = sample_ordered(logits, among, noise, row_noise, temperature)
        assert rank.tolist() == [[0] * 6, [0, 0, 0, 1, 0, 0]]
    assert ordered_log_prob(logits, rank, among)[0] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_and_those_of_the_definition(dtype):
    candidates = [0, 1, 3, 4]
    among = torch.zeros(1, PLACES, dtype=torch.bool)
    among[0, candidates] = True
    logits = random_logits(seed=5).to(dtype).requires_grad_()
    ordered_log_prob(logits, ranks([(3, 0)]), among, 0.5).sum().backward()
    step, finite = 1e-5, []
    for place in range(PLACES):
        moved = torch.zeros(PLACES, dtype=torch.float64)
        moved[place] = step
        up, down = (
            slow_log_prob("ordered", logits[0].detach() + sign * moved, (3, 0), candidates, 0.5) for sign in (1, -1)
        )
        finite.append((up - down) / (2 * step))
    assert torch.allclose(logits.grad[0].double(), torch.tensor(finite, dtype=torch.float64), atol=1e-6)
    extreme = torch.tensor([[80.0, -80.0, 5.0, 0.0, 60.0, -60.0]], dtype=dtype, requires_grad=True)
    whole = torch.ones(1, PLACES, dtype=torch.bool)
    total = ordered_log_prob(extreme, ranks([(0, 4)]), whole) + bernoulli_log_prob(extreme, whole, whole)
    total.sum().backward()
    assert math.isfinite(total.item()) and extreme.grad.isfinite().all()
