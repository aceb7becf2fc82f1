# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What the tiny Sudoku checkpoints do before any reinforcement learning: the table of their model cards.

    python benchmarks/tiny_checkpoints.py sudoku-llada-tiny sudoku-sdar-tiny

256 held-out puzzles with 5 or 6 clues, none of whose solutions were trained on. "Wrong procedure": the completion is
what filling each row's missing digits in ascending order gives. "Solved in 8": at least one of eight samples is right.
"""

import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_diffusion import DiffusionGenerationConfig
from trl_diffusion.checkpoints import tiny_checkpoint
from trl_diffusion.evaluation import complete
from trl_diffusion.tasks import cell_accuracy, greedy_row_fill, solve_rate, sudoku_dataset


# Rule, denoising steps for 17 tokens, temperature.
SETTINGS = [
    ("low_confidence", 17, 0.0),
    ("low_confidence", 8, 0.0),
    ("low_confidence", 4, 0.0),
    ("low_confidence", 8, 1.0),
    ("random", 17, 1.0),
]


def main():
    rows = sudoku_dataset("test", 256, num_clues=(5, 6))
    puzzles, solutions = list(rows["puzzle"]), list(rows["solution"])
    procedure = [greedy_row_fill(puzzle) for puzzle in puzzles]
    columns = ("checkpoint", "rule", "tokens per step", "temperature", "solve rate", "cell accuracy")
    print(f"| {' | '.join([*columns, 'wrong procedure', 'solved in 8'])} |")
    print("|---|---|---|---|---|---|---|---|")
    for name in sys.argv[1:]:
        path = Path(name) if Path(name).exists() else tiny_checkpoint(name)
        model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        for rule, steps, temperature in SETTINGS:
            config = DiffusionGenerationConfig(
                max_new_tokens=17,
                num_denoising_steps=steps,
                unmasking=rule,
                temperature=temperature,
                seed=0,
                eos_token_id=tokenizer.eos_token_id,
            )
            repeats = 8 if temperature else 1
            completions = complete(model, tokenizer, puzzles * repeats, config, batch_size=256)
            texts = completions.texts
            speed = sum(map(len, completions.ids)) / len(texts) / completions.forward_passes
            followed = sum(a == b for a, b in zip(texts, procedure * repeats, strict=True)) / len(texts)
            solved = {row % 256 for row, text in enumerate(texts) if text == solutions[row % 256]}
            print(
                f"| {path.name} | {rule} | {speed:.2f} | {temperature:.0f} "
                f"| {solve_rate(texts, puzzles * repeats, solutions * repeats):.3f} "
                f"| {cell_accuracy(texts, puzzles * repeats, solutions * repeats):.3f} | {followed:.3f} "
                f"| {f'{len(solved) / 256:.3f}' if temperature else '–'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
