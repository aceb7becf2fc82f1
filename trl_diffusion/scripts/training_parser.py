# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The command line of the training commands: TRL's parser, with YAML files that are checked, options that may be
`accelerate launch`'s, and a `--help` that shows the fields of a method before the hundreds that it inherits."""

import os
import re
import textwrap
from argparse import Action, Namespace
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, get_args, get_type_hints

import yaml
from accelerate.commands.launch import launch_command_parser
from trl import ModelConfig, TrlParser

from .command import DEBUG_HELP, is_option, nearest, unrecognized, usage_error
from .training_help import TrainingHelp, group_actions, shorten_help


# Texts of which TRL or transformers take true and false too.
_BOOLEAN_TOO = ("scale_rewards", "resume_from_checkpoint", "fsdp", "trackio_static_space_id")
# Filters that TRL switches off by a number, and generation by nothing.
_NONE_TOO = ("top_k", "top_p", "min_p")
# What the command reads before the training's parser does, with its help.
COMMAND_OPTIONS = {
    "--config": ("FILE", "YAML file with options; the command line wins."),
    "--accelerate_config": (
        "NAME",
        "A file of `accelerate config`, or one of TRL's: single_gpu, multi_gpu, zero1, zero2, zero3, fsdp1, fsdp2.",
    ),
    "--num_processes": ("N", "Processes to start; all other options of `accelerate launch` are taken too."),
    "--debug": ("", DEBUG_HELP),
    "--help": ("", "Show the options that are most often set."),
    "--help_all": ("", "Show all options."),
}


class _Loader(yaml.SafeLoader):
    """YAML with a key once: of two the second would win without a word."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


@dataclass
class GivenOptions:
    """A command line, taken apart.

    Args:
        own (`list[str]`):
            Options of the training, `--config` left out.
        launch, launch_in_file (`list[str]`):
            Options of `accelerate launch`, and `--accelerate_config`: of the command line, and of the YAML file.
        config (`str`, *optional*):
            The YAML file.
        debug (`bool`):
            Whether errors show their traceback.
    """

    own: list[str] = field(default_factory=list)
    launch: list[str] = field(default_factory=list)
    launch_in_file: list[str] = field(default_factory=list)
    config: str | None = None
    debug: bool = False


class TrainingParser(TrlParser):
    """[`~trl.TrlParser`] for the arguments of a script, the config of its trainer and [`~trl.ModelConfig`].

    Args:
        script_class, config_class (`type`):
            The first two.
        kwargs:
            `prog` and `description`.
    """

    def __init__(self, script_class: type, config_class: type, **kwargs):
        super().__init__(
            (script_class, config_class, ModelConfig),
            usage="%(prog)s [--config FILE] [options]",
            formatter_class=TrainingHelp,
            add_help=False,
            allow_abbrev=False,
            **kwargs,
        )
        launcher = launch_command_parser()
        # A name that both have is the training's, as in TRL.
        self._launch_actions: dict[str, Action] = {
            name: action
            for name, action in launcher._option_string_actions.items()
            if name.startswith("--") and name not in (*self._option_string_actions, "--config", "--debug", "--help")
        }
        self._hints = {
            name: hint
            for cls in (ModelConfig, config_class, script_class)
            for name, hint in get_type_hints(cls).items()
        }
        group_actions(self, script_class, config_class, _command_help())

    def error(self, message: str):
        usage_error(self, message)

    @property
    def option_names(self) -> list[str]:
        """All options: of the training, of the command and of `accelerate launch`."""
        names = (*self._option_string_actions, *COMMAND_OPTIONS, *self._launch_actions)
        return [name for name in names if name.startswith("--")]

    def split(self, arguments: Iterable[str]) -> GivenOptions:
        """Take a command line apart. Ends the process after `--help`, or for an option that there is not.

        Args:
            arguments (`Iterable[str]`):
                The command line, without the command.
        """
        given, rest = GivenOptions(), list(arguments)
        while rest:
            token = rest.pop(0)
            name, equals, value = token.partition("=")
            if token in ("-h", "--help", "--help_all"):
                self._print_help_and_exit(everything=token == "--help_all")
            if token == "--debug" and (not rest or is_option(rest[0])):
                given.debug = True
            elif not is_option(token) or name in self._option_string_actions:
                given.own.append(token)
            elif name in self._launch_actions and self._launch_actions[name].nargs == 0:
                given.launch.append(token)
            elif name in self._launch_actions or name in ("--config", "--accelerate_config"):
                if not equals and not rest:
                    self.error(f"argument {name}: expected one argument")
                value = value if equals else rest.pop(0)
                if name == "--config":
                    if given.config is not None:
                        self.error("argument --config: one file can be given")
                    given.config = value
                else:
                    given.launch.append(f"{name}={value}")
            else:
                self.error(unrecognized(token, self.option_names))
        if given.config is not None:
            self._read(given)
        return given

    def check(self, given: GivenOptions) -> Namespace:
        """Look at the values as far as a process that only launches others can; the configs check the rest."""
        namespace, stray = self.parse_known_args(given.own)
        if stray:
            self.error(f"unrecognized argument {stray[0]!r}: options begin with --")
        return namespace

    def build(self, given: GivenOptions) -> tuple[Any, ...]:
        """The three dataclasses.

        Raises:
            ValueError: a setting is wrong; names it.
        """
        self.check(given)
        script, config, model = self.parse_args_into_dataclasses(given.own, look_for_args_file=False)
        words = {"true": True, "yes": True, "false": None, "no": None}  # as `Trainer.train` takes them
        if isinstance(config.resume_from_checkpoint, str) and not os.path.exists(config.resume_from_checkpoint):
            resumed = config.resume_from_checkpoint
            config.resume_from_checkpoint = words.get(resumed.lower(), resumed)
        return script, config, model

    def _read(self, given: GivenOptions):
        """Make the values of the YAML file the defaults of the options."""
        path = given.config
        try:
            with open(path, encoding="utf-8") as file:
                content = yaml.load(file, _Loader)  # a SafeLoader
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            self.error(f"config={path!r} cannot be read: {' '.join(str(error).split())}")
        if not isinstance(content, dict):
            self.error(f"config={path!r} must hold `option: value` lines.")
        variables = content.pop("env", None) or {}  # TRL's: environment variables
        if not isinstance(variables, dict):
            self.error(f"env in {path!r} must hold `NAME: value` lines.")
        os.environ.update({str(name): str(value) for name, value in variables.items()})
        values = {}
        for key, value in content.items():
            name = f"--{key}"
            if name == "--debug" and isinstance(value, bool):
                given.debug = given.debug or value
            elif name in self._option_string_actions:
                action = self._option_string_actions[name]
                values[action.dest] = self._value(action, key, value, path)
            elif name in self._launch_actions or name == "--accelerate_config":
                given.launch_in_file += self._launch_option(name, value, path)
            else:
                known = [option for option in self.option_names if option not in ("--config", "--help", "--help_all")]
                hint = nearest(name, known).replace("--", "")
                self.error(f"config={path!r} has the key {key!r}, which is no option{hint or '.'}")
        self.set_defaults_with_config(**values)

    def _value(self, action: Action, key: str, value: Any, path: str) -> Any:
        """A value of the YAML file as the option's type. argparse itself reads texts, and looks at nothing else."""
        kind = getattr(action.type, "__name__", "")
        if value is None:
            if type(None) not in get_args(self._hints[action.dest]) and action.dest not in _NONE_TOO:
                self.error(f"{key} in {path!r} has no value. Leave the line out for the default.")
            return None
        if action.nargs == "+" and not (isinstance(value, str) and value.lower() == "none"):
            items = value if isinstance(value, list) else [value]
            return [self._one(kind, key, item, path, str) for item in items]
        if value is False and "no" in (action.choices or ()):
            return "no"  # YAML takes the word for false
        if action.choices is None:
            value = self._one(kind, key, value, path, self._hints[action.dest], action.dest in _BOOLEAN_TOO)
        elif value not in action.choices:
            self.error(f"{key}={value!r} in {path!r} must be one of {', '.join(map(str, action.choices))}.")
        return value

    def _one(self, kind: str, key: str, value: Any, path: str, hint: Any, boolean_too: bool = False) -> Any:
        if isinstance(value, str):
            try:
                return {"int": int, "float": float}.get(kind, str)(value)
            except ValueError:
                if value.lower() in ("none", "null"):
                    return None
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if kind == "int" and not (is_number and float(value).is_integer()):
            self.error(f"{key}={value!r} in {path!r} must be a whole number.")
        if kind == "float" and not is_number:
            self.error(f"{key}={value!r} in {path!r} must be a number.")
        if kind == "string_to_bool" and not isinstance(value, (bool, str)):
            self.error(f"{key}={value!r} in {path!r} must be true or false.")
        if kind == "str" and not isinstance(value, str) and not (boolean_too and isinstance(value, bool)):
            kinds = [getattr(part, "__origin__", part) for part in (get_args(hint) or (hint,))]
            if type(value) not in kinds:
                wanted = "must hold `name: value` lines" if dict in kinds else "must be a text; put it in quotes"
                self.error(f"{key}={value!r} in {path!r} {wanted}.")
            return _with_numbers(value)
        return int(value) if kind == "int" else value

    def _launch_option(self, name: str, value: Any, path: str) -> list[str]:
        """A key of the YAML file as an option of `accelerate launch`."""
        if value is None:
            return []
        action = self._launch_actions.get(name)
        if action is not None and action.nargs == 0:
            if not isinstance(value, bool):
                self.error(f"{name[2:]}={value!r} in {path!r} must be true or false.")
            return [name] if value else []
        return [f"{name}={str(value).lower() if isinstance(value, bool) else value}"]

    def _print_help_and_exit(self, everything: bool):
        if not everything:
            shorten_help(self)
            self.epilog = f"`{self.prog} --help_all` shows the options of TRL and transformers too."
        self.print_help()
        self.exit()


def _command_help() -> str:
    """[`COMMAND_OPTIONS`] as argparse would show them."""
    lines = []
    for name, (metavar, text) in COMMAND_OPTIONS.items():
        first, *others = textwrap.wrap(text, 50)
        lines += [f"{f'{name} {metavar}':<28}{first}", *(f"{'':<28}{line}" for line in others)]
    return "\n".join(lines)


def _with_numbers(value: Any) -> Any:
    """A value inside a dictionary or list of YAML, which takes 1e-6, without a point, for a text."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)
    return float(value) if is_number else value
