# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""One run of reinforcement learning, from a dataset's name to a saved model and its figures."""

import json
import os
import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, ProgressCallback, set_seed
from trl import ModelConfig, get_peft_config, get_quantization_config

from ..checkpoints import tiny_checkpoint, tiny_checkpoints
from ..evaluation import complete
from ..generation import DiffusionGenerationConfig
from ..trainer import DiffusionGRPOConfig, DiffusionGRPOTrainer
from .tasks import RLTask, load_rl_task


@dataclass
class RLScriptArguments:
    """What a run trains on, and how it is evaluated.

    Args:
        dataset (`str`, *optional*, defaults to `"sudoku"`):
            `"sudoku"`, a d1 Sudoku CSV file, `"openai/gsm8k"`, or a Hub dataset with a `prompt` column.
        reward_funcs (`list[str]`, *optional*):
            `sudoku_reward`, names of `trl.rewards`, or dotted paths. Defaults to the dataset's own.
        num_test (`int`, *optional*):
            Held-out rows to evaluate on; 0 evaluates on none.
        eval_batch_size (`int`, *optional*, defaults to 64):
            Prompts per batch of the evaluation.
    """

    dataset: str = field(
        default="sudoku",
        metadata={"help": "'sudoku', a d1 Sudoku .csv file, 'openai/gsm8k', or a Hub dataset with a prompt column."},
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={"help": "sudoku_reward, names of trl.rewards, or dotted paths. Defaults to the dataset's own."},
    )
    num_test: int | None = field(
        default=None, metadata={"help": "Held-out rows to evaluate on before and after; 0 skips the evaluation."}
    )
    eval_batch_size: int = field(default=64, metadata={"help": "Prompts per batch of the evaluation."})


class RewardProgressCallback(ProgressCallback):
    """The Trainer's progress bar with the reward beside it, instead of a line of all metrics per log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and logs and "reward" in logs:
            self.training_bar.set_postfix(reward=f"{logs['reward']:.3f}")


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
    """
    started = time.perf_counter()
    set_seed(config.seed)
    name = model_args.model_name_or_path
    path = str(tiny_checkpoint(name)) if name in tiny_checkpoints() and not os.path.exists(name) else name
    task = load_rl_task(script_args.dataset, script_args.reward_funcs, script_args.num_test or None, config.seed)
    config.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(config.model_init_kwargs or {}),
    }
    trainer = trainer_class(
        model=path,
        reward_funcs=task.reward_funcs,
        args=config,
        train_dataset=task.train_dataset,
        processing_class=AutoTokenizer.from_pretrained(path, padding_side="left", revision=model_args.model_revision),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(RewardProgressCallback)
    evaluating = script_args.num_test != 0
    before = _evaluate(trainer, task, script_args.eval_batch_size) if evaluating else {}
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    after = _evaluate(trainer, task, script_args.eval_batch_size) if evaluating else {}

    curve = [{"step": log["step"], "reward": log["reward"]} for log in trainer.state.log_history if "reward" in log]
    results = {
        **{f"{metric}_before": value for metric, value in before.items()},
        **{f"{metric}_after": value for metric, value in after.items()},
        "reward_curve": curve,
        "seconds": time.perf_counter() - started,
        "seed": config.seed,
        "config": {
            "model_name_or_path": name,
            **vars(script_args),
            **{key: value for key, value in config.to_sanitized_dict().items() if not key.endswith("token")},
        },
    }
    trainer.save_model(config.output_dir)
    if trainer.accelerator.is_main_process:
        dataset_name = script_args.dataset if "/" in script_args.dataset else None
        trainer.create_model_card(dataset_name=dataset_name)
        _write_json(results, os.path.join(config.output_dir, "results.json"))
        _print_report(results, before, after, config.output_dir)
    if config.push_to_hub:
        trainer.push_to_hub()
    return results


def _evaluate(trainer: DiffusionGRPOTrainer, task: RLTask, batch_size: int) -> dict[str, float]:
    """Greedy decoding at the rollouts' settings, on the held-out rows."""
    args = trainer.args
    config = DiffusionGenerationConfig(
        max_new_tokens=args.max_completion_length,
        block_length=args.block_length,
        num_denoising_steps=args.num_denoising_steps,
        unmasking=args.unmasking,
        threshold=args.threshold,
        temperature=0.0,
        seed=args.seed,
        eos_token_id=trainer.eos_token_ids,
        pad_token_id=trainer.processing_class.pad_token_id,
    )
    model = trainer.accelerator.unwrap_model(trainer.model)
    prompts = list(task.test_dataset["prompt"])
    completions = complete(
        model,
        trainer.processing_class,
        prompts,
        config,
        batch_size,
        progress=trainer.accelerator.is_main_process,
    )
    tokens_per_step = sum(completions.lengths) / len(prompts) / completions.forward_passes
    return {**task.metrics(completions.texts, task.test_dataset), "tokens_per_step": tokens_per_step}


def _write_json(content: dict[str, Any], path: str):
    with open(f"{path}.tmp", "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, default=str)
        file.write("\n")
    os.replace(f"{path}.tmp", path)


def _print_report(results: dict[str, Any], before: dict[str, float], after: dict[str, float], output_dir: str):
    table = Table(title="Held-out, greedy decoding at the rollouts' settings")
    for column in ("metric", "before", "after"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for metric in before:
        table.add_row(metric.replace("_", " "), f"{before[metric]:.3f}", f"{after[metric]:.3f}")
    curve = results["reward_curve"]
    if curve:
        table.add_section()
        table.add_row("training reward (sampled)", f"{curve[0]['reward']:.3f}", f"{curve[-1]['reward']:.3f}")
    console = Console()
    console.print(table)
    console.print(f"{results['seconds']:.0f} s. Model, card and results.json are in {output_dir}.")
