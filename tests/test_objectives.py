# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

import pytest
import torch

from trl_diffusion.likelihood import MaskedView
from trl_diffusion.trainer.objectives import clipped_token_loss, loss_normalizer, token_weights


@pytest.mark.parametrize("delta", [None, 1.5])
@pytest.mark.parametrize("weigh_kl", [False, True])
def test_clipped_loss_equals_a_slow_loop(delta, weigh_kl):
    torch.manual_seed(0)
    logprobs, old, ref = (torch.randn(3, 5, dtype=torch.float64) * 0.6 - 2 for _ in range(3))
    advantages = torch.tensor([[1.3], [-0.7], [0.0]], dtype=torch.float64)
    loss, metrics = clipped_token_loss(logprobs, old, advantages, 0.2, 0.3, delta, ref, 0.05, weigh_kl)
    for row in range(3):
        for column in range(5):
            ratio = torch.exp(logprobs[row, column] - old[row, column]).item()
            advantage = advantages[row, 0].item()
            bounded = ratio if delta is None else min(ratio, delta)
            expected = -min(bounded * advantage, min(max(ratio, 0.8), 1.3) * advantage)
            gap = (logprobs[row, column] - ref[row, column]).item()
            kl = (torch.exp(torch.tensor(-gap, dtype=torch.float64)).item() - 1 + gap) * (ratio if weigh_kl else 1)
            assert loss[row, column].item() == pytest.approx(expected + 0.05 * kl, rel=1e-12)
            assert metrics["kl"][row, column].item() == pytest.approx(kl, rel=1e-9, abs=1e-12)
            assert metrics["clip_ratio/low_mean"][row, column].item() == float(ratio < 0.8 and advantage < 0)
            assert metrics["clip_ratio/high_mean"][row, column].item() == float(ratio > 1.3 and advantage > 0)


def test_on_policy_gradient_is_the_policy_gradient():
    logprobs = torch.tensor([[-1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    loss, _ = clipped_token_loss(logprobs, logprobs.detach(), torch.tensor([[0.7]]))
    loss.sum().backward()
    assert torch.allclose(logprobs.grad, torch.full((1, 2), -0.7, dtype=torch.float64))


def total_loss(loss_type, masks, views, values, num_items, steps_per_generation, accumulation):
    """The loss of an optimizer step, summed over its micro-batches as the trainer does."""
    total = 0.0
    for mask, own, value in zip(masks, views, values, strict=True):
        normalizer = loss_normalizer(loss_type, mask, num_items, steps_per_generation, accumulation)
        total += sum((token_weights(loss_type, view, mask) * value).sum() for view in own) / normalizer
    return float(total)


def test_every_loss_type_averages_as_it_says():
    torch.manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    step = torch.tensor([[1, 2, 1, 2], [1, 1, 2, 2]])
    targets = [(step == k) & mask for k in (1, 2)]
    views = [MaskedView(target, target) for target in targets]
    value = torch.randn(2, 4)
    mean = [value[0, :3].mean(), value[1, :2].mean()]
    everything = torch.cat([value[0, :3], value[1, :2]])
    expected = {
        "grpo": (mean[0] + mean[1]) / 2,
        "bnpo": everything.mean(),
        "dr_grpo": everything.sum() / 8,
        "dapo": everything.sum() / 5,
        # Row 0: steps {0, 2} and {1}; row 1: step {0, 1}.
        "step": (value[0, [0, 2]].mean() + value[0, 1] + value[1, :2].mean()) / 2,
    }
    for loss_type, wanted in expected.items():
        found = total_loss(loss_type, [mask], [views], [value], 5, 1, 1)
        assert found == pytest.approx(wanted.item(), rel=1e-5), loss_type
        # Two equal micro-batches accumulated give the same loss; the generation batch holds both.
        found = total_loss(loss_type, [mask] * 2, [views] * 2, [value] * 2, 10, 2, 2)
        assert found == pytest.approx(wanted.item(), rel=1e-5), loss_type
