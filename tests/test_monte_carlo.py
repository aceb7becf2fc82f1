# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The masked copies of Monte-Carlo likelihoods: expectations by enumeration, not by drawing."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from trl_diffusion.likelihood import coupled_views, elbo_views, view_noise
from trl_diffusion.likelihood.monte_carlo import group_ranks


N = 6
MASKS = torch.tensor(list(itertools.product([0, 1], repeat=N)), dtype=torch.bool)  # (64, 6)
CODES = (MASKS.long() * 2 ** torch.arange(N - 1, -1, -1)).sum(1)  # row number of each mask


@pytest.fixture
def table():
    """log p(token i | the masked copy): any function of the mask at all. (64, 6)"""
    return -torch.rand(2**N, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5


def any_order_likelihood(table, tokens=range(N)):
    """The ELBO by its definition: the mean over all orders of Σ log p(token | those before it), in plain loops."""
    total, tokens = 0.0, list(tokens)
    for order in itertools.permutations(tokens):
        masked = [int(i in tokens) for i in range(N)]
        for position in order:
            total += table[int("".join(map(str, masked)), 2), position].item()
            masked[position] = 0
    return total / math.factorial(len(tokens))


def estimate(view, table):
    """What a view's rows, (64, 6), make of the table: ℓ of each."""
    codes = (view.masked.long() * 2 ** torch.arange(N - 1, -1, -1)).sum(1)
    return (table[codes] * view.weight * view.target).sum(1)


def noise_for(masks, level, mirrored=False):
    """Noise with which each row masks its own mask, at the level that the noise `level` stands for. (64, 2, 2, 6)"""
    inside = torch.where(masks, 0.0, 1.0 - 1e-12).double()
    place = 1 - inside if mirrored else inside
    return torch.stack([torch.full(masks.shape, level, dtype=torch.float64), place], dim=1)[:, None].expand(
        -1, 2, 2, N
    )


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize("minimum", [0.0, 1e-3])
def test_the_estimate_with_uniform_levels_is_unbiased(table, minimum, copy):
    """All masks, and quadrature over t. Copy 1 is the mirrored one of an antithetic pair."""
    nodes, weights = np.polynomial.legendre.leggauss(30)
    expectation = 0.0
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):  # of the noise, which is U[0, 1)
        views = elbo_views(
            torch.ones_like(MASKS), noise_for(MASKS, node, mirrored=copy == 1), antithetic=copy == 1, minimum=minimum
        )
        view = views[copy]
        assert torch.equal(view.masked, MASKS) and torch.equal(view.target, MASKS)
        t = 1 / view.weight[0, 0].item()
        assert t == pytest.approx(minimum + (1 - minimum) * (1 - node if copy else node), rel=1e-9)
        # Independent noise masks these and not those with this probability.
        probability = t ** MASKS.sum(1).double() * (1 - t) ** (~MASKS).sum(1).double()
        expectation += weight * (probability * estimate(view, table)).sum().item()
    exact = any_order_likelihood(table)
    if minimum == 0.0:
        assert expectation == pytest.approx(exact, rel=1e-9)
        return
    # Over [minimum, 1] the mask S weighs ∫ t^(|S|−1) (1−t)^(6−|S|) dt / (1 − minimum), the integral of a polynomial.
    wanted = 0.0
    for mask, row in zip(MASKS, table[CODES], strict=True):
        count = int(mask.sum())
        if count:
            density = np.poly1d([1, 0]) ** (count - 1) * np.poly1d([-1, 1]) ** (N - count)
            integral = np.polyint(density)(1) - np.polyint(density)(minimum)
            wanted += integral / (1 - minimum) * row[mask].sum().item()
    assert expectation == pytest.approx(wanted, rel=1e-9)
    # What leaving the lowest levels out costs against the whole integral.
    assert 0 < abs(expectation - exact) < 2e-3 * abs(exact)


def orders_for(masks):
    """Noise that ranks the masked positions of each row first. (64, 6)"""
    return torch.where(masks, 0.1, 0.6).double() + torch.arange(N) / 100


@pytest.mark.parametrize(
    "count, antithetic", [(1, False), (2, False), (2, True), (4, False), (4, True), (7, False), (8, True)]
)
def test_the_estimate_with_stratified_levels_is_unbiased(table, count, antithetic):
    """All k, and for each copy all subsets of as many tokens as it masks."""
    exact, sums, drawn = any_order_likelihood(table), [0.0] * count, [Counter() for _ in range(count)]
    for k in range(1, N + 1):
        for copy in range(count):
            first = orders_for(MASKS)
            # The mirrored copy masks those that the order has last.
            place = 1 - first if antithetic and copy % 2 else first
            noise = torch.stack([torch.full(MASKS.shape, (k - 0.5) / N, dtype=torch.float64), place], dim=1)
            noise = noise[:, None].expand(-1, count, 2, N)
            view = elbo_views(torch.ones_like(MASKS), noise, "stratified", antithetic)[copy]
            number = int(view.masked[0].sum())
            drawn[copy][number] += 1
            assert (view.masked.sum(1) == number).all()
            assert (view.weight == N / number).all()
            own = MASKS.sum(1) == number
            assert torch.equal(view.masked[own], MASKS[own])
            sums[copy] += estimate(view, table)[own].mean().item() / N
    for copy in range(count):
        assert drawn[copy] == Counter(range(1, N + 1))  # every number is equally likely, for every copy
        assert sums[copy] == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("length, count", [(6, 6), (5, 3), (17, 4), (3, 8)])
def test_stratified_levels_are_spread_evenly(length, count):
    noise = torch.rand(50, count, 2, length)
    numbers = torch.stack([v.target.sum(1) for v in elbo_views(torch.ones(50, length), noise, "stratified")], dim=1)
    for row in numbers.tolist():
        # Cut at any level, the share of copies below it is that of the numbers below it, to within one copy.
        for cut in range(length + 1):
            assert abs(sum(number <= cut for number in row) - count * cut / length) <= 1 + 1e-9


def test_rows_and_blocks_have_levels_of_their_own(table):
    """Two blocks: positions {0, 2} and {1, 3, 4}; position 5 is not maskable. The expectation is the sum of both."""
    maskable = torch.tensor([True] * 5 + [False])
    group = torch.tensor([0, 1, 0, 1, 1, 1])

    def split(view, row):
        """ℓ with the table read block by block, the other block clean."""
        total = 0.0
        for block in (0, 1):
            own = view.masked[row] & (group == block)
            code = int((own.long() * 2 ** torch.arange(N - 1, -1, -1)).sum())
            total += (table[code] * view.weight[row])[own].sum().item()
        return total

    # Every pair of numbers (2 · 3 levels), and every pair of subsets of these sizes, once each.
    total = 0.0
    subsets = {
        b: [list(s) for n in range(1, len(p) + 1) for s in itertools.combinations(p, n)]
        for b, p in {0: (0, 2), 1: (1, 3, 4)}.items()
    }
    sizes = {0: 2, 1: 3}
    for first, second in itertools.product(subsets[0], subsets[1]):
        level = torch.zeros(N, dtype=torch.float64)
        level[0], level[1] = (len(first) - 0.5) / 2, (len(second) - 0.5) / 3
        place = torch.full((N,), 0.9, dtype=torch.float64)
        place[[*first, *second]] = 0.1
        noise = torch.stack([level, place])[None, None]
        (view,) = elbo_views(maskable[None], noise, "stratified", group=group[None])
        assert set(view.target[0].nonzero().flatten().tolist()) == {*first, *second}
        share = math.prod(1 / sizes[b] / math.comb(sizes[b], len(s)) for b, s in ((0, first), (1, second)))
        total += share * split(view, 0)
    assert total == pytest.approx(
        any_order_likelihood(table, (0, 2)) + any_order_likelihood(table, (1, 3, 4)), rel=1e-9
    )


@pytest.mark.parametrize("levels", ["uniform", "stratified"])
@pytest.mark.parametrize("antithetic", [False, True])
def test_only_what_may_be_masked_is(levels, antithetic):
    generator = torch.Generator().manual_seed(3)
    maskable = torch.rand(20, 30, generator=generator) < 0.5
    maskable[0] = False  # nothing at all
    group = (torch.arange(30) // 7).expand(20, -1)
    maskable[1, 7:14] = False  # an empty block
    behind = ~maskable & (torch.rand(20, 30, generator=generator) < 0.5)
    noise = view_noise(torch.arange(20), 8, 30)
    views = elbo_views(maskable, noise, levels, antithetic, group=group, behind=behind)
    assert len(views) == 8
    for view in views:
        assert not (view.target & ~maskable).any()
        assert torch.equal(view.masked, view.target | behind)
        assert torch.isfinite(view.weight).all()
        for block in range(5):
            own = view.weight.where(maskable & (group == block), torch.nan)
            spread = own.nan_to_num(-1e9).amax(1) - own.nan_to_num(1e9).amin(1)
            assert (spread[own.isfinite().any(1)] == 0).all()  # one level in a block
    if antithetic:
        for a, b in zip(views[::2], views[1::2], strict=True):
            both, neither = (a.target & b.target).sum(), (maskable & ~a.target & ~b.target).sum()
            scored = (maskable.sum().item(), both.item(), neither.item())
            if levels == "stratified":  # numbers x and L + 1 − x: one token of each block is in both
                groups = sum(bool((maskable & (group == g))[r].any()) for g in range(5) for r in range(20))
                assert both == groups and neither == 0, scored
            else:
                assert both <= 3 and neither == 0, scored


def test_noise_belongs_to_its_row():
    seeds = torch.tensor([5, 2**63 - 1, 0, 5])
    noise = view_noise(seeds, 3, 10)
    assert noise.shape == (4, 3, 2, 10) and noise.dtype == torch.float32
    assert torch.equal(noise[0], noise[3])
    assert torch.equal(view_noise(seeds.flip(0)[1:3], 5, 4)[0, :3], noise[2, :, :, :4])
    rest = noise[:3]
    assert len(rest.flatten().unique()) > 0.99 * rest.numel()
    many = view_noise(torch.arange(400), 4, 25).flatten()
    assert 0 <= many.min() and many.max() < 1
    # 80,000 numbers: five standard deviations of the mean, and of each tenth.
    assert abs(many.mean() - 0.5) < 5 * (1 / 12 / len(many)) ** 0.5
    tenths = torch.histc(many, 10, 0, 1) / len(many)
    assert (tenths - 0.1).abs().max() < 5 * (0.09 / len(many)) ** 0.5


def test_ranks_equal_a_slow_loop():
    torch.manual_seed(0)
    chosen, noise, group = torch.rand(5, 12) < 0.6, torch.rand(5, 3, 12), torch.randint(4, (5, 12))
    ranks, sizes = group_ranks(chosen, noise, group)
    for row, sample, place in itertools.product(range(5), range(3), range(12)):
        same = [c for c in range(12) if chosen[row, c] and group[row, c] == group[row, place]]
        assert sizes[row, place] == len(same)
        if chosen[row, place]:
            assert ranks[row, sample, place] == sum(noise[row, sample, c] < noise[row, sample, place] for c in same)


def test_coupled_copies_are_complements_whose_weights_add_up_to_one():
    scored = torch.rand(300, 40, generator=torch.Generator().manual_seed(0)) < 0.7
    noise = view_noise(torch.arange(300), 1, 40)
    whole, first, second = coupled_views(scored, noise, behind=~scored)
    assert whole.masked.all() and torch.equal(whole.target, scored)
    assert torch.equal(first.target ^ second.target, scored)
    assert torch.equal(first.masked & second.masked, ~scored)
    level = 0.25 / first.weight[:, 0]
    assert 0.2 <= level.min() < 0.22 and 0.78 < level.max() <= 0.8
    assert torch.equal(first.target, scored & (noise[:, 0, 1] < level[:, None]))
    # A token is in the first copy with probability t: its weight is 1 on average.
    average = 0.5 + level * first.weight[:, 0] + (1 - level) * second.weight[:, 0]
    assert torch.allclose(average, torch.ones_like(average))


@pytest.mark.parametrize(
    "settings, count, message",
    [({"levels": "gaussian"}, 2, "levels='gaussian'"), ({"antithetic": True}, 3, "Draw an even number")],
)
def test_wrong_arguments_are_named(settings, count, message):
    with pytest.raises(ValueError, match=message):
        elbo_views(torch.ones(1, 4), torch.rand(1, count, 2, 4), **settings)
