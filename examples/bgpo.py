# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Train a diffusion language model with BGPO.

Without arguments: a tiny checkpoint learns Countdown on a CPU, in minutes.

    accelerate launch examples/bgpo.py

On a GPU, LLaDA-8B-Instruct with the paper's settings for mathematics, but for the weights: an adapter on 4-bit ones
(QLoRA), at a higher learning rate than the paper's 5e-7 for all of them:

    accelerate launch examples/bgpo.py \
        --model_name_or_path GSAI-ML/LLaDA-8B-Instruct --dataset openai/gsm8k --output_dir llada-8b-bgpo \
        --max_completion_length 512 --num_denoising_steps 256 --block_length 32 --temperature 1.0 \
        --num_mc_samples 16 --num_generations 8 --per_device_train_batch_size 8 --gradient_accumulation_steps 16 \
        --use_peft --load_in_4bit --lora_target_modules all-linear --lora_r 32 --learning_rate 1e-5 --max_steps 700
"""

import sys
from pathlib import Path

from trl_diffusion.scripts.training import main


DEMO = Path(__file__).parent / "configs" / "bgpo_countdown_tiny.yaml"

if __name__ == "__main__":
    sys.exit(main("bgpo", demo=DEMO))
