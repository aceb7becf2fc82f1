# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What the tests of the SFT variants share."""

from datasets import Dataset

from trl_diffusion import DiffusionSFTConfig, DiffusionSFTTrainer


def sft_config(tmp_path, **kwargs):
    settings = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "max_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "fill_canvas": kwargs.get("masking") == "trace",  # has tests of its own
    }
    return DiffusionSFTConfig(**{**settings, **kwargs})


def recorded_rows(count=8):
    """Rows as `collect_traces` returns them: text, ids (here of other tokens than the text's) and step maps.

    Prompts of 4, 3 and 2 tokens, completions of 10, 3 and 6: of blocks of 4, the first ends inside the prompt's last.
    """
    prompts = [[3, 4, 5, 6], [3, 4, 5], [7, 3]]
    completions = [[4, 5, 6, 7, 3, 4, 5, 6, 7, 1], [6, 6, 1], [3, 3, 5, 5, 4, 1]]
    steps = [[2, 1, 2, 3, 7, 5, 5, 4, 9, 8], [1, 0, 3], [4, 4, 2, 1, 1, 6]]
    pick = [row % 3 for row in range(count)]
    return Dataset.from_dict(
        {
            "prompt": ["0123"] * count,
            "completion": ["11"] * count,
            "prompt_ids": [prompts[row] for row in pick],
            "completion_ids": [completions[row] for row in pick],
            "unmask_step": [steps[row] for row in pick],
        }
    )


def text_rows(count=8):
    """Prompts and completions whose tokens have the lengths of [`recorded_rows`]."""
    prompts, completions = ["0123", "012", "40"], ["123401234", "33", "00221"]
    pick = [row % 3 for row in range(count)]
    return Dataset.from_dict(
        {"prompt": [prompts[row] for row in pick], "completion": [completions[row] for row in pick]}
    )


def sft_trainer(model, tokenizer, tmp_path, dataset=None, eval_dataset=None, **kwargs):
    if dataset is None:
        dataset = recorded_rows() if kwargs.get("masking") == "trace" else text_rows()
    return DiffusionSFTTrainer(
        model,
        sft_config(tmp_path, **kwargs),
        train_dataset=dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
    )
