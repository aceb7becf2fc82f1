# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Let a model solve Sudoku puzzles many times, and keep the good answers with the steps at which they were written.

    python examples/collect_traces.py --output_dir outputs/sudoku-traces

An interrupted call goes on where it stopped. The folder's Parquet files are data for trace SFT:

    load_dataset("parquet", data_files="outputs/sudoku-traces/*.parquet", split="train")
"""

import argparse

from transformers import AutoTokenizer

from trl_diffusion import AutoModelForDiffusionLM, DiffusionGenerationConfig, collect_traces
from trl_diffusion.checkpoints import tiny_checkpoint, tiny_checkpoints
from trl_diffusion.tasks import sudoku_dataset, sudoku_reward


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sudoku-llada-tiny", help="a tiny checkpoint, or any other")
    parser.add_argument("--output_dir", default="outputs/sudoku-traces")
    parser.add_argument("--num_puzzles", type=int, default=500)
    parser.add_argument("--num_generations", type=int, default=8)
    parser.add_argument("--min_reward", type=float, default=2.0, help="2 is a solved puzzle")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--num_denoising_steps", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    path = tiny_checkpoint(args.model) if args.model in tiny_checkpoints() else args.model
    traces = collect_traces(
        AutoModelForDiffusionLM.from_pretrained(path),
        AutoTokenizer.from_pretrained(path, padding_side="left"),
        sudoku_dataset("train", args.num_puzzles, num_clues=(5, 6), seed=args.seed),
        sudoku_reward,
        DiffusionGenerationConfig(
            max_new_tokens=17, num_denoising_steps=args.num_denoising_steps, temperature=args.temperature
        ),
        num_generations=args.num_generations,
        min_reward=args.min_reward,
        batch_size=args.batch_size,
        output_dir=args.output_dir,
        seed=args.seed,
    )
    first = traces[0]
    print(f"{len(traces)} of {args.num_puzzles * args.num_generations} completions are in {args.output_dir}.")
    print(f"{first['prompt']} → {first['completion']}, written at the steps {first['unmask_step']}")


if __name__ == "__main__":
    main()
