# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""One run of reinforcement learning, from a dataset's name to a saved model and its figures."""

import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, ProgressCallback, Trainer, TrainingArguments, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import ModelConfig, get_peft_config, get_quantization_config

from ..checkpoints import tiny_checkpoint, tiny_checkpoints
from ..evaluation import complete, wilson_interval
from ..hub import MeasuredFigure, own_command, without_secrets, write_json
from ..trainer import DiffusionGRPOConfig, DiffusionGRPOTrainer
from .tasks import RLTask, load_rl_task


@dataclass
class RLScriptArguments:
    """What a run trains on, and how it is evaluated.

    Args:
        dataset (`str`, *optional*, defaults to `"sudoku"`):
            As of [`~scripts.tasks.load_rl_task`]: `"sudoku"`, `"countdown"`, `"countdown3"`, `"arithmetic"`,
            `"gsm8k"`, `"math500"`, `"meta-math/MetaMathQA"`, a file (.jsonl, .json, .csv, .parquet), a saved dataset's
            folder, or a Hub dataset.
        reward_funcs (`list[str]`, *optional*):
            `sudoku_reward`, `sudoku_solved_reward`, `countdown_reward`, `arithmetic_reward`,
            `arithmetic_format_reward`, names of `trl.rewards`, or dotted paths. Defaults to the dataset's own.
        num_test (`int`, *optional*):
            Held-out rows to evaluate on: 256 for generated tasks, else all. 0 evaluates on none.
        test_batch_size (`int`, *optional*, defaults to 64):
            Prompts per batch of that evaluation.
    """

    dataset: str = field(
        default="sudoku",
        metadata={
            "aliases": ["--dataset_name"],
            "help": "'sudoku', 'countdown', 'countdown3', 'arithmetic', 'gsm8k', 'math500', 'meta-math/MetaMathQA', a "
            "file (.jsonl, .json, .csv, .parquet), a saved dataset's folder, or a Hub dataset; the last three with a "
            "prompt column and reward_funcs, or the columns of one of these tasks.",
        },
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "sudoku_reward, sudoku_solved_reward, countdown_reward, arithmetic_reward, "
            "arithmetic_format_reward, names of trl.rewards, or dotted paths. Defaults to the dataset's own."
        },
    )
    num_test: int | None = field(
        default=None,
        metadata={
            "help": "Held-out rows to evaluate on before and after (default: 256 of generated tasks, else all); 0 "
            "skips the evaluation."
        },
    )
    test_batch_size: int = field(default=64, metadata={"help": "Prompts per batch of the evaluation."})


class RewardProgressCallback(ProgressCallback):
    """The Trainer's progress bar with the reward beside it, instead of a line of all metrics per log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and logs and "reward" in logs:
            self.training_bar.set_postfix(reward=f"{logs['reward']:.3f}")


def command_line(demo: Path, arguments: list[str]) -> list[str]:
    """A command line; before it the demo's settings, where it names no model and no config."""
    names = {argument.split("=")[0].replace("-", "_") for argument in arguments if argument.startswith("-")}
    own = any(name.startswith("__model_n") for name in names) or names & {"__config", "_h", "__help", "__help_all"}
    return arguments if own else ["--config", str(demo), *arguments]


def checkpoint_path(name: str | None) -> str:
    """What a model is loaded from: a tiny checkpoint's folder, or the name itself.

    Raises:
        ValueError: no model is named.
    """
    if not name:
        raise ValueError("model_name_or_path is not set. Name a checkpoint, e.g. sudoku-llada-tiny.")
    return str(tiny_checkpoint(name)) if name in tiny_checkpoints() and not os.path.exists(name) else name


def set_lora_targets(model_args: ModelConfig):
    """PEFT knows default targets for the families of transformers, not for these."""
    if model_args.use_peft and not (model_args.lora_target_modules or model_args.lora_target_parameters):
        model_args.lora_target_modules = "all-linear"


def given_settings(script_args: Any, config: TrainingArguments, model_args: ModelConfig) -> dict[str, Any]:
    """What the user asked for, for results.json."""
    return {
        "script": without_secrets(asdict(script_args)),
        "model": without_secrets(asdict(model_args)),
        "training": without_secrets(config.to_dict()),
    }


def init_kwargs(model_args: ModelConfig, more: dict[str, Any] | None) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained`; those of the config win."""
    return {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(more or {}),
    }


def check_not_sharded(trainer: Trainer, num_test: int | None):
    """Decoding the held-out rows needs whole weights.

    Raises:
        ValueError: the weights are shared out over the processes.
    """
    if num_test != 0 and (trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled()):
        raise ValueError(
            f"num_test={num_test}: with FSDP and ZeRO-3 the held-out rows cannot be decoded, since no process has the "
            "whole model. Set num_test to 0, and evaluate the saved model with `trl-diffusion eval`."
        )


def run_rl(
    trainer_class: type[DiffusionGRPOTrainer],
    script_args: RLScriptArguments,
    config: DiffusionGRPOConfig,
    model_args: ModelConfig,
) -> dict[str, Any]:
    """Evaluate, train, evaluate again; save the model, its card and `results.json` in `config.output_dir`.

    Args:
        trainer_class:
            Which trainer.
        script_args ([`RLScriptArguments`]), config ([`DiffusionGRPOConfig`]), model_args ([`~trl.ModelConfig`]):
            Settings, as the command line gives them. `model_name_or_path` may be the name of a tiny checkpoint.

    Returns:
        `dict`: `solve_rate_before`, `solve_rate_after` and other metrics before and after, `reward_curve`, `seconds`,
        `seed`, `config`.

    Raises:
        ValueError: no model is named, or a setting is wrong.
    """
    started = time.perf_counter()
    set_seed(config.seed)
    path = checkpoint_path(model_args.model_name_or_path)
    set_lora_targets(model_args)
    task = load_rl_task(script_args.dataset, script_args.reward_funcs, script_args.num_test or None, config.seed)
    tokenizer = AutoTokenizer.from_pretrained(
        path, padding_side="left", revision=model_args.model_revision, trust_remote_code=False
    )
    task = task.asked_of(tokenizer)
    settings = given_settings(script_args, config, model_args)  # before the config is changed
    config.model_init_kwargs = init_kwargs(model_args, config.model_init_kwargs)
    trainer = trainer_class(
        model=path,
        reward_funcs=task.reward_funcs,
        args=config,
        train_dataset=task.train_dataset,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    check_not_sharded(trainer, script_args.num_test)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(RewardProgressCallback)
    evaluating = script_args.num_test != 0
    before = _evaluate(trainer, task, script_args.test_batch_size) if evaluating else {}
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    after = _evaluate(trainer, task, script_args.test_batch_size) if evaluating else {}

    results = {
        **{f"{metric}_before": value for metric, value in before.items()},
        **{f"{metric}_after": value for metric, value in after.items()},
        "reward_curve": [
            {"step": log["step"], "reward": log["reward"]} for log in trainer.state.log_history if "reward" in log
        ],
        "seconds": time.perf_counter() - started,
        "seed": config.seed,
        "config": settings,
    }
    save_run(trainer, script_args.dataset, task, results, before, after)
    if trainer.accelerator.is_main_process:
        _print_report(results, before, after, config.output_dir)
    return results


def save_run(
    trainer: Trainer,
    dataset: str,
    task: RLTask | None,
    results: dict[str, Any],
    before: dict[str, float],
    after: dict[str, float],
):
    """Save the model, its card and `results.json` in the output folder, and push them where the config says so.

    Args:
        trainer (`Trainer`):
            After training.
        dataset (`str`), task ([`RLTask`], *optional*):
            What it was trained on; the task where the dataset is one's.
        results (`dict`):
            Content of `results.json`.
        before, after (`dict[str, float]`):
            Metrics of the held-out rows, for the card.
    """
    config = trainer.args
    hub_dataset = task.hub_dataset if task is not None else None if os.path.exists(dataset) else dataset
    trainer.card_dataset = dataset
    trainer.card_figures = [
        MeasuredFigure(
            task=dataset,
            metric=metric,
            after=after[metric],
            before=before[metric],
            dataset=hub_dataset,
            num_examples=len(task.test_dataset),
            interval=wilson_interval(after[metric], len(task.test_dataset)) if metric == "solve_rate" else None,
            seeds=(config.seed,),
            command=own_command(),
        )
        for metric in before
    ]
    if trainer.accelerator.is_main_process:
        os.makedirs(config.output_dir, exist_ok=True)
        write_json(results, os.path.join(config.output_dir, "results.json"))
    if config.push_to_hub:
        trainer.push_to_hub(dataset_name=hub_dataset)  # saves too
    else:
        trainer.save_model(config.output_dir)
        trainer.create_model_card(dataset_name=hub_dataset)


def _evaluate(trainer: DiffusionGRPOTrainer, task: RLTask, batch_size: int) -> dict[str, float]:
    """Greedy decoding at the rollouts' settings, on the held-out rows."""
    args = trainer.args
    config = args.diffusion_generation_config(
        temperature=0.0,
        top_k=None,
        top_p=None,
        seed=args.seed,
        eos_token_id=trainer.eos_token_ids,
        pad_token_id=trainer.processing_class.pad_token_id,
    )
    prompts = list(task.test_dataset["prompt"])
    # Before training the model is not prepared yet, and would run without the autocast that it gets afterwards.
    with trainer.accelerator.autocast():
        completions = complete(
            trainer.accelerator.unwrap_model(trainer.model),
            trainer.processing_class,
            prompts,
            config,
            batch_size,
            progress=trainer.accelerator.is_main_process,
            chat_template_kwargs=args.chat_template_kwargs,
        )
    tokens_per_step = sum(map(len, completions.ids)) / len(prompts) / completions.forward_passes
    return {**task.metrics(completions, task.test_dataset), "tokens_per_step": tokens_per_step}


def _print_report(results: dict[str, Any], before: dict[str, float], after: dict[str, float], output_dir: str):
    console = Console()
    curve = results["reward_curve"]
    if before or len(curve) > 1:
        table = Table(title="Held-out rows, decoded greedily" if before else None)
        for column in ("", "before", "after"):
            table.add_column(column, justify="right" if column else "left")
        for metric in before:
            table.add_row(metric.replace("_", " "), f"{before[metric]:.3f}", f"{after[metric]:.3f}")
        if len(curve) > 1:
            table.add_section()
            first, last = curve[0], curve[-1]
            label = f"training reward (sampled; steps {first['step']} and {last['step']})"
            table.add_row(label, f"{first['reward']:.3f}", f"{last['reward']:.3f}")
        console.print(table)
    console.print(f"{results['seconds']:.0f} s. Model, card and results.json are in {output_dir}.")
