# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Traces of a dataset."""

import glob
import re
import runpy
import sys

import pytest
import torch
from conftest import random_model
from datasets import Dataset, load_dataset
from doc_blocks import ROOT, run_page

from trl_diffusion import (
    DiffusionGenerationConfig,
    DiffusionSFTConfig,
    DiffusionSFTTrainer,
    collect_traces,
)
from trl_diffusion.evaluation import traces as traces_module


CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}4{% endif %}"
CONFIG = {"max_new_tokens": 6, "block_length": 4, "num_denoising_steps": 4, "temperature": 0.9}


def rows(count=5):
    texts = ["0123", "012", "31420", "2", "44"] * (-(-count // 5))
    return Dataset.from_dict({"prompt": texts[:count], "want": ["1", "2", "3", "0", "1"] * (count // 5)})


def share(completions, want, **kwargs):
    return [text.count(digit) / 6 for text, digit in zip(completions, want, strict=True)]


async def some_length(completions, completion_ids, prompts, trainer_state, log_extra, log_metric, **kwargs):
    log_metric("length", 1.0)
    assert trainer_state is None and "prompt" not in kwargs
    # None: no reward for the prompt of one digit.
    return [None if prompt == "2" else float(len(ids)) for prompt, ids in zip(prompts, completion_ids, strict=True)]


def collect(model, tokenizer, dataset=None, reward_funcs=(share, some_length), config=None, **kwargs):
    config = DiffusionGenerationConfig(**{**CONFIG, "eos_token_id": tokenizer.eos_token_id, **(config or {})})
    dataset = rows() if dataset is None else dataset
    return collect_traces(model, tokenizer, dataset, list(reward_funcs), config, progress=False, **kwargs)


def test_columns(family, tokenizer):
    model = random_model(family, tokenizer)
    found = collect(model, tokenizer, num_generations=3, reward_weights=[2.0, 0.5], batch_size=4)
    assert len(found) == 15
    assert found["row"][:] == [row for row in range(5) for _ in range(3)]
    assert found["generation"][:] == [0, 1, 2] * 5
    assert len(set(found["completion"][:])) > 5
    for row in found:
        ids = row["completion_ids"]
        assert row["prompt"] == rows()[row["row"]]["prompt"] and row["want"] == rows()[row["row"]]["want"]
        assert row["prompt_ids"] == tokenizer(row["prompt"])["input_ids"]
        assert row["completion"] == tokenizer.decode(ids, skip_special_tokens=True)
        assert tokenizer.eos_token_id not in ids[:-1]
        for name in ("unmask_step", "logprobs", "entropies", "forced"):
            assert len(row[name]) == len(ids)
        assert min(row["unmask_step"]) >= 1 and max(row["unmask_step"]) <= row["num_forward_passes"]
        assert max(row["logprobs"]) < 0 < min(row["entropies"]) and row["block_length"] == 4
        first, second = row["rewards/share"], row["rewards/some_length"]
        assert first == row["completion"].count(row["want"]) / 6
        assert second == (None if row["prompt"] == "2" else len(ids))
        assert row["reward"] == pytest.approx(2.0 * first + 0.5 * (second or 0.0))


def test_a_completion_does_not_depend_on_the_batch(family, tokenizer):
    model = random_model(family, tokenizer)
    columns = ["completion_ids", "unmask_step", "row", "generation"]
    one, four = (
        collect(model, tokenizer, num_generations=3, batch_size=size).select_columns(columns)[:] for size in (1, 4)
    )
    assert one == four
    assert collect(model, tokenizer, num_generations=3, seed=1)["completion_ids"][:] != one["completion_ids"]


def test_rows_below_the_reward_are_dropped(tokenizer):
    model = random_model("llada", tokenizer)
    everything = collect(model, tokenizer, reward_funcs=[share], num_generations=4)
    good = collect(model, tokenizer, reward_funcs=[share], num_generations=4, min_reward=0.3)
    expected = [row for row in everything if row["reward"] >= 0.3]
    assert 0 < len(expected) < 20 and list(good) == expected
    with pytest.raises(ValueError, match="min_reward=2.0: none of the 5 completions"):
        collect(model, tokenizer, reward_funcs=[share], min_reward=2.0)
    # A completion that nothing scores has no reward, and is no good one.
    unscored = collect(model, tokenizer, reward_funcs=[some_length])
    assert unscored["reward"][3] is None
    assert len(collect(model, tokenizer, reward_funcs=[some_length], min_reward=-1.0)) == 4


def test_conversations(tokenizer):
    tokenizer.chat_template = CHAT
    model = random_model("sdar", tokenizer)
    dataset = Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in ("01", "213")]})

    def contents(completions, prompts, **kwargs):
        assert all(prompt[-1]["role"] == "user" for prompt in prompts)
        return [len(completion[-1]["content"]) for completion in completions]

    found = collect(model, tokenizer, dataset, [contents])
    assert found[0]["prompt_ids"] == tokenizer("014")["input_ids"]
    for row in found:
        assert row["completion"] == [{"role": "assistant", "content": row["completion"][0]["content"]}]
        assert row["reward"] == len(row["completion"][0]["content"])


@pytest.mark.parametrize("conversational", [False, True])
def test_the_traces_are_data_for_sft(tmp_path, tokenizer, conversational):
    tokenizer.chat_template = CHAT
    model, dataset = random_model("llada", tokenizer), rows()
    if conversational:
        dataset = dataset.map(lambda row: {"chat": [{"role": "user", "content": row["prompt"]}]})
        dataset = dataset.remove_columns("prompt").rename_column("chat", "prompt")
    found = collect(model, tokenizer, dataset, [lambda completions, **kwargs: [1.0] * len(completions)])
    config = DiffusionSFTConfig(
        str(tmp_path), max_steps=1, use_cpu=True, bf16=False, activation_checkpointing=False, report_to="none",
        save_strategy="no", disable_tqdm=True, learning_rate=0.1,
    )  # fmt: skip
    before = model.get_output_embeddings().weight.detach().clone()
    DiffusionSFTTrainer(model, config, train_dataset=found, processing_class=tokenizer).train()
    assert not torch.equal(before, model.get_output_embeddings().weight)


class Interrupted(Exception):
    pass


def test_an_interrupted_call_goes_on(tmp_path, tokenizer, monkeypatch):
    model = random_model("llada", tokenizer)
    settings = {"num_generations": 2, "min_reward": 0.1, "reward_funcs": [share]}
    whole = collect(model, tokenizer, **settings)
    calls = []

    def share_once(completions, **kwargs):
        calls.append(len(completions))
        if len(calls) == 3:
            raise Interrupted
        return share(completions, **kwargs)

    share_once.__name__ = share_once.__qualname__ = "share"
    folder = {"output_dir": tmp_path / "traces", "shard_size": 4, "batch_size": 2}
    with pytest.raises(Interrupted):
        collect(model, tokenizer, **settings | {"reward_funcs": [share_once]}, **folder)
    assert [path.name for path in sorted((tmp_path / "traces").iterdir())] == [
        "traces-000000000-000000004.parquet",
        "traces.json",
    ]
    # Another batch size and other shards: only what is missing is generated.
    found = collect(
        model, tokenizer, **settings | {"reward_funcs": [share_once]}, **folder | {"shard_size": 5, "batch_size": 3}
    )
    assert calls[3:] == [3, 2, 1]
    columns = ["prompt", "want", "completion_ids", "unmask_step", "reward", "row", "generation"]
    assert found.select_columns(columns)[:] == whole.select_columns(columns)[:]
    loaded = load_dataset("parquet", data_files=str(tmp_path / "traces" / "*.parquet"), split="train")
    assert loaded.features == found.features == whole.features and loaded[:] == found[:]
    # Finished: nothing is generated again.
    monkeypatch.setattr(traces_module, "_roll_out", None)
    assert collect(model, tokenizer, **settings, **folder)[:] == found[:]


def test_a_file_that_keeps_nothing_still_counts(tmp_path, tokenizer):
    model = random_model("llada", tokenizer)

    def last_row(completions, want, prompts, **kwargs):
        return [float(prompt == "44") for prompt in prompts]

    found = collect(model, tokenizer, reward_funcs=[last_row], min_reward=1, output_dir=tmp_path, shard_size=2)
    assert found["row"][:] == [4] and len(list(tmp_path.glob("*.parquet"))) == 3


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path, tokenizer):
    folder = tmp_path / "temp[0.9]*?"
    found = collect(random_model("llada", tokenizer), tokenizer, output_dir=folder)
    pattern = f"{glob.escape(str(folder))}/*.parquet"
    assert len(found) == 5 and load_dataset("parquet", data_files=pattern, split="train")[:] == found[:]


def test_the_format_of_the_dataset_does_not_matter(tmp_path, tokenizer):
    """Reward functions get plain values of every column, and the data's digest is the same."""
    model, dataset = random_model("llada", tokenizer), rows().add_column("number", list(range(5)))

    def numbers(completions, want, number, **kwargs):
        assert [type(value) for value in number] == [int] * len(number) and type(want) is list
        return number

    plain = collect(model, tokenizer, dataset, [numbers], output_dir=tmp_path)
    for formatted in (dataset.with_format("numpy"), dataset.with_format("torch", columns=["want"])):
        assert collect(model, tokenizer, formatted, [numbers])[:] == plain[:]
        assert collect(model, tokenizer, formatted, [numbers], output_dir=tmp_path)[:] == plain[:]


@pytest.mark.parametrize("missing", [None, "", []])
def test_a_row_without_a_prompt_is_named(tmp_path, tokenizer, missing):
    conversational = isinstance(missing, list)
    prompts = [[{"role": "user", "content": "1"}] if conversational else "1", missing]
    for order, row in ((prompts, 1), (prompts[::-1], 0)):
        with pytest.raises(ValueError, match=rf"dataset\[{row}\]\['prompt'\] is {re.escape(repr(missing))}"):
            collect(
                random_model("llada", tokenizer), tokenizer, Dataset.from_dict({"prompt": order}), [some_length],
                output_dir=tmp_path,
            )  # fmt: skip
    assert not list(tmp_path.iterdir())  # before any work


@pytest.mark.parametrize("name", ["text", "messages", "input_ids", "labels", "completion_mask"])
def test_columns_from_which_sft_would_make_other_rows(tokenizer, name):
    with pytest.raises(ValueError, match=f"column '{name}', from which TRL's SFT"):
        collect(random_model("llada", tokenizer), tokenizer, rows().rename_column("want", name), [some_length])


def nothing(completions, **kwargs):
    return None


async def short(completions, **kwargs):
    return [1.0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dataset": [{"prompt": "1"}]}, TypeError, "dataset is a list"),
        ({"dataset": rows().remove_columns("prompt")}, ValueError, "`prompt`"),
        ({"dataset": rows().add_column("reward", [0.0] * 5)}, ValueError, "column 'reward'"),
        ({"reward_funcs": []}, ValueError, "reward_funcs is empty"),
        ({"reward_funcs": [share, share]}, ValueError, "two functions of one name"),
        ({"reward_funcs": ["some/reward-model"]}, TypeError, "some/reward-model"),
        ({"reward_funcs": [nothing]}, TypeError, "'nothing' returned None"),
        ({"reward_funcs": [short]}, ValueError, "'short' returned 1 rewards for 5"),
        ({"reward_weights": [1.0]}, ValueError, "reward_weights"),
        ({"num_generations": 0}, ValueError, "num_generations=0"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"config": {"seed": 1}}, ValueError, "generation_config.seed=1"),
        ({"config": {"temperature": 0.0}, "num_generations": 2}, ValueError, "num_generations=2"),
        ({"config": {"num_return_sequences": 2}}, ValueError, "num_return_sequences=2"),
    ],
)
def test_wrong_arguments_are_named(tokenizer, arguments, error, message):
    with pytest.raises(error, match=message):
        collect(random_model("llada", tokenizer), tokenizer, **arguments)


def test_inside_a_running_loop(tokenizer):
    """As in a notebook."""
    import asyncio

    async def cell():
        return collect(random_model("llada", tokenizer), tokenizer)

    assert len(asyncio.run(cell())) == 5


# Documents


def test_the_python_blocks_of_the_page_on_traces_run(capsys):
    namespace = run_page("docs/traces.md")
    assert min(namespace["traces"]["reward"]) >= 0.5
    eos = namespace["tokenizer"].eos_token_id
    ended = [ids[-1] == eos for ids in namespace["traces"]["completion_ids"]]
    assert len(namespace["finished"]) == sum(ended)
    assert "tokens_per_step" in capsys.readouterr().out


def test_the_example(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "traces"
    arguments = ["--output_dir", str(folder), "--num_puzzles", "16", "--num_generations", "2", "--min_reward", "0.5"]
    monkeypatch.setattr(sys, "argv", ["collect_traces.py", *arguments])
    runpy.run_path(str(ROOT / "examples" / "collect_traces.py"), run_name="__main__")
    found = load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train")
    assert f"{len(found)} of 32 completions" in capsys.readouterr().out and min(found["reward"]) >= 0.5
