# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The console command `trl-diffusion`."""

import sys
from argparse import ArgumentParser

from ..hub import hub_advice
from . import align_lengths, chat, convert, evaluate, generate, push


COMMANDS = {
    "generate": generate,
    "chat": chat,
    "eval": evaluate,
    "convert": convert,
    "align-lengths": align_lengths,
    "push": push,
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its errors are one line, unless `--debug` asks for the traceback.

    Args:
        arguments (`list[str]`, *optional*):
            Command line without the program's name. Defaults to the process's.

    Returns:
        `int`: exit status.
    """
    parser = ArgumentParser(prog="trl-diffusion", description="Post-training of diffusion language models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.DESCRIPTION, description=command.DESCRIPTION)
        command.add_arguments(subparser)
        subparser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    args = parser.parse_args(arguments)
    try:
        COMMANDS[args.command].run(args)
    except KeyboardInterrupt:
        return 130  # what a shell reports of a process that Ctrl-C ended
    except Exception as error:
        if args.debug:
            raise
        advice = hub_advice(error) if isinstance(error, OSError) else None  # other errors have words of their own
        print(f"trl-diffusion {args.command}: {advice or str(error) or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
