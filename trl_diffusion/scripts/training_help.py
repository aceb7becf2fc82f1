# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""`--help` of the training commands: their fields in groups, those of the method first."""

import dataclasses
import re
import shutil
import textwrap
from argparse import SUPPRESS, Action, ArgumentParser, RawDescriptionHelpFormatter
from enum import Enum

from trl import ModelConfig

from ..trainer import BGPOConfig, DiffusionGRPOConfig, DiffusionSFTConfig, IGPOConfig, TraceRLConfig
from ..trainer.denoising_config import DenoisingGRPOConfig
from ..trainer.unmask_policy_config import UnmaskPolicyConfig


# Class that brings a field → the group that it is shown in.
_GROUPS = {
    DiffusionSFTConfig: "masking and loss",
    TraceRLConfig: "TraceRL",
    BGPOConfig: "BGPO",
    IGPOConfig: "IGPO",
    UnmaskPolicyConfig: "the policy, its reward and its environment",
    DiffusionGRPOConfig: "likelihood and loss",
    DenoisingGRPOConfig: "rollouts and rewards",
}
_MODEL = "model, LoRA and quantization"
_TRAINING = "training"
_DATA = "data and evaluation"
_TRL, _TRANSFORMERS = "inherited from TRL", "inherited from transformers"
INHERITED = (_TRL, _TRANSFORMERS)
# Inherited fields that most runs set, in this order.
_OFTEN_SET = {
    _MODEL: (
        "model_name_or_path",
        "model_revision",
        "dtype",
        "attn_implementation",
        "use_peft",
        "lora_r",
        "lora_alpha",
        "lora_dropout",
        "lora_target_modules",
        "load_in_4bit",
        "load_in_8bit",
    ),
    "rollouts and rewards": (
        "max_completion_length",
        "num_generations",
        "temperature",
        "top_p",
        "top_k",
        "reward_weights",
        "num_iterations",
        "steps_per_generation",
        "chat_template_kwargs",
    ),
    _TRAINING: (
        "output_dir",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "max_steps",
        "num_train_epochs",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "max_length",
        "completion_only_loss",
        "assistant_only_loss",
        "beta",
        "epsilon",
        "epsilon_high",
        "scale_rewards",
        "weight_decay",
        "max_grad_norm",
        "bf16",
        "activation_checkpointing",
        "use_cpu",
        "seed",
        "logging_steps",
        "log_completions",
        "report_to",
        "eval_strategy",
        "eval_steps",
        "save_strategy",
        "save_steps",
        "resume_from_checkpoint",
        "push_to_hub",
        "hub_model_id",
    ),
}
_ALL_OFTEN_SET = {name: title for title, names in _OFTEN_SET.items() for name in names}
_METAVARS = {"int": "N", "float": "X", "string_to_bool": "BOOL"}


class TrainingHelp(RawDescriptionHelpFormatter):
    """At most 100 columns, an option once, in the spelling that YAML files have too, and no defaults that say
    nothing."""

    def __init__(self, prog: str):
        width = min(100, shutil.get_terminal_size().columns) - 2
        super().__init__(prog, max_help_position=30, width=max(width, 60))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        # Lines that begin with an option, or with spaces, are set already.
        return "\n".join(
            f"{indent}{line}" if line.startswith((" ", "--")) else textwrap.fill(line, width, initial_indent=indent)
            for line in text.splitlines()
        )

    def _format_action_invocation(self, action: Action) -> str:
        name, metavar = action.option_strings[0], action.metavar
        if action.choices is not None:
            metavar = "NAME"
        elif metavar is None:
            metavar = _METAVARS.get(getattr(action.type, "__name__", ""), "TEXT")
            metavar = {"+": f"{metavar} ...", "?": f"[{metavar}]"}.get(action.nargs, metavar)
        return f"{name} {metavar}"

    def _get_help_string(self, action: Action) -> str:
        text = (action.help or "").strip()
        if action.choices is not None and not all(f"'{choice}'" in text for choice in action.choices):
            choices = ", ".join(str(choice) for choice in action.choices)
            text = f"{text.rstrip('.')}: {choices}." if text else f"{choices}."
        default = action.default.value if isinstance(action.default, Enum) else action.default
        says_nothing = default is None or default is False or default == "" or default == [] or default == {}
        if says_nothing or default is SUPPRESS or "efault" in text:
            return text
        return f"{text} (default: {str(default).replace('%', '%%')})"


def group_actions(parser: ArgumentParser, script_class: type, config_class: type, command: str):
    """Put the options of a parser into groups.

    Args:
        parser (`ArgumentParser`):
            Its options are the fields of the classes and of [`~trl.ModelConfig`].
        script_class, config_class (`type`):
            The arguments of the script, and the trainer's config.
        command (`str`):
            Lines of the first group, whose options the parser does not know.
    """
    actions: dict[str, Action] = {}
    for action in parser._actions:
        if action.dest in actions:
            action.help = SUPPRESS  # "--no_bf16" beside "--bf16"
        else:
            actions[action.dest] = action
    own = [_GROUPS[cls] for cls in config_class.__mro__ if cls in _GROUPS]
    placed: dict[str, list[str]] = {title: [] for title in (_DATA, *own, _MODEL, _TRAINING, *INHERITED)}
    placed[_DATA] = [field.name for field in dataclasses.fields(script_class)]
    for cls in (config_class, ModelConfig):
        for field in dataclasses.fields(cls):
            if field.init:
                placed[_title(cls, field)].append(field.name)
    parser._action_groups = []
    parser.add_argument_group("command", command)
    for title, names in placed.items():
        group = parser.add_argument_group(title)
        order = {name: place for place, name in enumerate(_OFTEN_SET.get(title, ()))}
        for name in sorted(names, key=lambda name: order.get(name, len(order))):
            group._group_actions.append(actions[name])
            actions[name].container = group


def shorten_help(parser: ArgumentParser):
    """Leave out what a method inherits and few set, and of the rest that is inherited all but the first sentence."""
    for action in parser._actions:
        if action.container.title in INHERITED:
            action.help = SUPPRESS
        elif action.dest in _ALL_OFTEN_SET and action.help is not SUPPRESS:
            action.help = re.split(r"(?<=\.) (?=[A-Z])", action.help, maxsplit=1)[0]


def _title(cls: type, field: dataclasses.Field) -> str:
    """The group of a field."""
    fixed = field.metadata.get("help", "").startswith(("Always", "Not supported"))
    if field.name in _ALL_OFTEN_SET and not fixed:
        return _ALL_OFTEN_SET[field.name]
    if cls is ModelConfig:
        return _TRL
    # Of the classes that have it the one at the bottom: a method that changes a default does not make a field its own.
    brings = next(c for c in reversed(cls.__mro__) if field.name in getattr(c, "__dataclass_fields__", ()))
    changes = [
        c for c in reversed(cls.__mro__) if c in _GROUPS and field.name in c.__dict__.get("__annotations__", ())
    ]
    if fixed or not changes:
        return _TRANSFORMERS if brings.__module__.startswith("transformers.") else _TRL
    return _TRAINING if brings.__module__.startswith("transformers.") else _GROUPS[changes[0]]
