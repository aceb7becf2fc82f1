# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Train a diffusion language model with TraceRL.

Without arguments: a tiny checkpoint learns 4x4 Sudoku on a CPU, in minutes.

    accelerate launch examples/tracerl.py

On a GPU, a published model and dataset (LoRA, and QLoRA with --load_in_4bit):

    accelerate launch examples/tracerl.py \
        --model_name_or_path JetLM/SDAR-4B-Chat --dataset openai/gsm8k --output_dir sdar-4b-tracerl \
        --max_completion_length 512 --unmasking threshold --threshold 0.9 --temperature 1.0 \
        --use_peft --lora_target_modules all-linear --lora_r 32 --learning_rate 1e-5 \
        --per_device_train_batch_size 8 --gradient_accumulation_steps 8 --num_generations 8 --max_steps 200
"""

import sys
from pathlib import Path

from trl_diffusion.scripts.training import main


DEMO = Path(__file__).parent / "configs" / "tracerl_sudoku_tiny.yaml"

if __name__ == "__main__":
    sys.exit(main("tracerl", demo=DEMO))
