# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Every Python block of README.md and docs/ is executed by a test, or says what it needs."""

import pytest
from doc_blocks import NEEDS, claimed_pages, every_block_runs, pages, python_blocks, run_page


# Pages that no test runs with checks of its own are run here, from top to bottom.
CLAIMED = claimed_pages()
UNCLAIMED = [page for page in pages() if page not in CLAIMED and any(not block.needs for block in python_blocks(page))]


@pytest.mark.parametrize("page", UNCLAIMED)
def test_the_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(page)


def test_the_pages_that_tests_claim_exist():
    assert CLAIMED.keys() <= set(pages())


@pytest.mark.parametrize("page", pages())
def test_marks_are_visible_to_the_reader(page):
    for block in python_blocks(page):
        compile(block.code, f"{page}:{block.line}", "exec")
        for need in block.needs:
            assert NEEDS[need] in block.around, f"{page}:{block.line}: a sentence next to it must say {NEEDS[need]!r}"


def test_blocks_are_found_as_they_are(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "Text.\n\n```python\na = 1\n\nb = a\n```\n\nNeeds the Hub:\n\n<!-- needs: hub -->\n```python\nc = 3\n```\n"
        "Behind.\n\n- item\n\n  ```python\n  if b:\n      d = 4\n  ```\n\n````md\n```python\nnot one\n```\n````\n"
    )
    first, second, third = python_blocks(page)
    assert (first.code, first.needs, first.line) == ("a = 1\n\nb = a\n", frozenset(), 4)
    assert (second.needs, second.line, second.around) == ({"hub"}, 13, "Needs the Hub: Behind.")
    assert third.code == "if b:\n    d = 4\n"
    namespace = {}
    with every_block_runs(page) as unmarked:
        for block in unmarked:
            block.run(namespace)
    assert namespace["d"] == 4 and "c" not in namespace
    with pytest.raises(AssertionError, match=f"{page}:20"), every_block_runs(page) as unmarked:
        unmarked[0].run({})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- needs: gpu -->\n\n```python\n```\n", "not directly above"),
        ("<!-- needs: luck -->\n```python\n```\n", "luck"),
        ("```python\na = 1\n", "not closed"),
    ],
)
def test_bad_marks_are_errors(tmp_path, text, message):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=message):
        python_blocks(page)


def test_a_traceback_names_the_page_and_the_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("One.\n\n```python\na = 1\nb = a / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as error:
        run_page(page)
    last = error.traceback[-1]
    assert str(last.path) == str(page) and last.lineno + 1 == 5


def test_claims_are_read_off_the_source(tmp_path):
    (tmp_path / "test_one.py").write_text(
        'from doc_blocks import run_page\n\n\ndef test_page():\n    run_page("docs/a.md")\n\n\n'
        'def helper():\n    run_page("docs/b.md")\n\n\n'
        'def test_another():\n    page = "docs/c.md"\n    with every_block_runs(page) as blocks:\n        pass\n'
    )
    wanted = {"docs/a.md": "test_one.py::test_page", "docs/c.md": "test_one.py::test_another"}
    assert claimed_pages(tmp_path) == wanted
