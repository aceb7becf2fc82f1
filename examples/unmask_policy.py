# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Learn which tokens of a diffusion language model to reveal at each step.

Without arguments: a policy for a tiny checkpoint that solves Sudoku, on a CPU, in minutes. It ends with the accuracy
of the policy and of built-in rules against forward passes, in a table and a plot.

    accelerate launch examples/unmask_policy.py

On 8 GPUs, LLaDA-8B-Instruct with the paper's settings in full diffusion:

    accelerate launch --num_processes 8 examples/unmask_policy.py \
        --model_name_or_path GSAI-ML/LLaDA-8B-Instruct --dtype bfloat16 --dataset openai/gsm8k \
        --output_dir llada-8b-unmask-policy --max_completion_length 256 --expert_steering true \
        --num_generations 8 --per_device_train_batch_size 16 --alpha 3 --num_train_epochs 1
"""

import sys
from pathlib import Path

from trl_diffusion.scripts.training import main


DEMO = Path(__file__).parent / "configs" / "unmask_policy_sudoku_tiny.yaml"

if __name__ == "__main__":
    sys.exit(main("unmask-policy", demo=DEMO))
