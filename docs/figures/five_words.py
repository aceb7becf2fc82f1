# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Draws docs/figures/five_words.svg, the picture of docs/concepts.md, from a rollout of a tiny checkpoint.

    python docs/figures/five_words.py

Upper part: the canvas after each step of the rollout. Lower part: the masked views that TraceRL draws from it, one per
step, with the log-probability of each target as the model scores it, which is the one that was recorded.
"""

import argparse
from pathlib import Path

import matplotlib
import torch
from transformers import AutoTokenizer

from trl_diffusion import AutoModelForDiffusionLM, Rollout
from trl_diffusion.checkpoints import tiny_checkpoint
from trl_diffusion.likelihood import MaskedView, score_view, trace_masks
from trl_diffusion.tasks import sudoku_dataset


HERE = Path(__file__).parent
STEPS = 4
MASK, NEW, OLD, TARGET = "#d9dde3", "#f5b041", "#ffffff", "#58b19f"


def make_rollout():
    """A model, the text of its canvas' tokens, and its rollout on a puzzle of the test set."""
    path = tiny_checkpoint("sudoku-llada-tiny")
    model, tokenizer = AutoModelForDiffusionLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    puzzle = sudoku_dataset("test", num_puzzles=1)[0]
    inputs = tokenizer([puzzle["prompt"]], return_tensors="pt")
    output = model.generate(
        **inputs, max_new_tokens=17, num_denoising_steps=STEPS, temperature=1.0, seed=3, return_dict_in_generate=True
    )
    rollout = output.rollout
    tokens = tokenizer.convert_ids_to_tokens(rollout.canvas_ids[0].tolist())
    texts = ["EOS" if token == tokenizer.eos_token else token for token in tokens]
    return model, puzzle["prompt"], texts, rollout


def replay(model, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The views of a trace, masked and target (K, C), and the scores of their targets (K, C)."""
    masked, target = trace_masks(rollout.unmask_step)
    with torch.no_grad():
        scores = [
            score_view(model, rollout.prompt_ids, rollout.prompt_mask, rollout.canvas_ids, MaskedView(*view)).logprobs
            for view in zip(masked, target, strict=True)
        ]
    return masked[:, 0], target[:, 0], torch.cat(scores)


def two_digits(number: torch.Tensor) -> str:
    return f"{number:.2f}".replace("-0.00", "0.00")


def draw(path: Path) -> None:
    """Write the picture, as SVG or PNG by the name's ending."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    model, prompt, texts, rollout = make_rollout()
    masked, target, scores = replay(model, rollout)
    recorded = rollout.logprobs[0]
    assert torch.allclose(scores.sum(dim=0), recorded, atol=1e-4), "the views do not replay the rollout"
    steps, length = rollout.unmask_step[0], len(texts)

    plt.rcParams.update({"svg.hashsalt": "five words", "font.family": "DejaVu Sans"})
    figure, axes = plt.subplots(figsize=(11, 8.2))
    axes.set_xlim(-4.4, length + 0.2)
    axes.set_axis_off()
    axes.invert_yaxis()

    def cell(column, row, text, color, small=False):
        axes.add_patch(plt.Rectangle((column, row), 0.92, 0.8, facecolor=color, edgecolor="#5d6d7e", linewidth=0.8))
        axes.text(column + 0.46, row + 0.42, text, ha="center", va="center", fontsize=6.5 if small else 10)

    def label(row, text, **style):
        axes.text(-0.3, row + 0.42, text, ha="right", va="center", fontsize=9, **style)

    def title(row, text):
        axes.text(-4.4, row + 0.42, text, ha="left", va="center", fontsize=10, weight="bold")

    title(0, f"A rollout: the prompt {prompt}, and a canvas of {length} masks that fills up in {STEPS} steps.")
    for step in range(STEPS + 1):
        row = step + 1
        label(row, "canvas" if step == 0 else f"after step {step}")
        for column in range(length):
            place = int(steps[column])
            is_open = place > step or place == 0
            color = MASK if is_open else NEW if place == step else OLD
            cell(column, row, "" if is_open else texts[column], color, small=texts[column] == "EOS")
    row = STEPS + 2
    label(row, "unmask_step")
    for column in range(length):
        cell(column, row, str(int(steps[column])), "#eaf2f8")
    label(row + 1, "logprobs")
    for column in range(length):
        cell(column, row + 1, two_digits(recorded[column]), "#eaf2f8", small=True)

    title(row + 2.4, "Its masked views: one per step, with the tokens of that step to score (log-probability).")
    for index in range(len(masked)):
        here = row + 3.4 + index
        label(here, f"view {index + 1}")
        for column in range(length):
            if target[index, column]:
                cell(column, here, two_digits(scores[index, column]), TARGET, small=True)
            elif masked[index, column]:
                cell(column, here, "", MASK)
            else:
                cell(column, here, texts[column], OLD, small=texts[column] == "EOS")
    legend = ((MASK, "mask"), (NEW, "committed in this step, by the unmasking rule"), (TARGET, "target of the view"))
    below = row + 4.0 + len(masked)
    for index, (color, text) in enumerate(legend):
        left = (0, 3, 12)[index]
        axes.add_patch(plt.Rectangle((left, below), 0.6, 0.5, facecolor=color, edgecolor="#5d6d7e", linewidth=0.8))
        axes.text(left + 0.8, below + 0.27, text, va="center", fontsize=9)
    title(below + 1.1, "The objective: a loss of these scores, the recorded log-probabilities, and the advantage A:")
    formula = (
        r"$-\sum_{targets} \min(\rho A, \; clip(\rho, 1-\epsilon, 1+\epsilon) A)$,  $\rho = \exp(score - logprob)$"
    )
    axes.text(0, below + 2.4, formula, va="center", fontsize=12)
    axes.set_ylim(below + 3.0, -0.2)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "five_words.svg", help="Where to; .svg or .png.")
    draw(parser.parse_args().output)
