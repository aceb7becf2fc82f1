# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""examples/custom_objective.py, the worked example of docs/adding_an_algorithm.md."""

import importlib.util
import math
import re

import pytest
import torch
from conftest import random_model
from doc_blocks import ROOT
from rl import generated_batch, prompts, rl_config, share_of_ones

from trl_diffusion.likelihood import view_logits
from trl_diffusion.tasks import character_tokenizer


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("custom_objective", ROOT / "examples" / "custom_objective.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_trainer(example, family, tmp_path, **settings):
    tokenizer = character_tokenizer("01234")
    model = random_model(family, tokenizer, spread=0.3)
    config = rl_config(example.SPGTrainer, tmp_path, **settings)
    return example.SPGTrainer(model, share_of_ones, config, train_dataset=prompts(), processing_class=tokenizer)


def test_the_page_shows_the_file_and_it_has_sixty_lines():
    source = (ROOT / "examples" / "custom_objective.py").read_text()
    assert len(source.splitlines()) <= 60
    page = (ROOT / "docs" / "adding_an_algorithm.md").read_text()
    (shown,) = re.findall(r"```python\n(# Copyright.*?)```", page, re.DOTALL)
    assert shown == source


def test_the_loss_and_its_gradient_are_those_of_a_slow_loop(example, family, tmp_path):
    trainer = make_trainer(example, family, tmp_path, num_mc_samples=3, upper_bound_beta=2.0, temperature=3.0)
    batch = generated_batch(trainer)
    model, views, beta, n = trainer.model, trainer.draw_views(batch), 2.0, 3
    assert (batch["advantages"] > 0).any() and (batch["advantages"] < 0).any()

    # log π of every token in every copy, with its graph, one number at a time.
    logprobs = []
    for view in views:
        logits = view_logits(
            model, batch["prompt_ids"], batch["prompt_mask"], batch["completion_ids"], view, block_length=None
        ).double()
        picked = {}
        for (row, column), scores in zip(view.target.nonzero().tolist(), logits, strict=True):
            token = batch["completion_ids"][row, column]
            picked[row, column] = scores[token] - scores.logsumexp(0)
        logprobs.append(picked)
    loss, rows = 0.0, len(batch["advantages"])
    for row, advantage in enumerate(batch["advantages"].double()):
        length, bound = int(batch["completion_mask"][row].sum()), 0.0
        for column in range(batch["completion_ids"].size(1)):
            found = [(j, copy[row, column]) for j, copy in enumerate(logprobs) if (row, column) in copy]
            if not found:
                continue
            weights = [float(views[j].weight[row, column]) for j, _ in found]
            if advantage >= 0:
                bound = bound + sum(w * logp for w, (_, logp) in zip(weights, found, strict=True)) / n
            else:
                mean = sum(w * logp.exp() ** beta for w, (_, logp) in zip(weights, found, strict=True)) / n
                bound = bound + mean.log() / beta
        loss = loss - advantage * bound / length / rows
    wanted = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    trainer.current_gradient_accumulation_steps = 1
    value = trainer._compute_loss(model, batch)
    value.backward()
    assert float(value) == pytest.approx(float(loss), rel=1e-5)
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        if gradient is not None:
            scale = gradient.abs().max().clamp(min=1e-3)
            assert (parameter.grad - gradient).abs().max() <= 1e-4 * scale
    assert sum(gradient.abs().sum() for gradient in wanted if gradient is not None) > 0


def test_the_upper_bound_is_above_the_lower_one(example):
    # Of one token, masked in every copy: Jensen, (1/β) log mean p^β ≥ mean log p.
    probabilities = torch.tensor([0.9, 0.2, 0.05], dtype=torch.float64)
    lower = probabilities.log().mean()
    uppers = [math.log((probabilities**beta).mean()) / beta for beta in (1.0, 1.5, 3.0)]
    assert lower < uppers[0] < uppers[1] < uppers[2] < math.log(0.9)


def test_it_trains_and_writes_its_card(example, family, tmp_path):
    trainer = make_trainer(example, family, tmp_path, num_mc_samples=2, max_steps=2)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert any(not parameter.equal(before[name]) for name, parameter in trainer.model.named_parameters())
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "SPG" in card and "2510.09541" in card


@pytest.mark.parametrize("settings", [{"num_iterations": 2}, {"beta": 0.1, "kl_reference": "old"}])
def test_what_it_does_not_do_is_refused(example, tmp_path, settings):
    with pytest.raises(ValueError, match="no ratio, no KL"):
        make_trainer(example, "llada", tmp_path, **settings)
    with pytest.raises(ValueError, match="likelihood='coupled' must be one of elbo"):
        make_trainer(example, "llada", tmp_path, likelihood="coupled")
