# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import random_model
from ddp_worker import train
from safetensors.torch import load_file


HERE = Path(__file__).parent


@pytest.mark.parametrize("name, family", [("tracerl", "llada"), ("tracerl", "sdar"), ("grpo", "llada")])
def test_two_processes_equal_one_with_the_doubled_batch(name, family, tokenizer, tmp_path):
    out = tmp_path / "ddp.safetensors"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    command += [str(HERE / "ddp_worker.py"), name, family, str(tmp_path / "ddp"), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    found = load_file(out)
    expected, _ = train(name, family, str(tmp_path / "single"), batch_size=8)
    start = dict(random_model(family, tokenizer).named_parameters())
    moved = max((expected[key] - start[key]).abs().max().item() for key in expected)
    assert moved > 1e-3  # the comparison is not between two models that stood still
    for key in expected:
        assert (found[key] - expected[key]).abs().max() <= 1e-5, key
