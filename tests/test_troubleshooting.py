# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The messages that docs/troubleshooting.md quotes are those of the source."""

import ast
import re
from pathlib import Path

import pytest
import trl.trainer.grpo_config
from doc_blocks import ROOT


PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
# Brackets are escaped where Markdown would take them for a link.
QUOTES = [re.sub(r"\\([\[\]])", r"\1", quote) for quote in re.findall(r"^> (.*)$", PAGE, re.MULTILINE)]


def text_of(node: ast.expr) -> str | None:
    """A string of the source, with … where an f-string has a value; `None` for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    return None


@pytest.fixture(scope="module")
def messages() -> set[str]:
    files = [*(ROOT / "trl_diffusion").rglob("*.py"), Path(trl.trainer.grpo_config.__file__)]
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise | ast.Call):
                found |= {text for part in ast.walk(node) if (text := text_of(part)) and len(text) > 20}
    return found


@pytest.mark.parametrize("quote", QUOTES, ids=range(len(QUOTES)))
def test_quoted_messages_are_those_of_the_source(quote, messages):
    assert any(message.startswith(quote) for message in messages), quote


def test_there_are_quotes_and_a_wrong_one_would_be_noticed(messages):
    assert len(QUOTES) > 25
    assert not any(message.startswith("temperature=… must be negative") for message in messages)
