# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The folder of an evaluation: a row per completion, written as they come, and the figures."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..tasks.fingerprint import compare_settings, describe
from ..tasks.folder_lock import give_lock_back, take_lock


RUN_FILE, RESULTS_FILE, SECONDS_FILE = "run.json", "results.json", "seconds.csv"
_SECONDS_COLUMNS = ("task", "completions", "tokens", "seconds")


class RunFolder:
    """Files of an evaluation.

    - `run.json`: what the rows were made with, written first;
    - `<task>.jsonl`: a row per completion, see [`TaskRows`];
    - `seconds.csv`: what each batch took, apart from the rows, which are the same whenever they are made;
    - `results.json`: the figures of the tasks that are complete, and settings and versions.

    A second call with the same settings goes on with what is there, and may name more tasks. One process at a time,
    see [`locked`].

    Args:
        folder (`str`):
            The folder; made where there is none.
        settings (`dict[str, Any]`):
            What decides the completions of all tasks, for JSON.
        tasks (`dict[str, dict]`):
            By the name of each task what decides its problems and verdicts, for JSON.
        overwrite (`bool`, *optional*, defaults to `False`):
            Forget what is there.

    Raises:
        ValueError: the folder is that of other settings or problems (names the first that differs), or cannot be
            written.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        settings: dict[str, Any],
        tasks: dict[str, dict[str, Any]],
        overwrite: bool = False,
    ):
        self.path = Path(folder)
        about = json.loads(json.dumps({"settings": settings, "tasks": tasks}, default=describe))
        _make(self.path)
        if overwrite:
            self._clear(tasks)
        earlier = self._compared(about, tasks)
        self.tasks = {**earlier, **about["tasks"]}
        write_json(self.path / RUN_FILE, {**about, "tasks": self.tasks})

    def _clear(self, tasks: dict[str, Any]):
        try:
            earlier = read_run(self.path)["tasks"]
        except ValueError:
            earlier = {}
        # run.json last: with it, an interrupted clearing can be told from another call's folder.
        for name in (RESULTS_FILE, SECONDS_FILE, *(f"{task}.jsonl" for task in {**earlier, **tasks}), RUN_FILE):
            (self.path / name).unlink(missing_ok=True)

    def _compared(self, about: dict[str, Any], tasks: dict[str, Any]) -> dict[str, Any]:
        """The tasks of earlier calls; raises where these had other settings."""
        if not (self.path / RUN_FILE).exists():
            found = [task for task in tasks if (self.path / f"{task}.jsonl").exists()]
            if found:
                raise ValueError(
                    f"output_dir={str(self.path)!r} has {found[0]}.jsonl, and no {RUN_FILE} that says what it was "
                    "made with. Name another folder, or set overwrite=True."
                )
            return {}
        old = read_run(self.path)
        pairs = [(old["settings"], about["settings"], "")]
        pairs += [(old["tasks"][name], about["tasks"][name], f"{name}.") for name in tasks if name in old["tasks"]]
        for was, given, prefix in pairs:
            try:
                compare_settings(was, given, self.path, "completions", prefix)
            except ValueError as error:
                raise ValueError(f"{error} overwrite=True starts anew.") from error
        return old["tasks"]

    def rows(self, task: str, order: Sequence[tuple[int | None, int]]) -> "TaskRows":
        """The rows of a task; `order`: seed and place of each that there is going to be."""
        return TaskRows(self.path / f"{task}.jsonl", order)

    def add_seconds(self, task: str, completions: int, tokens: int, seconds: float):
        """What a batch took."""
        path = self.path / SECONDS_FILE
        is_new = not path.exists()
        with open(path, "a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if is_new:
                writer.writerow(_SECONDS_COLUMNS)
            writer.writerow((task, completions, tokens, f"{seconds:.6f}"))

    def seconds(self, task: str) -> tuple[int, float]:
        """Tokens and seconds of the batches of a task that were timed."""
        if not (self.path / SECONDS_FILE).exists():
            return 0, 0.0
        tokens, seconds = 0, 0.0
        with open(self.path / SECONDS_FILE, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                try:
                    of_batch = int(row["tokens"]), float(row["seconds"])
                except (TypeError, ValueError):  # a line that was cut
                    continue
                if row["task"] == task:
                    tokens, seconds = tokens + of_batch[0], seconds + of_batch[1]
        return tokens, seconds

    def write_results(self, results: dict[str, Any]):
        """The figures, whole or not at all. Those of tasks that `results` does not have stay."""
        earlier = read_results(self.path) if (self.path / RESULTS_FILE).exists() else {"tasks": {}}
        content = {**results, "tasks": {**earlier["tasks"], **results["tasks"]}}
        if "sources" in results:  # where the data of each task come from
            content["sources"] = {**earlier.get("sources", {}), **results["sources"]}
        write_json(self.path / RESULTS_FILE, content)


def _make(folder: Path):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"output_dir={str(folder)!r} cannot be made: {error.strerror or error}. Name another folder."
        ) from error


@contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Keep other processes, and other calls in this one, out of a folder: two would mix their rows. Makes the folder.

    Raises:
        ValueError: another one is at work in it, or it cannot be made.
    """
    _make(Path(folder))
    if os.name == "nt":  # where a folder cannot be opened, and has no such lock
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        take_lock(descriptor, folder)
        yield
    finally:
        give_lock_back(descriptor)
        os.close(descriptor)


class TaskRows:
    """The rows of a task in a file of JSON lines. They are there in one order, and appended.

    Args:
        path (`Path`):
            The file. A last line that was cut is dropped.
        order (`list[tuple[int | None, int]]`):
            `seed` and `id` of each row that there is going to be.

    Raises:
        ValueError: the rows are not these, or cannot be read; names the line.
    """

    def __init__(self, path: Path, order: Sequence[tuple[int | None, int]]):
        self.path, self.rows = path, []
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        self.rows = read_rows(path, whole)
        found = [(row.get("seed"), row.get("id")) for row in self.rows]
        for line, (was, expected) in enumerate(zip(found, order, strict=False), 1):
            if was != expected:
                raise ValueError(
                    f"line {line} of {str(path)!r} is completion {was[1]} of seed {was[0]}, and should be "
                    f"{expected[1]} of seed {expected[0]}. Name another output_dir, or set overwrite=True."
                )
        if len(found) > len(order):
            raise ValueError(f"{str(path)!r} has {len(found)} rows for {len(order)} completions.")
        if len(whole) < len(content):
            with open(path, "r+b") as file:
                file.truncate(len(whole))

    def append(self, rows: list[dict[str, Any]]):
        """More rows, on the disk when this returns."""
        lines = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        with open(self.path, "ab") as file:
            file.write(lines.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        self.rows += map(json.loads, lines.split("\n")[:-1])  # texts may have other line ends in them


def read_rows(path: Path, content: bytes | None = None) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines. Raises `ValueError`, which names the line, where one is none."""
    rows = []
    for line, text in enumerate((path.read_bytes() if content is None else content).split(b"\n")[:-1], 1):
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"line {line} of {str(path)!r} is no row of an evaluation. Remove the file.")
        rows.append(row)
    return rows


def read_run(folder: Path) -> dict[str, Any]:
    """What a folder's rows were made with: `settings`, and `tasks` by name. Raises `ValueError`."""
    return _read(folder / RUN_FILE, ("settings", "tasks"))


def read_results(folder: Path) -> dict[str, Any]:
    """The figures of a folder: `tasks` by name, and settings. Raises `ValueError`."""
    return _read(folder / RESULTS_FILE, ("tasks",))


def _read(path: Path, parts: tuple[str, ...]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        is_right = isinstance(content, dict) and all(isinstance(content.get(part), dict) for part in parts)
    except (OSError, ValueError, RecursionError):
        is_right = False
    if not is_right:
        raise ValueError(
            f"{str(path)!r} is missing or damaged. The command of the evaluation makes it, and goes on with an "
            "interrupted one; overwrite=True starts anew."
        )
    return content


def write_json(path: Path, content: dict[str, Any]):
    """Whole, or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
