# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What the tiny checkpoints do before any reinforcement learning: the tables of their model cards.

    python benchmarks/tiny_checkpoints.py sudoku-llada-tiny sudoku-sdar-tiny
    python benchmarks/tiny_checkpoints.py countdown-llada-tiny
    python benchmarks/tiny_checkpoints.py arithmetic-llada-tiny
    python benchmarks/tiny_checkpoints.py sudoku-llada-solver-tiny
    python benchmarks/tiny_checkpoints.py arithmetic-llada-solver-tiny

256 held-out problems: puzzles with 5 or 6 clues, none of whose solutions were trained on, targets for three numbers
that were not trained on together, or sums of four steps. "Wrong procedure": the completion is what filling each row's
missing digits in ascending order gives, or the numbers joined by minus signs, or half of the steps. "Solved in 8": at
least one of eight samples is right.

Arithmetic has traces: a second table says what hints do, on 64 problems of the training split, 8 samples each.

The solvers were trained on right solutions only: their table is that of greedy decoding with fewer and fewer steps, of
the whole canvas and of blocks. "Right traces": every step is right, not the answer alone.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_diffusion import DiffusionGenerationConfig
from trl_diffusion.checkpoints import tiny_checkpoint
from trl_diffusion.evaluation import Completions, complete
from trl_diffusion.evaluation.completion import encode_prompts
from trl_diffusion.generation.inpainting import draw_hints
from trl_diffusion.tasks import (
    TINY_ARITHMETIC,
    TINY_ARITHMETIC_CANVAS,
    TINY_COUNTDOWN,
    TINY_COUNTDOWN_CANVAS,
    arithmetic_dataset,
    arithmetic_format_reward,
    arithmetic_reward,
    cell_accuracy,
    countdown_dataset,
    countdown_reward,
    greedy_row_fill,
    stop_half_way,
    subtract_all,
    sudoku_dataset,
)
from trl_diffusion.tasks.answers import answer_spans
from trl_diffusion.tasks.arithmetic_problems import read_problem


# Rule, the canvas over the denoising steps, temperature.
SETTINGS = [
    ("low_confidence", 1, 0.0),
    ("low_confidence", 2, 0.0),
    ("low_confidence", 4, 0.0),
    ("low_confidence", 2, 1.0),
    ("random", 1, 1.0),
]

# Of the solvers, decoded greedily: rule, the canvas over the denoising steps, threshold. Where the canvas is shorter
# than a step it takes one step.
RULES = [
    *[("low_confidence", stride, None) for stride in (1, 2, 3, 4, 8)],
    *[("threshold", 1, threshold) for threshold in (0.99, 0.9, 0.7)],
]
AT_ONCE = ("low_confidence", 32, None)
# With the block length in front; None is one block. Two lengths show at one token per step that all of them work.
SOLVER_SETTINGS = {
    "sudoku": [(None, *rule) for rule in (*RULES, AT_ONCE)],
    "arithmetic": [
        *[(None, *rule) for rule in (*RULES, AT_ONCE)],
        *[(10, *rule) for rule in RULES],
        (15, *RULES[0]),
        (6, *RULES[0]),
    ],
}


@dataclass
class Task:
    """Held-out problems. `right` and the measure of partial success take the texts of one or more rounds of them."""

    canvas: int
    prompts: list[str]
    procedure: list[str]
    right: Callable[[list[str]], list[bool]]
    measure: str
    partly: Callable[[list[str]], float]


def sudoku() -> Task:
    rows = sudoku_dataset("test", 256, num_clues=(5, 6))
    puzzles, solutions = list(rows["puzzle"]), list(rows["solution"])

    def right(texts: list[str]) -> list[bool]:
        return [text == solutions[row % 256] for row, text in enumerate(texts)]

    def accuracy(texts: list[str]) -> float:
        rounds = len(texts) // 256
        return cell_accuracy(texts, puzzles * rounds, solutions * rounds)

    return Task(17, puzzles, [greedy_row_fill(puzzle) for puzzle in puzzles], right, "cell accuracy", accuracy)


def countdown() -> Task:
    rows = countdown_dataset("test", 256, **TINY_COUNTDOWN)
    numbers, targets = list(rows["numbers"]), list(rows["target"])

    def rewards(texts: list[str]) -> list[float]:
        rounds = len(texts) // 256
        return countdown_reward(texts, numbers * rounds, targets * rounds)

    return Task(
        TINY_COUNTDOWN_CANVAS,
        list(rows["prompt"]),
        [subtract_all(row) for row in numbers],
        lambda texts: [reward == 1 for reward in rewards(texts)],
        "expressions",
        lambda texts: sum(reward > 0 for reward in rewards(texts)) / len(texts),
    )


def arithmetic() -> Task:
    rows = arithmetic_dataset("test", 256, **TINY_ARITHMETIC)
    solutions = list(rows["solution"])
    return Task(
        TINY_ARITHMETIC_CANVAS,
        list(rows["prompt"]),
        [stop_half_way(read_problem(prompt)) for prompt in rows["prompt"]],
        lambda texts: [reward == 1 for reward in arithmetic_reward(texts, solutions * (len(texts) // 256))],
        "marked answers",
        lambda texts: sum(reward > 0 for reward in arithmetic_format_reward(texts)) / len(texts),
    )


def arithmetic_traces() -> Task:
    """Arithmetic for a model that marks an answer in every completion, whose steps may still contradict it."""
    traces = list(arithmetic_dataset("test", 256, **TINY_ARITHMETIC)["reasoning"])

    def in_full(texts: list[str]) -> float:
        return sum(text == traces[row % 256] for row, text in enumerate(texts)) / len(texts)

    return replace(arithmetic(), measure="right traces", partly=in_full)


TASKS = {"sudoku": sudoku, "countdown": countdown, "arithmetic": arithmetic}
SOLVER_TASKS = {"sudoku": sudoku, "arithmetic": arithmetic_traces}


def tokens_per_step(completions: Completions) -> float:
    """Tokens of the completions, EOS included, over the forward passes."""
    return sum(map(len, completions.ids)) / len(completions.ids) / completions.forward_passes


def print_steps(path: Path, model, tokenizer):
    """Solve rates of a solver by the number of steps."""
    kind = path.name.split("-")[0]
    task = SOLVER_TASKS[kind]()
    columns = ("checkpoint", "rule", "block length", "steps", "tokens per step", "solve rate", task.measure)
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for block, rule, stride, threshold in SOLVER_SETTINGS[kind]:
        config = DiffusionGenerationConfig(
            max_new_tokens=task.canvas,
            block_length=block,
            num_denoising_steps=max(task.canvas // stride, 1),
            unmasking=rule,
            threshold=threshold,
            seed=0,
            eos_token_id=tokenizer.eos_token_id,
        )
        completions = complete(model, tokenizer, task.prompts, config, batch_size=256)
        print(
            f"| {path.name} | {rule}{f' {threshold}' if threshold else ''} | {block or '–'} "
            f"| {completions.forward_passes:.1f} | {tokens_per_step(completions):.2f} "
            f"| {sum(task.right(completions.texts)) / 256:.3f} | {task.partly(completions.texts):.3f} |",
            flush=True,
        )


def print_hints(path: Path, model, tokenizer):
    """Solve rates of samples, and groups of 8 without a right one, by the share of the trace that is given."""
    print(
        "\n| checkpoint | rule | tokens per step | hints | solve rate | all-wrong groups |\n|---|---|---|---|---|---|"
    )
    rows, length = arithmetic_dataset("train", 64, **TINY_ARITHMETIC), TINY_ARITHMETIC_CANVAS
    traces = tokenizer([trace[: answer_spans(trace)[0][0]] for trace in rows["reasoning"]])["input_ids"]
    inputs = encode_prompts(tokenizer, list(rows["prompt"]))
    for rule, stride in (("low_confidence", 2), ("random", 1)):
        for name, share in (("none", (0.0, 0.0)), ("20-60 %", (0.2, 0.6)), ("all", (1.0, 1.0))):
            generator, rewards = np.random.default_rng(0), []
            for sample in range(8):
                # IGPO's defaults.
                settings = ((5, 10), length // 4, "stretched", generator)
                ratios = generator.uniform(*share, size=len(traces))
                hints = [
                    draw_hints(ids, [True] * len(ids), length, ratio, *settings)
                    for ids, ratio in zip(traces, ratios, strict=True)
                ]
                output = model.generate(
                    **inputs,
                    hint_ids=torch.tensor(hints),
                    max_new_tokens=length,
                    num_denoising_steps=length // stride,
                    unmasking=rule,
                    temperature=1.0,
                    seed=sample,
                    return_dict_in_generate=True,
                )
                texts = tokenizer.batch_decode(output.rollout.completions(), skip_special_tokens=True)
                rewards.append(arithmetic_reward(texts, list(rows["solution"])))
            right = torch.tensor(rewards)  # (8, B)
            all_wrong = (right.sum(0) == 0).float().mean()
            print(f"| {path.name} | {rule} | {stride} | {name} | {right.mean():.3f} | {all_wrong:.3f} |", flush=True)


def main():
    printed = None
    for name in sys.argv[1:]:
        path = Path(name) if Path(name).exists() else tiny_checkpoint(name)
        model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        if "-solver-" in path.name:
            print_steps(path, model, tokenizer)
            continue
        kind = path.name.split("-")[0]
        task = TASKS[kind]()
        if kind != printed:
            columns = ("checkpoint", "rule", "tokens per step", "temperature", "solve rate", task.measure)
            print(f"| {' | '.join([*columns, 'wrong procedure', 'solved in 8'])} |")
            print("|---|---|---|---|---|---|---|---|")
            printed = kind
        for rule, stride, temperature in SETTINGS:
            config = DiffusionGenerationConfig(
                max_new_tokens=task.canvas,
                num_denoising_steps=task.canvas // stride,
                unmasking=rule,
                temperature=temperature,
                seed=0,
                eos_token_id=tokenizer.eos_token_id,
            )
            repeats = 8 if temperature else 1
            completions = complete(model, tokenizer, task.prompts * repeats, config, batch_size=256)
            texts = completions.texts
            followed = sum(a == b for a, b in zip(texts, task.procedure * repeats, strict=True)) / len(texts)
            right = task.right(texts)
            solved = {row % 256 for row, solves in enumerate(right) if solves}
            print(
                f"| {path.name} | {rule} | {tokens_per_step(completions):.2f} | {temperature:.0f} "
                f"| {sum(right) / len(right):.3f} | {task.partly(texts):.3f} | {followed:.3f} "
                f"| {f'{len(solved) / 256:.3f}' if temperature else '–'} |",
                flush=True,
            )
        if kind == "arithmetic":
            print_hints(path, model, tokenizer)


if __name__ == "__main__":
    main()
