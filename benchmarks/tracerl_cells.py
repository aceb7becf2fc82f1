# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The cells of benchmarks/tracerl.py: what is trained, and how it is measured."""

import json
import tempfile
import time
import zlib
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from cells import ON_A_CPU
from transformers import AutoTokenizer, PrinterCallback, set_seed

from trl_diffusion import DiffusionGRPOTrainer, MaskedView, TraceRLTrainer
from trl_diffusion.checkpoints import tiny_checkpoint
from trl_diffusion.evaluation import complete
from trl_diffusion.tasks import cell_accuracy, solve_rate, sudoku_dataset, sudoku_reward


CLUES = (5, 6)
CANVAS = 17  # 16 cells and EOS
THRESHOLD = 0.9
GENERATIONS = 8


class RandomMaskingTrainer(TraceRLTrainer):
    """The baseline of the TraceRL paper: tokens are scored in random states instead of those of the trajectory.

    The only change to [`TraceRLTrainer`] is which positions a view masks. A completion (a block of it, for
    block-causal attention) that commits its n tokens in T steps has T views in TraceRL, of which view k masks the
    tokens of step k and later and scores those of step k. Here each of its T views masks a uniformly drawn subset and
    scores all of it. The subset of view j has ⌈n (j − u) / T⌉ tokens, u ~ U[0, 1): every share of masks is equally
    likely, and the T views hold one of each (stratified, which is kind to the baseline). Tokens behind EOS are masked
    in every view, as in diffu-GRPO.

    So rollouts, forward passes, and the loss (`loss_type="step"`: the mean over a view's targets of a row's block,
    summed over blocks and views) are those of TraceRL: a row has the same total weight in the loss, shared out equally
    over its tokens in expectation. The masks depend on the tokens, their steps and the seed alone, so that old and
    current log-probabilities are those of the same views. A token may be the target of several views; old
    log-probabilities, which are kept once per token, are therefore not supported (one update per rollout).
    """

    _name = "Random masking"

    def _old_logprobs(self, output, rollout):
        raise NotImplementedError(
            "a token is the target of several views, and has one old log-probability: update once"
        )

    def draw_views(self, inputs: dict[str, torch.Tensor]) -> list[MaskedView]:
        views, steps = super().draw_views(inputs), inputs["unmask_step"]
        noise = []
        for ids, row_steps in zip(inputs["completion_ids"].cpu(), steps.cpu(), strict=True):
            content = ids.numpy().tobytes() + row_steps.numpy().tobytes()
            generator = torch.Generator().manual_seed(zlib.crc32(content, self.args.seed))
            noise.append(torch.rand(len(views), 2, len(ids), generator=generator))
        noise = torch.stack(noise).to(steps.device)  # (B, K, 2, C)
        return random_masks(views, steps > 0, inputs["completion_mask"].bool(), noise)


def random_masks(
    views: list[MaskedView], drawn: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor
) -> list[MaskedView]:
    """Views of the same number and weight that mask at random; see [`RandomMaskingTrainer`].

    Args:
        views (`list[MaskedView]`):
            K views of a trajectory.
        drawn, mask (`torch.BoolTensor` of shape (B, C)):
            Tokens that the model drew, and those of the completion.
        noise (`torch.FloatTensor` of shape (B, K, 2, C)):
            Uniform in [0, 1).
    """
    scored, found = drawn & mask, []
    if not views:
        return found
    group = torch.zeros_like(drawn, dtype=torch.long) if views[0].group is None else views[0].group
    same = group[:, :, None] == group[:, None, :]  # (B, C, C), of positions in one block

    def in_group(chosen: torch.Tensor) -> torch.Tensor:
        """How many of the chosen positions stand in the block of each position, (B, C)."""
        return (same & chosen[:, None, :]).sum(dim=2)

    size = in_group(scored)
    active = torch.stack([in_group(view.target) > 0 for view in views])  # (K, B, C)
    for number, view in enumerate(views):
        order, jitter = noise[:, number, 0], noise[:, number, 1].gather(1, group)  # one u per block
        share = (active[: number + 1].sum(dim=0) - jitter) / active.sum(dim=0).clamp(min=1)
        rank = (same & scored[:, None, :] & (order[:, None, :] < order[:, :, None])).sum(dim=2)
        target = scored & active[number] & (rank < (share * size).ceil())
        behind = drawn & ~mask & target.any(dim=1, keepdim=True)
        found.append(MaskedView(target | behind, target, group=view.group))
    return found


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Args:
        trainer: Class of the trainer.
        parts (`str`): Letters of the parts that show it.
        families (`tuple[str]`): Tiny checkpoints it is trained on.
        settings (`dict`): Fields of the trainer's config, over the common ones. A callable is given the steps.
        block_length (`int`, *optional*): Block it is evaluated at; the checkpoint's own by default.
    """

    trainer: type
    parts: str
    families: tuple[str, ...] = ("llada", "sdar")
    settings: dict[str, Any] = field(default_factory=dict)
    block_length: int | None = None


def _curriculum(steps: int) -> dict[str, Any]:
    """Blocks of 4 drawn and of 8 trained for 60 % of the steps, as in the paper, then 8 and 8."""
    return {"0": [4, 8], str(round(0.6 * steps)): 8}


# diffu-GRPO as it is: one view, all masked, and the mean over a completion's tokens (loss_type="grpo").
VARIANTS = {
    "tracerl": Variant(TraceRLTrainer, "abcde"),
    "random-masking": Variant(RandomMaskingTrainer, "a"),
    "diffu-grpo": Variant(DiffusionGRPOTrainer, "a", settings={"prompt_mask_probability": 0.0}),
    "tracerl-s2": Variant(TraceRLTrainer, "b", settings={"shrinkage": 2}),
    "tracerl-s4": Variant(TraceRLTrainer, "b", settings={"shrinkage": 4}),
    "tracerl-value": Variant(TraceRLTrainer, "c", settings={"value_model": "full", "value_learning_rate": 1e-3}),
    "tracerl-block8": Variant(TraceRLTrainer, "d", ("sdar",), {"block_length": 8}, block_length=8),
    "tracerl-curriculum": Variant(
        TraceRLTrainer, "d", ("sdar",), {"block_length_schedule": _curriculum}, block_length=8
    ),
    "tracerl-threshold": Variant(
        TraceRLTrainer, "e", settings={"unmasking": "threshold", "threshold": THRESHOLD, "num_denoising_steps": None}
    ),
}

# Full attention: two tokens per step, as in the demo. Blocks of 4: one token per step, SDAR's four steps per block
# (with two there would be nothing left to merge at s = 4), and the exact cache.
DECODING = {"llada": {"num_denoising_steps": 8}, "sdar": {"num_denoising_steps": CANVAS, "cache": "block"}}


@dataclass(frozen=True)
class Cell:
    """A training run.

    Args:
        family (`str`): `"llada"` (full attention) or `"sdar"` (blocks of 4).
        variant (`str`): A name of [`VARIANTS`].
        seed (`int`): Of the training puzzles and the rollouts.
        steps (`int`): Optimizer steps; each with fresh rollouts.
        puzzles (`int`): Prompts per step, each with 8 completions.
        num_test (`int`): Held-out puzzles.
    """

    family: str
    variant: str
    seed: int
    steps: int = 40
    puzzles: int = 16
    num_test: int = 256

    @property
    def name(self) -> str:
        return f"{self.family}-{self.variant}-{self.seed}"

    def training(self) -> dict[str, Any]:
        """Fields of the trainer's config."""
        variant = VARIANTS[self.variant]
        own = {name: value(self.steps) if callable(value) else value for name, value in variant.settings.items()}
        return {
            "max_completion_length": CANVAS,
            "temperature": 1.0,
            "num_generations": GENERATIONS,
            "per_device_train_batch_size": self.puzzles * GENERATIONS,
            "learning_rate": 3e-4,
            "lr_scheduler_type": "constant",
            "max_steps": self.steps,
            **DECODING[self.family],
            **own,
        }

    def settings(self) -> dict[str, Any]:
        """What a result depends on, as JSON types."""
        variant = VARIANTS[self.variant]
        fields = {**asdict(self), "trainer": variant.trainer.__name__, "evaluation_block": variant.block_length}
        return json.loads(json.dumps(fields | {"training": self.training()}))

    def config(self, output_dir: str):
        """The trainer's config."""
        return VARIANTS[self.variant].trainer._config_class(
            output_dir=output_dir,
            seed=self.seed,
            **ON_A_CPU,
            **self.training(),
        )


def build_trainer(cell: Cell, output_dir: str):
    """The cell's trainer, on the shipped checkpoint."""
    path = str(tiny_checkpoint(f"sudoku-{cell.family}-tiny"))
    set_seed(cell.seed)
    trainer = VARIANTS[cell.variant].trainer(
        path,
        sudoku_reward,
        cell.config(output_dir),
        train_dataset=sudoku_dataset("train", 4000, num_clues=CLUES, seed=cell.seed),
        processing_class=AutoTokenizer.from_pretrained(path, padding_side="left"),
    )
    trainer.remove_callback(PrinterCallback)  # one line per step; the cell keeps them
    return trainer


def evaluate(trainer, cell: Cell) -> dict[str, dict[str, float]]:
    """Held-out puzzles decoded greedily: as the cell decodes its rollouts ("own"), and at a threshold of 0.9."""
    rows = sudoku_dataset("test", cell.num_test, num_clues=CLUES)
    prompts, puzzles, solutions = (list(rows[name]) for name in ("prompt", "puzzle", "solution"))
    threshold = {"unmasking": "threshold", "threshold": THRESHOLD, "num_denoising_steps": None}
    block = VARIANTS[cell.variant].block_length
    found = {}
    for name, decoding in (("own", {}), ("threshold", threshold)):
        special = {"eos_token_id": trainer.eos_token_ids, "pad_token_id": trainer.processing_class.pad_token_id}
        config = trainer.args.diffusion_generation_config(
            **{"temperature": 0.0, **special, **({"block_length": block} if block else {}), **decoding}
        )
        model = trainer.accelerator.unwrap_model(trainer.model)
        completions = complete(model, trainer.processing_class, prompts, config, batch_size=128)
        found[name] = {
            "solve_rate": solve_rate(completions.texts, puzzles, solutions),
            "cell_accuracy": cell_accuracy(completions.texts, puzzles, solutions),
            "tokens_per_step": sum(map(len, completions.ids)) / len(prompts) / completions.forward_passes,
        }
    return found


# Metric of a training step -> its name in the trainer's log.
_CURVES = {
    "reward": "reward",
    "views": "views",
    "entropy": "entropy",
    "seconds": "step_time",
    "advantage_std": "advantages/std",
}


def train_cell(cell: Cell) -> dict[str, Any]:
    """Train, and measure before and after."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(cell, folder)
        before = evaluate(trainer, cell)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        after = evaluate(trainer, cell)
    logs = [log for log in trainer.state.log_history if "reward" in log]
    curves = {name: [log[metric] for log in logs] for name, metric in _CURVES.items() if metric in logs[0]}
    curves["tokens_per_step"] = [log["completions/mean_length"] / log["generation/forward_passes"] for log in logs]
    return {
        "settings": cell.settings(),
        "before": before,
        "after": after,
        "curves": curves,
        "seconds_per_step": seconds / cell.steps,
        "threads": torch.get_num_threads(),
    }
