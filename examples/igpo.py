# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Train a diffusion language model with IGPO.

Without arguments: a tiny checkpoint learns arithmetic of several steps on a CPU, in minutes.

    accelerate launch examples/igpo.py

On 8 GPUs, LLaDA-8B-Instruct with the paper's settings (512 completions a step, 4 updates on each):

    accelerate launch --num_processes 8 examples/igpo.py \
        --model_name_or_path GSAI-ML/LLaDA-8B-Instruct --dataset meta-math/MetaMathQA --output_dir llada-8b-igpo \
        --max_completion_length 256 --num_denoising_steps 128 --block_length 32 --temperature 1.2 \
        --num_generations 8 --per_device_train_batch_size 8 --gradient_accumulation_steps 8 --num_iterations 4 \
        --use_peft --lora_r 128 --lora_alpha 64 --lora_dropout 0.05 \
        --lora_target_modules q_proj k_proj v_proj o_proj gate_proj up_proj down_proj \
        --learning_rate 5e-7 --warmup_steps 50 --adam_beta2 0.99 --weight_decay 0.1 --max_grad_norm 0.2 \
        --max_steps 1000
"""

import sys
from pathlib import Path

from trl_diffusion.scripts.training import main


DEMO = Path(__file__).parent / "configs" / "igpo_arithmetic_tiny.yaml"

if __name__ == "__main__":
    sys.exit(main("igpo", demo=DEMO))
