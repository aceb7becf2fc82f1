# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

import itertools
import json

import pytest
import torch
from accelerate import Accelerator
from conftest import DATA, random_model

from trl_diffusion.likelihood import (
    MaskedView,
    backward_by_view,
    block_trace_masks,
    fully_masked_view,
    random_view,
    score_view,
    trace_masks,
    view_logits,
)


def cases(name):
    return json.loads((DATA / "training" / name).read_text())


def as_lists(masked, target, row=0):
    """The views of one row that have a target, as the goldens write them."""
    return [
        {"masked": m[row].nonzero().flatten().tolist(), "target": t[row].nonzero().flatten().tolist()}
        for m, t in zip(masked, target, strict=True)
        if t[row].any()
    ]


@pytest.mark.parametrize("index", range(len(cases("views_full.json"))))
def test_trace_views_equal_the_original_implementation(index):
    case = cases("views_full.json")[index]
    # Their steps start at 0, ours at 1, since 0 means "not drawn".
    steps = torch.tensor([case["step_map"]]) + 1
    mask = torch.ones(1, case["response_length"], dtype=torch.bool)
    if case["post_num"] is not None:
        mask[0, case["pad_positions"][case["post_num"] :]] = False
    assert as_lists(*trace_masks(steps, case["shrink"], mask)) == case["views"]


@pytest.mark.parametrize("index", range(len(cases("views_block.json"))))
def test_block_trace_views_equal_the_original_implementation(index):
    case = cases("views_block.json")[index]
    steps = torch.tensor([case["step_map"]]) + 1
    views = as_lists(*block_trace_masks(steps, case["block_size"], case["shrink"]))
    if case["post_num"] is not None:
        # The original counts the padding it trains on per view, where its full-attention code counts per response.
        for view in views:
            pads = [position for position in view["target"] if position in case["pad_positions"]]
            view["target"] = [p for p in view["target"] if p not in pads[case["post_num"] :]]
    assert [view for view in views if view["target"]] == case["views"]


def test_golden_views_cover_the_block_lengths():
    assert {case["block_size"] for case in cases("views_block.json")} >= {4, 8}
    assert {case["shrink"] for case in cases("views_full.json")} >= {1, 2, 4}


def slow_views(steps, shrinkage, wanted, block):
    """One row's views by the definition: distinct steps of each block in order, merged by s."""
    rounds = {}
    for b in sorted(set(block)):
        distinct = sorted({s for s, own in zip(steps, block, strict=True) if s > 0 and own == b})
        for position, (step, own) in enumerate(zip(steps, block, strict=True)):
            if own == b and step > 0:
                rounds[position] = distinct.index(step) // shrinkage
    views = []
    for k in range(max(rounds.values(), default=-1) + 1):
        target = [p for p in range(len(steps)) if rounds.get(p) == k and wanted[p]]
        if target:
            views.append({"masked": [p for p in range(len(steps)) if rounds.get(p, -1) >= k], "target": target})
    return views


@pytest.mark.parametrize("shrinkage", [1, 2, 3, 20])
def test_views_of_random_trajectories_equal_a_slow_loop(shrinkage):
    torch.manual_seed(shrinkage)
    steps = torch.randint(0, 9, (6, 13))
    steps[5] = 0  # nothing drawn at all
    mask = torch.rand(6, 13) < 0.7
    offset = torch.tensor([0, 1, 2, 3, 2, 0])
    full = trace_masks(steps.to(torch.int16), shrinkage, mask)
    block = block_trace_masks(steps.to(torch.int16), 4, shrinkage, mask, offset)
    for row in range(6):
        wanted = mask[row].tolist()
        assert as_lists(*full, row) == slow_views(steps[row].tolist(), shrinkage, wanted, [0] * 13)
        grid = [(position + offset[row].item()) // 4 for position in range(13)]
        assert as_lists(*block, row) == slow_views(steps[row].tolist(), shrinkage, wanted, grid)
    for masked, target in (full, block):
        assert (target <= masked).all()
        # Empty views stand at the end of a row only, and mask nothing.
        has_target = target.any(2)
        assert (has_target.long().diff(dim=0) <= 0).all()
        assert not masked[~has_target].any()
        # A position is scored once.
        assert (target.sum(0) <= 1).all()


def test_empty_trajectories_have_no_views():
    masked, target = trace_masks(torch.zeros(2, 5, dtype=torch.int16))
    assert masked.shape == target.shape == (0, 2, 5)


@pytest.mark.parametrize("kwargs, field", [({"shrinkage": 0}, "shrinkage=0"), ({"block_length": 0}, "block_length=0")])
def test_wrong_arguments_are_named(kwargs, field):
    with pytest.raises(ValueError, match=field):
        block_trace_masks(torch.ones(1, 4), **{"block_length": 4, **kwargs})


# Scoring


def batch(lengths=(5, 8, 2), canvas=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    prompts = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros_like(prompts)
    for row, length in enumerate(lengths):
        prompts[row, width - length :] = torch.randint(3, 8, (length,), generator=generator)
        mask[row, width - length :] = 1
    return prompts, mask, torch.randint(3, 8, (len(lengths), canvas), generator=generator)


def slow_view_logits(model, prompt, canvas, masked, position, block_length):
    """Logits of one canvas position: for block attention, its block is noisy and all before it clean."""
    position += len(prompt)
    ids = torch.cat([prompt, canvas]).clone()
    noisy = torch.cat([torch.zeros(len(prompt), dtype=torch.bool), masked])
    if model.attention == "full":
        ids[noisy] = model.mask_token_id
    else:
        own = position // block_length
        inside = torch.arange(len(ids)) // block_length == own
        ids[noisy & inside] = model.mask_token_id
        ids = ids[: (own + 1) * block_length]
        # What is left is one row whose last block is noisy: bidirectional inside, causal across blocks.
    kwargs = {}
    if model.attention == "block_causal":
        blocks = torch.arange(len(ids)) // block_length
        kwargs = {
            "attention_mask": (blocks[:, None] >= blocks[None])[None, None],
            "position_ids": torch.arange(len(ids))[None],
        }
    with torch.no_grad():
        return model(ids[None], **kwargs).logits[0, position]


@pytest.mark.parametrize("block_length", [4, 8])
def test_a_views_logits_are_those_of_each_block_alone(family, tokenizer, block_length):
    model = random_model(family, tokenizer)
    prompts, mask, canvas = batch()
    torch.manual_seed(3)
    masked = torch.rand(canvas.shape) < 0.5
    target = masked & (torch.rand(canvas.shape) < 0.7)
    with torch.no_grad():
        kwargs = {"block_length": block_length} if family == "sdar" else {}
        found = view_logits(model, prompts, mask, canvas, MaskedView(masked, target), **kwargs)
    places = target.nonzero().tolist()
    assert len(found) == len(places) > 5
    for logits, (row, column) in zip(found, places, strict=True):
        prompt = prompts[row][mask[row].bool()]
        expected = slow_view_logits(model, prompt, canvas[row], masked[row], column, block_length)
        assert torch.allclose(logits, expected, atol=2e-5)


def test_scores_are_fp32_and_zero_off_target(family, tokenizer):
    model = random_model(family, tokenizer).to(torch.bfloat16)
    prompts, mask, canvas = batch()
    view = fully_masked_view(torch.rand(canvas.shape) < 0.5)
    scores = score_view(model, prompts, mask, canvas, view, temperature=0.7)
    assert scores.logprobs.dtype == torch.float32
    assert (scores.logprobs[~view.target] == 0).all() and (scores.logprobs[view.target] < 0).all()
    assert (scores.entropies[view.target] > 0).all()
    assert not scores.entropies.requires_grad and scores.logprobs.requires_grad


def test_padding_of_the_canvas_is_not_seen(family, tokenizer):
    model = random_model(family, tokenizer)
    prompts, mask, canvas = batch(canvas=8)
    masked = torch.zeros_like(canvas, dtype=torch.bool)
    masked[:, 2:4] = True
    view = MaskedView(masked, masked)
    with torch.no_grad():
        short = view_logits(model, prompts, mask, canvas, view)
        junk = torch.full((3, 4), 5)
        nothing = torch.zeros(3, 4, dtype=torch.bool)
        padded = view_logits(
            model,
            prompts,
            mask,
            torch.cat([canvas, junk], 1),
            MaskedView(torch.cat([masked, nothing], 1), torch.cat([masked, nothing], 1)),
            canvas_mask=torch.cat([torch.ones_like(canvas), torch.zeros_like(junk)], 1),
        )
    assert torch.allclose(short, padded, atol=1e-5)


# Accumulation


def random_views(canvas, count):
    torch.manual_seed(9)
    views = []
    for _ in range(count):
        masked = torch.rand(canvas.shape) < 0.6
        views.append(MaskedView(masked, masked, torch.rand(canvas.shape)))
    nothing = torch.zeros_like(masked)
    return [*views, MaskedView(nothing, nothing, torch.ones(canvas.shape))]


def test_view_by_view_gradient_equals_the_summed_backward(family, tokenizer):
    prompts, mask, canvas = batch()
    gradients, values = [], []
    for by_view in (True, False):
        model = random_model(family, tokenizer).double()
        views = random_views(canvas, 5)

        def loss_of(view, model=model):
            scores = score_view(model, prompts, mask, canvas, view)
            return -(scores.logprobs.exp() * view.weight).sum() / 7

        if by_view:
            loss = backward_by_view([lambda v=v: loss_of(v) for v in views], model, Accelerator(cpu=True))
        else:
            loss = torch.stack([loss_of(view) for view in views]).sum()
        loss.backward()
        values.append(loss.item())
        gradients.append([p.grad for p in model.parameters()])
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    for found, expected in zip(*gradients, strict=True):
        assert (found - expected).norm() <= 1e-6 * expected.norm()


def test_view_by_view_holds_one_graph_at_a_time(tokenizer):
    prompts, mask, canvas = batch()
    model = random_model("llada", tokenizer)
    alive = []

    class Held(torch.autograd.Function):
        """Counts the graphs that wait for their backward pass."""

        @staticmethod
        def forward(ctx, value):
            alive.append(1)
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            alive.pop()
            return gradient

    counts = []

    def loss_of(view):
        loss = Held.apply(score_view(model, prompts, mask, canvas, view).logprobs.sum())
        counts.append(len(alive))
        return loss

    views = random_views(canvas, 6)
    backward_by_view([lambda v=v: loss_of(v) for v in views], model, Accelerator(cpu=True)).backward()
    assert counts == [1] * 7 and not alive


def test_no_view_is_an_error_and_evaluation_needs_no_graph(tokenizer):
    model = random_model("llada", tokenizer)
    with pytest.raises(ValueError, match="view_losses is empty"):
        backward_by_view([], model, Accelerator(cpu=True))
    with torch.no_grad():
        loss = backward_by_view([lambda: torch.tensor(2.0), lambda: torch.tensor(3.0)], model, Accelerator(cpu=True))
    assert loss.item() == 5.0


# The Monte-Carlo view


def test_random_view_masks_only_what_it_may_and_weighs_by_the_level():
    maskable = torch.rand(64, 50) < 0.5
    view = random_view(maskable, generator=torch.Generator().manual_seed(0))
    assert not (view.masked & ~maskable).any()
    assert torch.equal(view.masked, view.target)
    level = 1 / view.weight[:, 0]
    assert (level >= 1e-3).all() and (level <= 1).all()
    # The share that is masked follows the level: 50 positions, at most 5 standard deviations away.
    share = view.masked.sum(1) / maskable.sum(1)
    assert ((share - level).abs() <= 5 * (level * (1 - level) / maskable.sum(1)).sqrt() + 1e-6).all()


def test_the_weighted_loss_is_unbiased_for_the_any_order_likelihood():
    """Enumerates all masks of 4 tokens and integrates over t: E[1/t Σ masked −log p] = Σ over orders."""
    torch.manual_seed(0)
    n = 4
    table = torch.rand(2**n, n).double()  # −log p(token i | which tokens are masked), any function at all
    masks = torch.tensor(list(itertools.product([0, 1], repeat=n)), dtype=torch.double)
    code = (masks @ torch.tensor([8.0, 4, 2, 1], dtype=torch.double)).long()
    sums = (table[code] * masks).sum(1)
    nodes, weights = (torch.tensor(x) for x in __import__("numpy").polynomial.legendre.leggauss(40))
    levels, weights = (nodes + 1) / 2, weights / 2
    counts = masks.sum(1)
    probability = levels[:, None] ** counts * (1 - levels[:, None]) ** (n - counts)
    expectation = (weights[:, None] * probability * sums / levels[:, None]).sum()
    # By definition: a random order, each token scored given the tokens before it.
    orders = list(itertools.permutations(range(n)))
    total = 0.0
    for order in orders:
        masked = [1] * n
        for position in order:
            total += table[int("".join(map(str, masked)), 2), position].item()
            masked[position] = 0
    assert expectation.item() == pytest.approx(total / len(orders), rel=1e-9)
