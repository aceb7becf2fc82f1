# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Rows of accuracy against forward passes in a CSV file, which a later call goes on with."""

import csv
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..tasks.fingerprint import compare_settings, describe


@dataclass
class FrontierRow:
    """A measured point; the fields are the columns of the CSV file.

    Args:
        curve (`str`):
            Label of its curve.
        unmasking (`str`):
            Its unmasking rule, by name, or where the rule or policy was found.
        setting (`str`):
            What else it sets: `"threshold=0.9"`.
        seeds (`tuple[int, ...]`):
            Seeds it is the mean over; empty where none matters. In the file joined by spaces.
        num_problems (`int`):
            Problems, each completed once per seed.
        accuracy (`float`), accuracy_low, accuracy_high (`float`):
            Mean score over problems and seeds, in [0, 1], and the ends of its 95 % confidence interval: Wilson's, with
            each problem counted once, see [`Measurement.interval`].
        forward_passes (`float`):
            Mean number of model calls per completion (NFE).
        tokens_per_pass (`float`):
            Tokens of the completions, EOS included, over the forward passes they took.
        length (`float`):
            Mean tokens per completion, EOS included.
        seconds (`float`):
            Wall-clock time of the generation, over all seeds.
    """

    curve: str
    unmasking: str
    setting: str
    seeds: tuple[int, ...]
    num_problems: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    forward_passes: float
    tokens_per_pass: float
    length: float
    seconds: float

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it apart in a file."""
        return self.curve, self.unmasking, self.setting


_COLUMNS = [field.name for field in fields(FrontierRow)]
_PARSERS = {str: str, int: int, float: float}


def write_frontier(rows: Iterable[FrontierRow], file: str | os.PathLike):
    """Write a CSV file with a row per point, whole or not at all; numbers with all their digits."""
    temporary = Path(f"{os.fspath(file)}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**asdict(row), "seeds": " ".join(map(str, row.seeds))} for row in rows)
    os.replace(temporary, file)


def read_frontier(file: str | os.PathLike) -> list[FrontierRow]:
    """The rows of a file that [`write_frontier`] wrote.

    Raises:
        ValueError: it has other columns, or a value that is none of its column.
        OSError: it cannot be read.
    """
    with open(file, encoding="utf-8", newline="") as source:
        reader = csv.DictReader(source)
        if reader.fieldnames != _COLUMNS:
            raise ValueError(
                f"file={os.fspath(file)!r} has the columns {reader.fieldnames}; a frontier's are {_COLUMNS}."
            )
        rows = list(reader)
    return [_parsed(texts, f"row {number} of file={os.fspath(file)!r}") for number, texts in enumerate(rows, 1)]


def _parsed(texts: dict[str, str], place: str) -> FrontierRow:
    values: dict[str, Any] = {}
    for field in fields(FrontierRow):
        text = texts[field.name]
        try:
            is_seeds = field.name == "seeds"
            values[field.name] = tuple(map(int, text.split())) if is_seeds else _PARSERS[field.type](text)
        except (AttributeError, TypeError, ValueError) as error:  # a short line has None
            raise ValueError(f"{place}: {field.name}={text!r} cannot be read. Remove the row.") from error
    return FrontierRow(**values)


class FrontierFile:
    """A CSV file of rows, and beside it a JSON file of what they were measured with.

    Args:
        file (`str`):
            The CSV file; its folder is made where there is none.
        settings, fingerprint (`dict[str, Any]`):
            What decides all rows, for JSON. The settings are compared first: what a user knows by name, so that an
            error does not speak of what follows from it.
        rules (`dict[str, str]`):
            The unmasking rules of this call, by name, with what makes each the same one in a later call.
        overwrite (`bool`):
            Forget what is there.

    Raises:
        ValueError: the file is that of other settings; names the first that differs.
    """

    def __init__(
        self,
        file: str | os.PathLike,
        settings: dict[str, Any],
        fingerprint: dict[str, Any],
        rules: dict[str, str],
        overwrite: bool = False,
    ):
        self.path = Path(file)
        self.rows: list[FrontierRow] = []
        if self.path.suffix.lower() != ".csv":
            raise ValueError(f"file={str(self.path)!r} must end in .csv.")
        about = {"settings": settings, "fingerprint": fingerprint, "rules": rules}
        about = json.loads(json.dumps(about, default=describe))
        settings_file = self.path.with_suffix(".json")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if overwrite:
            # The rows first: without them any settings are right.
            self.path.unlink(missing_ok=True)
        elif settings_file.exists():
            about["rules"] = self._compared(settings_file, about) | about["rules"]
        if self.path.exists():
            if not settings_file.exists():
                raise ValueError(
                    f"file={str(self.path)!r} has rows, and {settings_file.name} beside it, which says what they were "
                    "measured with, is missing. Name another file, or set overwrite=True."
                )
            self.rows = read_frontier(self.path)
        temporary = settings_file.with_suffix(".json.tmp")
        temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, settings_file)

    def _compared(self, settings_file: Path, about: dict[str, Any]) -> dict[str, str]:
        """The rules of earlier calls; raises where these had other settings."""
        try:
            old = json.loads(settings_file.read_text(encoding="utf-8"))
            earlier = [old[part] for part in ("settings", "fingerprint", "rules")]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{str(settings_file)!r} does not say what {self.path.name} was measured with. Name another file, or "
                "set overwrite=True."
            ) from error
        shared = earlier[2].keys() & about["rules"].keys()  # a call may add rules
        pairs = [
            (earlier[0], about["settings"], ""),
            (earlier[1], about["fingerprint"], ""),
            *(({name: earlier[2][name]}, {name: about["rules"][name]}, "unmasking ") for name in sorted(shared)),
        ]
        for was, given, prefix in pairs:
            try:
                compare_settings(was, given, self.path.parent, self.path.name, prefix)
            except ValueError as error:
                raise ValueError(f"{error} overwrite=True measures everything anew.") from error
        return earlier[2]

    def add(self, row: FrontierRow):
        """One more row, on disk when this returns."""
        self.rows.append(row)
        write_frontier(self.rows, self.path)

    def rows_by_key(self) -> dict[tuple[str, str, str], FrontierRow]:
        """The rows that are there, by [`FrontierRow.key`]."""
        return {row.key: row for row in self.rows}
