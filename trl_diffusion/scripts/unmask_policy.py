# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""One training of an unmasking policy, from a dataset's name to a saved policy and its frontier."""

import os
import time
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoTokenizer, ProgressCallback, set_seed
from trl import ModelConfig, get_quantization_config

from ..evaluation import DecodingPoint, FrontierRow, best_at, measure_frontier, plot_frontier
from ..evaluation.frontier_plot import check_plot
from ..hub import MeasuredFigure, own_command, write_json
from ..models import UnmaskPolicyModel, UnmaskPolicyModelConfig
from ..trainer import UnmaskPolicyConfig, UnmaskPolicyTrainer
from .curves import DEFAULT_CURVES, POLICY_BETAS, print_rows, rule_points, step_ladder
from .rl import (
    RewardProgressCallback,
    RLScriptArguments,
    checkpoint_path,
    given_settings,
    init_kwargs,
)
from .tasks import load_rl_task


CURVES = DEFAULT_CURVES


@dataclass
class UnmaskPolicyScriptArguments(RLScriptArguments):
    """What a policy is trained and evaluated on, and what a new one looks like.

    Args:
        num_eval (`int`, *optional*, defaults to 64):
            Rows of the training data that are held back, to pick the best policy by.
        policy (`str`, *optional*):
            Folder or Hub id of the policy that is trained further; `None`: a new one.
        action (`str`, *optional*), num_confidences (`int`, *optional*), entropy (`bool`, *optional*), initial_bias
        (`float`, *optional*):
            Fields of [`UnmaskPolicyModelConfig`] of a new policy.
    """

    num_eval: int = field(
        default=64, metadata={"help": "Rows of the training data held back to pick the best policy by."}
    )
    policy: str | None = field(default=None, metadata={"help": "Folder or Hub id of a policy to train further."})
    action: str | None = field(default=None, metadata={"help": "Of a new policy: 'bernoulli' or 'ordered'."})
    num_confidences: int | None = field(
        default=None, metadata={"help": "Of a new policy: how many of the largest probabilities it sees."}
    )
    entropy: bool | None = field(default=None, metadata={"help": "Of a new policy: whether it sees the entropy."})
    initial_bias: float | None = field(
        default=None, metadata={"help": "Of a new policy: the logit that it begins around; higher is faster."}
    )


def run_unmask_policy(
    script_args: UnmaskPolicyScriptArguments, config: UnmaskPolicyConfig, model_args: ModelConfig
) -> dict[str, Any]:
    """Train a policy, and measure accuracy against forward passes on held-out rows, beside built-in rules; save the
    policy, its card, `results.json`, `frontier.csv` and `frontier.png` in `config.output_dir`.

    Args:
        script_args ([`UnmaskPolicyScriptArguments`]), config ([`UnmaskPolicyConfig`]), model_args
        ([`~trl.ModelConfig`]):
            Settings, as the command line gives them. `model_name_or_path` is the diffusion language model's, and may
            be the name of a tiny checkpoint.

    Returns:
        `dict`: `accuracy`, `forward_passes` of the policy, `best_rule_at_same_passes`, `reward_curve`, `seconds`,
        `seed`, `config`.

    Raises:
        ValueError: no model is named, or a setting is wrong.
        ImportError: matplotlib is not installed, and the frontier is to be drawn.
    """
    started = time.perf_counter()
    set_seed(config.seed)
    evaluating = script_args.num_test != 0
    if evaluating:
        check_plot("frontier.png")  # before the training
    if model_args.use_peft:
        raise ValueError(
            "use_peft=True is not supported by this script, whose policy is trained whole. For joint training of an "
            "adapter pass UnmaskPolicyTrainer a dllm with one: peft.get_peft_model(model, peft_config)."
        )
    path = checkpoint_path(model_args.model_name_or_path)
    task = load_rl_task(script_args.dataset, script_args.reward_funcs, script_args.num_test or None, config.seed)
    tokenizer = AutoTokenizer.from_pretrained(
        path, padding_side="left", revision=model_args.model_revision, trust_remote_code=False
    )
    task = task.asked_of(tokenizer)
    settings = given_settings(script_args, config, model_args)  # before the config is changed
    config.dllm_init_kwargs = init_kwargs(model_args, config.dllm_init_kwargs)
    train, held_back = _split(task.train_dataset, script_args.num_eval)
    trainer = UnmaskPolicyTrainer(
        _policy(script_args),
        task.reward_funcs,
        config,
        train_dataset=train,
        eval_dataset=held_back,
        processing_class=tokenizer,
        dllm=path,
        quantization_config=get_quantization_config(model_args),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(RewardProgressCallback)
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    results = {
        "reward_curve": [
            {"step": log["step"], "reward": log["reward"]} for log in trainer.state.log_history if "reward" in log
        ],
        "seed": config.seed,
        "config": settings,
    }
    # Every process measures, as they would wait for the one that does.
    rows = _measure(trainer, task, script_args.test_batch_size) if evaluating else []
    trainer.card_dataset = script_args.dataset
    trainer.card_figures = _figures(rows, script_args.dataset, task, config.seed)
    if trainer.accelerator.is_main_process:
        os.makedirs(config.output_dir, exist_ok=True)
        if rows:
            title = f"{os.path.basename(path)}, {len(task.test_dataset)} held-out problems"
            print_rows(rows, title)
            plot_frontier(rows, os.path.join(config.output_dir, "frontier.png"), title)
            results |= _summary(rows)
        results["seconds"] = time.perf_counter() - started
        write_json(results, os.path.join(config.output_dir, "results.json"))
    trainer.accelerator.wait_for_everyone()
    if config.push_to_hub:
        trainer.push_to_hub(dataset_name=task.hub_dataset)  # saves too
    else:
        trainer.save_model(config.output_dir)
        trainer.create_model_card(dataset_name=task.hub_dataset)
    if trainer.accelerator.is_main_process:
        _print(results, config.output_dir)
    return results


def _figures(rows: list[FrontierRow], name: str, task, seed: int) -> list[MeasuredFigure]:
    """The policy's points, for its card."""
    return [
        MeasuredFigure(
            task=name,
            metric=metric,
            after=value,
            dataset=task.hub_dataset,
            num_examples=row.num_problems,
            seeds=(seed,),
            command=own_command(),
            settings=None if row.setting.endswith("policy_beta=1.0") else row.setting,
        )
        for row in rows
        if row.curve == "policy"
        for metric, value in (("accuracy", row.accuracy), ("forward_passes", row.forward_passes))
    ]


def _split(rows, num_eval: int):
    if not 0 < num_eval < len(rows):
        raise ValueError(f"num_eval={num_eval} must lie between 1 and the {len(rows)} rows of the training data.")
    return rows.select(range(len(rows) - num_eval)), rows.select(range(len(rows) - num_eval, len(rows)))


def _policy(script_args: UnmaskPolicyScriptArguments) -> UnmaskPolicyModel:
    names = ("action", "num_confidences", "entropy", "initial_bias")
    fields = {name: getattr(script_args, name) for name in names if getattr(script_args, name) is not None}
    if script_args.policy is None:
        return UnmaskPolicyModel(UnmaskPolicyModelConfig(**fields))
    if fields:
        raise ValueError(f"{', '.join(fields)}: the policy {script_args.policy!r} is what it is. Leave them out.")
    return UnmaskPolicyModel.from_pretrained(script_args.policy)


def _measure(trainer: UnmaskPolicyTrainer, task, batch_size: int) -> list[FrontierRow]:
    """The policy's frontier, in the steps that it was trained with, and those of rules, on the held-out rows."""
    args = trainer.args
    config = args.diffusion_generation_config(
        temperature=0.0,
        top_k=None,
        top_p=None,
        num_denoising_steps=None,
        eos_token_id=trainer.eos_token_ids,
        pad_token_id=trainer.processing_class.pad_token_id,
    )
    policy = trainer.accelerator.unwrap_model(trainer.model)
    bound = {} if args.num_denoising_steps is None else {"num_denoising_steps": args.num_denoising_steps}
    points = [DecodingPoint("policy", {"unmasking": policy, **bound, "policy_beta": beta}) for beta in POLICY_BETAS]
    steps = step_ladder(args.max_completion_length, args.block_length or trainer.dllm.block_length)
    points += [point for rule in CURVES for point in rule_points(rule, steps)]
    is_main = trainer.accelerator.is_main_process
    with trainer.accelerator.autocast():  # as in the rollouts
        return measure_frontier(
            trainer.dllm,
            trainer.processing_class,
            list(task.test_dataset["prompt"]),
            points,
            lambda completions: task.correct(completions, task.test_dataset),
            config,
            batch_size=batch_size,
            file=os.path.join(args.output_dir, "frontier.csv") if is_main else None,
            overwrite=True,
        )


def _summary(rows: list[FrontierRow]) -> dict[str, Any]:
    """The policy as it was trained, β = 1, beside the best rule at as many forward passes."""
    policy = next(row for row in rows if row.curve == "policy" and row.setting.endswith("policy_beta=1.0"))
    others = best_at([row for row in rows if row.curve != "policy"], policy.forward_passes)
    best = max((value for value in others.values() if value is not None), default=None)
    return {
        "accuracy": policy.accuracy,
        "forward_passes": policy.forward_passes,
        "best_rule_at_same_passes": best,
    }


def _print(results: dict[str, Any], output_dir: str):
    if "accuracy" in results:
        best = results["best_rule_at_same_passes"]
        beside = "no rule is as fast" if best is None else f"the best rule reaches {best:.3f} there"
        print(f"Policy: {results['accuracy']:.3f} at {results['forward_passes']:.2f} forward passes; {beside}.")
    files = ", frontier.csv and frontier.png" if "accuracy" in results else ""
    print(f"{results['seconds']:.0f} s. Policy, card, results.json{files} are in {output_dir}.")
