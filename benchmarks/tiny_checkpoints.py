# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What the tiny checkpoints do before any reinforcement learning: the tables of their model cards.

    python benchmarks/tiny_checkpoints.py sudoku-llada-tiny sudoku-sdar-tiny
    python benchmarks/tiny_checkpoints.py countdown-llada-tiny

256 held-out problems: puzzles with 5 or 6 clues, none of whose solutions were trained on, or targets for three numbers
that were not trained on together. "Wrong procedure": the completion is what filling each row's missing digits in
ascending order gives, or the numbers joined by minus signs. "Solved in 8": at least one of eight samples is right.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_diffusion import DiffusionGenerationConfig
from trl_diffusion.checkpoints import tiny_checkpoint
from trl_diffusion.evaluation import complete
from trl_diffusion.tasks import (
    TINY_COUNTDOWN,
    TINY_COUNTDOWN_CANVAS,
    cell_accuracy,
    countdown_dataset,
    countdown_reward,
    greedy_row_fill,
    subtract_all,
    sudoku_dataset,
)


# Rule, the canvas over the denoising steps, temperature.
SETTINGS = [
    ("low_confidence", 1, 0.0),
    ("low_confidence", 2, 0.0),
    ("low_confidence", 4, 0.0),
    ("low_confidence", 2, 1.0),
    ("random", 1, 1.0),
]


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


TASKS = {"sudoku": sudoku, "countdown": countdown}


def main():
    printed = None
    for name in sys.argv[1:]:
        path = Path(name) if Path(name).exists() else tiny_checkpoint(name)
        kind = path.name.split("-")[0]
        task = TASKS[kind]()
        if kind != printed:
            columns = ("checkpoint", "rule", "tokens per step", "temperature", "solve rate", task.measure)
            print(f"| {' | '.join([*columns, 'wrong procedure', 'solved in 8'])} |")
            print("|---|---|---|---|---|---|---|---|")
            printed = kind
        model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
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
            speed = sum(map(len, completions.ids)) / len(texts) / completions.forward_passes
            followed = sum(a == b for a, b in zip(texts, task.procedure * repeats, strict=True)) / len(texts)
            right = task.right(texts)
            solved = {row % 256 for row, solves in enumerate(right) if solves}
            print(
                f"| {path.name} | {rule} | {speed:.2f} | {temperature:.0f} "
                f"| {sum(right) / len(right):.3f} | {task.partly(texts):.3f} | {followed:.3f} "
                f"| {f'{len(solved) / 256:.3f}' if temperature else '–'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
