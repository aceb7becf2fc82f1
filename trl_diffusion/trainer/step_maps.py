# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Recorded step maps on their way from a dataset to the loss, beside the tokens that TRL takes care of."""

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers.utils import logging
from trl.data_utils import get_dataset_column_names


logger = logging.get_logger(__name__)


def check_step_map(dataset: Dataset | IterableDataset, column: str, name: str):
    """Raise where a dataset has no step maps.

    Raises:
        ValueError: it lacks the column.
    """
    columns = get_dataset_column_names(dataset)
    if column not in columns:
        raise ValueError(
            f"{name} has no column {column!r}; it has {', '.join(columns)}. masking='trace' needs the step at which "
            "each completion token was committed: set step_map_column, or record it with `collect_traces`."
        )


def join_recorded_ids(dataset: Dataset | IterableDataset, column: str) -> Dataset | IterableDataset:
    """Rows of recorded ids (`prompt_ids`, `completion_ids`) become tokenised rows, as they are.

    A step map indexes the tokens that were drawn; text that is tokenised again may be cut up in another way. With
    `tail_ids` and `tail_unmask_step` the canvas behind EOS is joined too, without a label: its tokens were in sight of
    those of the completion.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            What the user passed.
        column (`str`):
            The step map of the completion.
    """
    columns = set(get_dataset_column_names(dataset))
    if "input_ids" in columns or not {"prompt_ids", "completion_ids"} <= columns:
        return dataset

    has_tail = {"tail_ids", "tail_unmask_step"} <= columns

    def join(row: dict[str, Any]) -> dict[str, Any]:
        prompt, completion, steps = list(row["prompt_ids"]), list(row["completion_ids"]), row[column]
        tail, tail_steps = (list(row["tail_ids"]), list(row["tail_unmask_step"])) if has_tail else ([], [])
        if steps is not None and len(steps) == len(completion):
            steps = [0] * len(prompt) + list(steps) + tail_steps
        elif steps is not None and len(steps) == len(prompt) + len(completion):
            steps = list(steps) + tail_steps  # others are reported as they are
        return {
            "input_ids": prompt + completion + tail,
            "completion_mask": [0] * len(prompt) + [1] * len(completion) + [0] * len(tail),
            "labels": [-100] * len(prompt) + completion + [-100] * len(tail),
            column: steps,
        }

    return dataset.map(join)


def align_step_maps(dataset: Dataset | IterableDataset, column: str, name: str) -> Dataset | IterableDataset:
    """Step maps of completions become step maps of whole rows, and tokens without a step lose their label.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Tokenised rows, not cut yet: `input_ids`, `labels` and the step map. The completion is where
            `completion_mask` is 1, or, without that column, where the labels are not -100.
        column (`str`):
            The step map: one int per completion token, or per token of the row; 1-based, 0 = not drawn.
        name (`str`):
            The dataset's name in messages.

    Returns:
        The dataset; the column has one int per token.

    Raises:
        ValueError: a step map of another length, or with something else than steps in it.
    """

    def align(row: dict[str, Any], index: int) -> dict[str, Any]:
        steps, labels = row[column], row["labels"]
        if steps is None or any(not isinstance(step, int) or step < 0 for step in steps):
            raise ValueError(
                f"{name}[{index}][{column!r}] is {steps}: it must be a list of steps, counted from 1; 0 = not drawn."
            )
        mask = row.get("completion_mask") or [label != -100 for label in labels]
        if len(steps) != len(labels):
            if len(steps) != sum(map(bool, mask)):
                raise ValueError(
                    f"{name}[{index}][{column!r}] has {len(steps)} steps and the completion {sum(map(bool, mask))} "
                    f"tokens (the row {len(labels)}). A step map belongs to the tokens that were recorded: pass "
                    "`prompt_ids` and `completion_ids`, as `collect_traces` returns them, instead of text."
                )
            remaining = iter(steps)
            steps = [next(remaining) if part else 0 for part in mask]
        prompt = next((place for place, part in enumerate(mask) if part), len(mask))
        if any(steps[:prompt]):
            raise ValueError(
                f"{name}[{index}][{column!r}] has a step for a token of the prompt, which the model did not draw. A "
                "step map has one number per completion token, or per token of the row, 0 for the prompt."
            )
        return {
            column: steps,
            "labels": [label if step > 0 else -100 for label, step in zip(labels, steps, strict=True)],
        }

    return dataset.map(align, with_indices=True)


def cut_rows(
    dataset: Dataset | IterableDataset, column: str, name: str, max_length: int | None, truncation_mode: str
) -> Dataset | IterableDataset:
    """TRL's truncation, with the step map cut alike; rows in which no label is left are dropped, as TRL drops them.

    Arguments as in [`align_step_maps`] and [`~trl.SFTConfig`].
    """
    if max_length is not None:
        if isinstance(dataset, Dataset):
            too_long = sum(len(ids) > max_length for ids in dataset["input_ids"])
            if too_long:
                logger.warning(
                    f"{too_long} of {len(dataset)} rows of {name} are longer than max_length={max_length} and are "
                    "cut: their tokens are trained in states that the sampler did not visit. Raise max_length, or "
                    "leave such rows out."
                )
        part = slice(None, max_length) if truncation_mode == "keep_start" else slice(-max_length, None)
        dataset = dataset.map(lambda row: {key: row[key][part] for key in ("input_ids", "labels", column)})
    return dataset.filter(lambda row: any(label != -100 for label in row["labels"]))


class StepMapCollator:
    """Adds the padded step map to the batch of another collator.

    Args:
        collator (`Callable`):
            Makes `input_ids` and `attention_mask`, (B, L), from rows without step maps.
        column (`str`):
            The step map of each row, one int per token; also its name in the batch: (B, L), 0 on padding.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]], column: str):
        self.collator, self.column = collator, column

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.collator([{key: row[key] for key in row if key != self.column} for row in examples])
        real = batch["attention_mask"].bool()
        steps = [torch.as_tensor(row[self.column], dtype=torch.long) for row in examples]
        lengths, widths = [len(part) for part in steps], real.sum(dim=1).tolist()
        if lengths != widths:
            raise ValueError(
                f"Rows of {widths} tokens have {self.column!r} of {lengths} steps. Without dataset preparation "
                "(skip_prepare_dataset=True) a row needs one step per token, 0 where nothing was drawn."
            )
        batch[self.column] = torch.zeros(real.shape, dtype=torch.long).masked_scatter(real, torch.cat(steps))
        return batch
