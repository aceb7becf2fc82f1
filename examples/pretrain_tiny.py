# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Train the tiny checkpoints that the package ships, from random weights, on a CPU.

    python examples/pretrain_tiny.py --family llada --output_dir sudoku-llada-tiny
    python examples/pretrain_tiny.py --family sdar --max_steps 1400 --num_examples 60000 --output_dir sudoku-sdar-tiny
    python examples/pretrain_tiny.py --task countdown --max_steps 1500 --num_examples 90000 \
        --output_dir countdown-llada-tiny
    python examples/pretrain_tiny.py --task arithmetic --max_steps 1500 --num_examples 96000 --correct_fraction 0.08 \
        --output_dir arithmetic-llada-tiny
    python examples/pretrain_tiny.py --max_steps 1000 --num_examples 128000 --correct_fraction 1.0 \
        --num_denoising_steps 17 --output_dir sudoku-llada-solver-tiny
    python examples/pretrain_tiny.py --task arithmetic --max_steps 1500 --num_examples 96000 --correct_fraction 1.0 \
        --output_dir arithmetic-llada-solver-tiny

The data mixes right solutions with a systematically wrong procedure, so that greedy decoding follows the procedure
while samples hold both: what reinforcement learning is to bring out is there, and not shown yet. With
`--correct_fraction 1.0` all of it is right: the solvers solve at one token per step, and lose by faster decoding.
"""

from dataclasses import dataclass, field

from transformers import set_seed
from trl import TrlParser

from trl_diffusion import DiffusionGenerationConfig, DiffusionSFTConfig, DiffusionSFTTrainer
from trl_diffusion.models import LLaDAConfig, LLaDAModelLM, SDARConfig, SDARForCausalLM
from trl_diffusion.tasks import (
    ARITHMETIC_ALPHABET,
    COUNTDOWN_ALPHABET,
    TINY_ARITHMETIC_CANVAS,
    TINY_COUNTDOWN_CANVAS,
    arithmetic_pretraining_dataset,
    character_tokenizer,
    countdown_pretraining_dataset,
    pretraining_dataset,
)


# For each task: its characters, the longest answer with EOS, the denoising steps that suit it, and its data.
TASKS = {
    "sudoku": ("01234", 17, 8, pretraining_dataset),
    "countdown": (COUNTDOWN_ALPHABET, TINY_COUNTDOWN_CANVAS, 5, countdown_pretraining_dataset),
    "arithmetic": (ARITHMETIC_ALPHABET, TINY_ARITHMETIC_CANVAS, 30, arithmetic_pretraining_dataset),
}


@dataclass
class TinyArguments:
    """The model and its data."""

    task: str = field(default="sudoku", metadata={"help": "What it is to do.", "choices": [*TASKS]})
    family: str = field(default="llada", metadata={"help": "Model family.", "choices": ["llada", "sdar"]})
    num_examples: int = field(default=180_000, metadata={"help": "Rows of the training data."})
    correct_fraction: float = field(default=0.4, metadata={"help": "Share of right solutions in the data."})
    hidden_size: int = field(default=64, metadata={"help": "Width of the model."})
    num_layers: int = field(default=4, metadata={"help": "Layers of the model."})
    attention_block: int = field(default=4, metadata={"help": "Attention block of the SDAR model."})
    num_denoising_steps: int | None = field(
        default=None, metadata={"help": "Denoising steps of the generation settings. None: what suits the task."}
    )


@dataclass
class TinyConfig(DiffusionSFTConfig):
    """[`DiffusionSFTConfig`] with the values that the shipped checkpoints were trained with."""

    max_steps: int = field(default=3000, metadata={"help": "Optimizer steps."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Puzzles per step."})
    learning_rate: float = field(default=3e-3, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=100, metadata={"help": "Warm-up steps."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Adam's second beta."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations."})
    bf16: bool = field(default=False, metadata={"help": "bf16 autocast; the tiny models are trained in fp32."})
    use_cpu: bool = field(default=True, metadata={"help": "Train on the CPU."})
    save_strategy: str = field(default="no", metadata={"help": "When to save checkpoints before the end."})
    logging_steps: float = field(default=100, metadata={"help": "Steps between logs."})
    report_to: str = field(default="none", metadata={"help": "Where to log."})


def build_model(args: TinyArguments, tokenizer):
    """A model with random weights, and the generation settings that suit the task."""
    _, canvas_length, num_denoising_steps, _ = TASKS[args.task]
    if args.num_denoising_steps is not None:
        num_denoising_steps = args.num_denoising_steps
    special = {
        "vocab_size": len(tokenizer),
        "mask_token_id": tokenizer.mask_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "max_position_embeddings": 128,
    }
    shape = {
        "hidden_size": args.hidden_size,
        "intermediate_size": 3 * args.hidden_size,
        "num_hidden_layers": args.num_layers,
        "num_attention_heads": 4,
    }
    if args.family == "llada":
        model = LLaDAModelLM(LLaDAConfig(**special, **shape, num_key_value_heads=4))
    else:
        model = SDARForCausalLM(
            SDARConfig(
                **special,
                **shape,
                num_key_value_heads=2,
                head_dim=args.hidden_size // 4,
                block_length=args.attention_block,
            )
        )
    model.generation_config = DiffusionGenerationConfig(
        max_new_tokens=canvas_length,
        num_denoising_steps=num_denoising_steps,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def main():
    args, config = TrlParser((TinyArguments, TinyConfig)).parse_args_and_config()
    set_seed(config.seed)
    alphabet, canvas_length, _, dataset = TASKS[args.task]
    tokenizer = character_tokenizer(alphabet, model_max_length=128)
    if args.task != "sudoku" and config.canvas_length is None:
        # Their answers differ in length: on a canvas of one length, filled with EOS, the model learns where they end.
        config.canvas_length = canvas_length
    trainer = DiffusionSFTTrainer(
        model=build_model(args, tokenizer),
        args=config,
        train_dataset=dataset(args.num_examples, args.correct_fraction, seed=config.seed),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(config.output_dir)
    trainer.create_model_card()


if __name__ == "__main__":
    main()
