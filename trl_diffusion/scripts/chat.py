# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""`trl-diffusion chat`: a conversation in the terminal, with the canvas filling up before your eyes."""

import sys
import time
from argparse import ArgumentParser, Namespace
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ..generation import CanvasStreamer, DiffusionGenerationConfig
from ..generation.streamers import printable
from ..models import DiffusionModelMixin
from .answers import Answer, encode, exceeds_positions, generate_answers
from .generation_options import SETTINGS, describe_setting, given_settings, load_model, parse_setting, with_settings
from .generation_options import add_arguments as add_generation_arguments


DESCRIPTION = "Chat with a diffusion language model in the terminal and watch its answers fill up."

HELP = """\
/set name=value ...  change settings: /set unmasking=threshold threshold=0.9
/settings            show them all
/system text         set the system message; without text, remove it
/clear               forget the conversation
/exit, Ctrl-D        leave
Ctrl-C               stop an answer; the turn is forgotten
Any other line is sent. One that begins with a slash needs a space before it."""


def add_arguments(parser: ArgumentParser):
    """The command's options."""
    add_generation_arguments(parser)


def run(args: Namespace):
    """Chat until `/exit` or the end of the input.

    Raises:
        ValueError: an option is wrong; names it.
    """
    settings = {**given_settings(args), "num_return_sequences": 1}
    model, tokenizer = load_model(args)
    config = with_settings(model, model.generation_config, settings)
    chat = Chat(model, tokenizer, config, args.debug)
    chat.introduce(args.model)
    chat.loop()


class Conversation:
    """What was said so far, and the prompt it makes.

    Through a chat template where the tokenizer has one. A model without one knows no turns: what the user types and
    what the model writes are one text, which it continues.

    Args:
        has_template (`bool`):
            Whether prompts go through a chat template.
    """

    def __init__(self, has_template: bool):
        self.has_template = has_template
        self.system: str | None = None
        self.turns: list[tuple[str, str]] = []  # what the user typed, what the model wrote

    def prompt(self, text: str) -> str | list[dict[str, str]]:
        """The conversation with a new line of the user's: messages for the chat template, or one text."""
        if not self.has_template:
            return "".join(said + answer for said, answer in self.turns) + text
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for said, answer in self.turns:
            messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
        return [*messages, {"role": "user", "content": text}]


class Chat:
    """The commands and the turns of a chat.

    Args:
        model ([`DiffusionModelMixin`]), tokenizer:
            Who answers.
        config ([`DiffusionGenerationConfig`]):
            Settings at the start.
        debug (`bool`, *optional*, defaults to `False`):
            Let errors of a turn end the chat, with their traceback.
    """

    def __init__(
        self,
        model: DiffusionModelMixin,
        tokenizer: PreTrainedTokenizerBase,
        config: DiffusionGenerationConfig,
        debug: bool = False,
    ):
        self.model, self.tokenizer, self.config, self.debug = model, tokenizer, config, debug
        self.conversation = Conversation(has_template=tokenizer.chat_template is not None)
        self.console = Console(highlight=False)
        # Off a terminal pictures would be written below each other.
        self.streamer = CanvasStreamer(tokenizer, self.console, print_text=False) if sys.stdout.isatty() else None
        self.commands = {
            "/set": self.set,
            "/settings": self.show_settings,
            "/system": self.set_system,
            "/clear": self.clear,
            "/help": lambda rest: self.say(HELP),
        }

    def say(self, text: str, style: str = "dim"):
        """A line of the program's own, told apart from the model's by its style."""
        self.console.print(Text(text, style=style))

    def introduce(self, name: str):
        """Which model this is, and how a conversation becomes a prompt."""
        model = self.model
        attention = "full attention" if model.attention == "full" else f"blocks of {model.block_length}"
        canvas = self.config.max_new_tokens
        self.say(f"{name}: {type(model).__name__}, {attention}, {model.device}, a canvas of {canvas} tokens.", "bold")
        if self.conversation.has_template:
            self.say("Mode: chat. The model sees the whole conversation, through the tokenizer's chat template.")
        else:
            self.say(
                "Mode: plain text, since the tokenizer has no chat template. What you type and what the model writes "
                "are one text, which it continues; /clear begins a new one."
            )
        self.say("/help lists the commands.")

    def loop(self):
        """Read a line, do what it says, until `/exit` or the end of the input."""
        while True:
            try:
                line = input(">>> ")
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                self.say("/exit or Ctrl-D to leave.")
                continue
            if not line.strip():
                continue
            if line.startswith("/") and line.split()[0] == "/exit":
                return
            try:
                self.respond(line)
            except KeyboardInterrupt:
                self.say("Stopped. This turn is forgotten.")
            except Exception as error:
                # Whatever went wrong, the conversation is still as it was.
                if self.debug:
                    raise
                self.say(str(error) or type(error).__name__, "red")

    def respond(self, line: str):
        """Run a command, or send a line to the model.

        Raises:
            ValueError: no such command, or a setting is wrong; nothing has changed then.
        """
        if not line.startswith("/"):
            return self.turn(line)
        name, rest = (*line.split(maxsplit=1), "")[:2]
        if name not in self.commands:
            raise ValueError(f"{name} is no command. /help lists them; a space before the line sends it.")
        self.commands[name](rest.strip())

    def turn(self, text: str):
        """One turn: the answer is shown and becomes part of the conversation."""
        ids = encode(self.tokenizer, self.conversation.prompt(text))
        too_long = exceeds_positions(self.model, ids, self.config)
        if too_long:
            raise ValueError(f"The conversation's {too_long}. /clear forgets it; a smaller canvas may help too.")
        if self.config.seed is None:
            # Otherwise torch's generator begins in the same state in every chat.
            torch.seed()
        started = time.perf_counter()
        answer = generate_answers(self.model, self.tokenizer, [ids], self.config, self.streamer)[0]
        seconds = time.perf_counter() - started
        print(printable(answer.text) if self.console.is_terminal else answer.text)
        self.say(describe(answer, seconds))
        self.conversation.turns.append((text, answer.text))

    def set(self, rest: str):
        """`/set`: all settings of a line together, so that those that need each other can be given."""
        given: dict[str, Any] = {}
        for part in rest.split():
            name, equals, text = part.partition("=")
            if not equals:
                raise ValueError(f"{part!r} must be name=value, e.g. /set temperature=0.7.")
            given[name] = parse_setting(name, text)
        if not given:
            raise ValueError("/set needs name=value, e.g. /set temperature=0.7. /settings shows them all.")
        self.config = with_settings(self.model, self.config, given)
        self.say(", ".join(describe_setting(self.config, name) for name in given))

    def show_settings(self, rest: str):
        """`/settings`, in the form that `/set` takes."""
        self.say("\n".join(describe_setting(self.config, name) for name in SETTINGS))

    def set_system(self, rest: str):
        """`/system`: the message before the conversation."""
        if not self.conversation.has_template:
            raise ValueError("/system needs a chat template, and this tokenizer has none.")
        before, self.conversation.system = self.conversation.system, rest or None
        try:
            self.tokenizer.apply_chat_template(self.conversation.prompt("text"), tokenize=False)
        except Exception as error:
            self.conversation.system = before
            raise ValueError(f"/system: the chat template refuses this message ({error}).") from error
        self.say("The system message is set." if rest else "There is no system message.")

    def clear(self, rest: str):
        """`/clear`: settings and system message stay."""
        self.conversation.turns = []
        self.say("The conversation is forgotten.")


def describe(answer: Answer, seconds: float) -> str:
    """The line below an answer."""
    tokens, passes = answer.num_tokens, answer.num_forward_passes
    per_pass = tokens / passes
    return f"{tokens} tokens, {passes} forward passes, {per_pass:.1f} tokens per pass, {seconds:.2f} s"
