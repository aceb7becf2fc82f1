# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""BGPO's objectives: the bound, and losses and gradients against whole graphs in fp64."""

import pytest
import slow_elbo as slow
import torch
from conftest import random_model
from rl import generated_batch, rl_trainer, saved_bytes

from trl_diffusion.likelihood import MaskedView, elbo_views, view_noise
from trl_diffusion.trainer.objectives import bound_ratio, clipped_gain


pytestmark = pytest.mark.usefixtures("norms_in_fp64")
BLOCK = 4


def trainer_in_fp64(family, tokenizer, tmp_path, **kwargs):
    model = random_model(family, tokenizer, seed=6).double()
    settings = {"max_completion_length": 9, "num_denoising_steps": 7, "max_grad_norm": 0.0, "num_mc_samples": 4}
    trainer = rl_trainer("bgpo", model, tokenizer, tmp_path, **{**settings, **kwargs})
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def loss_and_gradient(trainer, inputs):
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]


def assert_close(found, expected, tolerance=1e-6):
    assert found[0] == pytest.approx(expected[0], rel=tolerance, abs=1e-12)
    assert len(found[1]) == len(expected[1])
    for a, b in zip(found[1], expected[1], strict=True):
        assert (a - b).norm() <= tolerance * b.norm() + 1e-10


def slow_loss(trainer, inputs, kind, old, block, reference=None, **clip):
    """−(1/B) Σ of the objectives, with the graph of everything; and the clips."""
    args, views = trainer.args, trainer.draw_views(inputs)
    total, clips = 0.0, []
    rows = len(inputs["completion_ids"])
    for row in range(rows):
        samples = slow.elbo_samples(trainer.model, inputs, row, views, block)
        before = [sample.detach() for sample in samples] if old is None else list(old[row])
        length = int(inputs["completion_mask"][row].sum()) if args.normalize_length else 1
        value, clipped = slow.objective(kind, samples, before, inputs["advantages"][row].double(), length, **clip)
        total, clips = total - value / rows, clips + clipped
        if reference is not None:
            kl = 0.0
            for j, view in enumerate(views):
                for position, logprob in slow.copy_logprobs(trainer.model, inputs, row, view, block).items():
                    difference = logprob - reference[row, j, position]
                    kl = kl + view.weight[row, position] * (torch.exp(-difference) - 1 + difference)
            total = total + args.beta * kl / length / len(views) / rows
    return total, clips


# The bound


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("spread", [0.01, 1.0, 10.0])
def test_the_sum_of_the_samples_is_a_lower_bound(sign, spread):
    torch.manual_seed(0)
    for count in (1, 2, 5, 32):
        differences = spread * torch.randn(2000, count, dtype=torch.float64) + spread * torch.randn(2000, 1)
        advantage = sign * torch.rand(2000, dtype=torch.float64)
        terms = [clipped_gain(bound_ratio(d, advantage), advantage)[0] / count for d in differences.unbind(1)]
        exact = torch.exp(differences.mean(1)) * advantage
        assert (sum(terms) <= exact + 1e-12 * exact.abs()).all()
        if count > 1 and spread == 1.0:
            assert (sum(terms) < exact - 1e-3 * exact.abs()).float().mean() > 0.5  # and seldom an equality


def test_the_bound_is_tight_where_nothing_has_moved():
    advantage = torch.tensor([2.0, -3.0, 0.0])
    differences = torch.zeros(3, requires_grad=True)
    ratio = bound_ratio(differences, advantage)
    (gradient,) = torch.autograd.grad((ratio * advantage).sum(), differences)
    assert torch.equal(ratio, torch.ones(3)) and torch.equal(gradient, advantage)


def test_large_differences_overflow_nowhere():
    differences = torch.tensor([2000.0, -2000.0, 0.5], requires_grad=True)
    ratio = bound_ratio(differences, torch.tensor([1.0, -1.0, 1.0]))
    ratio.sum().backward()
    assert ratio.tolist() == [2001.0, 0.0, 1.5]  # log(1 + d) would be a NaN at −2000
    assert differences.grad.tolist() == [1.0, 0.0, 1.0]


def test_clips_of_whole_completions():
    ratio = torch.tensor([0.5, 1.0, 5.0, 0.5, 1.0, 5.0])
    advantage = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    gain, metrics = clipped_gain(ratio, advantage)
    assert gain.tolist() == [0.5, 1.0, 5.0, -0.5, -1.0, -5.0] and metrics == {}
    gain, metrics = clipped_gain(ratio, advantage, 0.25, 0.5)
    assert gain.tolist() == [0.5, 1.0, 1.5, -0.75, -1.0, -5.0]
    assert metrics["clip_ratio/low_mean"].tolist() == [0, 0, 0, 1, 0, 0]
    assert metrics["clip_ratio/high_mean"].tolist() == [0, 0, 1, 0, 0, 0]
    gain, metrics = clipped_gain(ratio, advantage, 0.25, 0.5, delta=3.0)
    assert gain.tolist() == [0.5, 1.0, 1.5, -0.75, -1.0, -3.0]
    assert metrics["clip_ratio/region_mean"].tolist() == [0, 0, 1, 1, 0, 1]
    assert clipped_gain(ratio, advantage, delta=3.0)[0].tolist() == [0.5, 1.0, 5.0, -0.5, -1.0, -3.0]


# Losses and gradients


@pytest.mark.parametrize("noise_levels, antithetic", [("uniform", False), ("stratified", True)])
@pytest.mark.parametrize("known", [False, True])
def test_on_policy_the_bound_is_the_elbo_objective(family, tokenizer, tmp_path, noise_levels, antithetic, known):
    """In value and gradient; with ℓ_old computed (`known`), or ℓ itself without its graph."""
    found = {}
    for kind in ("bgpo", "elbo"):
        settings = {"objective": kind, "noise_levels": noise_levels, "antithetic": antithetic}
        trainer = trainer_in_fp64(family, tokenizer, tmp_path, num_iterations=1 + known, **settings)
        inputs = generated_batch(trainer)
        assert ("old_elbos" in inputs) == known
        inputs["advantages"] = torch.linspace(-1, 1.5, 8, dtype=torch.float64)
        found[kind] = loss_and_gradient(trainer, inputs)
    assert_close(found["bgpo"], found["elbo"])
    assert max(gradient.abs().max() for gradient in found["elbo"][1]) > 1e-3
    total, _ = slow_loss(trainer, inputs, "elbo", None, BLOCK if family == "sdar" else None)
    trainer.model.zero_grad()
    total.backward()
    whole = total.item(), [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]
    assert_close(found["elbo"], whole)


CLIPS = {
    "no clip": ({}, {}),
    "clip": ({"epsilon": 0.3, "epsilon_high": 0.4}, {"epsilon": (0.3, 0.4)}),
    "dual clip": ({"epsilon": 0.2, "delta": 1.6}, {"epsilon": (0.2, 0.2), "dual": 1.6}),
}


@pytest.mark.parametrize("clip", list(CLIPS))
@pytest.mark.parametrize("kind", ["bgpo", "elbo", "sequence"])
def test_loss_and_gradient_equal_those_of_the_whole_graph(family, tokenizer, tmp_path, kind, clip):
    """Off-policy: all samples' graphs at once, through plain forward passes, against ours one by one."""
    settings, slow_clip = CLIPS[clip]
    if kind == "sequence" and not settings:
        settings = {"epsilon": float("inf")}
    trainer = trainer_in_fp64(
        family, tokenizer, tmp_path, objective=kind, num_iterations=2, normalize_length=kind != "elbo", **settings
    )
    inputs = generated_batch(trainer)
    block = BLOCK if family == "sdar" else None
    lengths = inputs["completion_mask"].sum(1)
    assert lengths.min() < 9 == lengths.max()  # some completions end early, some do not
    views = trainer.draw_views(inputs)
    scale = lengths[:, None] if trainer.args.normalize_length else 1
    with torch.no_grad():
        now = torch.stack([torch.stack(slow.elbo_samples(trainer.model, inputs, r, views, block)) for r in range(8)])
    assert torch.allclose(inputs["old_elbos"], now / scale, rtol=1e-9)
    # The policy has moved on: by as much for every sample of a row, and a little differently for each.
    torch.manual_seed(4)
    moved = torch.tensor([-1.2, -0.6, -0.1, 0.05, 0.3, 0.6, 0.9, 1.4])[:, None] + 0.1 * torch.randn(8, 4)
    inputs["old_elbos"] = inputs["old_elbos"] - moved.double()
    inputs["advantages"] = torch.tensor([-1.0, 0.7, 1.2, -0.4, 0.9, -0.8, 1.1, -1.3], dtype=torch.float64)
    found = loss_and_gradient(trainer, inputs)
    trainer.model.zero_grad()
    total, clips = slow_loss(trainer, inputs, kind, inputs["old_elbos"] * scale, block, **slow_clip)
    total.backward()
    whole = total.item(), [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]
    assert_close(found, whole)
    if slow_clip:
        assert any(clips) and not all(clips)
        logged = trainer._metrics["train"]["clip_ratio/region_mean"][-1]
        assert logged == pytest.approx(sum(clips) / len(clips))
    # Of a row whose clip is active there is no gradient: the factor f′ is 0, and not that of the unclipped ratio.
    assert max(gradient.abs().max() for gradient in found[1]) > 1e-4


@pytest.mark.parametrize("kind", ["bgpo", "elbo", "sequence"])
def test_the_kl_is_that_of_the_masked_tokens(family, tokenizer, tmp_path, kind):
    random_model(family, tokenizer, seed=6).double().save_pretrained(tmp_path / "model")
    trainer = rl_trainer(
        "bgpo",
        str(tmp_path / "model"),
        tokenizer,
        tmp_path,
        objective=kind,
        num_mc_samples=3,
        beta=0.2,
        max_completion_length=9,
        num_denoising_steps=7,
        model_init_kwargs={"dtype": "auto"},
    )
    trainer.current_gradient_accumulation_steps = 1
    inputs = generated_batch(trainer)
    block = BLOCK if family == "sdar" else None
    reference = inputs["ref_view_logps"]
    views = trainer.draw_views(inputs)
    for j, view in enumerate(views):
        for position, logprob in slow.copy_logprobs(trainer.model, inputs, 3, view, block).items():
            assert reference[3, j, position].item() == pytest.approx(logprob.item(), rel=1e-9)
    inputs["ref_view_logps"] = reference = reference + 0.5 * torch.randn(reference.shape, dtype=torch.float64)
    inputs["advantages"] = torch.linspace(-1, 1.5, 8, dtype=torch.float64)
    found = loss_and_gradient(trainer, inputs)
    trainer.model.zero_grad()
    total, _ = slow_loss(trainer, inputs, kind, None, block, reference)
    total.backward()
    assert_close(found, (total.item(), [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]))
    assert trainer._metrics["train"]["kl"][-1] > 0.01


# Memory


def memory(trainer, inputs, count):
    trainer.args.num_mc_samples = count
    torch.manual_seed(0)
    if trainer._is_off_policy:
        inputs["old_elbos"] = torch.randn(len(inputs["advantages"]), count, dtype=torch.float64)
    with torch.enable_grad():
        return saved_bytes(lambda: trainer._compute_loss(trainer.model, inputs).backward())


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("kind", ["bgpo", "elbo", "sequence"])
def test_saved_activations_do_not_grow_with_the_number_of_samples(family, tokenizer, tmp_path, kind, off_policy):
    trainer = rl_trainer(
        "bgpo", random_model(family, tokenizer), tokenizer, tmp_path, objective=kind, num_iterations=1 + off_policy
    )
    trainer.current_gradient_accumulation_steps = 1
    inputs = generated_batch(trainer)

    # Every copy masks everything, so that all of them are equally large.
    def whole_views(inputs):
        mask = inputs["completion_mask"].bool()
        return [MaskedView(mask, mask, torch.ones(mask.shape))] * trainer.args.num_mc_samples

    trainer.draw_views = whole_views
    one, many = memory(trainer, inputs, 1), memory(trainer, inputs, 32)
    assert many <= 1.1 * one

    def naive():
        total = 0.0
        for view in whole_views(inputs):
            scores = trainer._token_logprobs(trainer.model, inputs, view).logprobs
            total = total + trainer._weighted_sum(scores, view, inputs) / 32
        torch.exp(total - total.detach()).sum().backward()

    assert saved_bytes(naive) > 25 * one


# What the views are


def test_views_depend_on_the_rows_seed_alone(family, tokenizer, tmp_path):
    trainer = rl_trainer("bgpo", random_model(family, tokenizer), tokenizer, tmp_path, num_mc_samples=4)
    inputs = generated_batch(trainer)
    views = trainer.draw_views(inputs)
    order = torch.tensor([5, 2])
    some = {name: inputs[name][order] for name in trainer._ROW_KEYS}
    for view, part in zip(views, trainer.draw_views(some), strict=True):
        assert torch.equal(view.masked[order], part.masked)
        assert torch.equal(view.weight[order], part.weight)
    other = generated_batch(trainer)
    assert torch.equal(other["view_seed"], inputs["view_seed"])  # of the same generation of the run
    trainer._step += 1
    assert not torch.equal(generated_batch(trainer)["view_seed"], inputs["view_seed"])
    mask = inputs["completion_mask"].bool()
    wanted = elbo_views(mask, view_noise(inputs["view_seed"], 4, 6), group=trainer._groups(inputs), behind=~mask)
    for view, same in zip(views, wanted, strict=True):
        assert torch.equal(view.target, same.target)
        # The tail behind EOS was drawn with the rest; it is in sight as masks in every copy.
        assert torch.equal(view.masked & ~mask, ~mask)
