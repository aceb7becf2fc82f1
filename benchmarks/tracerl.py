# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The claims of the TraceRL paper (arXiv 2509.06949), on the tiny Sudoku checkpoints, on a CPU.

    python benchmarks/tracerl.py run        # every cell not there yet; each takes about a minute
    python benchmarks/tracerl.py timing     # seconds of a training step for s = 1, 2, 4
    python benchmarks/tracerl.py report     # the tables, and the curves in docs/figures

(a) TraceRL against random masking and diffu-GRPO at equal rollouts, (b) shrinkage s = 1, 2, 4, (c) with and without
the value model, (d) blocks of 4 → 8 by a curriculum against 8 from the start, (e) tokens per step at a threshold.
Cells that several parts share are trained once. One that is interrupted leaves nothing; the others stay.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch
from cells import Result, run_missing
from generation_tools import Report, ratios, spread, timed
from tracerl_cells import GENERATIONS, VARIANTS, Cell, build_trainer, train_cell
from tracerl_report import write_report


ROOT = Path(__file__).parents[1]


def cells_of(args) -> list[Cell]:
    """The cells of the parts, without repetition, seed by seed: with a part of them a table can be made already."""
    size = {"steps": args.steps, "puzzles": args.puzzles, "num_test": args.num_test}
    return [
        Cell(family, name, seed, **size)
        for seed in args.seeds
        for name, variant in VARIANTS.items()
        for family in variant.families
        if set(args.parts) & set(variant.parts) and family in args.families
    ]


def _solve_rates(result: Result) -> str:
    before, after = (result[when]["own"]["solve_rate"] for when in ("before", "after"))
    return f"solve rate {before:.3f} → {after:.3f}, {result['seconds_per_step']:.2f} s per step"


def run_cells(args):
    """Train what is not there yet."""
    run_missing(cells_of(args), args.output, args.overwrite, train_cell, _solve_rates)


def run_timing(args):
    """s = 1, 2, 4 in turns on the same rollouts in one process: loss and backward pass."""
    report, cpu = Report(), torch.device("cpu")
    report.table(
        f"A training step of {args.puzzles * GENERATIONS} completions, {args.threads} thread(s), {args.repetitions} "
        "rounds: median (least–largest)",
        *("checkpoint", "s", "views", "loss and backward, s", "s = 1 takes times as long", "with the rollout, s"),
        "s = 1 takes times as long, with the rollout",
    )
    for family in args.families:
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_trainer(Cell(family, "tracerl", 1, puzzles=args.puzzles), folder)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        rows = [trainer.train_dataset[row] for row in range(args.puzzles) for _ in range(GENERATIONS)]
        generate = partial(trainer._generate_and_score_completions, rows)
        batch = generate()

        def step(trainer=trainer, batch=batch):
            trainer.accelerator.backward(trainer._compute_loss(trainer.model, batch))
            trainer.model.zero_grad()

        seconds, rollouts, views = {s: [] for s in args.shrinkages}, [], {}
        # A round more than is reported: what is done for the first time is done there.
        for number in range(args.repetitions + 1):
            rollout = timed(generate, cpu)[1]
            rollouts += [rollout] * (number > 0)
            for s in args.shrinkages:
                trainer.args.shrinkage = s
                views[s] = len(trainer.draw_views(batch))
                elapsed = timed(step, cpu)[1]
                seconds[s] += [elapsed] * (number > 0)
        first = args.shrinkages[0]
        whole = {s: [a + b for a, b in zip(values, rollouts, strict=True)] for s, values in seconds.items()}
        for s, values in seconds.items():
            gains = (spread(ratios(known[first], known[s])) for known in (seconds, whole))
            report.row(
                f"sudoku-{family}-tiny", s, views[s], spread(values), next(gains), spread(whole[s]), next(gains)
            )


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train the cells that are not there yet")
    timing = commands.add_parser("timing", help="seconds of a training step for several s")
    report = commands.add_parser("report", help="tables and curves of the cells that are there")
    run.add_argument("--parts", nargs="+", default=list("abcde"), choices=list("abcde"))
    run.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    run.add_argument("--steps", type=int, default=Cell.steps, help="optimizer steps of a cell")
    run.add_argument("--num_test", type=int, default=Cell.num_test, help="held-out puzzles")
    run.add_argument("--overwrite", action="store_true", help="train cells anew that are there")
    timing.add_argument("--shrinkages", type=int, nargs="+", default=[1, 2, 4])
    timing.add_argument("--repetitions", type=int, default=7)
    report.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures", help="folder of the curves")
    for command in (run, timing):
        command.add_argument("--families", nargs="+", default=["llada", "sdar"], choices=["llada", "sdar"])
        command.add_argument("--puzzles", type=int, default=Cell.puzzles, help="per step, each with 8 completions")
        command.add_argument("--threads", type=int, default=1)
    for command in (run, report):
        command.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "tracerl")
    args = parser.parse_args(arguments)
    if args.command == "report":
        print(write_report(args.output, args.figures))
        return
    torch.set_num_threads(args.threads)
    {"run": run_cells, "timing": run_timing}[args.command](args)


if __name__ == "__main__":
    main()
