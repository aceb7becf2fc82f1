# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Datasets by name: a file, a folder, or the Hub."""

import csv
import glob
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError


BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_Data = TypeVar("_Data", Dataset, Dataset | DatasetDict)


def is_local(name: str) -> bool:
    """Whether a name is that of a file or a folder, or can be meant for nothing else."""
    return os.path.exists(name) or Path(name).suffix.lower() in BUILDERS


def load_rows(name: str, config: str | None = None, split: str = "train", option: str = "dataset") -> Dataset:
    """Rows by the name of their dataset: a file, a folder that `save_to_disk` wrote, or what `load_dataset` takes.

    Args:
        name (`str`):
            A .jsonl, .json, .csv or .parquet file, a folder, or a Hub id.
        config (`str`, *optional*):
            Configuration of a Hub dataset.
        split (`str`, *optional*, defaults to `"train"`):
            Its split. A file, and a folder of a dataset without splits, have none, and give all their rows.
        option (`str`, *optional*, defaults to `"dataset"`):
            What errors call the name.

    Returns:
        `Dataset`.

    Raises:
        ValueError: there is no such dataset, or it has no such split.
    """

    def load() -> Dataset:
        if os.path.isfile(name):
            return _read_file(name, option)
        if _is_saved(name):
            saved = load_from_disk(name)
            return saved if isinstance(saved, Dataset) else pick_split(saved, name, split, option)
        return load_dataset(name, config, split=split)

    return _loaded(load, name, option)


def load_all_splits(name: str, option: str = "dataset") -> Dataset | DatasetDict:
    """A dataset with its splits, or without where it has none; arguments and errors as in [`load_rows`]."""

    def load() -> Dataset | DatasetDict:
        if os.path.isfile(name):
            return _read_file(name, option)
        return load_from_disk(name) if _is_saved(name) else load_dataset(name)

    return _loaded(load, name, option)


def pick_split(splits: DatasetDict, name: str, split: str, option: str = "dataset") -> Dataset:
    """One of the splits of a dataset. Raises `ValueError` where it has no such."""
    if split not in splits:
        raise ValueError(f"{option}={name!r} has no split {split!r}; it has {', '.join(splits)}.")
    return splits[split]


def _is_saved(name: str) -> bool:
    return any(os.path.exists(os.path.join(name, file)) for file in ("dataset_dict.json", "state.json"))


def _read_file(name: str, option: str) -> Dataset:
    suffix = Path(name).suffix.lower()
    if suffix not in BUILDERS:
        raise ValueError(f"{option}={name!r} must end in {', '.join(BUILDERS)}.")
    if os.path.getsize(name) == 0:
        raise ValueError(f"{option}={name!r} is an empty file.")
    texts = {}
    if suffix == ".csv":
        with open(name, encoding="utf-8-sig", errors="replace", newline="") as file:
            header = next(csv.reader(file), [])
        if "puzzle" in header:  # as numbers, Sudoku would lose its leading zeros
            texts = {"converters": {column: str for column in ("prompt", "puzzle", "solution") if column in header}}
    # datasets takes a file's name for a pattern.
    return load_dataset(BUILDERS[suffix], data_files={"train": glob.escape(name)}, split="train", **texts)


def _loaded(load: Callable[[], _Data], name: str, option: str) -> _Data:
    try:
        if not os.path.exists(name) and Path(name).suffix.lower() in BUILDERS:
            raise ValueError(f"{option}={name!r} is no file.")
        return load()
    except (OSError, ValueError, DatasetsError) as error:
        if str(error).startswith(f"{option}="):
            raise
        # What went wrong with a file's content is the cause of an error that says little.
        cause = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{option}={name!r} cannot be loaded: {cause}") from error
