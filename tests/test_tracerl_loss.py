# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The trainer's loss and gradient against the formulas, written out one token at a time in fp64."""

from types import SimpleNamespace

import pytest
import slow_tracerl as slow
import torch
from conftest import random_model
from rl import generated_batch, rl_trainer, share_of_ones


pytestmark = pytest.mark.usefixtures("norms_in_fp64")
BLOCK = 4
# One each of the ways to average, to estimate the KL, and to discount, for each shrinkage.
CASES = {
    1: {"loss_type": "step", "kl_estimator": "k3", "gamma": 1.0},
    2: {"loss_type": "grpo", "kl_estimator": "k2", "gamma": 0.9},
    4: {"loss_type": "dapo", "kl_estimator": "k1", "gamma": 0.8},
}


def trainer_in_fp64(family, tokenizer, tmp_path, **kwargs):
    model = random_model(family, tokenizer, seed=6).double()
    settings = {
        "max_completion_length": 9,
        "num_denoising_steps": 7,
        "kl_reference": "old",
        "beta": 0.1,
        "max_grad_norm": 0.0,
        **kwargs,
    }
    trainer = rl_trainer("tracerl", model, tokenizer, tmp_path, **settings)
    if trainer.value is not None:
        torch.manual_seed(2)
        with torch.no_grad():
            trainer.value.model.backbone.get_output_embeddings().weight.normal_(std=0.3)
        # The gradients are to be looked at, not used.
        trainer.value.prepare(1)
        nothing = SimpleNamespace(step=lambda: None, zero_grad=lambda: None)
        trainer.value.optimizer = trainer.value.scheduler = nothing
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def perturb(module, scale):
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


def gradients(module):
    return [p.grad.clone() for p in module.parameters() if p.requires_grad]


def assert_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-9


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("value_model", [None, "full"])
@pytest.mark.parametrize("shrinkage", [1, 2, 4])
def test_loss_and_gradient_equal_the_formulas(family, tokenizer, tmp_path, shrinkage, value_model, frozen):
    case = {**CASES[shrinkage], **({"gae_lambda": 0.7} if value_model else {})}
    trainer = trainer_in_fp64(family, tokenizer, tmp_path, shrinkage=shrinkage, value_model=value_model, **case)
    model, args = trainer.model, trainer.args
    inputs = generated_batch(trainer)
    rows = range(len(inputs["completion_ids"]))
    block = BLOCK if family == "sdar" else None
    lengths = inputs["completion_mask"].sum(1).tolist()
    assert min(lengths) < 9 == max(lengths)  # some completions end early, some do not
    tokens = [slow.tokens_of(inputs, row, block, shrinkage) for row in rows]

    # Rewards: those of two groups of four, z-scored.
    texts = [tokenizer.decode(inputs["completion_ids"][r][: lengths[r]], skip_special_tokens=True) for r in rows]
    reward = torch.tensor(share_of_ones(texts), dtype=torch.float64).view(2, 4)
    outcome = ((reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)).flatten().tolist()
    assert max(map(abs, outcome)) > 0.1

    # Old values, returns, advantages.
    returns, advantages, old_values = {}, {}, {}
    for row in rows:
        own = tokens[row]
        last = max(token.step for token in own)
        rewards = [outcome[row] if token.step == last else 0.0 for token in own]
        values = [0.0] * len(own)
        if value_model:
            with torch.no_grad():
                backbone = trainer.value.model.backbone
                values = [slow.value(backbone, inputs, token, block, shrinkage).item() for token in own]
        R, A = slow.advantages_of(own, rewards, values, args.gamma, args.gae_lambda)
        for token, *numbers in zip(own, R, A if value_model else R, values, strict=True):
            place = (row, token.position)
            returns[place], advantages[place], old_values[place] = numbers
    found = inputs["advantages"]
    found = found if found.ndim == 2 else found[:, None].expand_as(inputs["completion_mask"])
    for place, wanted in advantages.items():
        assert found[place].item() == pytest.approx(wanted, abs=1e-5)
        if value_model:
            assert inputs["returns"][place].item() == pytest.approx(returns[place], abs=1e-5)
            assert inputs["old_values"][place].item() == pytest.approx(old_values[place], abs=1e-5)

    # The policies have moved on since the rollout, far enough for the clips.
    torch.manual_seed(4)
    inputs["old_per_token_logps"] = torch.randn(inputs["completion_ids"].shape, dtype=torch.float64) * 0.3 - 1.5
    reference = inputs["old_per_token_logps"]
    if frozen:
        trainer.args.kl_reference = "frozen"
        reference = inputs["ref_per_token_logps"] = torch.randn(reference.shape, dtype=torch.float64) * 0.3 - 1.5
    if value_model:
        perturb(trainer.value.model, 0.02)

    model.zero_grad()
    loss = trainer._compute_loss(model, inputs)
    loss.backward()
    policy_gradient = gradients(model)
    value_gradient = gradients(trainer.value.model) if value_model else []
    if value_model:
        trainer.value.model.zero_grad()
    model.zero_grad()

    total, value_total, clipped, value_clipped = 0.0, 0.0, 0, 0
    num_tokens = sum(map(len, tokens))
    for row in rows:
        for token in tokens[row]:
            place = (row, token.position)
            logprob = slow.logprob(model, inputs, token, trainer.temperature, block, shrinkage)
            old, ref = inputs["old_per_token_logps"][place], reference[place]
            advantage = advantages[place]
            term, active = slow.policy_term(logprob, old, ref, advantage, 0.2, 0.1, args.kl_estimator)
            weight = slow.policy_weight(token, tokens[row], args.loss_type, len(rows), num_tokens)
            total, clipped = total + weight * term, clipped + active
            if value_model:
                v = slow.value(trainer.value.model.backbone, inputs, token, block, shrinkage)
                term, active = slow.value_term(v, old_values[place], returns[place], args.value_epsilon)
                value_total, value_clipped = value_total + term / num_tokens, value_clipped + active
    assert 0 < clipped < num_tokens
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    assert_close(policy_gradient, gradients(model))
    if value_model:
        assert 0 < value_clipped < num_tokens
        value_total.backward()
        logged = trainer._metrics["train"]["value/loss"][-1]
        assert logged == pytest.approx(value_total.item(), rel=1e-5)
        assert_close(value_gradient, gradients(trainer.value.model))


def test_the_log_ratio_clamp_bounds_ratio_and_kl(family, tokenizer, tmp_path):
    trainer = trainer_in_fp64(family, tokenizer, tmp_path, log_ratio_clamp=0.15, epsilon=0.5)
    inputs = generated_batch(trainer)
    torch.manual_seed(5)
    inputs["old_per_token_logps"] = torch.randn(inputs["completion_ids"].shape, dtype=torch.float64) * 0.3 - 1.5
    loss = trainer._compute_loss(trainer.model, inputs)
    block, total = BLOCK if family == "sdar" else None, 0.0
    rows = range(len(inputs["completion_ids"]))
    for row in rows:
        tokens = slow.tokens_of(inputs, row, block, 1)
        for token in tokens:
            logprob = slow.logprob(trainer.model, inputs, token, trainer.temperature, block, 1)
            old = inputs["old_per_token_logps"][row, token.position]
            term, _ = slow.policy_term(logprob, old, old, inputs["advantages"][row], 0.5, 0.1, "k3", clamp=0.15)
            total = total + term * slow.policy_weight(token, tokens, "step", len(rows), 0)
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)


@pytest.mark.parametrize("value_model", [None, "full"])
def test_the_gradient_equals_finite_differences(family, tokenizer, tmp_path, value_model):
    """Of the whole policy loss, clip and KL included, of a model with two layers."""
    trainer = trainer_in_fp64(family, tokenizer, tmp_path, value_model=value_model)
    model = trainer.model
    assert model.config.num_hidden_layers == 2
    inputs = generated_batch(trainer)
    torch.manual_seed(4)
    inputs["old_per_token_logps"] = torch.randn(inputs["completion_ids"].shape, dtype=torch.float64) * 0.3 - 1.5

    def loss():
        with torch.no_grad():
            return policy_loss(trainer, inputs)

    model.zero_grad()
    trainer._compute_loss(model, inputs).backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    checked = 0
    for seed in range(3):
        torch.manual_seed(seed)
        directions = [torch.randn_like(p) for p in parameters]
        for p, d in zip(parameters, directions, strict=True):
            if p is model.get_input_embeddings().weight:
                d[tokenizer.pad_token_id] = 0.0  # torch gives the embedding of padding no gradient
        expected = sum((p.grad * d).sum() for p, d in zip(parameters, directions, strict=True)).item()
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, d in zip(parameters, directions, strict=True):
                    p.add_(sign * 1e-6 * d)
            values.append(loss())
            with torch.no_grad():
                for p, d in zip(parameters, directions, strict=True):
                    p.sub_(sign * 1e-6 * d)
        slope = (values[0] - values[1]) / 2e-6
        assert slope == pytest.approx(expected, rel=1e-5, abs=1e-7)
        checked += abs(expected) > 1e-3
    assert checked == 3


def policy_loss(trainer, inputs):
    """The policy loss alone, without an update of the value model."""
    return super(type(trainer), trainer)._compute_loss(trainer.model, inputs).item()
