# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The loss of an unmasking policy: per step, clipped, over trajectories; the expert's steps; rewards of steps."""

import math

import pytest
import torch
from conftest import random_model
from policies import CANVAS, policy_trainer, slow_log_prob, slow_logits, small_policy
from rl import generated_batch

from trl_diffusion.trainer import unmask_policy_trainer
from trl_diffusion.trainer.step_rewards import mixture_log_prob, speed_rewards


def digits(completions, **kwargs):
    """A reward that differs between completions."""
    return [(sum(map(int, completion)) % 5) / 5 for completion in completions]


def trainer_and_batch(family, tokenizer, tmp_path, policy=None, **kwargs):
    policy = (small_policy(action=kwargs.pop("action", "bernoulli")) if policy is None else policy).double()
    if family == "sdar":
        kwargs = {"block_length": 4, **kwargs}
    trainer = policy_trainer(random_model(family, tokenizer), tokenizer, tmp_path, policy, digits, **kwargs)
    trainer.current_gradient_accumulation_steps = 1  # set by the training loop
    return trainer, generated_batch(trainer)


def slow_step(trainer, inputs, row, step):
    """log π of what a step of a row revealed, from the step map, and the features it was told."""
    block = trainer.args.block_length or CANVAS
    offset = 0
    if trainer.dllm.attention == "block_causal":
        offset = int(inputs["prompt_mask"][row].sum()) % block
    unmask_step = inputs["unmask_step"][row].tolist()
    masked = [when >= step for when in unmask_step]
    blocks = [(place + offset) // block for place in range(CANVAS)]
    current = min(block for block, still in zip(blocks, masked, strict=True) if still)
    candidates = [place for place in range(CANVAS) if masked[place] and blocks[place] == current]
    revealed = [place for place in range(CANVAS) if unmask_step[place] == step]
    order = sorted(revealed, key=lambda place: inputs["rank"][row, place].item())
    policy = trainer._policy
    logits = slow_logits(policy, inputs["features"][row, step - 1], masked, (step - 1) / CANVAS)
    tau = trainer.args.policy_temperature
    log_prob = slow_log_prob(policy.config.action, logits, order, candidates, tau)
    if inputs["is_expert"][row]:
        size = trainer.num_generations
        log_prob = math.log(((size - 1) * math.exp(log_prob) + 1) / size)
    return log_prob


def slow_loss(trainer, inputs, epsilon=0.5, delta=math.inf):
    """−(1/B) Σ_i (1/T_i) Σ_t min(min(ρ, δ)A, clip(ρ)A), by loops."""
    total, clipped = 0.0, 0
    rows = len(inputs["advantages"])
    for row in range(rows):
        advantage = inputs["advantages"][row].item()
        steps = [step for step in range(1, int(inputs["num_steps"][row]) + 1) if inputs["decided"][row, step - 1]]
        for step in steps:
            log_prob = slow_step(trainer, inputs, row, step)
            old = inputs["old_log_probs"][row, step - 1].item() if "old_log_probs" in inputs else log_prob
            ratio = math.exp(log_prob - old)
            bounded = min(max(ratio, 1 - epsilon), 1 + epsilon)
            gain = min(min(ratio, delta) * advantage, bounded * advantage)
            clipped += gain != ratio * advantage
            total -= gain / len(steps) / rows
    return total, clipped


def gradient_of(trainer, inputs):
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.item(), torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()])


def slow_gradient(trainer, inputs, places, step=1e-5):
    """Finite differences of the slow loss, at some numbers of the policy's weights; on-policy the old ones are those
    before."""
    if "old_log_probs" not in inputs:
        old = torch.zeros(inputs["decided"].shape, dtype=torch.float64)
        for row, t in inputs["decided"].nonzero().tolist():
            old[row, t] = slow_step(trainer, inputs, row, t + 1)
        inputs = {**inputs, "old_log_probs": old}
    found = []
    flat = [(parameter, i) for parameter in trainer.model.parameters() for i in range(parameter.numel())]
    for place in places:
        parameter, i = flat[place]
        values = parameter.data.view(-1)
        here, sides = values[i].item(), []
        for sign in (1, -1):
            values[i] = here + sign * step
            sides.append(slow_loss(trainer, inputs)[0])
        values[i] = here
        found.append((sides[0] - sides[1]) / (2 * step))
    return torch.tensor(found, dtype=torch.float64)


CASES = {
    "bernoulli": {},
    "ordered": {"action": "ordered"},
    "expert": {"expert_steering": True, "expert_block_length": 3, "policy_temperature": 0.7},
    "ordered expert": {"action": "ordered", "expert_steering": True, "expert_threshold": 0.3},
    "blocks": {"block_length": 3},
    "fewer steps": {"block_length": 3, "num_denoising_steps": 4},
}


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_equal_a_slow_loop(tokenizer, tmp_path, monkeypatch, case, off_policy):
    monkeypatch.setattr(unmask_policy_trainer, "_PLACES", 5 * CANVAS)  # several pieces
    settings = {**CASES[case], "num_iterations": 1 + off_policy}
    trainer, inputs = trainer_and_batch("llada", tokenizer, tmp_path, **settings)
    inputs["advantages"] = torch.tensor([-1.0, 0.7, 1.2, -0.4, 0.9, -0.8, 1.1, -1.3])
    if off_policy:
        for row, t in inputs["decided"].nonzero().tolist():
            if trainer._differs()[row]:
                old = inputs["old_log_probs"][row, t].item()
                assert old == pytest.approx(slow_step(trainer, inputs, row, t + 1), abs=1e-5)
        for row, t in inputs["decided"].nonzero().tolist():
            inputs["old_log_probs"] = inputs["old_log_probs"].double()
            inputs["old_log_probs"][row, t] = slow_step(trainer, inputs, row, t + 1)
        torch.manual_seed(2)
        noise = 0.6 * torch.randn(inputs["decided"].shape, dtype=torch.float64)
        inputs["old_log_probs"] = inputs["old_log_probs"] + noise
    found, gradient = gradient_of(trainer, inputs)
    slow, clipped = slow_loss(trainer, inputs)
    assert found == pytest.approx(slow, abs=1e-6) and (clipped > 0) == off_policy
    generator = torch.Generator().manual_seed(0)
    places = torch.randperm(len(gradient), generator=generator)[:12].tolist()
    places += gradient.abs().topk(4).indices.tolist()
    assert (gradient[places] - slow_gradient(trainer, inputs, places)).abs().max() < 1e-6
    assert gradient.abs().max() > 1e-3


def test_delta_bounds_the_ratio_of_what_was_worse_than_its_group(tokenizer, tmp_path):
    trainer, inputs = trainer_and_batch("llada", tokenizer, tmp_path, delta=1.7)
    inputs["advantages"] = -torch.tensor([1.0, 0.7, 1.2, 0.4, 0.9, 0.8, 1.1, 1.3])
    inputs["old_log_probs"] = torch.zeros(inputs["decided"].shape, dtype=torch.float64)
    for row, t in inputs["decided"].nonzero().tolist():
        ratio = 4.0 if (row + t) % 2 else 1.6  # one above δ, one between the clip and δ
        inputs["old_log_probs"][row, t] = slow_step(trainer, inputs, row, t + 1) - math.log(ratio)
    found, _ = gradient_of(trainer, inputs)
    assert found == pytest.approx(slow_loss(trainer, inputs, delta=1.7)[0], abs=1e-6)
    assert abs(found - slow_loss(trainer, inputs)[0]) > 0.1


def test_loss_of_a_block_causal_model(tokenizer, tmp_path):
    trainer, inputs = trainer_and_batch("sdar", tokenizer, tmp_path)
    inputs["advantages"] = torch.tensor([-1.0, 0.7, 1.2, -0.4, 0.9, -0.8, 1.1, -1.3])
    found, gradient = gradient_of(trainer, inputs)
    assert found == pytest.approx(slow_loss(trainer, inputs)[0], abs=1e-6)
    places = gradient.abs().topk(6).indices.tolist()
    assert (gradient[places] - slow_gradient(trainer, inputs, places)).abs().max() < 1e-6


def test_the_expert_is_the_last_of_each_group_and_alone_under_the_mixture(tokenizer, tmp_path):
    trainer, inputs = trainer_and_batch(
        "llada", tokenizer, tmp_path, expert_steering=True, expert_block_length=2, expert_threshold=0.5
    )
    assert inputs["is_expert"].tolist() == [False, False, False, True] * 2
    pairs = inputs["decided"].nonzero()
    log_probs = trainer._log_probs(trainer.model, inputs, pairs).tolist()
    plain = trainer._log_probs(trainer.model, {**inputs, "is_expert": torch.zeros(8, dtype=torch.bool)}, pairs)
    for (row, _), found, own in zip(pairs.tolist(), log_probs, plain.tolist(), strict=True):
        by_hand = math.log((3 * math.exp(own) + 1) / 4) if row % 4 == 3 else own
        assert found == pytest.approx(by_hand, abs=1e-9)
    # What it did is what the rule does, in its own blocks.
    prompt, mask = inputs["prompt_ids"], inputs["prompt_mask"]
    expected = trainer.dllm.generate(
        prompt, mask, max_new_tokens=CANVAS, block_length=2, unmasking="threshold", threshold=0.5, eos_token_id=[1],
        pad_token_id=0, return_dict_in_generate=True,
    ).rollout  # fmt: skip
    for row in (3, 7):
        assert torch.equal(inputs["unmask_step"][row], expected.unmask_step[row])
        assert inputs["num_steps"][row] == expected.num_forward_passes[row]
    assert not torch.equal(inputs["unmask_step"][:3], expected.unmask_step[:3])


def test_the_mixture_by_hand():
    # Steps with π of 1/8, 1/2 and next to nothing, in a group of 4: (3π + 1)/4.
    log_probs = torch.tensor([math.log(1 / 8), math.log(1 / 2), -200.0], dtype=torch.float64, requires_grad=True)
    mixed = mixture_log_prob(log_probs, 4)
    assert mixed.tolist() == pytest.approx([math.log(11 / 32), math.log(5 / 8), math.log(1 / 4)], abs=1e-12)
    mixed.sum().backward()
    # d log((3π + 1)/4) / d log π = 3π / (3π + 1)
    assert log_probs.grad.tolist() == pytest.approx([3 / 11, 3 / 5, 0.0], abs=1e-12)


def test_groups_with_equal_rewards_are_not_looked_at(tokenizer, tmp_path, monkeypatch):
    trainer = policy_trainer(random_model("llada", tokenizer), tokenizer, tmp_path, reward=lambda **kwargs: [0.0] * 8)
    trainer.current_gradient_accumulation_steps = 1
    inputs = generated_batch(trainer)
    assert not inputs["advantages"].any()
    assert trainer._metrics["train"]["skipped_groups"] == [1.0]
    seen = []
    monkeypatch.setattr(trainer, "_log_probs", lambda model, inputs, pairs: seen.append(len(pairs)) or _zero(model))
    assert trainer._compute_loss(trainer.model, inputs).item() == 0
    assert seen == [1]  # a step that weighs nothing, for the passes to be as many on every process

    trainer, inputs = trainer_and_batch("llada", tokenizer, tmp_path, alpha=0.0)
    advantages = inputs["advantages"].clone()
    inputs["advantages"] = torch.cat([torch.zeros(4), advantages[4:] + 0.1])
    looked, original = [], trainer._log_probs
    monkeypatch.setattr(trainer, "_log_probs", lambda *args: looked.append(args[2]) or original(*args))
    loss, gradient = gradient_of(trainer, inputs)
    assert torch.cat(looked)[:, 0].min() == 4
    assert loss == pytest.approx(slow_loss(trainer, inputs)[0], abs=1e-6)  # the others count in the mean


def _zero(model):
    return sum(parameter.sum() for parameter in model.parameters())[None] * 0.0


def test_advantages_are_rewards_less_the_groups_mean(tokenizer, tmp_path):
    for form in ("multiplicative", "additive"):
        trainer, inputs = trainer_and_batch("llada", tokenizer, tmp_path, alpha=2.0, reward_form=form)
        texts = trainer._tokenizer.batch_decode(
            [ids[mask.bool()] for ids, mask in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)],
            skip_special_tokens=True,
        )
        r = torch.tensor(digits(texts), dtype=torch.float64)
        time = inputs["num_steps"].double() / CANVAS
        shaped = r * (1 - time) ** 2 if form == "multiplicative" else r - 2 * time
        expected = shaped.view(2, 4) - shaped.view(2, 4).mean(dim=1, keepdim=True)
        assert (inputs["advantages"] - expected.flatten()).abs().max() < 1e-6
        metrics = trainer._metrics["train"]
        assert metrics["reward"][-1] == pytest.approx(shaped.mean().item(), abs=1e-6)
        assert metrics["rewards/digits/mean"][-1] == pytest.approx(r.mean().item(), abs=1e-6)


def test_the_experts_rewards_count_in_the_mean_and_not_in_the_log(tokenizer, tmp_path):
    trainer, inputs = trainer_and_batch("llada", tokenizer, tmp_path, alpha=1.0, expert_steering=True)
    total = trainer._rewards_for_steps.sum(dim=1)
    expected = total.view(2, 4) - total.view(2, 4).mean(dim=1, keepdim=True)
    assert (inputs["advantages"] - expected.flatten()).abs().max() < 1e-6
    expert = inputs["is_expert"]
    assert trainer._metrics["train"]["reward"][-1] == pytest.approx(total[~expert].mean().item())
    assert trainer._metrics["train"]["expert/reward"][-1] == pytest.approx(total[expert].mean().item())


def test_rewards_of_steps_by_hand():
    rewards = torch.tensor([[1.0, 0.5], [torch.nan, 0.2], [0.0, 1.0]])
    time, weights = torch.tensor([0.5, 0.25, 1.0]), torch.tensor([1.0, 3.0])
    found = speed_rewards(rewards, time, 2.0, "multiplicative", weights, ["a", "b"])
    assert torch.allclose(found, torch.tensor([[0.25, 0.125], [torch.nan, 0.1125], [0.0, 0.0]]), equal_nan=True)
    assert torch.equal(speed_rewards(rewards, time, 0.0, "multiplicative", weights, ["a", "b"])[2], rewards[2])
    found = (speed_rewards(rewards, time, 2.0, "additive", weights, ["a", "b"]) * weights).nansum(dim=1)
    assert found.tolist() == pytest.approx([1 + 1.5 - 1.0, 0.6 - 0.5, 3.0 - 2.0])
    with pytest.raises(ValueError, match="'b' returned -1.0: with reward_form='multiplicative'"):
        speed_rewards(torch.tensor([[1.0, -1.0]]), time[:1], 1.0, "multiplicative", weights, ["a", "b"])
    with pytest.raises(ValueError, match="reward_weights add up to 0"):
        speed_rewards(rewards[:1], time[:1], 1.0, "additive", torch.tensor([1.0, -1.0]), ["a", "b"])


def test_steps_that_are_out_of_the_policys_hands_are_not_scored(tokenizer, tmp_path):
    lazy = small_policy(initial_bias=-6.0)
    trainer, inputs = trainer_and_batch("llada", tokenizer, tmp_path, policy=lazy, num_denoising_steps=3)
    taken = torch.arange(1, 4) <= inputs["num_steps"][:, None]
    out_of_hands = taken & ~inputs["decided"]
    assert (out_of_hands.sum(dim=1) <= 1).all() and out_of_hands[:, 2].any()
    assert torch.equal(out_of_hands.any(dim=1), inputs["num_steps"] == 3)
    logged = trainer._metrics["train"]["policy/steps_out_of_its_hands"][-1]
    assert logged == pytest.approx(out_of_hands.sum().item() / taken.sum().item())
    revealing = sum(len(set(row.tolist()) - {0}) for row in inputs["unmask_step"])
    assert trainer._metrics["train"]["policy/waiting_steps"][-1] == pytest.approx(1 - revealing / taken.sum().item())


def test_everything_in_a_batch_has_a_row_for_each_completion(tokenizer, tmp_path, monkeypatch):
    """The buffer shuffles rows: what is not one of a completion's would follow another."""
    trainer, inputs = trainer_and_batch("llada", tokenizer, tmp_path)
    assert all(len(value) == 8 for value in inputs.values() if isinstance(value, torch.Tensor) and value.ndim)
    order = torch.tensor([3, 0, 7, 5, 1, 2, 6, 4])
    shuffled = {
        name: value[order] if isinstance(value, torch.Tensor) and value.ndim else value
        for name, value in inputs.items()
    }
    whole, parts = gradient_of(trainer, inputs), []
    trainer.current_gradient_accumulation_steps = 2
    for half in (slice(0, 4), slice(4, 8)):
        rows = {n: v[half] if isinstance(v, torch.Tensor) and v.ndim else v for n, v in shuffled.items()}
        parts.append(gradient_of(trainer, rows))
    assert sum(loss for loss, _ in parts) == pytest.approx(whole[0], abs=1e-9)
    assert (sum(gradient for _, gradient in parts) - whole[1]).abs().max() < 1e-9

    monkeypatch.setattr(trainer, "_log_decisions", lambda output: output.update(short=torch.zeros(7)))
    with pytest.raises(RuntimeError, match="short has 7 rows in a batch of 8"):
        generated_batch(trainer)
