# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The command lines that README.md and docs/ print: found, and held against the parsers of what they start."""

import contextlib
import functools
import io
import re
import runpy
import shlex
import sys
from unittest import mock

from accelerate.commands.launch import launch_command_parser
from doc_blocks import ROOT


PROGRAMS = ("trl-diffusion", "python", "accelerate", "make")
OPTION = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*")


def command_lines(page: str) -> list[str]:
    """The commands of a page: lines of code blocks that start one of `PROGRAMS`, continued lines joined."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"\\\n\s*", " ", text)
    found, fenced = [], None
    for line in text.splitlines():
        fence = re.match(r"\s*```(\w*)", line)
        if fence:
            fenced = None if fenced is not None else fence[1]
        elif fenced in ("bash", "sh", "console") or (fenced is None and line.startswith("    ")):
            # What stands before the program: a prompt, variables, the environment's folder.
            command = re.sub(r"^(\$ )?(\w+=\S* )*(\.venv/bin/)?", "", line.strip())
            if re.match(r"trl-diffusion [\w-]+: ", command):
                found.pop()  # what the command before it prints: an example of an error
            elif command.split(" ")[0] in PROGRAMS:
                found.append(command.split(" #")[0])
    return found


def problems(command: str) -> list[str]:
    """What is wrong with a command: a file that is not there, or options that its parser does not know."""
    words = shlex.split(command)
    if words[0] == "trl-diffusion":
        leading, options = _split(words[1:])
        if not leading:
            return []
        known = _help_of_command(leading[0])
        return _unknown(options, known) if known else [f"{leading[0]} is no command"]
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        made = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return [f"make {target} is no target" for target in targets if target not in made]
    if words[0] == "python":
        if words[1].startswith("-"):
            return []  # a module, or a line of code
        return _problems_of_script(words[1:])
    if words[1] != "launch":
        return []
    found = _unknown([word for word in words[2 : _script(words)] if word.startswith("--")], _launch_options())
    return found + _problems_of_script(words[_script(words) :])


def _script(words: list[str]) -> int:
    return next(index for index, word in enumerate(words) if word.endswith(".py"))


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """What stands before the first option, and the options."""
    first = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    return words[:first], [word.split("=")[0] for word in words[first:] if re.match(r"--[A-Za-z]", word)]


def _unknown(options: list[str], known: set[str]) -> list[str]:
    return [f"{option} is no option" for option in options if option.split("=")[0] not in known]


def _problems_of_script(words: list[str]) -> list[str]:
    script, (leading, options) = words[0], _split(words[1:])
    if not (ROOT / script).is_file():
        return [f"{script} is not there"]
    missing = []
    for name, value in zip(words, words[1:], strict=False):
        if name == "--config" and not (ROOT / value).is_file():
            missing.append(f"{value} is not there")
    return missing + (_unknown(options, _help_of_script(script, tuple(leading))) if options else [])


def _options_of_help(call) -> set[str]:
    """The options that `call(help option)` prints, with those of the longer help where there is one."""
    text = ""
    for option in ("--help", "--help_all"):
        if option == "--help" or option in text:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
                call(option)
            text += printed.getvalue()
    options = set(OPTION.findall(text))
    # The training commands take those of `accelerate launch` too.
    return options | _launch_options() if "--accelerate_config" in options else options


@functools.cache
def _launch_options() -> set[str]:
    return set(launch_command_parser()._option_string_actions)


@functools.cache
def _help_of_command(name: str) -> set[str]:
    from trl_diffusion.scripts.cli import main

    return _options_of_help(lambda option: main([name, option]))


@functools.cache
def _help_of_script(script: str, leading: tuple[str, ...]) -> set[str]:
    def run(option: str):
        folder = str((ROOT / script).parent)
        with (
            mock.patch.object(sys, "argv", [script, *leading, option]),
            mock.patch.object(sys, "path", [folder, *sys.path]),
        ):
            runpy.run_path(str(ROOT / script), run_name="__main__")

    return _options_of_help(run)
