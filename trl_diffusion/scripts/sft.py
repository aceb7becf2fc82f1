# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""One supervised fine-tuning, from a dataset's name to a saved model and its figures."""

import os
import time
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, set_seed
from trl import ModelConfig, get_peft_config, get_quantization_config

from ..evaluation import complete
from ..trainer import DiffusionSFTConfig, DiffusionSFTTrainer
from .local_data import load_rows
from .rl import check_not_sharded, checkpoint_path, given_settings, init_kwargs, save_run, set_lora_targets
from .tasks import RLTask, load_rl_task


# Datasets that are tasks too: they bring right solutions, and can be scored.
TASKS = ("sudoku", "countdown", "arithmetic", "openai/gsm8k", "meta-math/MetaMathQA")


@dataclass
class SFTScriptArguments:
    """What a run trains on, and how it is evaluated.

    Args:
        dataset (`str`, *optional*):
            A .jsonl, .json, .csv or .parquet file, a folder of a dataset, a Hub id, or one of the tasks `"sudoku"`,
            `"countdown"`, `"arithmetic"`, `"openai/gsm8k"` and `"meta-math/MetaMathQA"`, whose right solutions become
            completions. Other rows have the columns that TRL's SFT reads: `prompt` and `completion`, `messages`, or
            `text`; with `masking="trace"` those of `collect_traces`.
        dataset_config (`str`, *optional*):
            Configuration of a Hub dataset.
        dataset_train_split (`str`, *optional*, defaults to `"train"`), dataset_test_split (`str`, *optional*, defaults
        to `"test"`):
            Its splits; the second one is read where `eval_strategy` asks for evaluations.
        eval_dataset (`str`, *optional*):
            Rows to evaluate on instead, by name as above.
        num_rows (`int`, *optional*):
            The first rows of the training data only.
        num_test (`int`, *optional*, defaults to 0):
            Held-out problems of a task to solve before and after the training.
        test_batch_size (`int`, *optional*, defaults to 64):
            Prompts per batch of that.
    """

    dataset: str | None = field(
        default=None,
        metadata={
            "aliases": ["--dataset_name"],
            "help": "A .jsonl, .json, .csv or .parquet file, a folder of a dataset, a Hub id, or one of the tasks "
            f"{', '.join(TASKS)}. Columns: prompt and completion, messages, or text.",
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Its split to train on."})
    dataset_test_split: str = field(
        default="test", metadata={"help": "Its split to evaluate on, where eval_strategy says so."}
    )
    eval_dataset: str | None = field(
        default=None, metadata={"help": "File, folder or Hub id of the rows to evaluate on instead."}
    )
    num_rows: int | None = field(default=None, metadata={"help": "The first rows of the training data only."})
    num_test: int = field(
        default=0, metadata={"help": "Held-out problems of a task to solve before and after the training."}
    )
    test_batch_size: int = field(default=64, metadata={"help": "Prompts per batch of that."})


def run_sft(script_args: SFTScriptArguments, config: DiffusionSFTConfig, model_args: ModelConfig) -> dict[str, Any]:
    """Train; save the model, its card and `results.json` in `config.output_dir`.

    Args:
        script_args ([`SFTScriptArguments`]), config ([`DiffusionSFTConfig`]), model_args ([`~trl.ModelConfig`]):
            Settings, as the command line gives them. `model_name_or_path` may be the name of a tiny checkpoint.

    Returns:
        `dict`: `loss_curve`, `eval_loss` where there are evaluations, metrics of the task before and after where
        `num_test` asks for them, `seconds`, `seed`, `config`.

    Raises:
        ValueError: no model or dataset is named, or a setting is wrong.
    """
    started = time.perf_counter()
    set_seed(config.seed)
    path = checkpoint_path(model_args.model_name_or_path)
    train, evaluation, task = _load(script_args, config)
    set_lora_targets(model_args)
    settings = given_settings(script_args, config, model_args)  # before the config is changed
    config.model_init_kwargs = init_kwargs(model_args, config.model_init_kwargs)
    trainer = DiffusionSFTTrainer(
        model=path,
        args=config,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=AutoTokenizer.from_pretrained(
            path, revision=model_args.model_revision, trust_remote_code=False
        ),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    check_not_sharded(trainer, script_args.num_test)
    before = _solve(trainer, task, script_args.test_batch_size) if script_args.num_test else {}
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    after = _solve(trainer, task, script_args.test_batch_size) if script_args.num_test else {}

    history = trainer.state.log_history
    results = {
        **{f"{metric}_before": value for metric, value in before.items()},
        **{f"{metric}_after": value for metric, value in after.items()},
        "loss_curve": [{"step": log["step"], "loss": log["loss"]} for log in history if "loss" in log],
        "eval_loss": [{"step": log["step"], "loss": log["eval_loss"]} for log in history if "eval_loss" in log],
        "seconds": time.perf_counter() - started,
        "seed": config.seed,
        "config": settings,
    }
    save_run(trainer, script_args.dataset, task, results, before, after)
    if trainer.accelerator.is_main_process:
        _print_report(results, before, after, config.output_dir)
    return results


def _load(
    script_args: SFTScriptArguments, config: DiffusionSFTConfig
) -> tuple[Dataset, Dataset | None, RLTask | None]:
    """Rows to train on, rows to evaluate on, and the task where the dataset is one's."""
    name, evaluating = script_args.dataset, config.eval_strategy != "no"
    if not name:
        raise ValueError(f"dataset is not set. Name a file, a folder, a Hub id, or one of {', '.join(TASKS)}.")
    if script_args.eval_dataset is not None and not evaluating:
        raise ValueError(
            f"eval_dataset={script_args.eval_dataset!r} has no effect with eval_strategy='no'. Set that to 'steps' or "
            "'epoch'."
        )
    if script_args.num_test < 0:
        raise ValueError(f"num_test={script_args.num_test} must not be negative; 0 solves no problems.")
    is_task = name in TASKS and not os.path.exists(name)
    if script_args.num_test and not is_task:
        raise ValueError(
            f"num_test={script_args.num_test} with dataset={name!r}, which brings no verdict on answers. Leave it at "
            "0, and measure with `trl-diffusion eval`; eval_strategy measures the loss."
        )
    task = load_rl_task(name, num_test=script_args.num_test or None, seed=config.seed) if is_task else None
    config_name, split = script_args.dataset_config, script_args.dataset_train_split
    train = load_rows(name, config_name, split) if task is None else with_completions(task.train_dataset)
    if script_args.num_rows is not None:
        if not 0 < script_args.num_rows <= len(train):
            raise ValueError(f"num_rows={script_args.num_rows} must lie between 1 and the dataset's {len(train)}.")
        train = train.select(range(script_args.num_rows))
    evaluation = None
    if evaluating:
        if script_args.eval_dataset is not None:
            evaluation = load_rows(script_args.eval_dataset, None, script_args.dataset_test_split)
        elif task is not None:
            evaluation = with_completions(task.test_dataset)
        elif os.path.isfile(name):
            raise ValueError(
                f"eval_strategy={config.eval_strategy.value!r} with dataset={name!r}, a file, which has one split. "
                "Name the rows to evaluate on with eval_dataset."
            )
        else:
            evaluation = load_rows(name, config_name, script_args.dataset_test_split)
    _check_texts(train, name)
    if evaluation is not None:
        _check_texts(evaluation, script_args.eval_dataset or name)
    return train, evaluation, task


def _check_texts(rows: Dataset, name: str):
    for column in ("prompt", "completion", "text"):
        kind = getattr(rows.features.get(column), "dtype", "string")
        if kind not in ("string", "large_string", "list"):
            raise ValueError(
                f"Column {column!r} of {name!r} holds {kind}, not texts. A CSV file cannot say that digits are a "
                "text: write .jsonl or .parquet."
            )


def with_completions(rows: Dataset) -> Dataset:
    """Rows of a task as prompts and completions: the reasoning trace where there is one, else the solution.

    Args:
        rows (`Dataset`):
            Columns `prompt`, a text or a conversation, and `solution`, perhaps `reasoning`.

    Returns:
        `Dataset`: columns `prompt` and `completion`, both texts or both conversations.
    """
    column = "reasoning" if "reasoning" in rows.column_names else "solution"

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        text = row[column]
        is_text = isinstance(row["prompt"], str)
        return {"completion": text if is_text else [{"role": "assistant", "content": text}]}

    return rows.map(convert, remove_columns=[name for name in rows.column_names if name != "prompt"])


def _solve(trainer: DiffusionSFTTrainer, task: RLTask, batch_size: int) -> dict[str, float]:
    """Greedy decoding of the held-out problems, by the generation settings that are saved with the model."""
    model, tokenizer = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
    config = trainer._hub_generation_config()
    config.temperature, config.seed = 0.0, trainer.args.seed
    # Before training the model is not prepared yet, and would run without the autocast that it gets afterwards.
    with trainer.accelerator.autocast():
        completions = complete(
            model,
            tokenizer,
            list(task.test_dataset["prompt"]),
            config,
            batch_size,
            progress=trainer.accelerator.is_main_process,
        )
    return task.metrics(completions, task.test_dataset)


def _print_report(results: dict[str, Any], before: dict[str, float], after: dict[str, float], output_dir: str):
    console = Console()
    table = Table(title="Held-out problems, decoded greedily" if before else None)
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")
    for metric in before:
        table.add_row(metric.replace("_", " "), f"{before[metric]:.3f}", f"{after[metric]:.3f}")
    for name in ("loss_curve", "eval_loss"):
        curve = results[name]
        if len(curve) > 1:
            first, last = curve[0], curve[-1]
            label = f"{'training loss' if name == 'loss_curve' else 'loss of evaluation'} "
            label += f"(steps {first['step']} and {last['step']})"
            table.add_row(label, f"{first['loss']:.3f}", f"{last['loss']:.3f}")
    if table.row_count:
        console.print(table)
    console.print(f"{results['seconds']:.0f} s. Model, card and results.json are in {output_dir}.")
