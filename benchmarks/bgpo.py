# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The claims of the BGPO paper (arXiv 2510.11683), on tiny checkpoints with full attention, on a CPU.

    python benchmarks/bgpo.py run        # every cell not there yet; each takes about a minute
    python benchmarks/bgpo.py memory     # memory and seconds of a training step against the number of masked copies
    python benchmarks/bgpo.py report     # the tables, and the curves in docs/figures

(a) bias and variance of the gradient against the number n of masked copies, on-policy and off-policy, (b) BGPO, the
exact ELBO, diffu-GRPO and coupled-GRPO at equal rollouts, (c) both halves of the bound, one half, and the exact ELBO
where each rollout is updated on 2 or 4 times, at equal rollouts, (d) how noise levels are drawn: variance and
training. Cells that several parts share are measured once. One that is interrupted leaves nothing; the others stay.
"""

import argparse
from pathlib import Path

import torch
from bgpo_cells import TASKS, VARIANTS, TrainingCell
from bgpo_gradients import OBJECTIVES, SCHEMES, UPDATES, GradientCell
from bgpo_memory import measure_memory
from bgpo_report import write_report
from cells import Result, run_missing


ROOT = Path(__file__).parents[1]
PARTS = "abcd"


def cells_of(args) -> list[TrainingCell | GradientCell]:
    """The cells of the parts, without repetition, seed by seed: with a part of them a table can be made already."""
    trained = {"prompts": args.prompts, "num_test": args.num_test}
    drawn = {"prompts": args.gradient_prompts, "repeats": args.repeats, "reference": args.reference}
    drawn["mc_samples"] = tuple(args.mc_samples)
    # On-policy all objectives have the gradient of the first. Those of one distance share a reference: in a row.
    gradients = {(0, name): "d" for name in SCHEMES} | {(u, name): "a" for u in UPDATES[1:] for name in OBJECTIVES}
    gradients[0, "bgpo"] = "ad"
    cells = []
    for seed in args.seeds:
        for task in args.tasks:
            for (updates, name), parts in gradients.items():
                if set(args.parts) & set(parts):
                    cells.append(GradientCell(task, name, updates, seed, **drawn))
            for name, variant in VARIANTS.items():
                if set(args.parts) & set(variant.parts):
                    rollouts = args.rollouts or variant.rollouts
                    cells.append(TrainingCell(task, name, seed, rollouts, **trained))
    return [cell for cell in cells if cell.kind in args.kinds]


def _describe(result: Result) -> str:
    if result["settings"]["kind"] == "gradient":
        return f"variance {', '.join(f'{value:.3g}' for value in result['variance'])}"
    before, after = result["before"]["solve_rate"], (result["after"] or {}).get("solve_rate", float("nan"))
    return f"solve rate {before:.3f} → {after:.3f}, {result['cpu_seconds_per_update']:.2f} CPU s per update"


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure the cells that are not there yet")
    memory = commands.add_parser("memory", help="memory and seconds of a training step for several n")
    report = commands.add_parser("report", help="tables and curves of the cells that are there")
    run.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    run.add_argument("--kinds", nargs="+", default=["gradient", "training"], choices=["gradient", "training"])
    run.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    run.add_argument("--rollouts", type=int, help="generation batches of a training: 30, or 15 with 4 updates")
    run.add_argument("--num_test", type=int, default=TrainingCell.num_test, help="held-out problems")
    run.add_argument("--mc_samples", type=int, nargs="+", default=GradientCell.mc_samples, help="n of the gradients")
    run.add_argument("--gradient_prompts", type=int, default=GradientCell.prompts, help="prompts of the gradients")
    run.add_argument("--repeats", type=int, default=GradientCell.repeats, help="gradients for each n")
    run.add_argument("--reference", type=int, default=GradientCell.reference, help="n of the reference")
    run.add_argument("--overwrite", action="store_true", help="measure cells anew that are there")
    memory.add_argument("--mc_samples", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    memory.add_argument("--repetitions", type=int, default=5)
    report.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures", help="folder of the curves")
    for command in (run, memory):
        command.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
        command.add_argument("--prompts", type=int, default=TrainingCell.prompts, help="each with 8 completions")
        command.add_argument("--threads", type=int, default=1)
    for command in (run, report):
        command.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "bgpo")
    args = parser.parse_args(arguments)
    if args.command == "report":
        print(write_report(args.output, args.figures))
        return
    torch.set_num_threads(args.threads)
    if args.command == "run":
        run_missing(cells_of(args), args.output, args.overwrite, lambda cell: cell.measure(), _describe)
    else:
        for task in args.tasks:
            measure_memory(task, args.mc_samples, args.prompts, args.repetitions, args.threads)


if __name__ == "__main__":
    main()
