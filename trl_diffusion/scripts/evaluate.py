# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""`trl-diffusion eval`: accuracy on tasks, along curves, or of one evaluation against another."""

import json
import os
import platform
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..evaluation import Task, TaskResult, evaluate_tasks
from ..generation import DiffusionGenerationConfig
from ..models import DiffusionModelMixin
from ..tasks.fingerprint import describe
from . import tasks as task_loading
from .compare import run_compare
from .curves import add_arguments as add_curve_arguments
from .curves import check_curves, run_frontier
from .eval_presets import PRESETS, Preset, find_preset
from .generation_options import SETTINGS, describe_setting, given_settings, load_model, with_settings
from .generation_options import add_arguments as add_generation_arguments


DESCRIPTION = "Measure the accuracy of a diffusion language model on tasks, and the forward passes that it takes."
_PACKAGES = ("trl-diffusion", "torch", "transformers", "trl", "peft", "datasets", "evaluate", "math-verify")
# What an evaluation has and a comparison has not.
_NOT_OF_COMPARE = (
    "model", "tasks", "preset", "output_dir", "num_test", "reward_funcs", "frontier", "overwrite", "seeds", "curves",
    "policies", "chat_template_kwargs", "dtype", "device", "revision",
)  # fmt: skip


def add_arguments(parser: ArgumentParser):
    """The command's options."""
    task = parser.add_argument_group("tasks")
    task.add_argument(
        "--tasks",
        nargs="+",
        metavar="NAME",
        help="Joined by commas or blanks: sudoku, countdown, countdown3, arithmetic, gsm8k, math500, a .jsonl, .json, "
        ".csv or .parquet file or a folder of a dataset, or a Hub dataset with a prompt column.",
    )
    task.add_argument(
        "--reward_funcs",
        nargs="+",
        metavar="NAME",
        help="For data without a verdict of their own: reward functions, by their names in trl.rewards or dotted "
        "paths; a completion whose rewards add up to 1 or more is right.",
    )
    task.add_argument("--split", default="test", help="Split of data that have splits (default: %(default)s).")
    task.add_argument(
        "--num_test", type=int, metavar="N", help="Problems of each task (default: 256 of generated tasks, else all)."
    )
    task.add_argument("--batch_size", type=int, default=64, metavar="N", help="Per batch (default: %(default)s).")
    task.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        metavar="N",
        help="Stochastic settings are measured with each of these seeds, the others once (default: 0).",
    )
    task.add_argument(
        "--chat_template_kwargs", metavar="JSON", help="Passed to the chat template, such as '{\"key\": true}'."
    )
    task.add_argument(
        "--preset",
        metavar="NAME",
        help=f"Settings of the field's protocol: {', '.join(PRESETS)} (canvas of that length, a step per two tokens, "
        "blocks of 32, low_confidence, temperature 0, no guidance, bfloat16, seed 42). What is given besides wins.",
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "--output_dir",
        metavar="FOLDER",
        help="For results.json, and a row per completion in <task>.jsonl. The same command goes on with what an "
        "interrupted one has done.",
    )
    files.add_argument("--overwrite", action="store_true", help="Start anew, whatever the folder holds.")
    files.add_argument(
        "--compare",
        nargs="+",
        metavar="FOLDER",
        help="Instead of an evaluation: compare finished ones, the first with each of the others, problem by problem.",
    )
    add_curve_arguments(parser)
    add_generation_arguments(parser, needs_model=False)
    parser.set_defaults(dtype=None)  # to tell whether it is given: a preset has one


def run(args: Namespace):
    """Measure, and print a table.

    Raises:
        ValueError: an option is wrong; names it.
        ImportError: with `--frontier`, matplotlib is not installed; for mathematics, math-verify.
    """
    given = given_settings(args)
    if args.compare is not None:
        for name in _NOT_OF_COMPARE:
            if getattr(args, name):
                raise ValueError(f"{name}={getattr(args, name)!r} does nothing with compare. Leave one of them out.")
        for name in given:
            raise ValueError(f"{name}={getattr(args, name)} does nothing with compare. Leave it out.")
        run_compare(args.compare)
        return
    template_kwargs = check_options(args, given)
    preset = None if args.preset is None else find_preset(args.preset)
    tasks = {}
    for name in task_names(args.tasks):
        tasks[name] = task_loading.load_task(name, args.reward_funcs, args.num_test, args.split)
        if preset is not None and args.num_test is None:
            cut_to_protocol(name, tasks[name], preset, args.preset)
    if args.reward_funcs and not any(task.scorer.startswith("rewards") for task in tasks.values()):
        raise ValueError(f"reward_funcs={args.reward_funcs!r} does nothing: these tasks have verdicts of their own.")
    files = file_names(list(tasks))
    check_inputs(files, args.output_dir)
    settings = given if preset is None else {**preset.generation, **given}
    args.seeds = args.seeds or [0 if preset is None else preset.seed]
    args.dtype = args.dtype or ("auto" if preset is None else preset.dtype)
    model, tokenizer = load_model(args)
    if args.frontier:
        ((name, task),) = tasks.items()
        run_frontier(args, settings, name, task, model, tokenizer, template_kwargs)
        return
    # The seeds say what a seed in generation_config.json would.
    config = with_settings(model, model.generation_config, {"seed": None, **settings})
    if preset is not None:
        print_preset(args, config, given)
    results = evaluate_tasks(
        model,
        tokenizer,
        {files[name]: task for name, task in tasks.items()},
        config,
        batch_size=args.batch_size,
        seeds=args.seeds,
        chat_template_kwargs=template_kwargs,
        output_dir=args.output_dir,
        about=about_run(args, model, config, {files[name]: name for name in tasks}, template_kwargs),
        overwrite=args.overwrite,
        progress=sys.stderr.isatty(),
    )
    print_results(results, args.model)
    if args.output_dir is not None:
        print(f"{args.output_dir}: results.json, {', '.join(f'{name}.jsonl' for name in results)}.")


def check_options(args: Namespace, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Refuse options that are wrong or do nothing, before anything is loaded; the keywords of the chat template.

    Raises:
        ValueError, ImportError: as [`run`].
    """
    if not args.tasks:
        raise ValueError("tasks is not given. Name what to evaluate on, e.g. --tasks sudoku,gsm8k.")
    if args.model is None:
        raise ValueError("model is not given. Name a folder or Hub id, or a tiny checkpoint.")
    for name in ("num_test", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if "seed" in settings:
        raise ValueError(f"seed={settings['seed']} has no place here. Give one or more with seeds.")
    if args.overwrite and args.output_dir is None:
        raise ValueError("overwrite=True does nothing without output_dir. Leave it out.")
    check_curves(args, settings)
    names = task_names(args.tasks)
    generated = [name for name in names if name in task_loading.GENERATED]
    if generated and args.split != "test":
        raise ValueError(
            f"split={args.split!r} is none of {generated[0]!r}, whose problems are generated. Leave it out."
        )
    if args.frontier and len(names) > 1:
        raise ValueError(f"tasks={','.join(names)}: frontier takes one task. Run the command once for each.")
    if args.chat_template_kwargs is None:
        return None
    try:
        kwargs = json.loads(args.chat_template_kwargs)
    except (ValueError, RecursionError):
        kwargs = None
    if not isinstance(kwargs, dict):
        raise ValueError(f"chat_template_kwargs={args.chat_template_kwargs!r} must be a JSON object.")
    return kwargs


def task_names(values: Sequence[str]) -> list[str]:
    """The names in `--tasks`, which commas or blanks join; what exists as a file is one name.

    Raises:
        ValueError: there is none, or one is there twice.
    """
    names = []
    for value in values:
        names += [value] if os.path.exists(value) else [part.strip() for part in value.split(",") if part.strip()]
    if not names:
        raise ValueError(f"tasks={' '.join(values)!r} names no task.")
    for place, name in enumerate(names):
        if name in names[:place]:
            raise ValueError(f"tasks={','.join(names)} has {name!r} twice.")
    return names


def file_names(names: Sequence[str]) -> dict[str, str]:
    """What tasks are called in tables and files.

    Raises:
        ValueError: two would be called the same.
    """
    short = {task_loading.GSM8K: "gsm8k", task_loading.MATH500: "math500"}
    found: dict[str, str] = {}
    for name in names:
        own = Path(name).stem if os.path.exists(name) and name not in short else name.replace("/", "_")
        own = short.get(name, own)
        if own in found.values():
            other = next(key for key, value in found.items() if value == own)
            raise ValueError(f"tasks has {other!r} and {name!r}, which are both called {own!r}. Run them apart.")
        found[name] = own
    return found


def check_inputs(files: dict[str, str], folder: str | None):
    """Refuse an output folder in which the rows of a task would take the place of its data.

    Args:
        files (`dict[str, str]`):
            As [`file_names`] gives them.
        folder (`str`, *optional*):
            `--output_dir`.

    Raises:
        ValueError: names the file.
    """
    for name in files if folder is not None else ():
        for own in files.values():
            path = os.path.join(folder, f"{own}.jsonl")
            if os.path.isfile(name) and os.path.exists(path) and os.path.samefile(name, path):
                raise ValueError(
                    f"output_dir={folder!r}: {own}.jsonl there is the data of {name!r}. Name another one."
                )


def cut_to_protocol(name: str, task: Task, preset: Preset, preset_name: str):
    """Leave as many problems as the preset's protocol has; say so where they are fewer."""
    size = preset.num_test.get(name, preset.num_test.get(task.scorer))
    count = len(task.test_dataset)
    if size is not None and count > size:
        task.test_dataset = task.test_dataset.select(range(size))
        print(f"preset={preset_name}: the first {size} of the {count} problems of {name}.", file=sys.stderr)
    elif size is not None and count < size:
        print(f"preset={preset_name}: {name} has {count} problems, the protocol's are {size}.", file=sys.stderr)


def about_run(
    args: Namespace,
    model: DiffusionModelMixin,
    config: DiffusionGenerationConfig,
    sources: dict[str, str],
    template_kwargs: dict[str, Any] | None,
) -> dict[str, Any]:
    """What `results.json` says besides the figures."""
    weights = next(model.parameters())
    content = {
        "model": args.model,
        "revision": args.revision,
        "base_model": model.config.name_or_path if getattr(model, "peft_config", None) else None,
        "preset": args.preset,
        "sources": sources,
        "split": args.split,
        "reward_funcs": args.reward_funcs,
        "generation": {name: getattr(config, name) for name in SETTINGS if name != "seed"},
        "block_length": config.block_length or model.block_length,
        "seeds": args.seeds if config.is_stochastic else [],
        "chat_template_kwargs": template_kwargs or {},
        "dtype": str(weights.dtype).removeprefix("torch."),
        "device": str(weights.device),
        "batch_size": args.batch_size,
        "versions": versions(),
    }
    return json.loads(json.dumps(content, default=describe))


def versions() -> dict[str, str]:
    """Of Python and of the packages that have a part in a figure; without those that are not installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def print_preset(args: Namespace, config: DiffusionGenerationConfig, given: dict[str, Any]):
    """The settings of a preset as they are used, and which of them were given."""
    names = [
        name for name in SETTINGS if name in PRESETS[args.preset].generation and getattr(config, name) is not None
    ]
    used = [describe_setting(config, name) for name in names]
    print(f"preset {args.preset}: {' '.join(used)} dtype={args.dtype} seeds={','.join(map(str, args.seeds))}")
    if given:
        print(f"of these given on the command line: {' '.join(describe_setting(config, name) for name in given)}")


def print_results(results: dict[str, TaskResult], title: str):
    """A table with a row per task; its other metrics stand under it."""
    table = Table(title=Text(title), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))  # 80 columns
    table.add_column("", overflow="fold", min_width=15)
    for column in ("problems", "accuracy", "95 % interval", "forward\npasses", "tokens", "tokens\nper s"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, result in results.items():
        speed = "" if result.tokens_per_second is None else f"{result.tokens_per_second:.0f}"
        table.add_row(
            Text(name),
            str(result.num_problems),
            f"{result.accuracy:.3f}",
            f"{result.accuracy_low:.3f}–{result.accuracy_high:.3f}",
            f"{result.forward_passes:.2f}",
            f"{result.length:.1f}",
            speed,
        )
        for metric, value in result.metrics.items():
            if metric != "solve_rate":
                table.add_row(Text(f"  {metric.replace('_', ' ')}"), "", f"{value:.3f}")
    Console().print(table)
