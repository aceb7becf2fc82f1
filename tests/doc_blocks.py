# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The fenced blocks of README.md and docs/, for the tests that execute or parse them.

A block that a test cannot execute bears a mark on the line directly above its fence, and a sentence next to it tells
the reader the same:

    The next one needs a GPU and downloads from the Hub:

    <!-- needs: gpu, hub -->
    ```python
    ...
    ```
"""

import ast
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


ROOT = Path(__file__).parents[1]
# What a mark may say, and the word of the sentence that says it to the reader.
NEEDS = {"gpu": "GPU", "hub": "Hub"}
FENCE = re.compile(r"(?P<indent> *)(?P<fence>`{3,})(?P<language>[\w-]*)(?P<rest>.*)")
MARK = re.compile(r"\s*<!--\s*needs:(?P<needs>.*)-->\s*")


@dataclass
class Block:
    """A fenced block of a page.

    Args:
        code: Its text without the fence, indentation of the fence removed.
        needs: What its mark says: a subset of `NEEDS`; empty where a test must execute it.
        line: The number of its first line in the page, from 1.
        page: The page's path from the top of the repository, as "docs/models.md".
        around: The paragraphs before and behind it.
    """

    code: str
    needs: frozenset[str]
    line: int
    page: str
    around: str = field(default="", repr=False)
    executed: bool = field(default=False, repr=False)

    def run(self, namespace: dict) -> None:
        """Execute the code in `namespace`; a traceback names the page and its line."""
        code = "\n" * (self.line - 1) + self.code
        exec(compile(code, str(ROOT / self.page), "exec"), namespace)  # the project's own text
        self.executed = True


def blocks(page: str | Path, language: str) -> list[Block]:
    """The fenced blocks in `language` of a page, in order.

    Raises:
        ValueError: A mark is not directly above such a block or names an unknown need, or a fence is not closed.
    """
    path = ROOT / page
    lines = path.read_text(encoding="utf-8").splitlines()
    found, mark, number = [], None, 0
    while number < len(lines):
        start = FENCE.fullmatch(lines[number])
        if start is None:
            if mark is not None:
                raise ValueError(f"{path}:{number}: the mark is not directly above a fence")
            mark = MARK.fullmatch(lines[number])
            number += 1
            continue
        indent, fence = len(start["indent"]), start["fence"]
        end = number + 1
        while end < len(lines) and lines[end].strip() != fence:
            end += 1
        if end == len(lines):
            raise ValueError(f"{path}:{number + 1}: the fence is not closed")
        needs = frozenset(need.strip() for need in mark["needs"].split(",")) if mark else frozenset()
        if not needs <= NEEDS.keys():
            raise ValueError(
                f"{path}:{number}: {', '.join(sorted(needs - NEEDS.keys()))}: a block needs {sorted(NEEDS)}"
            )
        if start["language"] == language:
            code = "".join(line[indent:] + "\n" for line in lines[number + 1 : end])
            before = _paragraph(lines[: number - (mark is not None)][::-1])
            around = before + " " + _paragraph(lines[end + 1 :])
            page_name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
            found.append(Block(code, needs, number + 2, page_name, around))
        mark, number = None, end + 1
    return found


def _paragraph(lines: list[str]) -> str:
    """The first paragraph of `lines`, blank lines before it skipped."""
    text = "\n".join(line.strip() for line in lines).strip()
    return text.split("\n\n")[0]


def python_blocks(page: str | Path) -> list[Block]:
    """The Python blocks of a page (a path from the top of the repository, or any other)."""
    return blocks(page, "python")


def pages() -> list[str]:
    """README.md and every page of docs/, as paths from the top of the repository."""
    return ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]


@contextmanager
def every_block_runs(page: str) -> Iterator[list[Block]]:
    """Gives the blocks of `page` that are not marked, and fails unless each one has been `run` when the body ends.

    Write the page's name as a string, there or in a line before: `claimed_pages` finds it in the source of the tests.
    """
    unmarked = [block for block in python_blocks(page) if not block.needs]
    yield unmarked
    left = [f"{page}:{block.line}" for block in unmarked if not block.executed]
    assert not left, f"blocks that the test did not run: {', '.join(left)}"


def run_page(page: str, namespace: dict | None = None) -> dict:
    """Execute every block of `page` that is not marked, in order, in one namespace, which is returned."""
    namespace = {} if namespace is None else namespace
    with every_block_runs(page) as unmarked:
        for block in unmarked:
            block.run(namespace)
    return namespace


def claimed_pages(tests: Path = ROOT / "tests") -> dict[str, str]:
    """Page -> the test that runs its blocks with `run_page` or `every_block_runs`, read off the tests' source."""
    claims = {}
    for path in sorted(tests.glob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "doc_blocks" not in text:
            continue
        for function in ast.parse(text).body:
            if not isinstance(function, ast.FunctionDef) or not function.name.startswith("test_"):
                continue
            named = {}  # names that are given a string in the function
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                    named |= {target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)}
                called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
                if called and node.func.id in ("run_page", "every_block_runs") and node.args:
                    page = node.args[0]
                    page = named.get(page.id) if isinstance(page, ast.Name) else getattr(page, "value", None)
                    if isinstance(page, str):
                        claims[page] = f"{path.name}::{function.name}"
    return claims
