# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What the documentation promises is there."""

import re
import runpy
import subprocess
import sys

import pytest
from chat_server import ChatServer
from conftest import FAMILIES
from doc_blocks import ROOT, run_page

from trl_diffusion.tasks import character_tokenizer, shorten_trace
from trl_diffusion.tasks.length_report import REASONS


MODELS = (ROOT / "docs" / "models.md").read_text()
COLUMNS = ["loads", "generates", "policy", "SFT", "TraceRL", "BGPO", "IGPO", "UnmaskPolicy", "LoRA"]
COLUMNS += ["4-bit", "flex", "flash"]


def cells() -> dict[tuple[str, str], str]:
    """(family, column) -> the cell of the table of tests."""
    found = {}
    for line in MODELS.splitlines():
        match = re.fullmatch(r"\| `([\w-]+)` \|(.+)\|", line)
        if match:
            values = [value.strip() for value in match[2].split("|")]
            assert len(values) == len(COLUMNS), line
            found |= {(match[1], column): value for column, value in zip(COLUMNS, values, strict=True)}
    return found


@pytest.fixture(scope="module")
def collected() -> list[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests"]
    names = {"test_models.py", "test_replay.py", "test_every_family.py", "test_masks.py"}
    names.add("test_unmask_policy_model.py")
    command[-1:] = [str(ROOT / "tests" / name) for name in sorted(names)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.splitlines()


def test_every_mark_in_the_table_of_models_has_a_test(collected):
    tests = dict(re.findall(r"^- ([\w-]+): `(tests/\w+\.py::\w+)`", MODELS, re.MULTILINE))
    table = cells()
    assert {family for family, _ in table} == set(FAMILIES)
    for (family, column), value in table.items():
        assert value in ("✓", "–", "refused"), (family, column)
        if value == "–":
            continue
        name = tests["refused" if value == "refused" else column]
        wanted = re.compile(re.escape(name) + rf"\[(.*-)?{re.escape(family)}(-.*)?\]")
        matching = [test for test in collected if wanted.fullmatch(test)]
        if column == "flex":
            matching = [test for test in matching if "flex_attention" in test]
        assert matching, f"{family}, {column}: no test {name}[{family}]"


@pytest.mark.slow
def test_the_readme_trains_and_its_model_answers(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = run_page("README.md")
    rewards = [log["reward"] for log in namespace["trainer"].state.log_history if "reward" in log]
    # What the comment promises.
    first, last = re.search(r"rises, here from (\S+) to (\S+);", (ROOT / "README.md").read_text()).groups()
    assert rewards[0] == pytest.approx(float(first), abs=0.1) and rewards[-1] == pytest.approx(float(last), abs=0.15)
    answer = namespace["tokenizer"].decode(namespace["output"].rollout.completions()[0], skip_special_tokens=True)
    assert answer.replace(" ", "") in capsys.readouterr().out.replace(" ", "")


def test_the_python_blocks_of_the_generation_page_run(capsys, monkeypatch):
    run_page("docs/generation.md")
    printed = capsys.readouterr().out
    # The input of the infilling example comes back with its gap filled.
    assert "0430100000410000" + "14321234" in printed.replace(" ", "") and "·" not in printed


def test_the_python_blocks_of_the_length_alignment_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "length_alignment.md").read_text()
    # In the place of a model's tokenizer, which is on the Hub.
    local = character_tokenizer("".join(map(chr, range(32, 127))) + "\n")
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda name: local)
    with ChatServer(reply=shorten_trace) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "any")
        namespace = run_page("docs/length_alignment.md")
    assert len(server.requests) > 50 and (tmp_path / "lengths.png").exists()
    assert len(namespace["train_dataset"]) == len(namespace["aligned"].dataset) > 150
    assert "of 200 rows are kept (max_length=48)" in capsys.readouterr().out
    # A row for each reason.
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)))) >= REASONS.keys()


def test_the_picture_of_the_five_words_is_drawn_from_a_rollout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = runpy.run_path(str(ROOT / "docs" / "figures" / "five_words.py"))
    script["draw"](tmp_path / "five_words.svg")
    assert (tmp_path / "five_words.svg").stat().st_size > 50_000
    # The page's snippet makes the rollout that the picture shows.
    *_, drawn = script["make_rollout"]()
    rollout = run_page("docs/concepts.md")["rollout"]
    assert rollout.unmask_step.equal(drawn.unmask_step) and rollout.canvas_ids.equal(drawn.canvas_ids)
    assert rollout.prompt_ids.equal(drawn.prompt_ids)


def test_the_diff_of_adding_a_family_is_the_file():
    text = (ROOT / "docs" / "adding_a_family.md").read_text()
    name, diff = re.search(r"\+\+\+ b/(\S+)\n(.*?)```", text, re.DOTALL).groups()
    assert "".join(line[1:] + "\n" for line in diff.splitlines()) == (ROOT / name).read_text()


def test_links_between_the_documents():
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"
