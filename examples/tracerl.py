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

from trl import ModelConfig, TrlParser

from trl_diffusion import TraceRLConfig, TraceRLTrainer
from trl_diffusion.scripts.rl import RLScriptArguments, run_rl


DEMO = Path(__file__).parent / "configs" / "tracerl_sudoku_tiny.yaml"

if __name__ == "__main__":
    # TRL's parser knows `--config file`, not `--config=file`.
    arguments = [part for a in sys.argv[1:] for part in (a.split("=", 1) if a.startswith("--config=") else [a])]
    names = {argument.split("=")[0].replace("-", "_") for argument in arguments if argument.startswith("-")}
    # A run without a model of its own is the demo; what the command line says comes on top of its settings.
    own = any(name.startswith("__model_n") for name in names) or names & {"__config", "_h", "__help"}
    parser = TrlParser((RLScriptArguments, TraceRLConfig, ModelConfig))
    run_rl(TraceRLTrainer, *parser.parse_args_and_config(arguments if own else ["--config", str(DEMO), *arguments]))
