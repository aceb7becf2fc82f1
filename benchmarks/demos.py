# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""A demo over several seeds, as the tables of docs/results.md.

    python benchmarks/demos.py --demo tracerl --seeds 1 2 3 -- --model_name_or_path sudoku-llada-tiny
    python benchmarks/demos.py --demo bgpo --seeds 1 2 3
    python benchmarks/demos.py --demo igpo --seeds 1 2 3
    python benchmarks/demos.py --demo unmask_policy --seeds 1 2 3

What follows `--` goes to the demo's script in examples/. Run nothing else on the machine meanwhile: the seconds are
reported.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


EXAMPLES = Path(__file__).parents[1] / "examples"
# Script in examples/ -> its settings in examples/configs/.
DEMOS = {
    "tracerl": "tracerl_sudoku_tiny.yaml",
    "bgpo": "bgpo_countdown_tiny.yaml",
    "igpo": "igpo_arithmetic_tiny.yaml",
    "unmask_policy": "unmask_policy_sudoku_tiny.yaml",
}


def run(demo: str, seed: int, arguments: list[str]) -> dict:
    """One run of the demo; its results.json."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(EXAMPLES / f"{demo}.py"), "--config", str(EXAMPLES / "configs" / DEMOS[demo])]
        command += ["--seed", str(seed), "--output_dir", folder, *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads((Path(folder) / "results.json").read_text())


def cells(result: dict) -> list[tuple[str, str]]:
    """A run's figures, (title of the column, text): the solve rate, the task's other metrics, speed; of an unmasking
    policy its accuracy, and that of the best rule at as many forward passes."""
    if "forward_passes" in result:
        names = {
            "accuracy": "accuracy",
            "forward_passes": "forward passes",
            "best_rule_at_same_passes": "best rule there",
        }
        row = [("seed", str(result["seed"]))]
        row += [(title, "–" if result[name] is None else f"{result[name]:.3f}") for name, title in names.items()]
        return [*row, ("seconds", f"{result['seconds']:.0f}")]
    others = {key.removesuffix("_before") for key in result if key.endswith("_before")}
    others -= {"solve_rate", "tokens_per_step"}
    row = [("seed", str(result["seed"]))]
    for metric in ["solve_rate", *sorted(others)]:
        before, after = result[f"{metric}_before"], result[f"{metric}_after"]
        row += [(f"{metric.replace('_', ' ')} before", f"{before:.3f}"), ("after", f"{after:.3f}")]
        if metric == "solve_rate":
            row.append(("rise", f"{after - before:+.3f}"))
    speed = f"{result['tokens_per_step_after']:.2f}"
    return [*row, ("tokens per step", speed), ("seconds", f"{result['seconds']:.0f}")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", choices=DEMOS, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("arguments", nargs="*", help="arguments of the demo's script, after --")
    options = parser.parse_args()
    rises = []
    for seed in options.seeds:
        result = run(options.demo, seed, options.arguments)
        if "forward_passes" in result:
            rises.append(result["accuracy"] - (result["best_rule_at_same_passes"] or 0.0))
        else:
            rises.append(result["solve_rate_after"] - result["solve_rate_before"])
        titles, values = zip(*cells(result), strict=True)
        if len(rises) == 1:
            print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
        print(f"| {' | '.join(values)} |", flush=True)
    spread = f" ± {statistics.stdev(rises):.3f}" if len(rises) > 1 else ""
    what = "Accuracy above the best rule" if "forward_passes" in result else "Rise of the solve rate"
    print(f"\n{what}: {statistics.mean(rises):.3f}{spread} (mean ± standard deviation over seeds).")


if __name__ == "__main__":
    main()
