# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What the tiny checkpoints can do, and cannot, before any reinforcement learning."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import trl_diffusion.scripts.tasks as tasks
from trl_diffusion import DiffusionGenerationConfig
from trl_diffusion.checkpoints import tiny_checkpoint
from trl_diffusion.evaluation import complete
from trl_diffusion.tasks import (
    ARITHMETIC_ALPHABET,
    COUNTDOWN_ALPHABET,
    TINY_ARITHMETIC_CANVAS,
    TINY_COUNTDOWN_CANVAS,
    arithmetic_solve_rate,
    countdown_reward,
    countdown_solve_rate,
    greedy_row_fill,
    subtract_all,
    sudoku_dataset,
)


@pytest.mark.parametrize("name", ["sudoku-llada-tiny", "sudoku-sdar-tiny"])
def test_a_tiny_checkpoint_follows_the_wrong_procedure_and_knows_better(name):
    path = tiny_checkpoint(name)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    assert type(model.generation_config) is DiffusionGenerationConfig
    rows = sudoku_dataset("test", 64, num_clues=(5, 6))
    puzzles, solutions = list(rows["puzzle"]), list(rows["solution"])
    config = model.generation_config
    greedy = complete(model, tokenizer, puzzles, config).texts
    assert sum(a == b for a, b in zip(greedy, solutions, strict=True)) / 64 < 0.15
    assert sum(a == greedy_row_fill(b) for a, b in zip(greedy, puzzles, strict=True)) / 64 > 0.4
    # Eight samples a puzzle, in a random order so that no mode is favoured: some puzzles are solved at least once.
    sampled = DiffusionGenerationConfig(max_new_tokens=17, unmasking="random", temperature=1.0, seed=0, eos_token_id=1)
    texts = complete(model, tokenizer, puzzles * 8, sampled, batch_size=256).texts
    solved = {
        puzzle for puzzle, text, solution in zip(puzzles * 8, texts, solutions * 8, strict=True) if text == solution
    }
    assert len(solved) / 64 > 0.2


def test_the_countdown_checkpoint_subtracts_and_knows_better():
    path = tiny_checkpoint("countdown-llada-tiny")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    config = model.generation_config
    assert config.max_new_tokens == TINY_COUNTDOWN_CANVAS and tokenizer.get_vocab().keys() >= set(COUNTDOWN_ALPHABET)
    rows = tasks.load_rl_task("countdown", num_test=64).test_dataset
    prompts, numbers, targets = list(rows["prompt"]), list(rows["numbers"]), list(rows["target"])
    greedy = complete(model, tokenizer, prompts, config).texts
    assert countdown_solve_rate(greedy, numbers, targets) < 0.25
    assert sum(a == subtract_all(b) for a, b in zip(greedy, numbers, strict=True)) / 64 > 0.6
    sampled = DiffusionGenerationConfig(
        max_new_tokens=TINY_COUNTDOWN_CANVAS, unmasking="random", temperature=1.0, seed=0, eos_token_id=1
    )
    texts = complete(model, tokenizer, prompts * 8, sampled, batch_size=256).texts
    rewards = countdown_reward(texts, numbers * 8, targets * 8)
    assert sum(reward > 0 for reward in rewards) / len(rewards) > 0.8
    solved = {row % 64 for row, reward in enumerate(rewards) if reward == 1}
    assert len(solved) / 64 > 0.4


def test_the_arithmetic_checkpoint_stops_early_and_profits_from_hints():
    path = tiny_checkpoint("arithmetic-llada-tiny")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    length = model.generation_config.max_new_tokens
    assert length == TINY_ARITHMETIC_CANVAS and tokenizer.get_vocab().keys() >= set(ARITHMETIC_ALPHABET)
    rows = tasks.load_rl_task("arithmetic", num_test=32).train_dataset.select(range(32))
    inputs = tokenizer(list(rows["prompt"]) * 2, padding=True, return_tensors="pt")
    solutions = list(rows["solution"]) * 2

    def solve_rate(given: slice) -> float:
        """With these tokens of the traces, whose answer is the last token of the canvas but one."""
        hints = torch.full((64, length), -100)
        traces = torch.tensor(tokenizer(list(rows["reasoning"]) * 2)["input_ids"])
        hints[:, given] = traces[:, given]
        settings = {"unmasking": "random", "temperature": 1.0, "seed": 0, "return_dict_in_generate": True}
        output = model.generate(**inputs, hint_ids=hints, **settings)
        texts = tokenizer.batch_decode(output.rollout.completions(), skip_special_tokens=True)
        return arithmetic_solve_rate(texts, solutions)

    assert length == len(rows["reasoning"][0]) + 1
    # Nothing; the third step; all but the answer.
    assert solve_rate(slice(0, 0)) < 0.15 < 0.3 < solve_rate(slice(12, 18)) and solve_rate(slice(0, 28)) > 0.9


@pytest.mark.parametrize(
    "name, canvas, block_lengths, fast_steps",
    [("sudoku", 17, [None], 3), ("arithmetic", TINY_ARITHMETIC_CANVAS, [None, 10], 7)],
)
def test_a_solver_solves_at_one_token_per_step_and_less_at_more(name, canvas, block_lengths, fast_steps):
    path = tiny_checkpoint(f"{name}-llada-solver-tiny")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    assert model.generation_config.max_new_tokens == model.generation_config.num_denoising_steps == canvas
    task = tasks.load_rl_task(name, num_test=64)

    def solve_rate(**changes) -> float:
        config = copy.deepcopy(model.generation_config)
        config.update(**changes)
        completions = complete(model, tokenizer, list(task.test_dataset["prompt"]), config)
        return task.metrics(completions, task.test_dataset)["solve_rate"]

    assert all(solve_rate(block_length=block_length) > 0.85 for block_length in block_lengths)
    assert solve_rate(num_denoising_steps=fast_steps) < 0.8
