# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The likelihoods of DiffusionGRPOTrainer: losses and gradients against loops over tokens in fp64."""

import pytest
import slow_elbo as slow
import torch
from conftest import random_model
from rl import generated_batch, rl_trainer
from test_rl import replayed

from trl_diffusion import DiffusionGRPOConfig, MaskedView, TraceRLConfig


pytestmark = pytest.mark.usefixtures("norms_in_fp64")
BLOCK = 4
KINDS = ("coupled", "random_mask", "trace", "autoregressive")


def grpo(tokenizer, folder, family="llada", model=None, **kwargs):
    model = random_model(family, tokenizer, seed=6) if model is None else model
    settings = {"max_completion_length": 9, "num_denoising_steps": 7, "max_grad_norm": 0.0, **kwargs}
    trainer = rl_trainer("grpo", model, tokenizer, folder, **settings)
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def token_logprobs(trainer, inputs, row, block):
    """log p of each token of a completion by its definition: {position: scalar with graph}."""
    args, canvas = trainer.args, inputs["completion_ids"][row]
    length = int(inputs["completion_mask"][row].sum())
    found = {}
    if args.likelihood == "autoregressive":
        for position in range(length):
            # Blocks behind are out of sight of a block-causal model; whether they are masked makes no difference.
            places = torch.arange(len(canvas)).expand(row + 1, -1)
            view = MaskedView(masked=places >= position, target=places == position)
            found |= slow.copy_logprobs(trainer.model, inputs, row, view, block, trainer.temperature, True)
        return found
    for view in trainer.draw_views(inputs):
        weights = torch.ones(canvas.shape) if view.weight is None else view.weight[row]
        for position, logprob in slow.copy_logprobs(
            trainer.model, inputs, row, view, block, trainer.temperature, True
        ).items():
            found[position] = found.get(position, 0.0) + weights[position].double() * logprob
    return found


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_equal_a_slow_loop(family, tokenizer, tmp_path, kind, off_policy):
    model = random_model(family, tokenizer, seed=6).double()
    trainer = grpo(
        tokenizer, tmp_path, model=model, likelihood=kind, num_iterations=1 + off_policy, unmasking="sequential"
    )
    inputs = generated_batch(trainer)
    block = BLOCK if family == "sdar" else None
    inputs["advantages"] = torch.tensor([-1.0, 0.7, 1.2, -0.4, 0.9, -0.8, 1.1, -1.3])
    if off_policy:
        with torch.no_grad():
            for row in range(8):
                for position, logprob in token_logprobs(trainer, inputs, row, block).items():
                    old = inputs["old_per_token_logps"][row, position]
                    assert old.item() == pytest.approx(logprob.item(), abs=1e-5)
        torch.manual_seed(4)
        inputs["old_per_token_logps"] = inputs["old_per_token_logps"] + 0.4 * torch.randn(8, 9)
    model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]

    model.zero_grad()
    total, clips = 0.0, 0
    for row in range(8):
        tokens = token_logprobs(trainer, inputs, row, block)
        if kind != "random_mask":
            assert sorted(tokens) == list(range(int(inputs["completion_mask"][row].sum())))
        for position, logprob in tokens.items():
            old = inputs["old_per_token_logps"][row, position].double() if off_policy else logprob.detach()
            ratio, advantage = torch.exp(logprob - old), inputs["advantages"][row].double()
            clipped = ratio.clamp(0.8, 1.2) * advantage
            clips += bool(clipped < ratio * advantage)
            # A mean over the tokens that are scored, and over rows.
            total = total - torch.min(ratio * advantage, clipped) / len(tokens) / 8
    total.backward()
    assert (clips > 0) == off_policy
    assert loss.item() == pytest.approx(total.item(), rel=1e-5, abs=1e-8)
    for found, parameter in zip(gradients, model.parameters(), strict=True):
        assert (found - parameter.grad).norm() <= 1e-5 * parameter.grad.norm() + 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_pass_per_view(family, tokenizer, tmp_path, kind):
    trainer = grpo(tokenizer, tmp_path, family, likelihood=kind)
    inputs, calls = generated_batch(trainer), []
    trainer.model.register_forward_hook(lambda *args: calls.append(1))
    trainer._compute_loss(trainer.model, inputs).backward()
    longest = int(inputs["completion_mask"].sum(1).max())
    if kind in ("coupled", "random_mask"):
        assert len(calls) == {"coupled": 3, "random_mask": 1}[kind]
    elif kind == "autoregressive":
        assert len(calls) == (longest if family == "llada" else BLOCK)
    assert trainer._metrics["train"]["views"] == [len(calls)]


def test_left_to_right_rollouts_are_replayed(family, tokenizer, tmp_path):
    """The exact likelihood of what was sampled: old log-probabilities are the rollout's, those of the definition."""
    trainer = grpo(
        tokenizer,
        tmp_path,
        family,
        likelihood="autoregressive",
        unmasking="sequential",
        num_denoising_steps=9,
        num_iterations=2,
    )
    inputs = generated_batch(trainer)
    assert trainer._metrics["train"]["old_logprobs/from_rollout"] == [1.0]
    for row in range(8):
        assert torch.allclose(inputs["old_per_token_logps"][row], replayed(trainer.model, inputs, row), atol=1e-5)
    assert torch.allclose(inputs["old_per_token_logps"], trainer._score(trainer.model, inputs), atol=1e-5)


def test_other_orders_are_scored_anew(family, tokenizer, tmp_path, caplog):
    with caplog.at_level("WARNING", logger="trl_diffusion"):
        trainer = grpo(tokenizer, tmp_path, family, likelihood="autoregressive", num_iterations=2)
    assert "Set unmasking='sequential'" in caplog.text
    generated_batch(trainer)
    assert trainer._metrics["train"]["old_logprobs/from_rollout"] == [0.0]


def test_traces_are_replayed(family, tokenizer, tmp_path):
    trainer = grpo(tokenizer, tmp_path, family, likelihood="trace", num_iterations=2)
    inputs = generated_batch(trainer)
    assert trainer._metrics["train"]["old_logprobs/from_rollout"] == [1.0]
    assert torch.allclose(inputs["old_per_token_logps"], trainer._score(trainer.model, inputs), atol=1e-5)


def test_noise_in_the_prompt_does_not_depend_on_its_padding(tokenizer, tmp_path):
    trainer = grpo(tokenizer, tmp_path, prompt_mask_probability=0.5)
    inputs = generated_batch(trainer)
    (view,) = trainer.draw_views(inputs)
    padded = dict(inputs)
    for name in ("prompt_ids", "prompt_mask"):
        padded[name] = torch.cat([torch.zeros_like(inputs[name]), inputs[name]], dim=1)
    (wider,) = trainer.draw_views(padded)
    width = inputs["prompt_ids"].size(1)
    assert view.prompt_masked.any() and torch.equal(wider.prompt_masked[:, width:], view.prompt_masked)
    assert not wider.prompt_masked[:, :width].any()


@pytest.mark.parametrize(
    "kind, paper, tag",
    [
        ("fully_masked", "2504.12216", "diffu-grpo"),
        ("coupled", "2506.20639", "coupled-grpo"),
        ("random_mask", "2505.15809", "unigrpo"),
        ("trace", "2509.06949", "trace-grpo"),
        ("autoregressive", "2601.15165", "justgrpo"),
    ],
)
def test_cards_name_the_paper_of_the_likelihood(tokenizer, tmp_path, kind, paper, tag):
    trainer = grpo(tokenizer, tmp_path, likelihood=kind)
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert f"arXiv:{paper}" in card and f"- {tag}\n" in card and kind in card


@pytest.mark.parametrize(
    "config, settings, message",
    [
        (DiffusionGRPOConfig, {"likelihood": "elbo"}, "likelihood='elbo' must be one of fully_masked, coupled"),
        (DiffusionGRPOConfig, {"prompt_mask_probability": 1.0}, r"must lie in \[0, 1\)"),
        (
            DiffusionGRPOConfig,
            {"likelihood": "trace", "prompt_mask_probability": 0.1},
            "has no effect with likelihood",
        ),
        (TraceRLConfig, {"likelihood": "coupled"}, "TraceRL replays the trace"),
    ],
)
def test_wrong_settings_are_named(tmp_path, config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(str(tmp_path), bf16=False, **settings)
