# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What all commands share: options that are misspelt, and errors without a traceback. Imports nothing heavy."""

import difflib
import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterable


DEBUG_HELP = "Show the traceback of an error."
# Errors whose message says it all; of others the type is shown too.
_SPEAKING = (ValueError, OSError, ImportError)
# Names that other commands and libraries have for an option, which no spelling leads to.
_MEANT = {"--model": "--model_name_or_path", "--lr": "--learning_rate", "--epochs": "--num_train_epochs"}
_MEANT |= {"--batch_size": "--per_device_train_batch_size", "--steps": "--max_steps"}


def nearest(name: str, known: Iterable[str]) -> str:
    """`": did you mean <the nearest known name>?"`, or nothing where none is near."""
    known = list(known)
    if _MEANT.get(name) in known:
        return f": did you mean {_MEANT[name]}?"
    spellings = {}
    for candidate in known:
        spellings.setdefault(candidate.replace("-", "_"), candidate)  # the first: with underscores, as in YAML files
    found = difflib.get_close_matches(name.replace("-", "_"), spellings, n=1, cutoff=0.6)
    return f": did you mean {spellings[found[0]]}?" if found else ""


def is_option(token: str) -> bool:
    """Whether argparse takes a token of a command line for an option with a long name."""
    return token.startswith("--") and token != "--" and " " not in token.split("=")[0]


class CommandParser(ArgumentParser):
    """An `ArgumentParser` that wants options written out, and names the nearest one for an option there is not."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        # First, since argparse complains of a required option before it looks at one that is misspelt.
        for token in sys.argv[1:] if args is None else args:
            if token == "--":
                break
            if is_option(token) and token.split("=")[0] not in self._option_string_actions:
                self.error(unrecognized(token, self.option_names))
        return super().parse_known_args(args, namespace)

    @property
    def option_names(self) -> list[str]:
        """The options with a long name."""
        return [name for name in self._option_string_actions if name.startswith("--")]

    def error(self, message: str):
        usage_error(self, message)


def unrecognized(token: str, known: Iterable[str]) -> str:
    """The message for an option there is not."""
    name = token.split("=")[0]
    return f"unrecognized option {name}{nearest(name, known)}"


def usage_error(parser: ArgumentParser, message: str):
    """End the process with status 2 and a line, instead of the usage of hundreds of options."""
    parser.exit(2, f"{parser.prog}: error: {message}\n`{parser.prog} --help` lists the options.\n")


def run_reporting(prog: str, function: Callable[[], int | None], debug: bool) -> int:
    """Run a command; an error becomes a line on the standard error.

    Args:
        prog (`str`):
            What the command is called.
        function (`Callable`):
            Does the work; may return an exit status.
        debug (`bool`):
            Let the error through, with its traceback.

    Returns:
        `int`: exit status.
    """
    try:
        return function() or 0
    except KeyboardInterrupt:
        return 130  # what a shell reports of a process that Ctrl-C ended
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError):  # other errors have words of their own
            from ..hub import hub_advice

            advice = hub_advice(error)
        else:
            advice = None
        process = f" [process {os.environ['RANK']}]" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
        message = advice or str(error) or type(error).__name__
        if not advice and str(error) and not isinstance(error, _SPEAKING):
            message = f"{type(error).__name__}: {error} (--debug shows where)"
        print(f"{prog}{process}: {message}", file=sys.stderr)
        return 1
