# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What is trained is pushed with the real client to a Hub on this machine, and used from there in another process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import HubServer, User
from huggingface_hub import ModelCard


WORKER = Path(__file__).parent / "hub_worker.py"
WRITER, READER = "hf_" + "w" * 30, "hf_" + "r" * 30
REPOS = ("full", "adapter", "merged-by-trainer", "merged", "policy", "joint", "sft", "again")


def work(phase: str, server: HubServer, folder: Path, token: str | None) -> dict:
    """Results of a phase of the worker, which has a cache of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= server.environment(folder / f"home-{phase}", token)
    environment["PYTHONPATH"] = os.pathsep.join([str(WORKER.parent), str(WORKER.parents[1])])
    result = folder / f"{phase}.json"
    command = [sys.executable, str(WORKER), phase, str(folder), str(result)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=folder)
    assert run.returncode == 0, run.stderr[-5000:]
    return json.loads(result.read_text())


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The server, and what the two phases found."""
    folder = tmp_path_factory.mktemp("hub")
    tokens = {WRITER: User("alice", ("org",)), READER: User("bob", (), writes=False)}
    with HubServer(folder / "repositories", tokens) as server:
        pushed = work("push", server, folder, None)
        server.gate("org/gated", "carol")
        loaded = work("load", server, folder, WRITER)
        yield server, pushed, loaded, folder


def test_the_quick_start_of_each_card_loads_by_its_id_and_decodes_as_it_was_trained(hub):
    _, pushed, loaded, _ = hub
    for name, answer in pushed["answers"].items():
        assert loaded["printed"][name] == answer, name
        # Not what the base says: it is the trained weights, or the policy, that answer.
        assert answer not in (*pushed["base answers"].values(), ""), name
    assert loaded["printed"]["merged"] == pushed["answers"]["adapter"]
    assert loaded["printed"]["joint@v2"] == pushed["answers"]["joint"]
    assert loaded["printed"]["again"] == pushed["answers"]["full"]


def test_a_repository_can_be_used_alone(hub):
    server = hub[0]
    shared = {".gitattributes", "README.md", "generation_config.json", "training_args.json", "model.safetensors"}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    whole = shared | tokenizer | {"config.json"}
    adapter = (whole - {"config.json", "model.safetensors"}) | {"adapter_config.json", "adapter_model.safetensors"}
    assert set(server.files("alice/full")) == whole == set(server.files("alice/sft"))
    assert set(server.files("alice/merged")) == whole == set(server.files("alice/merged-by-trainer"))
    assert set(server.files("alice/adapter")) == adapter == set(server.files("alice/tiny", "dev"))
    assert set(server.files("alice/policy")) == shared | {"config.json"}
    joint = {f"dllm/{name}" for name in ("config.json", "generation_config.json", "model.safetensors", *tokenizer)}
    assert set(server.files("alice/joint")) == shared | {"config.json"} | joint
    # A tiny checkpoint is called by its name, which holds on every machine.
    config = json.loads(server.files("alice/tiny", "dev")["adapter_config.json"])
    assert config["base_model_name_or_path"] == "sudoku-sdar-tiny"
    assert set(server.files("alice/tiny")) == {".gitattributes"}


def test_how_to_decode_is_what_the_run_was_evaluated_with(hub):
    server, _, loaded, _ = hub
    for name in ("full", "adapter", "merged"):
        config = json.loads(server.files(f"alice/{name}")["generation_config.json"])
        settings = (
            config["max_new_tokens"],
            config["num_denoising_steps"],
            config["do_sample"],
            config["eos_token_id"],
        )
        assert settings == (17, 5, False, 1), name
    assert loaded["settings"] == [5, 5, 8]
    config = json.loads(server.files("alice/policy")["generation_config.json"])
    assert (config["unmasking"], config["policy_temperature"]) == ("alice/policy", 0.7)
    assert json.loads(server.files("alice/joint")["dllm/generation_config.json"])["unmasking"] == "alice/joint"


def test_the_merged_model_computes_what_base_and_adapter_do(hub):
    loaded = hub[2]
    assert loaded["merged"] < 1e-4 < loaded["adapted"]


def test_checkpoints_are_pushed_without_what_belongs_to_the_training(hub):
    server, pushed, _, folder = hub
    names = set(pushed["after the checkpoint"])
    assert {"config.json", "model.safetensors", "generation_config.json", "README.md"} <= names
    assert (folder / "full" / "checkpoint-1" / "optimizer.pt").exists() and pushed["created before training"]
    titles = [commit["title"] for commit in server.store.repos["models/alice/full"]["commits"].values()]
    assert "Training in progress, step 1" in titles and "End of training" in titles
    for name in server.store.repos:
        for path in server.files(name.removeprefix("models/")):
            assert not path.endswith((".bin", ".pt")) and "checkpoint" not in path, (name, path)


def test_nothing_is_lost_where_the_hub_goes_away(hub):
    server, pushed, _, folder = hub
    steps, message = pushed["gone"]
    assert steps == 1 and "could not be reached (gone)" in message
    # The model and its card were saved first, and so the command could push them.
    status, output, errors = pushed["commands"]["lost"]
    assert status == 0 and not errors and "alice/lost" in output
    assert server.files("alice/lost")["fp8/model.safetensors"] == b"mine"


def test_an_adapter_is_loaded_onto_the_branch_of_its_base_that_it_was_trained_on(hub):
    loaded, merged = hub[2]["halved"]
    assert loaded == hub[1]["halved"]
    assert torch.allclose(torch.tensor(merged), torch.tensor(loaded), atol=1e-4)


def test_no_file_holds_a_token(hub):
    server = hub[0]
    objects = [path.read_bytes() for path in (server.store.folder / "objects").iterdir()]
    assert len(objects) > 30
    assert not any(token.encode() in content for content in objects for token in (WRITER, READER))
    arguments = json.loads(server.files("alice/full")["training_args.json"])
    assert arguments["trainer"] == "TraceRLTrainer" and arguments["arguments"]["num_denoising_steps"] == 5
    assert "hub_token" not in arguments["arguments"]


def card(server: HubServer, name: str, revision: str = "main") -> ModelCard:
    return ModelCard(server.files(f"alice/{name}", revision)["README.md"].decode())


def test_cards_say_where_the_model_comes_from_and_under_which_licence(hub):
    server = hub[0]
    adapter, merged, full, sft = (card(server, name) for name in ("adapter", "merged", "full", "sft"))
    assert (adapter.data.license, adapter.data.base_model, adapter.data.library_name) == ("mit", "alice/base", "peft")
    assert adapter.data.base_model_relation == "adapter" and "PEFT adapter, which is loaded" in adapter.text
    assert (merged.data.license, merged.data.library_name) == ("mit", "transformers")
    assert merged.data.base_model_relation == "finetune" and "which is merged into the weights" in merged.text
    assert full.data.license == "apache-2.0" and full.data.base_model is None
    assert "- **Command**: `python examples/tracerl.py --config run.yaml --hub_token … --seed=3`" in full.text
    assert "`sudoku-llada-tiny`, a tiny checkpoint" in full.text and {"trl", "tracerl"} <= set(full.data.tags)
    assert "Large Language Diffusion Models" in sft.text and "sft" in sft.data.tags
    sections = ["Quick start", "Sampling defaults", "Training", "Measured", "Limits", "Licence", "Citation"]
    for name in REPOS:
        text = card(server, name).text
        assert all(f"\n## {section}\n" in text for section in sections), name
        assert str(hub[3]) not in text, name


def test_figures_are_in_the_text_and_in_the_metadata(hub):
    server = hub[0]
    full, again = card(server, "full"), card(server, "again")
    assert "| sudoku | solve_rate | 0.250 | 0.500 | ± 0.100 over seeds | 8 | 1, 2 |" in full.text
    assert "Printed by `make figures`." in full.text
    result = full.data.eval_results[0]
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("sudoku", "solve_rate", 0.5)
    assert "No figure was measured" in card(server, "adapter").text
    # Those of an evaluation take their place.
    assert "| sudoku | accuracy | – | 0.500 | 0.200 to 0.800 | 8 |" in again.text and "make figures" not in again.text
    metadata = yaml.safe_load(str(again).split("---\n")[1])["model-index"][0]["results"][0]
    assert [metric["type"] for metric in metadata["metrics"]] == ["accuracy", "forward_passes"]


@pytest.mark.parametrize(
    ("situation", "words"),
    [
        ("no token", ["set HF_TOKEN", "hf auth login", "/settings/tokens"]),
        ("bad token", ["does not know the token", "hf auth login"]),
        ("read only", ["may not write to 'bob/x'", "role 'write'"]),
        ("not theirs", ["may not write to 'alice/full'", "role 'write'"]),
        ("foreign", ["may not write to 'carol/x'", 'the namespace "carol"']),
        ("bad id", ["'a/b/c'", "'user/name'"]),
        ("another kind", ["'alice/adapter' holds an adapter", "another repo_id"]),
        ("strategy", ["hub_strategy='checkpoint'", "'every_save'"]),
        ("no adapter", ["push_merged_adapter=True has no effect"]),
        ("local base", ["a folder of this machine", "--merge_adapter"]),
        ("another run", ["is to hold a whole model", "adapter_config.json", "another output_dir"]),
        ("base in memory", ["was built in memory"]),
        ("unreachable", ["http://127.0.0.1:9 could not be reached", "HF_ENDPOINT"]),
        ("offline", ["HF_HUB_OFFLINE=1", "Unset it"]),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_training(hub, situation, words):
    message = hub[1]["errors"][situation]
    assert all(word in message for word in words), message
    assert "\n" not in message and "Traceback" not in message


@pytest.mark.parametrize(
    ("situation", "words"),
    [
        ("gated", ["'org/gated' is gated", "/org/gated", "accept its conditions", "not on its list"]),
        ("gated, no token", ["'org/gated' is gated", "/org/gated", "set HF_TOKEN"]),
        ("missing", ["no model 'alice/nothing'", "private"]),
        ("no such branch", ["'alice/full' has no branch", "v9"]),
        ("bad id", ["'a/b/c'", "'user/name'"]),
        ("not in the cache", ["'alice/other' is not in the cache", "HF_HUB_OFFLINE=1"]),
    ],
)
def test_what_cannot_be_loaded_says_what_to_do(hub, situation, words):
    message = hub[2]["errors"][situation]
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_what_was_loaded_once_is_loaded_without_the_hub(hub):
    assert hub[2]["cached"] == ""


def test_the_command_says_what_went_where_and_errors_in_one_line(hub):
    server, pushed, loaded, _ = hub
    commands = pushed["commands"]
    status, output, errors = commands["full"]
    assert status == 0 and not errors and "alice/again" in output
    assert "Left out: optimizer.pt" in output and "training_args.bin" in output
    assert server.store.repos["models/alice/again"]["private"] and server.store.repos["models/alice/tiny"]["private"]
    assert commands["merged"][0] == commands["branch"][0] == 0, commands
    # A policy of a branch is not mistaken for that of the main one.
    for name in ("policy", "joint"):
        config = json.loads(server.files(f"alice/{name}", "v2")["generation_config.json"])
        assert config["unmasking"] == f"alice/{name}@v2"
    expected = {
        "no token": "set HF_TOKEN",
        "not merged": "holds no adapter",
        "no card": "has no README.md",
        "no folder": "is not a folder",
    }
    for name, words in expected.items():
        status, _, errors = commands[name]
        assert status == 1 and words in errors and errors.count("\n") == 0, commands[name]
    status, _, errors = loaded["command"]
    assert status == 1 and "'org/gated' is gated" in errors and errors.count("\n") == 0
