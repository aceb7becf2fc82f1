# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Memory of loading; benchmarks/loading_memory.py at the size of a test."""

import subprocess
import sys
from pathlib import Path

import pytest


BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "loading_memory.py"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process from /proc")
@pytest.mark.parametrize("family", ["llada", "llada2_moe"])
def test_loading_takes_little_more_memory_than_the_weights(family):
    command = [sys.executable, str(BENCHMARK), "--gigabytes", "0.2", "--families", family, "--repeats", "1"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    name, parameters, shards, peak, _ = printed.splitlines()[-1].split()
    assert name == family and float(parameters) >= 0.2 and int(shards) > 3
    assert float(peak) <= 1.3 * float(parameters)
