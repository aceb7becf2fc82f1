# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Runs of BGPO: diagnostics, settings, adapters, evaluation."""

import logging
from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from conftest import random_model
from peft import LoraConfig, PeftModel
from rl import generated_batch, prompts, rl_trainer, share_of_ones

from trl_diffusion import BGPOConfig
from trl_diffusion.likelihood import backward_by_sum, score_view
from trl_diffusion.trainer.gradient_variance import gradient_variance


def bgpo(tokenizer, folder, family="llada", seed=0, **kwargs):
    settings = {"num_mc_samples": 4, **kwargs}
    return rl_trainer("bgpo", random_model(family, tokenizer, seed=seed), tokenizer, folder, **settings)


# Functions of a sum in two passes


def test_both_passes_drop_the_same():
    """Dropout: the gradient is that of the whole graph with the same masks, and the draws go on as after one pass."""
    weight, accelerator = torch.randn(6, requires_grad=True), Accelerator(cpu=True)

    def score(number):
        return torch.nn.functional.dropout(weight * number, 0.5).sum() / 6

    scores = [lambda number=number: score(number) for number in (1.0, 2.0, 3.0)]
    torch.manual_seed(1)
    expected = torch.exp(sum(score() for score in scores))
    expected.backward()
    after, gradient = torch.get_rng_state(), weight.grad.clone()
    weight.grad = None
    torch.manual_seed(1)
    found = backward_by_sum(scores, torch.exp, None, accelerator)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(weight.grad, gradient, rtol=1e-5)
    assert torch.equal(torch.get_rng_state(), after)
    with torch.no_grad():
        torch.manual_seed(1)
        assert backward_by_sum(scores, torch.exp, None, accelerator).item() == pytest.approx(found.item())


def test_a_known_sum_saves_the_first_pass():
    weight, calls = torch.ones(3, requires_grad=True), []
    scores = [lambda: calls.append(1) or (weight * 2).sum()] * 4
    accelerator = Accelerator(cpu=True)
    backward_by_sum(scores, lambda total: 3 * total, None, accelerator).backward()
    assert len(calls) == 8 and weight.grad.tolist() == [24.0] * 3
    backward_by_sum(scores, lambda total: 3 * total, None, accelerator, torch.zeros(())).backward()
    assert len(calls) == 12 and weight.grad.tolist() == [48.0] * 3


@pytest.mark.parametrize(
    "kind, updates, beta, passes",
    [("bgpo", 1, 0.0, 4), ("bgpo", 2, 0.0, 4), ("elbo", 1, 0.0, 4), ("elbo", 2, 0.0, 8), ("sequence", 1, 0.1, 8)],
)
def test_forward_passes_of_an_update(tokenizer, tmp_path, kind, updates, beta, passes):
    random_model("llada", tokenizer).save_pretrained(tmp_path / "model")
    settings = {"objective": kind, "num_iterations": updates, "beta": beta, "num_mc_samples": 4}
    trainer = rl_trainer("bgpo", str(tmp_path / "model"), tokenizer, tmp_path, **settings)
    inputs, calls = generated_batch(trainer), []
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.register_forward_hook(lambda *args: calls.append(1))
    trainer._compute_loss(trainer.model, inputs).backward()
    assert len(calls) == passes


# Diagnostics


@pytest.mark.parametrize("kind", ["bgpo", "elbo"])
def test_the_logged_figures_are_those_of_the_batch(family, tokenizer, tmp_path, kind):
    trainer = bgpo(tokenizer, tmp_path, family, seed=6, objective=kind, num_iterations=2)
    inputs = generated_batch(trainer)
    trainer.current_gradient_accumulation_steps = 1
    inputs["completion_mask"][2] = 0  # a completion that is left out
    current = inputs["old_elbos"].clone()
    shift = torch.randn(8, 4, dtype=torch.float64)
    inputs["old_elbos"] = current - shift
    trainer._compute_loss(trainer.model, inputs)
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    kept = [0, 1, 3, 4, 5, 6, 7]
    assert metrics["elbo/difference_mean"] == pytest.approx(shift[kept].mean().item(), abs=1e-4)
    assert metrics["elbo/difference_std"] == pytest.approx(shift[kept].std(correction=0).item(), abs=1e-4)
    assert metrics["elbo/difference_above_one"] == pytest.approx((shift[kept].abs() > 1).float().mean().item())
    lengths = inputs["completion_mask"].sum(1)[kept]
    wanted = current[kept].mean(1).sum() / lengths.sum()
    assert metrics["elbo/per_token"] == pytest.approx(wanted.item(), rel=1e-4)
    assert metrics["views"] == 4


def test_a_large_spread_is_warned_of_once(tokenizer, tmp_path, caplog):
    trainer = bgpo(tokenizer, tmp_path, num_iterations=2)
    inputs = generated_batch(trainer)
    trainer.current_gradient_accumulation_steps = 1
    logging.getLogger("trl_diffusion").propagate = True
    with caplog.at_level("WARNING", logger="trl_diffusion"):
        trainer._compute_loss(trainer.model, inputs)
        assert "spread by" not in caplog.text
        inputs["old_elbos"] = inputs["old_elbos"] + 5 * torch.randn(8, 4)
        trainer._compute_loss(trainer.model, inputs)
        trainer._compute_loss(trainer.model, inputs)
    assert caplog.text.count("spread by") == 1 and "num_iterations" in caplog.text


@pytest.mark.parametrize("kind", ["bgpo", "elbo"])
@pytest.mark.parametrize("antithetic", [False, True])
def test_the_variance_of_the_gradient_is_that_of_its_samples(family, tokenizer, tmp_path, kind, antithetic):
    trainer = bgpo(
        tokenizer, tmp_path, family, objective=kind, antithetic=antithetic, gradient_variance_steps=1, num_iterations=2
    )
    inputs = generated_batch(trainer)
    trainer.current_gradient_accumulation_steps = 1
    inputs["old_elbos"] = inputs["old_elbos"] - 0.2 * torch.randn(8, 4)
    inputs["advantages"] = torch.linspace(-1, 1.5, 8)
    trainer.model.zero_grad()
    trainer._compute_loss(trainer.model, inputs).backward()
    accumulated = torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).double()

    # Each sample's gradient on its own, straight from the scores.
    views, old, advantages = trainer.draw_views(inputs), inputs["old_elbos"], inputs["advantages"]
    kwargs = trainer._block_kwargs(inputs)
    samples = []
    for view in views:
        scores = score_view(trainer.model, *trainer._rows(inputs), view, exclude_mask=False, **kwargs).logprobs
        samples.append((scores * view.weight).sum(1))
    if kind == "bgpo":
        differences = [sample - before for sample, before in zip(samples, old.float().unbind(1), strict=True)]
        terms = [torch.where(advantages >= 0, 1 + d, d.exp()) * advantages for d in differences]
    else:
        ratio = torch.exp(torch.stack(samples).mean(0) - old.mean(1)).detach()
        terms = [ratio * advantages * sample for sample in samples]
    gradients = []
    for term in terms:
        found = torch.autograd.grad(-term.sum() / 8 / 4, list(trainer.model.parameters()), retain_graph=True)
        gradients.append(torch.cat([gradient.flatten() for gradient in found]).double())
    if antithetic:
        gradients = [gradients[0] + gradients[1], gradients[2] + gradients[3]]
    n, stacked = len(gradients), torch.stack(gradients)
    assert torch.allclose(stacked.sum(0), accumulated, rtol=1e-3, atol=1e-6)
    variance = n * stacked.var(0, correction=1).sum()
    metrics = trainer._metrics["train"]
    assert metrics["gradient/mc_variance"][-1] == pytest.approx(variance.item(), rel=1e-3)
    share = (variance / accumulated.square().sum()).item()
    assert metrics["gradient/mc_variance_share"][-1] == pytest.approx(share, rel=1e-3)


def test_the_variance_is_estimated_without_bias():
    """Samples that take two values: over all pairs, each estimate against the variance of their sum."""
    parameter = torch.zeros(2, requires_grad=True)
    values = [torch.tensor([1.0, 0.0]), torch.tensor([-2.0, 3.0])]
    estimates = [
        gradient_variance([lambda v=v: (parameter * v).sum() for v in (a, b)], [parameter])[0]
        for a in values
        for b in values
    ]
    assert sum(estimates) / 4 == pytest.approx(2 * torch.stack(values).var(0, correction=0).sum().item())
    assert parameter.grad is None


def test_estimating_the_variance_changes_nothing_else(tokenizer, tmp_path):
    ends = []
    for steps in (None, 2):
        trainer = bgpo(
            tokenizer, tmp_path, objective="elbo", num_iterations=2, max_steps=4, gradient_variance_steps=steps
        )
        trainer.train()
        ends.append([p.detach().clone() for p in trainer.model.parameters()])
        measured = [row["step"] for row in trainer.state.log_history if "gradient/mc_variance" in row]
        assert measured == ([] if steps is None else [1, 3])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


# Training


@pytest.mark.parametrize("kind", ["bgpo", "elbo", "sequence"])
def test_the_reward_rises_and_falls_when_inverted(family, tokenizer, tmp_path, kind):
    curves = {}
    for sign in (1, -1):

        def reward(completions, sign=sign, **kwargs):
            return [sign * share for share in share_of_ones(completions)]

        trainer = bgpo(
            tokenizer, tmp_path, family, objective=kind, reward=reward, max_steps=25, noise_levels="stratified"
        )
        trainer.train()
        rewards = [log["reward"] * sign for log in trainer.state.log_history if "reward" in log]
        curves[sign] = (sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5)
    assert curves[1][1] > curves[1][0] + 0.2
    assert curves[-1][1] < 0.5 * curves[1][1]


def test_lora_trains_saves_and_loads(family, tokenizer, tmp_path):
    model = random_model(family, tokenizer)
    model.save_pretrained(tmp_path / "base")
    trainer = rl_trainer(
        "bgpo",
        model,
        tokenizer,
        tmp_path,
        peft_config=LoraConfig(target_modules="all-linear", r=4, lora_alpha=32, lora_dropout=0.1),
        objective="elbo",
        num_mc_samples=2,
        num_iterations=2,
        max_steps=4,
        learning_rate=0.1,
        beta=0.01,
    )
    before = {key: parameter.clone() for key, parameter in trainer.model.named_parameters()}
    trainer.train()
    for key, parameter in trainer.model.named_parameters():
        assert torch.equal(before[key], parameter) == ("lora_" not in key), key
    # The reference is the model without its adapter: it starts at a KL of 0, but for the dropout, and leaves it.
    kl = [log["kl"] for log in trainer.state.log_history if "kl" in log]
    assert kl[-1] > kl[0]
    trainer.save_model(str(tmp_path / "adapter"))
    base = type(model).from_pretrained(tmp_path / "base")
    ids = torch.tensor([tokenizer("0123")["input_ids"]] * 4)
    settings = {"max_new_tokens": 8, "temperature": 1.0, "seed": 3, "eos_token_id": None}
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.equal(
        adapted.generate(input_ids=ids, **settings), trainer.model.eval().generate(input_ids=ids, **settings)
    )


def test_micro_batches_and_iterations_see_the_same_copies(tokenizer, tmp_path):
    """Two micro-batches, twice: each row's copies are drawn once."""
    trainer = bgpo(tokenizer, tmp_path, num_iterations=2, steps_per_generation=2, max_steps=4)
    seen, draw = [], trainer.draw_views

    def watched(inputs):
        seen.append((inputs["view_seed"].tolist(), draw(inputs)))
        return seen[-1][1]

    trainer.draw_views = watched
    trainer.train()
    masks = {}
    for seeds, views in seen:
        for row, seed in enumerate(seeds):
            mask = torch.stack([view.masked[row] for view in views])
            assert torch.equal(masks.setdefault(seed, mask), mask)
    # The generation's 16 rows: for the old policy, and for each of two iterations.
    assert len(masks) == 16 and sum(len(seeds) for seeds, _ in seen) == 3 * 16


def test_evaluation_runs_and_moves_nothing(family, tokenizer, tmp_path):
    trainer = bgpo(tokenizer, tmp_path, family, objective="sequence", per_device_eval_batch_size=8)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    first, second = (trainer.evaluate(prompts(4)) for _ in range(2))
    assert first["eval_elbo/per_token"] == second["eval_elbo/per_token"] < 0
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_equal_rewards_move_nothing(tokenizer, tmp_path):
    trainer = bgpo(tokenizer, tmp_path, reward=lambda completions, **kwargs: [0.5] * len(completions))
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


# Settings


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"objective": "vrpo"}, "objective='vrpo' must be one of"),
        ({"noise_levels": "normal"}, "noise_levels='normal' must be one of"),
        ({"num_mc_samples": 0}, "num_mc_samples=0 must be at least 1"),
        ({"num_mc_samples": 3, "antithetic": True}, "num_mc_samples=3 must be even"),
        ({"min_noise_level": 0.0}, r"min_noise_level=0.0 must lie in \(0, 1\]"),
        ({"noise_levels": "stratified", "min_noise_level": 0.01}, "has no effect with noise_levels='stratified'"),
        ({"likelihood": "trace"}, "likelihood='trace' is not supported by BGPOConfig"),
        ({"loss_type": "dapo"}, "loss_type='dapo' is not supported by BGPOConfig"),
        ({"kl_reference": "old", "beta": 0.1}, "kl_reference='old' is not supported"),
        ({"use_bias_correction_kl": True}, "use_bias_correction_kl=True is not supported"),
        ({"objective": "sequence", "normalize_length": False}, "Use objective='elbo'"),
        ({"epsilon_high": 0.3}, "epsilon_high=0.3 has no effect without epsilon"),
        ({"epsilon": -0.1}, "epsilon=-0.1 must not be negative"),
        ({"delta": 0.9}, "delta=0.9 must be greater than 1"),
        ({"gradient_variance_steps": 0}, "gradient_variance_steps=0 must be at least 1"),
        ({"gradient_variance_steps": 1, "num_mc_samples": 1}, "Draw at least 2"),
        ({"gradient_variance_steps": 1, "num_mc_samples": 2, "antithetic": True}, "Draw at least 4"),
        ({"prompt_mask_probability": 0.1}, "prompt_mask_probability=0.1 has no effect with likelihood='elbo'"),
    ],
)
def test_wrong_settings_are_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        BGPOConfig(str(tmp_path), bf16=False, **settings)


def test_defaults_are_those_of_the_objective(tmp_path):
    found = {kind: BGPOConfig(str(tmp_path), bf16=False, objective=kind) for kind in ("bgpo", "elbo", "sequence")}
    assert {kind: (c.epsilon, c.normalize_length) for kind, c in found.items()} == {
        "bgpo": (None, False),
        "elbo": (None, False),
        "sequence": (0.2, True),
    }


def test_the_card_names_the_method_and_its_settings(tokenizer, tmp_path):
    trainer = bgpo(tokenizer, tmp_path, objective="sequence", noise_levels="stratified")
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    for text in ("2510.11683", "bgpo", "num_mc_samples", "stratified", "sequence"):
        assert text in card, text


def test_samples_are_drawn_anew_for_every_generation(tokenizer, tmp_path):
    trainer = bgpo(tokenizer, tmp_path, max_steps=4)
    seeds, generate = [], trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: (
        seeds.append((out := generate(inputs))["view_seed"]) or out
    )
    trainer.train()
    assert len(seeds) == 4
    for before, after in pairwise(seeds):
        assert not (before[:, None] == after[None]).any()
