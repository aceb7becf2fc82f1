# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Cells: the parts of a benchmark that are measured one by one, and kept in a JSON file each.

A benchmark that is interrupted goes on where it was: a file is written whole or not at all, and one of other settings
is refused. A cell is an object with a `name` and `settings()`, a `dict` of JSON types.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


Result = dict[str, Any]

# Fields of the config of a trainer that trains in fp32 on a CPU, logs every step, and keeps no checkpoint.
ON_A_CPU = {
    "logging_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "dataloader_pin_memory": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}


def run_missing(
    cells: list, folder: Path, overwrite: bool, measure: Callable[[Any], Result], describe: Callable[[Result], str]
):
    """Measure the cells that are not there yet.

    Args:
        cells (`list`):
            Cells, in their order.
        folder (`Path`):
            Where their files are.
        overwrite (`bool`):
            Measure those too that are there.
        measure (`Callable`):
            Cell → result, JSON types, with the cell's `settings`.
        describe (`Callable`):
            Result → what is printed of it.
    """
    # All of them before the first is measured: settings that differ are to be known at once.
    missing = [cell for cell in cells if overwrite or read_cell(cell, folder) is None]
    print(f"{len(cells)} cells, {len(cells) - len(missing)} of them there already", flush=True)
    for cell in missing:
        # Another process may have written it meanwhile.
        if not overwrite and read_cell(cell, folder) is not None:
            continue
        started = time.perf_counter()
        result = measure(cell)
        write_cell(cell, result, folder)
        print(f"{cell.name}: {describe(result)}, {time.perf_counter() - started:.0f} s in all", flush=True)


def read_cell(cell, folder: Path) -> Result | None:
    """A finished cell of the same settings; `None` where there is none.

    Raises:
        ValueError: the file is that of other settings.
    """
    path = folder / f"{cell.name}.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    was, given = result["settings"], cell.settings()
    for name in sorted(was.keys() | given.keys()):
        if was.get(name) != given.get(name):
            raise ValueError(
                f"{path}: {name} was {was.get(name)!r} and is {given.get(name)!r}. Give another --output, or "
                "--overwrite."
            )
    return result


def write_cell(cell, result: Result, folder: Path):
    """Whole, or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{cell.name}.json"
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(_rounded(result), indent=1) + "\n")
    os.replace(temporary, path)


def _rounded(content: Any) -> Any:
    """Six digits: the files are kept in the repository."""
    if isinstance(content, dict):
        return {name: _rounded(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_rounded(value) for value in content]
    return float(f"{content:.6g}") if isinstance(content, float) and math.isfinite(content) else content


def read_results(
    folder: Path, command: str, key: Iterable[str], same: Iterable[str], pattern: str = "*.json"
) -> dict[tuple, dict[int, Result]]:
    """The cells of a folder: the settings `key` → seed → result.

    Args:
        folder (`Path`):
            Where their files are.
        command (`str`):
            What makes them.
        key (`Iterable[str]`):
            Settings that tell apart what differs in more than the seed.
        same (`Iterable[str]`):
            Settings that all of them share.
        pattern (`str`, *optional*, defaults to `"*.json"`):
            Names of their files.

    Raises:
        ValueError: there are none, or such that do not compare.
    """
    found: dict[tuple, dict[int, Result]] = {}
    for path in sorted(folder.glob(pattern)):
        result = json.loads(path.read_text())
        settings = result["settings"]
        found.setdefault(tuple(settings[name] for name in key), {})[settings["seed"]] = result
    if not found:
        raise ValueError(f"{folder} has no cells: run `{command}` first.")
    check_same([result for by_seed in found.values() for result in by_seed.values()], same, folder)
    return found


def check_same(results: Iterable[Result], names: Iterable[str], folder: Path):
    """Raise `ValueError` for cells of which one of these settings differs."""
    results = list(results)
    for name in names:
        values = {json.dumps(result["settings"][name]) for result in results}
        if len(values) > 1:
            raise ValueError(f"{folder} has cells of different {name} ({sorted(values)}), which do not compare.")
