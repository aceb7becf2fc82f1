# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""`trl-diffusion convert`: an autoregressive checkpoint in a diffusion format."""

from argparse import ArgumentParser, Namespace

from ..models.from_autoregressive import TARGETS, convert_autoregressive


DESCRIPTION = (
    "Write an autoregressive checkpoint (Llama, Qwen2, Qwen3, Qwen3-MoE) in a diffusion format, ready for "
    "DiffusionSFTTrainer: opens its attention and adds a mask token."
)


def add_arguments(parser: ArgumentParser):
    """The command's options."""
    parser.add_argument("--model", required=True, help="Hub id or folder of the autoregressive checkpoint.")
    parser.add_argument(
        "--to",
        required=True,
        choices=sorted(TARGETS),
        help="a2d: full attention, or block-causal with --block_length. sdar (Qwen3, Qwen3-MoE): block-causal.",
    )
    parser.add_argument("--output_dir", required=True, help="Folder to write; must not exist, or be empty.")
    parser.add_argument("--block_length", type=int, help="Tokens per attention block (sdar: 4).")
    parser.add_argument(
        "--mask_token", help="Text of the mask token (default: the tokenizer's, else <|mask|>; sdar: <|MASK|>)."
    )
    parser.add_argument("--dtype", default="auto", help="Of the weights written (default: the checkpoint's).")
    parser.add_argument("--revision", help="Revision of the checkpoint.")


def run(args: Namespace):
    """Convert, and say what was written."""
    model = convert_autoregressive(
        args.model,
        args.to,
        args.output_dir,
        block_length=args.block_length,
        mask_token=args.mask_token,
        dtype=args.dtype,
        revision=args.revision,
    )
    attention = "full attention" if model.block_length is None else f"block-causal, blocks of {model.block_length}"
    print(f"{args.output_dir}: {type(model).__name__} ({attention}), mask token id {model.mask_token_id}.")
    print("It cannot fill in masks yet: train it with DiffusionSFTTrainer next.")
