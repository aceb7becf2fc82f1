# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""`trl-diffusion eval --frontier`: curves of accuracy against forward passes."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ..evaluation import DecodingPoint, FrontierRow, Task, measure_frontier, plot_frontier
from ..evaluation.frontier_plot import check_plot
from ..generation import DiffusionGenerationConfig
from ..generation.unmasking import RULES
from ..models import DiffusionModelMixin
from ..tasks.fingerprint import digest
from .generation_options import parse_setting, with_settings


DEFAULT_CURVES = ["low_confidence", "random", "threshold", "factor"]
# Rules that commit as much as the model is sure of: rule → its field, and the values a curve takes. The other rules
# keep to a schedule, and their curves take numbers of steps.
SWEEPS = {
    "threshold": ("threshold", (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)),
    "factor": ("factor", (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)),
    "entropy_bounded": ("entropy_bound", (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)),
}
POLICY_BETAS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# What tells the points of the curves apart; `policy_temperature` is that of all policies.
_SWEPT = ("unmasking", "num_denoising_steps", "threshold", "factor", "entropy_bound", "policy_beta")


def add_arguments(parser: ArgumentParser):
    """The options of curves."""
    frontier = parser.add_argument_group("accuracy against forward passes")
    frontier.add_argument(
        "--frontier",
        action="store_true",
        help="Measure curves of one task instead of one setting, and write frontier.csv and frontier.png.",
    )
    frontier.add_argument(
        "--curves",
        nargs="*",
        metavar="RULE",
        help="Unmasking rules (default: " + " ".join(DEFAULT_CURVES) + "). Rules with a limit of their own ("
        + ", ".join(SWEEPS) + ") are swept over it, the others over num_denoising_steps.",
    )  # fmt: skip
    frontier.add_argument(
        "--policies",
        nargs="+",
        metavar="PATH",
        help="Learned unmasking policies, folders or Hub ids; each is swept over policy_beta, "
        f"{POLICY_BETAS[0]:g} to {POLICY_BETAS[-1]:g}.",
    )


def check_curves(args: Namespace, settings: dict[str, Any]):
    """Refuse options that are wrong or do nothing.

    Raises:
        ValueError: names the option.
        ImportError: matplotlib is not installed.
    """
    if not args.frontier:
        for name in ("curves", "policies"):
            if getattr(args, name) is not None:
                raise ValueError(f"{name}={getattr(args, name)!r} does nothing without frontier. Leave it out.")
        return
    if args.output_dir is None:
        raise ValueError("output_dir is not given. Name the folder for frontier.csv and frontier.png.")
    if args.preset is not None:
        raise ValueError(f"preset={args.preset!r} sets what the curves of frontier sweep. Leave it out.")
    for name in _SWEPT:
        if name in settings:
            raise ValueError(
                f"{name}={settings[name]!r} is swept by the curves of frontier. Leave it out; curves and policies say "
                "which there are."
            )
    if "policy_temperature" in settings and not args.policies:
        value = settings["policy_temperature"]
        raise ValueError(f"policy_temperature={value} does nothing without policies. Leave it out.")
    for rule in args.curves or []:
        if rule not in RULES:
            raise ValueError(
                f"curves has {rule!r}: give {', '.join(RULES)}. The path of a learned policy goes into policies."
            )
    if args.curves == [] and not args.policies:
        raise ValueError("curves is empty, and policies is not given: there is nothing to measure.")
    check_plot("frontier.png")


def run_frontier(
    args: Namespace,
    settings: dict[str, Any],
    name: str,
    task: Task,
    model: DiffusionModelMixin,
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: dict[str, Any] | None,
):
    """Measure the curves of a task, print and draw them.

    Raises:
        ValueError: a setting is out of range, does not go with another, or is nothing that the model can serve.
    """
    config, points = make_points(args, model, settings)
    rows = task.rows_for(tokenizer)

    def score(completions):
        return task.correct(completions, rows)

    results = measure_frontier(
        model,
        tokenizer,
        list(rows["prompt"]),
        points,
        score,
        config,
        batch_size=args.batch_size,
        seeds=args.seeds,
        file=os.path.join(args.output_dir, "frontier.csv"),
        settings={
            "task": name,
            "reward_funcs": args.reward_funcs,
            "num_test": len(rows),
            "test_rows": digest(list(rows)),
        },
        overwrite=args.overwrite,
        progress=sys.stderr.isatty(),
        chat_template_kwargs=chat_template_kwargs,
    )
    print_rows(results, f"{name}, {len(rows)} problems")
    title = f"{args.model} on {name} ({len(rows)} problems)"
    plot_frontier(results, os.path.join(args.output_dir, "frontier.png"), title)
    print(f"{args.output_dir}: frontier.csv and frontier.png.")


def make_points(
    args: Namespace, model: DiffusionModelMixin, settings: dict[str, Any]
) -> tuple[DiffusionGenerationConfig, list[DecodingPoint]]:
    """The settings that all points share, and the points.

    Raises:
        ValueError: a setting is out of range, does not go with another, or is nothing that the model can serve.
    """
    shared = {"seed": None, **settings}  # the seeds say what a seed in generation_config.json would
    policy_settings = {name: shared.pop(name) for name in ("policy_temperature",) if name in shared}
    # Nothing of the rule that is the model's own may reach the points of other rules.
    defaults = vars(DiffusionGenerationConfig())
    of_rules = {*_SWEPT, "policy_temperature", "alg_temp"} & defaults.keys()
    shared = {**{name: defaults[name] for name in sorted(of_rules)}, **shared}
    config = with_settings(model, model.generation_config, shared)
    if config.step_schedule != "even":  # a policy has no schedule, and says so
        policy_settings["step_schedule"] = "even"
    steps = step_ladder(config.max_new_tokens, config.block_length or model.block_length)
    rules = DEFAULT_CURVES if args.curves is None else args.curves
    points = [point for rule in dict.fromkeys(rules) for point in rule_points(rule, steps)]
    for path in dict.fromkeys(args.policies or []):
        points += policy_points(path, policy_settings)
    return config, points


def step_ladder(canvas: int, block_length: int | None) -> list[int]:
    """Numbers of denoising steps from a step per block to a step per token, each about twice the one before."""
    fewest = -(-canvas // min(block_length or canvas, canvas))
    halved = [round(canvas / 2**times) for times in range(canvas.bit_length())]
    return [fewest, *sorted(steps for steps in set(halved) if steps > fewest)]


def rule_points(rule: str, steps: Sequence[int]) -> list[DecodingPoint]:
    """The curve of a built-in rule."""
    field, values = SWEEPS.get(rule, ("num_denoising_steps", steps))
    return [DecodingPoint(rule, {"unmasking": rule, field: value}) for value in values]


def policy_points(path: str, settings: dict[str, Any]) -> list[DecodingPoint]:
    """The curve of a learned policy: the more β multiplies its probabilities, the more positions it commits."""
    rule = parse_setting("unmasking", path)
    return [DecodingPoint(path, {"unmasking": rule, **settings, "policy_beta": beta}) for beta in POLICY_BETAS]


def print_rows(rows: Sequence[FrontierRow], title: str):
    """A table of the points, under the names of their curves; without what would not fit 80 columns."""
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    for column in ("accuracy", "95 % interval", "forward\npasses", "tokens\nper pass"):
        table.add_column(column, justify="right", no_wrap=True)
    curve = None
    for row in rows:
        if row.curve != curve:
            curve = row.curve
            table.add_row(Text(curve, style="bold"))
        interval = f"{row.accuracy_low:.3f}–{row.accuracy_high:.3f}"
        cells = [f"{row.accuracy:.3f}", interval, f"{row.forward_passes:.2f}", f"{row.tokens_per_pass:.2f}"]
        table.add_row(Text(f"  {row.setting}"), *cells)
    Console().print(table)
