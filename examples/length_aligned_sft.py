# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Rewrite reasoning traces to the length of a canvas, and train a diffusion language model on them.

Without arguments: verbose arithmetic traces, shortened by a rule, train a tiny checkpoint on a CPU, in minutes.

    python examples/length_aligned_sft.py

On GPUs: OpenR1-Math-220K, rewritten by a chat model (here behind vLLM; the key is read from OPENAI_API_KEY), then
LLaDA-8B-Instruct with QLoRA. An interrupted rewriting goes on when the command is given again. For `accelerate launch`
on several GPUs, rewrite in one process first. Not run yet:

    python examples/length_aligned_sft.py --dataset open-r1/OpenR1-Math-220k \
        --rewriter_model Qwen/Qwen3-32B --base_url http://localhost:8000/v1 --num_attempts 3 \
        --model_name_or_path GSAI-ML/LLaDA-8B-Instruct --output_dir llada-8b-aligned \
        --canvas_length 1024 --max_length 2048 --use_peft --load_in_4bit --lora_target_modules all-linear \
        --lora_r 128 --learning_rate 1e-5 --num_train_epochs 3 --per_device_train_batch_size 2 \
        --gradient_accumulation_steps 32

A dataset with the columns `prompt` and `completion`, such as the folder that `trl-diffusion align-lengths` writes, is
trained on as it is.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer, set_seed
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from trl_diffusion import DiffusionGenerationConfig, DiffusionSFTConfig, DiffusionSFTTrainer, align_lengths
from trl_diffusion.checkpoints import tiny_checkpoint, tiny_checkpoints
from trl_diffusion.evaluation import complete
from trl_diffusion.scripts.local_data import load_rows
from trl_diffusion.tasks import (
    TINY_ARITHMETIC,
    OpenAIRewriter,
    arithmetic_dataset,
    arithmetic_solve_rate,
    shorten_trace,
)


DEMO = Path(__file__).parent / "configs" / "length_aligned_sft_tiny.yaml"


@dataclass
class AlignmentArguments:
    """Which traces, and who rewrites them to `canvas_length` tokens."""

    dataset: str = field(default="arithmetic", metadata={"help": "'arithmetic', or a Hub id, file or folder."})
    num_rows: int | None = field(default=None, metadata={"help": "The first rows only (arithmetic: 4000)."})
    rewriter_model: str | None = field(default=None, metadata={"help": "Chat model (arithmetic: a rule)."})
    base_url: str | None = field(default=None, metadata={"help": "Address of its OpenAI-compatible endpoint."})
    num_attempts: int = field(default=1, metadata={"help": "Rewrites to ask for until one is good."})
    max_concurrency: int = field(default=64, metadata={"help": "Calls at a time."})


def openr1_traces(dataset: Dataset) -> Dataset:
    """OpenR1-Math-220K as prompts and traces: of each problem the shortest generation that math-verify found right."""

    def convert(row):
        verdicts = row["correctness_math_verify"] or []
        right = [trace for trace, good in zip(row["generations"], verdicts, strict=False) if good]
        prompt = f"{row['problem']}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
        return {"prompt": [{"role": "user", "content": prompt}], "reasoning": min(right, key=len, default=None)}

    dataset = dataset.map(convert, remove_columns=dataset.column_names)
    return dataset.filter(lambda row: row["reasoning"] is not None)


def training_rows(args: AlignmentArguments, config: DiffusionSFTConfig, tokenizer) -> Dataset:
    """Step 1: the traces, rewritten."""
    if args.dataset == "arithmetic":
        dataset, column = arithmetic_dataset("train", args.num_rows or 4000, **TINY_ARITHMETIC), "verbose_reasoning"

        def rewriter(trace, row):
            return shorten_trace(trace)
    else:
        dataset, column = load_rows(args.dataset, None, "train"), "reasoning"
        if args.num_rows is not None:
            dataset = dataset.select(range(args.num_rows))
        if {"prompt", "completion"} <= set(dataset.column_names):
            return dataset
        dataset = openr1_traces(dataset)
        # Models count badly: what is asked for leaves room.
        target = int(0.8 * config.canvas_length)
        rewriter = OpenAIRewriter(args.rewriter_model or "", args.base_url, target_length=target)
    if config.world_size > 1:
        raise ValueError(
            f"dataset={args.dataset!r} would be rewritten by each of {config.world_size} processes. Run "
            "`trl-diffusion align-lengths`, or this script in one process, first, and give its folder as dataset."
        )
    aligned = align_lengths(
        dataset,
        rewriter,
        tokenizer,
        config.canvas_length,
        trace_column=column,
        num_attempts=args.num_attempts,
        max_concurrency=args.max_concurrency,
        output_dir=f"{config.output_dir}/aligned",
    )
    print(aligned.report)
    return aligned.dataset


def solve_rate(trainer: DiffusionSFTTrainer) -> float:
    """Share of held-out arithmetic problems that the model solves, greedily."""
    rows, tokenizer = arithmetic_dataset("test", 256, **TINY_ARITHMETIC), trainer.processing_class
    length = trainer.args.canvas_length
    generation = DiffusionGenerationConfig(
        max_new_tokens=length, num_denoising_steps=length, eos_token_id=tokenizer.eos_token_id
    )
    texts = complete(trainer.model, tokenizer, list(rows["prompt"]), generation).texts
    return arithmetic_solve_rate(texts, list(rows["solution"]))


def main(arguments: list[str] | None = None):
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = TrlParser((AlignmentArguments, DiffusionSFTConfig, ModelConfig))
    if "--model_name_or_path" not in arguments:
        arguments = ["--config", str(DEMO), *arguments]
    args, config, model_args = parser.parse_args_and_config(arguments)
    if config.canvas_length is None:
        raise ValueError(
            "canvas_length is not set. Give the max_new_tokens of generation, to which traces are rewritten."
        )
    set_seed(config.seed)
    name = model_args.model_name_or_path
    path = str(tiny_checkpoint(name)) if name in tiny_checkpoints() else name
    tokenizer = AutoTokenizer.from_pretrained(path)
    config.model_init_kwargs = {"dtype": model_args.dtype, **(config.model_init_kwargs or {})}
    trainer = DiffusionSFTTrainer(
        model=path,
        args=config,
        train_dataset=training_rows(args, config, tokenizer),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
    )
    before = solve_rate(trainer) if args.dataset == "arithmetic" else None
    trainer.train()  # step 2
    if args.dataset == "arithmetic":
        print(f"Held-out problems solved: {before:.1%} before, {solve_rate(trainer):.1%} after.")
    trainer.save_model(config.output_dir)


if __name__ == "__main__":
    main()
