# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""`trl-diffusion push`: a folder that a trainer saved goes to the Hub."""

import os
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

from huggingface_hub import ModelCard
from transformers import AutoTokenizer

from ..hub import (
    DLLM_FOLDER,
    card_with_figures,
    check_can_push,
    check_folder,
    check_kind,
    check_weights,
    folder_kind,
    hub_contents,
    hub_files,
    prepare_repo,
    push_folder,
    read_eval_results,
)
from ..models import AutoModelForDiffusionLM, UnmaskPolicyModel, merge_adapter_folder


DESCRIPTION = "Push what a trainer saved (a model, a LoRA adapter or an unmasking policy) to the Hub."


def add_arguments(parser: ArgumentParser):
    """Define the command's options."""
    parser.add_argument("--model", required=True, metavar="FOLDER", help="What a trainer saved.")
    parser.add_argument("--repo_id", required=True, help="Where to: 'user/name', or 'name' in the token's account.")
    parser.add_argument("--private", action="store_true", help="Make a new repository private.")
    parser.add_argument(
        "--merge_adapter",
        action="store_true",
        help="Merge the adapter into its base, loaded at full precision, and push the whole model.",
    )
    parser.add_argument("--revision", help="Branch to push to; it is created where it does not exist.")
    parser.add_argument("--message", default="Upload with trl-diffusion", help="Message of the commit.")
    parser.add_argument(
        "--eval_results",
        metavar="FOLDER",
        help="Output folder of `trl-diffusion eval`, whose results.json the card is to say.",
    )


def run(args: Namespace):
    """Check the folder, upload what belongs to its model, and print where it is.

    Raises:
        ValueError: the folder is not complete, or would not load.
        HubError: the Hub refuses it; the message says what to do.
    """
    folder = Path(args.model)
    kind = folder_kind(folder)
    if args.merge_adapter and kind != "adapter":
        raise ValueError(f"merge_adapter: {args.model!r} holds no adapter. Leave it out.")
    figures = None if args.eval_results is None else read_eval_results(args.eval_results, args.repo_id)
    check_can_push(args.repo_id)
    if not args.merge_adapter:
        check_folder(folder)
    with tempfile.TemporaryDirectory() as work:
        if args.merge_adapter:
            merge_adapter_folder(folder, work)
            folder, kind = Path(work), "model"
            check_folder(folder)
        check_loads(folder)
        # The folder is left as it is: a card with figures is written beside it.
        card = None
        if figures is not None:
            card = str(card_with_figures(ModelCard.load(folder / "README.md"), figures))
        hub_contents(folder, args.repo_id, card, [args.model])  # raises before there is a repository
        repo_id = prepare_repo(args.repo_id, private=args.private or None, revision=args.revision)
        check_kind(repo_id, kind, revision=args.revision)
        uploaded = hub_files(folder)
        left_out = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in uploaded)
        commit = push_folder(folder, repo_id, args.message, revision=args.revision, card=card, places=[args.model])
    print(f"Uploaded: {', '.join(uploaded)}.")
    if left_out:
        print(f"Left out: {', '.join(left_out)}.")
    print(f"{commit.repo_url}: {commit.commit_url}")


def check_loads(folder: str | os.PathLike):
    """Raise where the tokenizer, the config or the weights of a folder do not load. Weights are compared with the
    model by name and shape, and those of an adapter with nothing: its base may be anywhere."""
    folder, kind = Path(folder), folder_kind(folder)
    if kind == "policy":
        UnmaskPolicyModel.from_pretrained(folder)
        if (folder / DLLM_FOLDER).is_dir():
            check_loads(folder / DLLM_FOLDER)
        return
    check_weights(folder)
    AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if kind == "model":
        AutoModelForDiffusionLM.from_pretrained(folder, device_map="meta")
