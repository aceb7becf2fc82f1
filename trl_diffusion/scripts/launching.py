# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Training on several GPUs: `accelerate launch` behind the training commands, as `trl` does it."""

import os
import subprocess
import sys
from importlib.resources import files

import torch
from accelerate.commands.config.config_args import default_config_file
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from .command import nearest
from .training_parser import GivenOptions, TrainingParser


MODULE = "trl_diffusion.scripts.training"
# What `accelerate launch` would say in a warning each time. Precision is the training config's.
_DEFAULTS = {"--num_machines": "1", "--mixed_precision": "no", "--dynamo_backend": "no"}


def is_launched() -> bool:
    """Whether this process was started by `accelerate launch` or torchrun."""
    return "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def is_to_launch(given: GivenOptions) -> bool:
    """Whether the training needs other processes: options say so, or `accelerate config`, or there are several GPUs.
    One process on one device is this one."""
    return (
        bool(given.launch or given.launch_in_file)
        or os.path.isfile(default_config_file)
        or torch.cuda.device_count() > 1
    )


def find_accelerate_config(name: str) -> str:
    """A file, or TRL's file of this name.

    Raises:
        ValueError: there is none.
    """
    if os.path.isfile(name):
        return name
    known = {file.name.removesuffix(".yaml"): file for file in (files("trl") / "accelerate_configs").iterdir()}
    if name not in known:
        names = ", ".join(sorted(name for name, file in known.items() if file.name.endswith(".yaml")))
        raise ValueError(
            f"accelerate_config={name!r} is no file and none of TRL's configs ({names}){nearest(name, known)}"
        )
    return str(known[name])


def launch(command: str, given: GivenOptions, parser: TrainingParser) -> int:
    """Run a training command in processes of their own.

    Args:
        command (`str`):
            The command's name.
        given ([`GivenOptions`]):
            Its options.
        parser ([`TrainingParser`]):
            Where errors of the command line go.

    Returns:
        `int`: exit status; the process that failed has said why.

    Raises:
        ValueError: `accelerate_config` names nothing.
    """
    options, config = [], None
    for option in (*given.launch_in_file, *given.launch):
        if option.startswith("--accelerate_config="):
            config = option.split("=", 1)[1]
        else:
            options.append(option)
    if config is not None:
        options = [f"--config_file={find_accelerate_config(config)}", *options]
    names = {option.split("=")[0].replace("-", "_") for option in options}
    if "__config_file" not in names and not os.path.isfile(default_config_file):
        for name, value in _DEFAULTS.items():
            if name.replace("-", "_") not in names:
                options.append(f"{name}={value}")
    arguments = [] if given.config is None else ["--config", given.config]
    arguments += ["--debug"] * given.debug
    launcher = launch_command_parser()
    launcher.error = parser.error
    sys.stdout.flush()
    try:
        launch_command(launcher.parse_args([*options, "--module", MODULE, command, *arguments, *given.own]))
    except subprocess.CalledProcessError as error:
        return error.returncode
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode
    return 0
