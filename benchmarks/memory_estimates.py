# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Memory of a training step per model size, as the tables of docs/scaling.md: computed, not measured.

    python benchmarks/memory_estimates.py                       # every published size below
    python benchmarks/memory_estimates.py --models sdar-4b my-folder --completion_length 2048

The shapes are those of the published configs.
"""

import argparse
import sys
from pathlib import Path

from transformers import AutoConfig

import trl_diffusion  # noqa: F401  (registers the families)
from trl_diffusion.models import (
    A2DQwen3Config,
    DreamConfig,
    LLaDA2MoeConfig,
    LLaDAConfig,
    LLaDAMoEConfig,
    SDARConfig,
    SDARMoeConfig,
)
from trl_diffusion.models.memory import METHODS, estimate_memory, parameter_count


def _shape(vocab_size: int, hidden_size: int, layers: int, heads: int, kv_heads: int, mlp: int, **others) -> dict:
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        **others,
    }


_QWEN3 = {"head_dim": 128}
_TIED = {"head_dim": 128, "tie_word_embeddings": True}
_QWEN3_MOE = {"head_dim": 128, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8}
_LLADA_MOE = {"moe_intermediate_size": 1024, "num_experts": 64, "num_experts_per_tok": 8}
_LLADA2 = {
    "head_dim": 128,
    "moe_intermediate_size": 512,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
PRESETS = {
    "a2d-qwen3-0.6b": (A2DQwen3Config, _shape(151936, 1024, 28, 16, 8, 3072, **_TIED)),
    "sdar-1.7b": (SDARConfig, _shape(151936, 2048, 28, 16, 8, 6144, **_TIED)),
    "sdar-4b": (SDARConfig, _shape(151936, 2560, 36, 32, 8, 9728, **_TIED)),
    "dream-7b": (DreamConfig, _shape(152064, 3584, 28, 28, 4, 18944)),
    "llada-8b": (LLaDAConfig, _shape(126464, 4096, 32, 32, 32, 12288)),
    "sdar-8b": (SDARConfig, _shape(151936, 4096, 36, 32, 8, 12288, **_QWEN3)),
    "llada-moe-7b": (LLaDAMoEConfig, _shape(157184, 2048, 16, 16, 16, 1024, **_LLADA_MOE)),
    "llada2-mini-16b": (LLaDA2MoeConfig, _shape(157184, 2048, 20, 16, 4, 5120, **_LLADA2)),
    "sdar-30b-a3b": (SDARMoeConfig, _shape(151936, 2048, 48, 32, 4, 6144, **_QWEN3_MOE)),
}
# Column -> method and devices that weights, gradients and optimizer are shared out over.
COLUMNS = {
    "full, 1 GPU": ("full", 1),
    "full, 8 GPUs": ("full", 8),
    "LoRA": ("lora", 1),
    "LoRA, 8 GPUs": ("lora", 8),
    "QLoRA": ("qlora", 1),
}


def load_config(name: str):
    """A preset's config, or that of a folder."""
    if name in PRESETS:
        config_class, shape = PRESETS[name]
        return config_class(**shape)
    if not Path(name).is_dir():
        raise SystemExit(f"--models {name}: neither a folder nor one of {', '.join(PRESETS)}.")
    return AutoConfig.from_pretrained(name)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(PRESETS), metavar="NAME", help="Presets or folders.")
    parser.add_argument("--prompt_length", type=int, default=256, help="Tokens of a prompt.")
    parser.add_argument("--completion_length", type=int, default=512, help="Tokens of the canvas.")
    parser.add_argument("--batch_size", type=int, default=1, help="Rows of a device's micro-batch.")
    parser.add_argument("--num_targets", type=int, help="Tokens that a pass scores; by default the whole canvas.")
    parser.add_argument("--lora_rank", type=int, default=32, help="Rank of the adapters.")
    parser.add_argument("--no_gradient_checkpointing", action="store_true", help="Keep all activations.")
    parser.add_argument("--detail", choices=METHODS, help="Print what one method's memory is made of, on one GPU.")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    settings = {
        "prompt_length": args.prompt_length,
        "completion_length": args.completion_length,
        "batch_size": args.batch_size,
        "num_targets": args.num_targets,
        "lora_rank": args.lora_rank,
        "gradient_checkpointing": not args.no_gradient_checkpointing,
    }
    parts = ("weights", "gradients", "optimizer", "copies", "activations", "logits", "total")
    print("| model | parameters (B) | " + " | ".join(parts if args.detail else COLUMNS) + " |")
    print("|---|---|" + "---|" * len(parts if args.detail else COLUMNS))
    for name in args.models:
        config = load_config(name)
        if args.detail:
            estimate = estimate_memory(config, args.detail, **settings)
            values = [getattr(estimate, part) for part in parts]
        else:
            values = [
                estimate_memory(config, method, num_shards=shards, **settings).total
                for method, shards in COLUMNS.values()
            ]
        cells = " | ".join(f"{value / 1e9:.1f}" for value in values)
        print(f"| {name} | {parameter_count(config) / 1e9:.2f} | {cells} |")


if __name__ == "__main__":
    main()
