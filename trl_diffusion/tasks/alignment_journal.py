# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The journal of a length alignment: what came of each row, on disk as soon as it is known."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .fingerprint import compare_settings, describe
from .folder_lock import give_lock_back, take_lock


# A suffix that `load_dataset` takes for no data: a folder that is not finished is no dataset.
JOURNAL_NAME = "alignment.journal"

# Reasons with which a row stays; the others are in [`REASONS`].
KEPT = ("rewritten", "kept_as_is")


@dataclass
class Outcome:
    """What came of a row.

    Args:
        row (`int`):
            Its place in the dataset.
        reason (`str`):
            One of [`REASONS`].
        length_before (`int`):
            Tokens of the trace, as a completion of its prompt; 0 where there is none, or none that the tokenizer
            can hold.
        length_after (`int`, *optional*):
            Tokens of the completion that is kept, or of the last rewrite that was not.
        completion (`str`, *optional*):
            The rewrite that is kept.
        num_calls, num_retries (`int`):
            Calls that it took, and how many of them because one before had failed.
        error, kind (`str`, *optional*):
            Why the row failed.
    """

    row: int
    reason: str
    length_before: int
    length_after: int | None = None
    completion: str | None = None
    num_calls: int = 0
    num_retries: int = 0
    error: str | None = None
    kind: str | None = None


class Journal:
    """Outcomes of rows, in memory and, with a folder, in `alignment.journal`: the settings, then a line per outcome.

    A later line about a row takes the place of an earlier one, but the calls of both count. A last line that is not
    whole, as a killed process may leave behind, is cut off. The file is locked, where the system has such locks.

    Args:
        folder (`Path`, *optional*):
            Where the file is; `None` keeps no file.
        settings (`dict`):
            What decides over the outcomes.

    Raises:
        ValueError: the file was begun with other settings, is none of this kind, or another process writes it; or
            the folder is a file.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any]):
        self.outcomes: dict[int, Outcome] = {}
        self.num_calls = self.num_retries = 0
        self._file = None
        if folder is None:
            return
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"output_dir={str(folder)!r} is a file. Give a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(settings, default=describe))
        path = folder / JOURNAL_NAME
        # Without a buffer: a line is with the system when `write` returns, whatever becomes of this process.
        self._file = open(path, "ab", buffering=0)
        try:
            take_lock(self._file.fileno(), folder)
            if not self._read(path, settings):
                self._write({"settings": settings})
        except BaseException:
            self.close()
            raise

    def add(self, outcome: Outcome):
        """Take an outcome in."""
        if self._file is not None:
            self._write({name: value for name, value in asdict(outcome).items() if value is not None})
        self._take(outcome)

    def close(self):
        """Close the file."""
        if self._file is not None and not self._file.closed:
            give_lock_back(self._file.fileno())
            self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _write(self, content: dict[str, Any]):
        # Half a surrogate pair becomes the escape that JSON has for it.
        line = (json.dumps(content, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        whole = os.fstat(self._file.fileno()).st_size
        try:
            written = 0
            while written < len(line):  # a full disk takes a part
                written += self._file.write(line[written:])
        except BaseException:
            # The next line would end half a line, and the file could not be read.
            os.ftruncate(self._file.fileno(), whole)
            raise

    def _take(self, outcome: Outcome):
        self.outcomes[outcome.row] = outcome
        self.num_calls += outcome.num_calls
        self.num_retries += outcome.num_retries

    def _read(self, path: Path, settings: dict[str, Any]) -> bool:
        """Whether there is a header; the outcomes behind it are taken in."""
        whole, header = 0, None
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    content = json.loads(line)
                    if header is None:
                        header = content["settings"]
                        compare_settings(header, settings, path.parent, "rewrites")
                    else:
                        self._take(Outcome(**content))
                except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
                    raise ValueError(
                        f"output_dir={str(path.parent)!r}: line {number} of {path.name} is none that align_lengths "
                        "wrote. Give another folder, or take the line out."
                    ) from error
                whole += len(line)
        if whole < path.stat().st_size:
            os.truncate(path, whole)
        return header is not None
