# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The training commands: which arguments they take, and what runs with them.

`python -m trl_diffusion.scripts.training COMMAND …` is what `accelerate launch` starts in each process.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers.utils import logging

from ..trainer import (
    BGPOConfig,
    BGPOTrainer,
    DiffusionGRPOConfig,
    DiffusionGRPOTrainer,
    DiffusionSFTConfig,
    IGPOConfig,
    IGPOTrainer,
    TraceRLConfig,
    TraceRLTrainer,
    UnmaskPolicyConfig,
)
from .command import run_reporting
from .launching import is_launched, is_to_launch, launch
from .rl import RLScriptArguments, checkpoint_path, command_line, run_rl
from .sft import SFTScriptArguments, run_sft
from .training_parser import GivenOptions, TrainingParser
from .unmask_policy import UnmaskPolicyScriptArguments, run_unmask_policy


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class TrainingCommand:
    """A command that trains.

    Args:
        run (`Callable`):
            What it does with the arguments of the script, the trainer's config and [`~trl.ModelConfig`].
        script_class, config_class (`type`):
            The first two.
        description (`str`):
            What `--help` says.
    """

    run: Callable
    script_class: type
    config_class: type
    description: str


def _rl(trainer_class: type, config_class: type, description: str) -> TrainingCommand:
    return TrainingCommand(partial(run_rl, trainer_class), RLScriptArguments, config_class, description)


TRAINING_COMMANDS = {
    "sft": TrainingCommand(
        run_sft,
        SFTScriptArguments,
        DiffusionSFTConfig,
        "Supervised fine-tuning of a diffusion language model, on prompts and completions or on conversations.",
    ),
    "tracerl": _rl(
        TraceRLTrainer,
        TraceRLConfig,
        "TraceRL: reinforcement learning of a diffusion language model on its own trajectories.",
    ),
    "bgpo": _rl(BGPOTrainer, BGPOConfig, "BGPO: reinforcement learning on the ELBO of whole completions."),
    "igpo": _rl(
        IGPOTrainer,
        IGPOConfig,
        "IGPO: reinforcement learning with pieces of a solution on the canvas of groups that fail.",
    ),
    "grpo": _rl(
        DiffusionGRPOTrainer,
        DiffusionGRPOConfig,
        "GRPO on the likelihoods of diffu-GRPO, coupled-GRPO, UniGRPO or JustGRPO (--likelihood).",
    ),
    "unmask-policy": TrainingCommand(
        run_unmask_policy,
        UnmaskPolicyScriptArguments,
        UnmaskPolicyConfig,
        "Train a small policy that decides which tokens of a frozen diffusion language model a step reveals.",
    ),
}


def make_parser(name: str, prog: str | None = None) -> TrainingParser:
    """The parser of a training command."""
    command = TRAINING_COMMANDS[name]
    return TrainingParser(
        command.script_class,
        command.config_class,
        prog=prog or f"trl-diffusion {name}",
        description=command.description,
    )


def main(name: str, arguments: list[str] | None = None, demo: Path | None = None, launched_here: bool = False) -> int:
    """Run a training command, in this process or, as `trl` does, through `accelerate launch`.

    Args:
        name (`str`):
            The command.
        arguments (`list[str]`, *optional*):
            Its options. Defaults to those of the process, a script of examples/.
        demo (`Path`, *optional*):
            YAML file with the settings of a command line that names no model and no config of its own.
        launched_here (`bool`, *optional*, defaults to `False`):
            Whether this is one of the processes that this function has started.

    Returns:
        `int`: exit status, as [`~trl_diffusion.scripts.cli.main`]'s.
    """
    prog = f"trl-diffusion {name}" if arguments is not None else os.path.basename(sys.argv[0])
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = make_parser(name, prog)
    given = parser.split(arguments if demo is None else command_line(demo, arguments))
    model_name = parser.check(given).model_name_or_path
    if is_launched() and not launched_here:
        _check_launch_options(given, parser)
    launching = is_to_launch(given) and not is_launched() and not launched_here

    def run() -> int | None:
        checkpoint_path(model_name)  # before processes are started, or the config looks for a GPU
        if launching:
            return launch(name, given, parser)
        TRAINING_COMMANDS[name].run(*parser.build(given))

    return run_reporting(prog, run, given.debug)


def _check_launch_options(given: GivenOptions, parser: TrainingParser):
    """What has no effect in a process that somebody else has started."""
    if given.launch:
        parser.error(
            f"{given.launch[0]} has no effect in a process that was launched already. Give it to `accelerate launch`, "
            "or start the command without."
        )
    if given.launch_in_file and os.environ.get("RANK", "0") == "0":
        options = " ".join(given.launch_in_file)
        logger.warning(f"{options} in {given.config} has no effect: this process was launched already.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:], launched_here=True))
