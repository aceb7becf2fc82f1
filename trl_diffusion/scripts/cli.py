# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The console command `trl-diffusion`. A command's module is imported when it is named, since most need torch."""

import sys
from argparse import RawDescriptionHelpFormatter
from functools import partial
from importlib import import_module

from .. import __version__
from .command import DEBUG_HELP, CommandParser, nearest, run_reporting, usage_error


# Command → what the overview says of it.
TRAINING = {
    "sft": "Supervised fine-tuning: masked tokens are predicted at their own places.",
    "tracerl": "TraceRL: reinforcement learning on the model's own trajectories.",
    "bgpo": "BGPO: reinforcement learning on the ELBO of whole completions.",
    "igpo": "IGPO: reinforcement learning with pieces of a solution where a group fails.",
    "grpo": "diffu-GRPO, coupled-GRPO, UniGRPO, JustGRPO: the baselines.",
    "unmask-policy": "Learn which tokens of a frozen model to reveal at each step.",
}
# Command → its module, with DESCRIPTION, add_arguments(parser) and run(args), and what the overview says of it.
COMMANDS = {
    "generate": ("generate", "Complete prompts, or fill the masks inside them."),
    "chat": ("chat", "Chat in the terminal and watch the answers fill up."),
    "eval": ("evaluate", "Measure accuracy on tasks, and the forward passes that it takes."),
    "convert": ("convert", "Write an autoregressive checkpoint in a diffusion format."),
    "align-lengths": ("align_lengths", "Rewrite reasoning traces to the length of a canvas."),
    "push": ("push", "Put what was trained on the Hub."),
    "env": ("env", "Print the versions and the hardware, for a bug report."),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its errors are one line, unless `--debug` asks for the traceback.

    Args:
        arguments (`list[str]`, *optional*):
            Command line without the program's name. Defaults to the process's.

    Returns:
        `int`: exit status: 0, 1 after an error, 130 after Ctrl-C. A wrong command line ends the process with 2.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments[0] if arguments else None
    if name in TRAINING:
        return import_module(".training", __package__).main(name, arguments[1:])
    if name not in COMMANDS:
        return _overview(arguments)
    prog = f"trl-diffusion {name}"
    command = import_module(f".{COMMANDS[name][0]}", __package__)
    parser = CommandParser(prog=prog, description=command.DESCRIPTION)
    command.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help=DEBUG_HELP)
    args = parser.parse_args(arguments[1:])
    import_module("..models", __package__)  # registers the families
    return run_reporting(prog, partial(command.run, args), args.debug)


def _overview(arguments: list[str]) -> int:
    """`--help` and `--version`, and what is said of a command that there is not."""
    lines = TRAINING | {name: text for name, (_, text) in COMMANDS.items()}
    parser = CommandParser(
        prog="trl-diffusion",
        usage="trl-diffusion COMMAND [options]",
        formatter_class=RawDescriptionHelpFormatter,
        description="Post-training of diffusion language models.\n\n"
        + "\n".join(f"  {name:<15}{text}" for name, text in lines.items())
        + "\n\n`trl-diffusion COMMAND --help` lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"trl-diffusion {__version__}")
    if arguments and not arguments[0].startswith("-"):
        usage_error(parser, f"{arguments[0]!r} is no command{nearest(arguments[0], lines) or '.'}")
    parser.parse_args(arguments)
    parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
