# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What benchmarks/unmask_policy.py measures: environments, and the points of rules and policies in them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import AutoTokenizer

from trl_diffusion import AutoModelForDiffusionLM, DiffusionGenerationConfig, UnmaskPolicyModel
from trl_diffusion.checkpoints import tiny_checkpoint
from trl_diffusion.evaluation import DecodingPoint, FrontierRow, measure_frontier
from trl_diffusion.scripts.tasks import load_rl_task


BETAS = (0.25, 0.5, 1.0, 2.0, 4.0)
MEASURED_SEEDS = (1, 2, 3)
_THRESHOLDS = (
    0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999
)  # fmt: skip
_FACTORS = (0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0, 4.0)
_ENTROPY_BOUNDS = (0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Environment:
    """A checkpoint and how it writes.

    Args:
        task (`str`):
            Whose problems it solves.
        checkpoint (`str`):
            A tiny checkpoint.
        canvas (`int`), block_length (`int`, *optional*):
            Tokens; `None`: the model's block, or the whole canvas.
    """

    task: str
    checkpoint: str
    canvas: int
    block_length: int | None = None


ENVIRONMENTS = {
    "sudoku": Environment("sudoku", "sudoku-llada-solver-tiny", 17),
    "arithmetic": Environment("arithmetic", "arithmetic-llada-solver-tiny", 30, 10),
    "sudoku-doubled": Environment("sudoku", "sudoku-llada-solver-tiny", 34),
    "arithmetic-doubled": Environment("arithmetic", "arithmetic-llada-solver-tiny", 60, 10),
    "sudoku-weak": Environment("sudoku", "sudoku-llada-tiny", 17),
    "sudoku-block-causal": Environment("sudoku", "sudoku-sdar-tiny", 17),
}
# Where policies of a task are tried that they were not trained.
TRANSFER = {
    "sudoku": ("arithmetic", "sudoku-doubled", "sudoku-weak", "sudoku-block-causal"),
    "arithmetic": ("sudoku", "arithmetic-doubled", "sudoku-block-causal"),
}


def measure_points(
    environment: Environment, points: list[DecodingPoint], num_test: int, seeds: Sequence[int], model=None
) -> list[FrontierRow]:
    """Accuracy and forward passes on held-out problems, tokens greedy."""
    path = tiny_checkpoint(environment.checkpoint)
    if model is None:
        model = AutoModelForDiffusionLM.from_pretrained(path, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    data = load_rl_task(environment.task, num_test=num_test)
    config = DiffusionGenerationConfig(
        max_new_tokens=environment.canvas,
        block_length=environment.block_length,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return measure_frontier(
        model,
        tokenizer,
        list(data.test_dataset["prompt"]),
        points,
        lambda completions: data.correct(completions, data.test_dataset),
        config,
        batch_size=128,
        seeds=seeds,
    )


def as_json(rows: list[FrontierRow]) -> list[dict[str, Any]]:
    return [asdict(row) | {"seeds": list(row.seeds)} for row in rows]


def heuristics(canvas: int, block_length: int | None, random: bool = True) -> list[DecodingPoint]:
    """The rules over their settings; on canvases longer than those of training, where the models solve next to
    nothing, a few of them."""
    fewest = -(-canvas // block_length) if block_length else 1
    long = canvas > 30
    steps = [*range(fewest, canvas, canvas // 4 if long else 1), canvas]
    random = random and not long
    points = []
    for rule, field, values in (
        ("threshold", "threshold", _THRESHOLDS),
        ("factor", "factor", _FACTORS),
        ("entropy_bounded", "entropy_bound", _ENTROPY_BOUNDS),
    ):
        chosen = values[4::5] if long else values
        points += [DecodingPoint(rule, {"unmasking": rule, field: value}) for value in chosen]
    for rule in ("low_confidence", *(["random"] if random else [])):
        points += [DecodingPoint(rule, {"unmasking": rule, "num_denoising_steps": number}) for number in steps]
    return points


def measure_policy(
    environment: Environment,
    policy: UnmaskPolicyModel,
    num_test: int,
    model=None,
    betas: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """A policy at each β with several seeds, and at temperature 0, where nothing is drawn."""
    policy.eval()
    betas = BETAS if betas is None else betas
    drawn = [DecodingPoint("policy", {"unmasking": policy, "policy_beta": beta}) for beta in betas]
    sure = [DecodingPoint("policy", {"unmasking": policy, "policy_temperature": 0.0})]
    rows = measure_points(environment, drawn, num_test, MEASURED_SEEDS, model)
    return as_json(rows + measure_points(environment, sure, num_test, MEASURED_SEEDS[:1], model))
