# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Verdicts on d1's published generations, beside those of d1's own evaluation."""

import json
from pathlib import Path

import pytest

from trl_diffusion.tasks import (
    answer_cells,
    countdown_verdicts,
    extract_expression,
    gsm8k_answer,
    gsm8k_verdicts,
    math_answer,
    math_verdicts,
    sudoku_scores,
)


ROOT = Path(__file__).parents[1]
GOLDENS = ROOT / ".." / "shared" / "reference" / "scorers"
TASKS = ("gsm8k", "math", "countdown", "sudoku")
needs_goldens = pytest.mark.skipif(
    not GOLDENS.exists(), reason=f"no d1 verdicts at {GOLDENS}: the scorers are NOT compared with them"
)
# Task and line (from 0) of each verdict that is another one than d1's → why ours is right.
DIFFERENT = {
    ("math", 10): "1.5 is 3/2. d1 compares texts; the protocol asks for symbolic equality.",
}


def rows(task):
    return [json.loads(line) for line in (GOLDENS / f"d1_{task}.jsonl").read_text(encoding="utf-8").splitlines()]


def verdict(task, row):
    """Our score of a row, and the answer that was read."""
    text, truth = row["generation"], row["ground_truth"]
    if task == "gsm8k":
        return float(gsm8k_verdicts([text], [str(truth)])[0]), gsm8k_answer(text)
    if task == "math":
        return float(math_verdicts([text], [truth])[0]), math_answer(text)
    if task == "countdown":
        return float(countdown_verdicts([text], [truth[0]], [truth[1]])[0] is True), extract_expression(text)
    # The puzzle is what the question ends with.
    ((right, blanks, solved),) = sudoku_scores([text], [row["question"].split()[-1]], [truth])
    assert blanks == row["empty_cells"] and solved == (answer_cells(text) == truth)
    return right / blanks, answer_cells(text)


@needs_goldens
@pytest.mark.parametrize("task", TASKS)
def test_verdicts_are_d1s_or_explained(task):
    found = rows(task)
    assert len(found) == 20
    differing = set()
    for line, row in enumerate(found):
        score, _ = verdict(task, row)
        if score != pytest.approx(row["score"], abs=1e-9):
            differing.add((task, line))
    assert differing == {key for key in DIFFERENT if key[0] == task}


@needs_goldens
def test_the_answers_read_are_d1s_where_it_has_one():
    """Not the verdicts alone, most of which are 0 whatever is read."""
    for row in rows("gsm8k"):
        assert verdict("gsm8k", row)[1] == row["parsed"]
    for row in rows("math"):
        assert verdict("math", row)[1] == row["parsed"]
    for row in rows("countdown"):
        assert verdict("countdown", row)[1] == row["parsed"]
    for line, row in enumerate(rows("sudoku")):
        # d1 cuts to 16 digits and fills up with zeros. It finds no grid in line 3, whose rows stand between commas.
        read = verdict("sudoku", row)[1]
        assert read[:16].ljust(16, "0") == row["parsed"] or (line == 3 and read == row["parsed"] == "")


@needs_goldens
def test_a_right_answer_in_each_generations_place_is_right():
    """The verdicts follow the answers: the truth, put where the answer stands, is right in every row that has one."""
    changed = 0
    for task in TASKS:
        for row in rows(task):
            text, truth, read = row["generation"], row["ground_truth"], verdict(task, row)[1]
            answer = {"gsm8k": str(truth), "math": truth, "sudoku": truth}.get(task)
            if task == "countdown" or not read or "<answer>" not in text and "\\boxed{" not in text:
                continue
            before, mark, behind = text.rpartition("<answer>")
            _, end, behind = behind.partition("</answer>")
            if not mark or not end:
                continue
            filled = answer if task == "sudoku" else f"\\boxed{{{answer}}}"
            right = verdict(task, {**row, "generation": f"{mark}{filled}{end}{behind}"})[0]
            assert right == 1.0, (task, row["question"])
            changed += 1
    assert changed > 30


def test_the_page_explains_the_differences():
    page = " ".join((ROOT / "docs" / "evaluation.md").read_text().split())
    for task, line in DIFFERENT:
        assert f"`d1_{task}.jsonl`, line {line + 1}" in page
    assert f"{80 - len(DIFFERENT)} of the 80" in page
