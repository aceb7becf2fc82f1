# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Two processes of a test, started by torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import torch


HERE = Path(__file__).parent


def run_two_processes(worker: str, *arguments):
    """Run a script of this folder on two processes, to its end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", str(HERE / worker), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-5000:]


def leave():
    """End a worker that is done.

    Gloo's threads may still hold the tensors of the last collectives. Where Python knows these too, letting go of them
    while the interpreter shuts down ends the process with SIGABRT, about one time in ten.
    """
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
