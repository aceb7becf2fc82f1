# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What a learned unmasking policy (arXiv 2512.09106) gains over rules, on tiny checkpoints on a CPU.

    python benchmarks/unmask_policy.py run        # every cell not there yet
    python benchmarks/unmask_policy.py report     # the tables, and the figures in docs/figures

Accuracy on held-out problems against forward passes per completion: of rules over their settings (`heuristics`), of
policies trained at several prices of a step (`policies`), with the additive reward (`forms`), with an expert's rollout
in each group (`expert`), beside training of the model (`joint`), and on models and lengths that they were not trained
on (`transfer`). Cells that several parts share are measured once. One that is interrupted leaves nothing; the others
stay.
"""

import argparse
from pathlib import Path

import torch
from cells import Result, run_missing
from unmask_policy_cells import (
    JOINT,
    SETTINGS,
    HeuristicsCell,
    JointCell,
    PolicyCell,
    TransferCell,
    policy_folder,
)
from unmask_policy_points import ENVIRONMENTS, TRANSFER


ROOT = Path(__file__).parents[1]
ALPHAS = (10.0, 3.0, 1.0, 0.3)
FORMS_ALPHAS = (1.0,)
EXPERT_ALPHAS = (3.0,)
TRANSFER_ALPHAS = (1.0, 0.3)
PARTS = ("heuristics", "policies", "forms", "expert", "joint", "transfer")


def _describe(result: Result) -> str:
    rows = [row for row in result["rows"] if row["setting"] in ("policy_beta=1.0", "threshold=0.9")]
    points = ", ".join(f"{row['accuracy']:.3f} at {row['forward_passes']:.1f} ({row['curve']})" for row in rows)
    return points + (", collapsed" if result.get("collapsed") else "")


def wanted(parts: list[str], tasks: list[str], seeds: list[int], num_test: int, steps: int | None) -> list:
    """The cells of some parts, in the order in which they are measured: seed by seed, so that with a part of them a
    table can be made already."""
    sizes = (num_test, steps)
    found = []
    if "heuristics" in parts:
        found += [HeuristicsCell(name, num_test) for name, where in ENVIRONMENTS.items() if where.task in tasks]
    for seed in seeds:
        if "policies" in parts:
            found += [PolicyCell(task, alpha, seed, *sizes) for alpha in ALPHAS for task in tasks]
        if "sudoku" in tasks and "forms" in parts:
            found += [PolicyCell("sudoku", alpha, seed, *sizes, form="additive") for alpha in FORMS_ALPHAS]
        if "sudoku" in tasks and "expert" in parts:
            found += [PolicyCell("sudoku", alpha, seed, *sizes, expert=True) for alpha in EXPERT_ALPHAS]
        if "sudoku" in tasks and "joint" in parts:
            found += [JointCell(variant, seed, *sizes) for variant in JOINT]
    if "transfer" in parts:
        found += [
            TransferCell(task, alpha, environment, num_test)
            for task in tasks
            for alpha in TRANSFER_ALPHAS
            for environment in TRANSFER[task]
        ]
    return found


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure the cells that are not there yet")
    report = commands.add_parser("report", help="tables and figures of the cells that are there")
    run.add_argument("--part", nargs="+", default=list(PARTS), choices=PARTS)
    run.add_argument("--tasks", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    run.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    run.add_argument("--num_test", type=int, default=256, help="held-out problems")
    run.add_argument("--steps", type=int, help="updates of a training, instead of those of its settings")
    run.add_argument("--overwrite", action="store_true", help="measure cells anew that are there")
    run.add_argument("--threads", type=int, default=1)
    report.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures", help="folder of the figures")
    for command in (run, report):
        command.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "unmask_policy")
    args = parser.parse_args(arguments)
    if args.command == "report":
        from unmask_policy_report import write_report

        print(write_report(args.output, args.figures))
        return
    torch.set_num_threads(args.threads)
    cells = wanted(args.part, args.tasks, args.seeds, args.num_test, args.steps)
    # Those that are trained now are there when transfer comes.
    trained = {(cell.task, cell.alpha) for cell in cells if isinstance(cell, PolicyCell) and cell.seed == 1}
    for cell in cells:
        if isinstance(cell, TransferCell) and (cell.task, cell.alpha) not in trained:
            policy_folder(args.output, cell.task, cell.alpha, must_exist=True)
    run_missing(cells, args.output, args.overwrite, lambda cell: cell.measure(args.output), _describe)


if __name__ == "__main__":
    main()
