# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""`trl-diffusion align-lengths`: reasoning traces rewritten to the length of a canvas, as data for SFT."""

import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..tasks.answers import ANSWER_FORMATS
from ..tasks.length_alignment import align_lengths
from ..tasks.rewriters import InferenceClientRewriter, OpenAIRewriter
from .dotted_path import import_dotted
from .local_data import load_rows


DESCRIPTION = (
    "Rewrite the reasoning traces of a dataset concisely with a chat model, or a function of yours, and keep those "
    "that fit into a canvas and still end in the right answer: data for DiffusionSFTTrainer."
)
# Options that only a chat model has → the rewriter's argument.
_CHAT_OPTIONS = {
    "model": None,
    "client": None,
    "base_url": "base_url",
    "provider": "provider",
    "target_length": "target_length",
    "instructions_file": "instructions",
    "temperature": "temperature",
    "max_tokens": "generation_kwargs",
}


def add_arguments(parser: ArgumentParser):
    """The command's options."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset", required=True, help="Hub id, a .jsonl, .json, .csv or .parquet file, or a folder of a dataset."
    )
    data.add_argument("--config", help="Configuration of a Hub dataset.")
    data.add_argument("--split", default="train", help="Its split (default: %(default)s).")
    data.add_argument("--num_rows", type=int, metavar="N", help="The first N rows only, to try out a rewriter.")
    data.add_argument("--prompt_column", default="prompt", help="Column of the prompts (default: %(default)s).")
    data.add_argument("--trace_column", default="reasoning", help="Column of the traces (default: %(default)s).")
    data.add_argument(
        "--conversational",
        action="store_true",
        help="Make each prompt, a text, a user's message: for models that are trained with a chat template.",
    )
    data.add_argument("--keep_columns", nargs="*", help="Other columns to carry along (default: all).")

    rewriting = parser.add_argument_group("rewriter", "Keys are read from OPENAI_API_KEY or HF_TOKEN.")
    rewriting.add_argument("--model", help="Chat model that rewrites.")
    rewriting.add_argument("--client", choices=["openai", "huggingface"], help="Python client (default: openai).")
    rewriting.add_argument("--base_url", help="Address of an OpenAI-compatible endpoint, /v1 included.")
    rewriting.add_argument("--provider", help="Inference provider (with --client huggingface).")
    rewriting.add_argument(
        "--target_length",
        type=int,
        metavar="TOKENS",
        help="What the model is asked to stay under (default: max_length; models count badly, so try less).",
    )
    rewriting.add_argument("--instructions_file", metavar="FILE", help="System message instead of the built-in one.")
    rewriting.add_argument("--temperature", type=float, help="Sampling temperature (default: the server's).")
    rewriting.add_argument("--max_tokens", type=int, metavar="N", help="Limit of the tokens that the model writes.")
    rewriting.add_argument(
        "--rewriter", metavar="MODULE.FUNCTION", help="A function (trace, row) -> str instead of a chat model."
    )

    keeping = parser.add_argument_group("what is kept")
    keeping.add_argument("--tokenizer", required=True, help="Of the model that will be trained: Hub id or folder.")
    keeping.add_argument(
        "--max_length", type=int, required=True, metavar="TOKENS", help="Of a completion, EOS included."
    )
    keeping.add_argument(
        "--verify", metavar="MODULE.FUNCTION", help="A function (text, row) -> bool (default: the same final answer)."
    )
    keeping.add_argument(
        "--answer_format", default="auto", choices=ANSWER_FORMATS, help="Where answers stand (default: %(default)s)."
    )
    keeping.add_argument(
        "--keep_short",
        action=BooleanOptionalAction,
        default=True,
        help="Keep traces that fit already as they are, without a call (default).",
    )
    keeping.add_argument("--num_attempts", type=int, default=1, help="Rewrites to ask for until one is good.")

    calls = parser.add_argument_group("calls")
    calls.add_argument("--max_concurrency", type=int, default=16, help="At a time (default: %(default)s).")
    calls.add_argument("--timeout", type=float, default=300.0, help="Seconds for a call (default: %(default)s).")
    calls.add_argument("--max_retries", type=int, default=5, help="After a failed call (default: %(default)s).")
    calls.add_argument("--retry_delay", type=float, default=1.0, help="Seconds, doubled each time (%(default)s).")
    calls.add_argument(
        "--retry_failed",
        action=BooleanOptionalAction,
        default=True,
        help="When going on: try the rows again that failed (default).",
    )

    parser.add_argument(
        "--output_dir", required=True, help="Folder of the result; the same command goes on with an interrupted one."
    )
    parser.add_argument(
        "--plot", nargs="+", default=[], metavar="FILE", help="Histograms of the lengths: .png, .svg or .pdf."
    )


def run(args: Namespace):
    """Rewrite, and say what was kept.

    Raises:
        ValueError: an option is wrong; names it.
    """
    rewriter = make_rewriter(args)
    verify = None if args.verify is None else import_dotted("verify", args.verify)
    dataset = load_rows(args.dataset, args.config, args.split)
    if args.num_rows is not None:
        if args.num_rows < 1:
            raise ValueError(f"num_rows={args.num_rows} must be at least 1.")
        dataset = dataset.select(range(min(args.num_rows, len(dataset))))
    if args.conversational:
        dataset = as_conversations(dataset, args.prompt_column)
    aligned = align_lengths(
        dataset,
        rewriter,
        load_tokenizer(args.tokenizer),
        args.max_length,
        prompt_column=args.prompt_column,
        trace_column=args.trace_column,
        verify=verify,
        answer_format=args.answer_format,
        keep_short=args.keep_short,
        num_attempts=args.num_attempts,
        max_concurrency=args.max_concurrency,
        timeout=args.timeout,
        max_retries=args.max_retries,
        retry_delay=args.retry_delay,
        retry_failed=args.retry_failed,
        keep_columns=args.keep_columns,
        output_dir=args.output_dir,
        plot_files=args.plot,
        progress=sys.stderr.isatty(),
    )
    print(aligned.report)
    print(f"{args.output_dir}: train on it with load_dataset({args.output_dir!r}, split='train').")


def make_rewriter(args: Namespace) -> Callable:
    """The rewriter that the options name.

    Raises:
        ValueError: there is none, or options are given that do nothing with it.
        ImportError: its client is not installed.
    """
    given = {name: getattr(args, name) for name in _CHAT_OPTIONS if getattr(args, name) is not None}
    if args.rewriter is not None:
        if given:
            name, value = next(iter(given.items()))
            raise ValueError(f"{name}={value!r} does nothing with rewriter={args.rewriter!r}. Leave one of them out.")
        return import_dotted("rewriter", args.rewriter)
    if args.model is None:
        raise ValueError("model is not given. Name the chat model that rewrites, or a function with --rewriter.")
    settings = {"target_length": args.max_length}
    for option, name in _CHAT_OPTIONS.items():
        if name is not None and option in given:
            settings[name] = given[option]
    if args.instructions_file is not None:
        try:
            settings["instructions"] = Path(args.instructions_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"instructions_file={args.instructions_file!r} cannot be read: {error}") from error
    if args.max_tokens is not None:
        settings["generation_kwargs"] = {"max_tokens": args.max_tokens}
    if args.client == "huggingface":
        return InferenceClientRewriter(args.model, **settings)
    if args.provider is not None:
        raise ValueError(f"provider={args.provider!r} does nothing without client='huggingface'.")
    return OpenAIRewriter(args.model, **settings)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer by its name.

    Raises:
        ValueError: it cannot be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"tokenizer={name!r} cannot be loaded: {' '.join(str(error).split())}") from error


def as_conversations(dataset: Dataset, prompt_column: str) -> Dataset:
    """The dataset with each prompt as a user's message.

    Raises:
        ValueError: there is no such column, or its prompts are conversations already.
    """
    if prompt_column not in dataset.column_names:
        names = ", ".join(dataset.column_names)
        raise ValueError(f"prompt_column={prompt_column!r} is no column of the dataset, which has {names}.")
    if any(not isinstance(prompt, str | None) for prompt in dataset[prompt_column]):
        raise ValueError(f"conversational=True, and {prompt_column!r} holds no texts. Leave --conversational out.")
    # align_lengths names the rows that have none.
    prompts = [[{"role": "user", "content": prompt}] if prompt else None for prompt in dataset[prompt_column]]
    return dataset.remove_columns(prompt_column).add_column(prompt_column, prompts)
