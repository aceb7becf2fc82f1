# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The masked views of supervised training, against their definitions written out."""

import itertools
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

import trl_diffusion.likelihood.sft_views as module
from trl_diffusion.likelihood import (
    MaskedView,
    canvas_views,
    even_views,
    noisy_views,
    random_view,
    stack_views,
    trace_views,
)


def bools(text):
    """'0110' as (1, 4)."""
    return torch.tensor([[character == "1" for character in text]])


def listed(mask, row=0):
    return mask[row].nonzero().flatten().tolist()


def all_masked(monkeypatch, level=0.5):
    """Noise that masks every trainable token, at a known level."""

    def everything(trainable, minimum, generator=None, maximum=1.0, group=None):
        return MaskedView(trainable, trainable, torch.full(trainable.shape, 1 / level))

    monkeypatch.setattr(module, "random_view", everything)


# Noise


def test_every_block_has_a_level_of_its_own_within_the_bounds():
    real = torch.ones(50, 30, dtype=torch.bool)
    real[:, :3] = False  # padding on the left: blocks are counted from the first real token
    view = noisy_views(real, real, 4, noise_levels=(0.2, 0.6), generator=torch.Generator().manual_seed(0))[0]
    level = 1 / view.weight
    block = (torch.arange(30) - 3).clamp(min=0) // 4
    for index in range(7):
        own = level[:, block == index]
        assert torch.equal(own, own[:, :1].expand_as(own))
    starts = level[:, 3::4]
    assert len(starts.unique()) == starts.numel()
    assert starts.min() >= 0.2 and starts.max() <= 0.6
    assert starts.min() < 0.22 and starts.max() > 0.58
    # The share that is masked follows the level: 4 tokens in 350 blocks.
    share = view.masked[:, 3:].float().mean() - level[:, 3:].mean()
    assert abs(share) < 0.06
    assert not view.masked[:, :3].any()


def test_copies_differ_and_their_weights_make_a_mean():
    trainable = torch.ones(4, 20, dtype=torch.bool)
    views = noisy_views(trainable, trainable, num_masks=3, uniform=True)
    assert len(views) == 3 and not torch.equal(views[0].masked, views[1].masked)
    assert all(torch.equal(view.weight, torch.full((4, 20), 1 / 3)) for view in views)
    torch.manual_seed(0)
    (weighed,) = noisy_views(trainable, trainable)
    torch.manual_seed(0)
    assert torch.equal(weighed.weight, random_view(trainable).weight)


# Canvases and blocks


def slow_canvas_views(trainable, block_length, canvas_length):
    """One row by the definition, every trainable token masked: lists of masked, target and visible positions."""
    length, place = len(trainable), 0
    pieces = []  # of every answer's every canvas: (the canvas' end, positions of a block)
    while place < length:
        if not trainable[place]:
            place += 1
            continue
        stop = place
        while stop < length and trainable[stop]:
            stop += 1
        for canvas in range(place, stop, canvas_length):
            end = min(canvas + canvas_length, stop)
            pieces += [
                (end, range(start, min(start + block_length, end))) for start in range(canvas, end, block_length)
            ]
        place = stop
    views = []
    for end, block in pieces:
        views.append((list(range(block[0], end)), list(block), list(range(end))))
    return views


@pytest.mark.parametrize("block_length, canvas_length", [(3, 100), (3, 6), (2, 5), (4, 4), (1, 7), (100, 5), (99, 99)])
def test_canvas_views_equal_the_definition(block_length, canvas_length, monkeypatch):
    all_masked(monkeypatch)
    generator = torch.Generator().manual_seed(block_length * 100 + canvas_length)
    rows = []
    for _ in range(20):
        length = int(torch.randint(3, 18, (1,), generator=generator))
        prompt = int(torch.randint(0, length, (1,), generator=generator))
        # User turns between two answers: positions behind the first trainable token that are not trainable.
        answers = (torch.rand(length, generator=generator) < 0.7).long().tolist()
        rows.append([0] * prompt + answers[prompt:])
    rows.append([0] * 5)
    width = 18
    trainable = torch.tensor([row + [0] * (width - len(row)) for row in rows]).bool()
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]).bool()
    views = canvas_views(trainable, real, block_length, canvas_length)
    expected = [slow_canvas_views(row, block_length, canvas_length) for row in rows]
    assert len(views) == max(map(len, expected))
    for row, wanted in enumerate(expected):
        for index, view in enumerate(views):
            if index >= len(wanted):
                assert not view.masked[row].any() and not view.target[row].any()
                assert view.visible is None or torch.equal(view.visible[row], real[row])
                continue
            masked, target, visible = wanted[index]
            assert listed(view.masked, row) == masked and listed(view.target, row) == target
            if view.visible is None:
                assert visible == list(range(int(real[row].sum())))
            else:
                assert listed(view.visible, row) == visible


def test_masks_of_a_block_are_the_noise_and_the_rest_of_its_canvas(monkeypatch):
    noise = bools("0010101001")
    monkeypatch.setattr(module, "random_view", lambda t, *a, **k: MaskedView(t & noise, t & noise, torch.ones(1, 10)))
    trainable = bools("0011111111")
    first, second, third = canvas_views(trainable, torch.ones_like(trainable), 3)
    assert (listed(first.masked), listed(first.target)) == ([2, 4, 5, 6, 7, 8, 9], [2, 4])
    assert (listed(second.masked), listed(second.target)) == ([6, 8, 9], [6])
    assert (listed(third.masked), listed(third.target)) == ([9], [9])


def test_rows_without_a_trainable_token_make_one_empty_view():
    nothing = torch.zeros(2, 6, dtype=torch.bool)
    for views in (
        canvas_views(nothing, ~nothing, 2, 4, 1),
        noisy_views(nothing, ~nothing),
        trace_views(torch.zeros(2, 6), nothing, ~nothing),
        trace_views(torch.zeros(2, 6), nothing, ~nothing, 4),
    ):
        assert len(views) == 1 and not views[0].masked.any() and not views[0].target.any()


@pytest.mark.parametrize("num_blocks", [1, 2, 3])
def test_drawn_blocks_have_the_expectation_of_all(num_blocks, monkeypatch):
    """Averages over every order in which the blocks of a row can be shuffled."""
    all_masked(monkeypatch)
    trainable = bools("00111111111" + "0000" + "11")  # two answers, of three blocks and of one
    real = torch.ones_like(trainable)
    every = canvas_views(trainable, real, 3, 9)
    assert len(every) == 4
    wanted = sum(view.weight * view.target for view in every)
    total, seen = torch.zeros_like(wanted), Counter()
    orders = list(itertools.permutations(range(4)))
    for order in orders:
        monkeypatch.setattr(module.torch, "rand", lambda *a, order=order, **k: torch.tensor([order]) / 4)
        views = canvas_views(trainable, real, 3, 9, num_blocks=num_blocks)
        monkeypatch.undo()
        all_masked(monkeypatch)
        assert len(views) == num_blocks
        drawn = [tuple(listed(view.target)) for view in views]
        assert len(set(drawn)) == num_blocks  # without replacement
        seen.update(drawn)
        total += sum(view.weight * view.target for view in views)
    assert len(seen) == 4 and len(set(seen.values())) == 1
    assert torch.allclose(total / len(orders), wanted)


def test_rows_with_few_blocks_train_them_all(monkeypatch):
    all_masked(monkeypatch)
    trainable = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]).bool()
    views = canvas_views(trainable, trainable, 2, num_blocks=2)
    assert len(views) == 2
    assert (views[0].weight[0] == 2 * 3 / 2).all() and (views[0].weight[1] == 2).all()
    assert listed(views[0].target, 1) == [0, 1] and not views[1].target[1].any()


# Traces


def test_trace_views_replay_the_steps():
    steps = torch.tensor([[0, 0, 2, 1, 2, 5, 0, 3]])
    trainable, real = steps > 0, torch.ones_like(steps).bool()
    views = trace_views(steps, trainable, real)
    assert [listed(view.target) for view in views] == [[3], [2, 4], [7], [5]]
    assert [listed(view.masked) for view in views] == [[2, 3, 4, 5, 7], [2, 4, 5, 7], [5, 7], [5]]
    merged = trace_views(steps, trainable, real, shrinkage=2)
    assert [listed(view.target) for view in merged] == [[2, 3, 4], [5, 7]]
    # A token with a step that may not be trained is masked as the trajectory says, and not scored.
    trainable[0, 3] = False
    assert [listed(view.masked) for view in trace_views(steps, trainable, real)] == [[2, 4, 5, 7], [5, 7], [5]]


def test_blocks_of_traces_are_counted_from_the_first_real_token():
    steps = torch.tensor([[0, 0, 0, 4, 3, 2, 1, 5]])  # a prompt of 3, blocks of 4: its first block has one token
    real = torch.ones_like(steps).bool()
    views = trace_views(steps, steps > 0, real, 4)
    assert [listed(view.target) for view in views] == [[3, 6], [5], [4], [7]]
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), steps], dim=1)
    shifted = trace_views(padded, padded > 0, torch.arange(11)[None] >= 3, 4)
    assert [listed(view.target[:, 3:]) for view in shifted] == [listed(view.target) for view in views]


# Rows that were drawn one by one


def test_stacked_rows_stand_at_their_places():
    real = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0]]).bool()
    mask = bools("0101")
    long = [MaskedView(mask, mask, torch.full((1, 4), 2.0), visible=bools("1110")), MaskedView(bools("1000"), mask)]
    short = [MaskedView(bools("11"), bools("10"), torch.full((1, 2), 3.0))]
    first, second = stack_views([long, short], real)
    assert first.masked.tolist() == [[0, 1, 0, 1], [0, 1, 1, 0]] and first.target.tolist()[1] == [0, 1, 0, 0]
    assert first.weight.tolist() == [[2, 2, 2, 2], [1, 3, 3, 1]]
    assert first.visible.tolist() == [[1, 1, 1, 0], [0, 1, 1, 0]]
    assert second.masked.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]] and not second.target[1].any()


def test_every_process_gets_as_many_views():
    accelerator = SimpleNamespace(num_processes=2, device="cpu", gather=lambda count: torch.tensor([int(count), 3]))
    view = MaskedView(bools("011"), bools("010"))
    views = even_views([view], accelerator)
    assert len(views) == 3 and views[0] is view
    assert not any(empty.masked.any() or empty.target.any() for empty in views[1:])
    assert even_views([view], SimpleNamespace(num_processes=1)) == [view]
