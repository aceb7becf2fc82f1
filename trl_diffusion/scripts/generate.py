# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""`trl-diffusion generate`: completions of prompts, or texts with their masks filled in."""

import json
import os
import sys
import tempfile
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.text import Text
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ..generation import CanvasStreamer, DiffusionGenerationConfig
from ..generation.noise import row_seeds
from ..generation.streamers import printable
from ..models import DiffusionModelMixin
from .answers import Answer, encode, exceeds_positions, generate_answers
from .generation_options import add_arguments as add_generation_arguments
from .generation_options import given_settings, load_model, with_settings


DESCRIPTION = "Complete prompts with a diffusion language model, or fill the masks inside them, and watch it happen."


def add_arguments(parser: ArgumentParser):
    """The command's options."""
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", nargs="+", metavar="TEXT", help="One or more prompts.")
    prompts.add_argument(
        "--prompt_file",
        metavar="FILE",
        help="One prompt per line; blank lines are skipped. Without --prompt and --prompt_file the prompts are the "
        "lines of the standard input.",
    )
    parser.add_argument(
        "--chat_template", action="store_true", help="Each prompt is a user's message: apply the chat template."
    )
    parser.add_argument(
        "--infill",
        action="store_true",
        help="Fill the mask tokens that stand in the prompt (as text, e.g. <|mask|>) and print the whole text. "
        "Nothing is appended unless --max_new_tokens is given.",
    )
    parser.add_argument(
        "--num_return_sequences",
        type=int,
        metavar="N",
        help="Completions of each prompt (default: the model's, 1).",
    )
    parser.add_argument("--batch_size", type=int, metavar="N", help="Prompts per batch (default: 8; 1 with --live).")
    parser.add_argument(
        "--live",
        action=BooleanOptionalAction,
        help="Show the canvas while it fills up (default: where the standard output is a terminal).",
    )
    parser.add_argument(
        "--output",
        metavar="FILE.jsonl",
        help="Write a JSON object per completion (prompt, completion, num_tokens, num_forward_passes) to this file "
        "instead of the completions to the standard output. There, off a terminal, a blank line separates them.",
    )
    add_generation_arguments(parser)


def run(args: Namespace):
    """Generate; print the completions or write the file.

    Raises:
        ValueError: an option is wrong; names it.
    """
    settings = given_settings(args)
    if args.num_return_sequences is not None:
        settings["num_return_sequences"] = args.num_return_sequences
    if args.infill:
        settings.setdefault("max_new_tokens", 0)
    on_terminal = sys.stdout.isatty()
    if args.live and not on_terminal:
        raise ValueError("live=True draws on a terminal, and the standard output is none. Leave --live out.")
    live = on_terminal if args.live is None else args.live
    # Pictures of several prompts are soon higher than the terminal.
    batch_size = (1 if live else 8) if args.batch_size is None else args.batch_size
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    if args.output is None:
        generate(args, settings, live, batch_size, None)
        return
    with whole_file(args.output) as file:
        rows = generate(args, settings, live, batch_size, file)
    print(f"{args.output}: {rows} completion{'s' if rows > 1 else ''}.")


def generate(args: Namespace, settings: dict[str, Any], live: bool, batch_size: int, file: TextIO | None) -> int:
    """Generate batch by batch; a batch is written as soon as it is there.

    Args:
        args (`argparse.Namespace`):
            The command line.
        settings (`dict`):
            Settings of the generation that it names.
        live (`bool`), batch_size (`int`):
            Whether to show the canvas, and how many prompts at a time.
        file (`TextIO`, *optional*):
            Takes JSON lines; `None`: completions go to the standard output.

    Returns:
        `int`: completions.
    """
    on_terminal = sys.stdout.isatty()
    prompts = read_prompts(args)
    model, tokenizer = load_model(args)
    config = with_settings(model, model.generation_config, settings)
    encoded = encode_prompts(model, tokenizer, prompts, config, args.chat_template, args.infill)
    if config.seed is None:
        # Otherwise torch's generator is in the same state at the beginning of every run.
        torch.seed()
    copies = config.num_return_sequences or 1
    # Of all rows together: a completion does not depend on the batch size.
    seeds = row_seeds(config.seed, len(prompts) * copies)

    console = Console()
    streamer = CanvasStreamer(tokenizer, console, print_text=False) if live else None
    starts = range(0, len(prompts), batch_size)
    quiet = file is None or live or not sys.stderr.isatty()
    for start in tqdm(starts, desc="Generating", disable=quiet, leave=False):
        batch = slice(start, start + batch_size)
        row_batch = slice(start * copies, (start + batch_size) * copies)
        answers = generate_answers(
            model, tokenizer, encoded[batch], config, streamer, args.infill, seed=seeds[row_batch]
        )
        for place, prompt in enumerate(prompts[batch]):
            of_prompt = answers[place * copies : (place + 1) * copies]
            if file is not None:
                write_json_lines(file, prompt, of_prompt)
            else:
                heading = prompt if on_terminal and len(prompts) > 1 else None
                print_answers(console, of_prompt, heading, is_first=start + place == 0)
    return len(prompts) * copies


def read_prompts(args: Namespace) -> list[str]:
    """The prompts, from wherever they come.

    Raises:
        ValueError: there is none.
    """
    if args.prompt is not None:
        if not all(prompt.strip() for prompt in args.prompt):
            raise ValueError("prompt has an empty text: give the model something to go on from.")
        return args.prompt
    if args.prompt_file is not None:
        source = f"prompt_file={args.prompt_file!r}"
        try:
            with open(args.prompt_file, encoding="utf-8") as file:
                lines = file.read().split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{source} cannot be read as text: {error}") from error
    elif sys.stdin.isatty():
        raise ValueError("prompt is not given. Use --prompt, --prompt_file, or write prompts to the standard input.")
    else:
        source = "The standard input"
        lines = sys.stdin.read().split("\n")
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{source} has no prompt: give one per line.")
    return prompts


def encode_prompts(
    model: DiffusionModelMixin,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    config: DiffusionGenerationConfig,
    chat_template: bool,
    infill: bool,
) -> list[list[int]]:
    """Tokens of each prompt; all are looked at before anything is generated.

    Raises:
        ValueError: there is no chat template, a prompt has no mask to fill, or it is too long.
    """
    if chat_template and tokenizer.chat_template is None:
        raise ValueError("chat_template=True, and this model's tokenizer has no chat template. Leave it out.")
    encoded = []
    for prompt in prompts:
        ids = encode(tokenizer, [{"role": "user", "content": prompt}] if chat_template else prompt)
        if infill and model.mask_token_id not in ids:
            mask = tokenizer.convert_ids_to_tokens(model.mask_token_id)
            raise ValueError(f"infill=True, and the prompt {prompt!r} has no mask token: write {mask} for each one.")
        too_long = exceeds_positions(model, ids, config)
        if too_long:
            raise ValueError(f"The prompt {prompt[:40]!r}: {too_long}. Shorten one of them.")
        encoded.append(ids)
    return encoded


def print_answers(console: Console, answers: list[Answer], heading: str | None, is_first: bool):
    """The completions of one prompt, a blank line between any two."""
    if heading is not None:
        console.rule(Text(" ".join(heading.split()), overflow="ellipsis"), align="left")
    for number, answer in enumerate(answers):
        if number > 0 or (heading is None and not is_first):
            print()
        # Not through rich, which would break lines.
        print(printable(answer.text) if console.is_terminal else answer.text, flush=True)


def write_json_lines(file: TextIO, prompt: str, answers: list[Answer]):
    """One JSON object per completion."""
    for answer in answers:
        row = {
            "prompt": prompt,
            "completion": answer.text,
            "num_tokens": answer.num_tokens,
            "num_forward_passes": answer.num_forward_passes,
        }
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def whole_file(path: str) -> Iterator[TextIO]:
    """A file that is there whole, or not at all; opened before any work is done.

    Raises:
        ValueError: it cannot be written.
    """
    try:
        if os.path.isdir(path):
            raise IsADirectoryError("it is a folder")
        # In the same folder, so that it can be renamed into its place.
        file = tempfile.NamedTemporaryFile("w", dir=os.path.dirname(path) or ".", delete=False, encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"output={path!r} cannot be written: {error.strerror or error}. Name another file."
        ) from error
    try:
        with file:
            yield file
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except BaseException:
        os.remove(file.name)
        raise
