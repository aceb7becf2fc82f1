# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The demo over several seeds, as the table of docs/results.md.

    python benchmarks/tracerl_sudoku.py --seeds 1 2 3 -- --model_name_or_path sudoku-llada-tiny

What follows `--` goes to examples/tracerl.py. Run nothing else on the machine meanwhile: the seconds are reported.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "configs" / "tracerl_sudoku_tiny.yaml"


def run(seed: int, arguments: list[str]) -> dict:
    """One run of the demo; its results.json."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "examples" / "tracerl.py"), "--config", str(DEMO)]
        command += ["--seed", str(seed), "--output_dir", folder, *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads((Path(folder) / "results.json").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("arguments", nargs="*", help="arguments of examples/tracerl.py, after --")
    options = parser.parse_args()
    print("| seed | solve rate before | after | rise | cell accuracy before | after | tokens per step | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    rises = []
    for seed in options.seeds:
        result = run(seed, options.arguments)
        before, after = result["solve_rate_before"], result["solve_rate_after"]
        rises.append(after - before)
        print(
            f"| {seed} | {before:.3f} | {after:.3f} | {after - before:+.3f} | {result['cell_accuracy_before']:.3f} "
            f"| {result['cell_accuracy_after']:.3f} | {result['tokens_per_step_after']:.2f} "
            f"| {result['seconds']:.0f} |",
            flush=True,
        )
    spread = f" ± {statistics.stdev(rises):.3f}" if len(rises) > 1 else ""
    print(f"\nRise of the solve rate: {statistics.mean(rises):.3f}{spread} (mean ± standard deviation over seeds).")


if __name__ == "__main__":
    main()
