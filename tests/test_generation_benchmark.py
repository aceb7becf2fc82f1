# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

import json
import sys
from pathlib import Path

import pytest
import torch

from trl_diffusion.models import LLaDAConfig


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """benchmarks/generation.py, without the number of threads that it sets."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    import generation

    yield generation
    for name in ("generation", "generation_tools"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("num_steps", [64, 24])
def test_plain_loop_gives_our_tokens(benchmark, num_steps):
    prompt_ids = benchmark.prompts(2)
    model = benchmark.random_model("llada", (32, 2), vocabulary=128)
    report = benchmark.Report()
    report.table("", *"abcdefghi")
    benchmark.compare_uncached(report, model, "", prompt_ids, 64, num_steps, rounds=2)
    assert report.tables[0]["rows"][0][-1] == "yes"


@pytest.mark.parametrize("block_length", [4, 32])
def test_block_causal_plain_loop_gives_our_tokens(benchmark, block_length):
    model = benchmark.random_model("sdar", (32, 2), vocabulary=128, block_length=block_length)
    report = benchmark.Report()
    report.table("", *"abcdefgh")
    benchmark.compare_block_cache(report, model, benchmark.prompts(2), 64, 32, rounds=1)
    assert report.tables[0]["rows"][0][-1] == "yes"


def test_no_tensor_has_more_of_the_vocabulary_than_a_block(benchmark):
    model = benchmark.random_model("llada", (32, 1), vocabulary=1024)
    report = benchmark.Report()
    report.table("", *"abcd")
    benchmark.check_vocabulary_axis(report, model, benchmark.prompts(2), 64)
    assert [row[-1] for row in report.tables[0]["rows"]] == ["yes"] * len(benchmark.VOCABULARY_CASES)


@pytest.mark.parametrize("model", ["llada", "sdar"])
def test_grid(benchmark, tmp_path, model):
    output = tmp_path / "grid.json"
    arguments = f"grid --model {model} --shape 32x1 --vocabulary 128 --rules low_confidence factor --lengths 32"
    benchmark.main([*arguments.split(), "--batches", "2", "--repetitions", "1", "--output", str(output)])
    table = json.loads(output.read_text())["tables"][0]
    passes = {(row[2], row[3]): int(row[5]) for row in table["rows"]}
    caches = ("none", "prefix", "dual") if model == "llada" else ("none", "block")
    assert passes == {
        **{("low_confidence", cache): 16 for cache in caches},
        **{("factor", cache): passes["factor", cache] for cache in caches},
        ("plain loop", "none"): 16,
        ("autoregressive", "its own"): 32,
    }


def test_roofline_runs(benchmark, tmp_path):
    output = tmp_path / "roofline.json"
    benchmark.main(["roofline", "--tiny", "--lengths", "64", "--repetitions", "1", "--output", str(output)])
    assert len(json.loads(output.read_text())["tables"][0]["rows"]) == 3


def test_limits_are_those_of_the_published_estimate(benchmark):
    """The roofline's figures, in ms: L = 256, 512 and 1024; a cached block at context 1024, batch 1 and 8."""
    config = LLaDAConfig(vocab_size=126464, **benchmark.LLADA_8B)
    shapes = [(1, 256, 256, 256), (1, 512, 512, 512), (1, 1024, 1024, 1024), (1, 32, 1024, 32), (8, 32, 1024, 32)]
    real = [benchmark.step_floor(config, *shape)[1] for shape in shapes]
    assert real == pytest.approx([1e3 / 166, 1e3 / 82, 1e3 / 40, 1e3 / 247, 8e3 / 1293], rel=0.02)


def test_peaked_model_is_kept(benchmark, tmp_path):
    first = benchmark.peaked_model(tmp_path, (32, 1), vocabulary=128, steps=2)
    again = benchmark.peaked_model(tmp_path, (32, 1), vocabulary=128, steps=2)
    ids = benchmark.prompts(2)
    torch.testing.assert_close(again(ids).logits, first(ids).logits)
    assert len(list(tmp_path.iterdir())) == 1


def test_peaked_comparison_runs(benchmark):
    model = benchmark.random_model("llada", (32, 1), vocabulary=128)
    report = benchmark.Report()
    report.table("", *"abcdefg")
    benchmark.compare_peaked(report, model, benchmark.prompts(2), 64, 16, rounds=1)
    rows = report.tables[0]["rows"]
    assert [row[2] for row in rows] == [
        "threshold 0.9, no cache",
        "threshold 0.9, dual cache",
        "4 tokens per step, dual cache",
    ]
    assert rows[-1][3] == "16"
