# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Memory that loading a sharded checkpoint takes, mapped files excluded.

Writes a checkpoint of each family in Hub format, loads it in a fresh process whose imports are done, and samples the
process' anonymous and shared memory (RssAnon + RssShmem of /proc) from outside until it is loaded.

    python benchmarks/loading_memory.py                          # 1 GB, four families, bf16
    python benchmarks/loading_memory.py --gigabytes 0.2 --families llada
"""

import argparse
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from trl_diffusion.models import (
    DreamConfig,
    DreamModel,
    LLaDA2MoeConfig,
    LLaDA2MoeModelLM,
    LLaDAConfig,
    LLaDAModelLM,
    SDARConfig,
    SDARForCausalLM,
)


GIGABYTE = 1e9
SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 16384,
    "mask_token_id": 1,
}
FAMILIES = {
    "llada": (LLaDAConfig, LLaDAModelLM, {}),
    "dream": (DreamConfig, DreamModel, {"num_key_value_heads": 4}),
    "sdar": (SDARConfig, SDARForCausalLM, {"num_key_value_heads": 4, "head_dim": 64}),
    "llada2_moe": (
        LLaDA2MoeConfig,
        LLaDA2MoeModelLM,
        {"num_key_value_heads": 4, "head_dim": 64, "n_routed_experts": 64, "moe_intermediate_size": 256, "n_group": 8},
    ),
}
CHILD = """
import sys, torch
from trl_diffusion import AutoModelForDiffusionLM
AutoModelForDiffusionLM.from_pretrained(sys.argv[2])  # what is imported on first use
print("ready", flush=True)
sys.stdin.readline()
model = AutoModelForDiffusionLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
total = sum(parameter.abs().sum().item() for parameter in model.parameters())  # every page is there
print("done", sum(parameter.nbytes for parameter in model.parameters()), flush=True)
sys.stdin.readline()
"""


def write_checkpoint(family: str, folder: Path, gigabytes: float):
    """A random bf16 checkpoint of about this size, in shards of a fifth of it."""
    config_class, model_class, extra = FAMILIES[family]
    layers = 1
    while True:
        config = config_class(**{**SIZES, **extra, "num_hidden_layers": layers, "first_k_dense_replace": 0})
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in model_class(config).parameters())
        if 2 * count >= gigabytes * GIGABYTE or gigabytes == 0:
            break
        layers += 1
    model = model_class(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=f"{max(1, int(gigabytes * 200))}MB")


def anonymous_memory(pid: int) -> int:
    """Bytes of a process that no file backs."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return 1024 * sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem"))


def measure(folder: Path, warm_up: Path) -> tuple[float, float, float]:
    """Peak and final growth, and the size of the parameters, in GB."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(warm_up)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    while child.stdout.readline().strip() != "ready":
        pass
    before = peak = anonymous_memory(child.pid)
    child.stdin.write("\n")
    child.stdin.flush()

    while not select.select([child.stdout], [], [], 0)[0]:
        peak = max(peak, anonymous_memory(child.pid))
        time.sleep(0.001)
    size = int(child.stdout.readline().split()[1])
    after = anonymous_memory(child.pid)
    child.communicate("\n")
    return (peak - before) / GIGABYTE, (after - before) / GIGABYTE, size / GIGABYTE


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print("family       parameters  shards  peak growth (each run)      after loading   [GB]")
    for family in args.families:
        with tempfile.TemporaryDirectory() as folder:
            folder, warm_up = Path(folder) / "model", Path(folder) / "warm-up"
            write_checkpoint(family, folder, args.gigabytes)
            write_checkpoint(family, warm_up, 0)
            shards = len(list(folder.glob("*.safetensors")))
            runs = [measure(folder, warm_up) for _ in range(args.repeats)]
            peaks = "  ".join(f"{peak:.3f}" for peak, _, _ in runs)
            print(f"{family:12} {runs[0][2]:10.3f}  {shards:6d}  {peaks:26}  {runs[0][1]:.3f}", flush=True)


if __name__ == "__main__":
    main()
