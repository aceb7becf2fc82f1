# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The cards of the checkpoints that ship with the package, and what cards are made of."""

import ast
import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_store import metadata_problems
from huggingface_hub import ModelCard

from trl_diffusion.checkpoints import tiny_checkpoints, tiny_policies
from trl_diffusion.hub import (
    Licence,
    MeasuredFigure,
    base_licence,
    card_with_figures,
    own_command,
    read_eval_results,
    without_secrets,
)
from trl_diffusion.hub.files import card_for
from trl_diffusion.hub.model_card import CardContent, quick_start
from trl_diffusion.tasks import has_unique_solution


CARDS = Path(__file__).parents[1] / "model_cards"
SECTIONS = ["Quick start", "Sampling defaults", "Training", "Measured", "Limits", "Licence"]


def test_every_checkpoint_has_a_card():
    assert sorted(path.stem for path in CARDS.glob("*.md")) == sorted([*tiny_checkpoints(), *tiny_policies()])


@pytest.mark.parametrize("name", sorted([*tiny_checkpoints(), *tiny_policies()]))
def test_a_card_of_a_checkpoint_is_complete_and_its_quick_start_prints_what_it_says(name, capsys):
    text = (CARDS / f"{name}.md").read_text()
    assert metadata_problems(text) == []
    card = ModelCard.load(CARDS / f"{name}.md")
    assert card.data.license == "apache-2.0" and {"trl", "trl-diffusion"} <= set(card.data.tags)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    measured = text.split("## Measured")[1].split("## Limits")[0]
    for result in card.data.eval_results:
        # The metadata repeats a figure of the table, which names its command.
        figure = (
            f"{result.metric_value:.2f}" if result.metric_type == "forward_passes" else f"{result.metric_value:.3f}"
        )
        assert f"| {figure} |" in measured, result.metric_type
    assert "python benchmarks/" in measured or "by the command above" in measured
    assert "training run" in measured
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    exec(compile(code, "quick start", "exec"), {})
    assert capsys.readouterr().out.strip() == code.rsplit("# ", 1)[1].strip()
    if name.startswith("sudoku"):
        assert has_unique_solution(re.search(r"tokenizer\(\[\"(\d{16})\"\]", code)[1])


def test_the_licence_is_what_the_base_says_and_nothing_is_made_up(tmp_path):
    card = tmp_path / "README.md"
    assert base_licence(str(tmp_path)) is None and base_licence(None) is None
    card.write_text("---\nlicense: other\nlicense_name: own\nlicense_link: https://example.org/l\n---\n")
    assert base_licence(str(tmp_path)) == Licence("other", "own", "https://example.org/l")
    for metadata in ("license: unknown", "tags:\n- trl", "license: [mit]"):
        card.write_text(f"---\n{metadata}\n---\n")
        found = base_licence(str(tmp_path))
        assert found == (Licence("mit") if "mit" in metadata else None), metadata
    # What is no YAML says nothing, and ends no training.
    card.write_text('---\nlicense: [\nname: "\n---\n')
    assert base_licence(str(tmp_path)) is None
    # Offline, and not in the cache.
    assert base_licence("nobody/nothing") is None


def test_a_spread_needs_seeds():
    with pytest.raises(ValueError, match="spread=0.1 of 'accuracy' is over seeds"):
        MeasuredFigure("sudoku", "accuracy", 0.5, spread=0.1, seeds=(1,))


def test_figures_take_the_place_of_those_before():
    text = "---\nlicense: mit\nmodel_name: m\n---\n# m\n\n## Measured\n\nOld \\1.\n\n## Limits\n\n- one\n"
    figures = [
        MeasuredFigure("gsm8k", "accuracy", 0.25, dataset="openai/gsm8k", settings="threshold=0.9"),
        MeasuredFigure("gsm8k", "accuracy", 0.5, dataset="openai/gsm8k", command="a command"),
    ]
    card = card_with_figures(ModelCard(text), figures)
    assert "Old" not in card.text and "| gsm8k | accuracy | – | 0.500 |" in card.text and "- one" in card.text
    # Of two settings the sampling defaults stand in the metadata, which has room for one.
    assert [(result.dataset_type, result.metric_value) for result in card.data.eval_results] == [("openai/gsm8k", 0.5)]
    again = card_with_figures(ModelCard(str(card)), figures)
    assert str(again) == str(card)
    with pytest.raises(ValueError, match="no section '## Measured'"):
        card_with_figures(ModelCard("---\nlicense: mit\n---\n# m\n"), figures)


def test_the_figures_of_an_evaluation_come_with_their_command(tmp_path):
    task = {"num_problems": 8, "seeds": [0, 1], "accuracy": 0.5, "accuracy_low": 0.2, "accuracy_high": 0.8}
    generation = {"max_new_tokens": 256, "unmasking": "threshold", "threshold": 0.9, "cache": "none", "top_k": None}
    results = {"model": "out", "preset": "d1-256", "sources": {"gsm8k": "openai/gsm8k"}, "generation": generation}
    (tmp_path / "results.json").write_text(json.dumps({**results, "tasks": {"gsm8k": task}}))
    (figure,) = read_eval_results(tmp_path, "me/m")
    assert (figure.task, figure.dataset, figure.after, figure.interval) == ("gsm8k", "openai/gsm8k", 0.5, (0.2, 0.8))
    settings = "preset d1-256, max_new_tokens=256, unmasking=threshold, threshold=0.9, draws with seeds 0, 1"
    assert figure.settings == settings and figure.seeds == ()
    command = "trl-diffusion eval --model me/m --tasks openai/gsm8k --preset d1-256 --max_new_tokens 256 "
    assert figure.command == command + "--unmasking threshold --threshold 0.9 --num_test 8 --seeds 0 1"
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no tasks"):
        read_eval_results(tmp_path)
    with pytest.raises(ValueError, match="has no results.json"):
        read_eval_results(tmp_path / "none")


def test_a_quick_start_is_of_the_repository_that_it_stands_in():
    card = 'text "out"\n```python\nmodel = load("out")\nother = load(\'out\', "out/dllm")\n```\n"out"\n'
    expected = 'text "out"\n```python\nmodel = load("me/m")\nother = load("me/m", "out/dllm")\n```\n"out"\n'
    assert card_for(card, "me/m", ["out"]) == expected
    with pytest.raises(ValueError, match="does not load 'me/m', nor any of elsewhere"):
        card_for(card, "me/m", ["elsewhere"])
    with pytest.raises(ValueError, match="has no quick start"):
        card_for("# [More Information Needed]\n", "me/m", ["out"])


def content(**fields):
    defaults = dict.fromkeys(("licence", "dataset"))
    defaults |= dict.fromkeys(("model_name", "data", "trainer_name", "paper_title", "paper_id", "citation"), "x")
    defaults |= {"kind": "model", "base": None, "base_is_tiny": False, "base_is_local": False, "repo_id": "me/m"}
    return CardContent(**{**defaults, "tags": [], "settings": {}, "sampling": {}, "prompt": "1", **fields})


@pytest.mark.parametrize("place", ['it\'s "my" run', "C:\\runs\\new", "é {x}"])
def test_a_quick_start_names_odd_folders(place):
    code = quick_start(content(repo_id=place))
    assert repr(place) in ast.unparse(ast.parse(code))
    card = card_for(f"```python\n{code}```\n", "me/m", [place])
    assert card == f"```python\n{quick_start(content())}```\n"


def test_a_quick_start_asks_as_the_training_did():
    prompt = [{"role": "user", "content": "1"}]
    code = quick_start(content(prompt=prompt, template_kwargs={"enable_thinking": False}))
    call = next(line for line in code.splitlines() if "[prompt]" in line)
    assert call.endswith(", enable_thinking=False") and ast.parse(code)


def test_a_command_is_quoted_without_its_secrets(monkeypatch):
    token = "hf_" + "x" * 30
    arguments = ["--hub_token", token, "--seed", "3", f"--wandb-api-key={token}", "--note", f"two words {token}"]
    monkeypatch.setattr("sys.argv", ["/usr/bin/trl-diffusion", "tracerl", *arguments])
    expected = "trl-diffusion tracerl --hub_token … --seed 3 --wandb-api-key=… --note 'two words hf_…'"
    assert own_command() == expected
    monkeypatch.setattr("sys.argv", ["/usr/bin/pytest", "tests"])
    assert own_command() is None
    assert without_secrets({"note": f"see {token}", "kwargs": [{"token": token}]}) == {
        "note": "see hf_…",
        "kwargs": [{}],
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://me:pw@proxy:80", "http://…@proxy:80"),
        ("hf_oauth_" + "a" * 30, "hf_…"),
        ("sk-" + "a" * 30, "sk-…"),
        ("https://h/x.jsonl?a=1&X-Amz-Signature=abc&b=2", "https://h/x.jsonl?a=1&X-Amz-Signature=…&b=2"),
        ("hf_hub_model", "hf_hub_model"),
    ],
)
def test_secrets_inside_of_texts_are_left_out(text, expected, monkeypatch):
    assert without_secrets({"proxies": [text], "apikey": text}) == {"proxies": [expected]}
    monkeypatch.setattr("sys.argv", ["trl-diffusion", "sft", text])
    assert own_command() == shlex.join(["trl-diffusion", "sft", expected])


def test_a_command_says_no_secret_of_json_and_is_what_a_user_types(monkeypatch):
    monkeypatch.setattr("sys.argv", ["trl-diffusion", "sft", "--model_init_kwargs", '{"token": "x", "a": 1}'])
    assert own_command() == "trl-diffusion sft --model_init_kwargs '{\"a\": 1}'"
    path = "/site-packages/trl_diffusion/scripts/training.py"
    monkeypatch.setattr("sys.argv", [path, "sft", "--seed=1"])
    main = SimpleNamespace(__spec__=SimpleNamespace(name="trl_diffusion.scripts.training", origin=path))
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert own_command() == "trl-diffusion sft --seed=1"
