# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from trl_diffusion.likelihood import MaskedView, block_trace_masks, canvas_blocks, trace_masks
from trl_diffusion.trainer.objectives import token_weights


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MODULES = ("tracerl", "tracerl_cells", "tracerl_report", "generation_tools", "cells", "reporting")
SMALL = ["--puzzles", "1", "--num_test", "4"]


@pytest.fixture
def benchmark(monkeypatch):
    """benchmarks/tracerl.py, without the number of threads that it sets."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    import tracerl

    yield tracerl
    for name in MODULES:
        sys.modules.pop(name, None)


def trajectory(rows: int, block_causal: bool, generator) -> tuple[torch.Tensor, torch.Tensor, list[MaskedView]]:
    """Steps, completion masks and views of rows of 10 tokens; some with a tail behind EOS."""
    steps = torch.randint(1, 6, (rows, 10), generator=generator)
    mask = torch.arange(10) < torch.randint(4, 11, (rows, 1), generator=generator)
    if not block_causal:
        views = zip(*trace_masks(steps, 1, mask), strict=True)
        return steps, mask, [MaskedView(*view) for view in views]
    offset = torch.randint(4, (rows,), generator=generator)
    blocks = canvas_blocks(steps.shape, 4, offset, steps.device)
    views = zip(*block_trace_masks(steps, 4, 1, mask, offset), strict=True)
    return steps, mask, [MaskedView(*view, group=blocks) for view in views]


@pytest.mark.parametrize("block_causal", [False, True])
def test_random_masks_weigh_as_much_as_the_trajectory(benchmark, block_causal):
    from tracerl_cells import random_masks

    generator = torch.Generator().manual_seed(0)
    steps, mask, views = trajectory(2000, block_causal, generator)
    noise = torch.rand(len(steps), len(views), 2, 10, generator=generator)
    found = random_masks(views, steps > 0, mask, noise)
    assert len(found) == len(views)
    totals = [torch.zeros(mask.shape), torch.zeros(mask.shape)]
    for ours, theirs in zip(found, views, strict=True):
        assert not (ours.target & ~ours.masked).any() and not (ours.target & ~mask).any()
        behind = ours.masked & ~ours.target
        assert not (behind & mask).any() and (behind[:, -1] | mask[:, -1] | ~ours.target.any(1)).all()
        for total, view in zip(totals, (ours, theirs), strict=True):
            total += token_weights("step", view, mask)
    # Row by row the same total; on average, the same for every token of a completion.
    torch.testing.assert_close(totals[0].sum(1), totals[1].sum(1))
    if not block_causal:
        mean = [total[:, :4].mean(0) for total in totals]
        torch.testing.assert_close(mean[0], mean[1].mean().expand(4), atol=0.02, rtol=0)
        # Every number of masked tokens is there: T views of n = 10 tokens, in ten shares.
        sizes = torch.cat([view.target.sum(1)[mask.all(1)] for view in found])
        counts = torch.bincount(sizes[sizes > 0], minlength=11)[1:].float()
        assert ((counts / counts.mean() - 1).abs() < 0.2).all()


def test_random_masks_are_those_of_the_rollout(benchmark, tmp_path):
    from tracerl_cells import Cell, build_trainer

    trainer = build_trainer(Cell("sdar", "random-masking", 1, puzzles=1), str(tmp_path))
    trainer.model.train()
    batch = trainer._generate_and_score_completions([trainer.train_dataset[0]] * 8)
    first, again = trainer.draw_views(batch), trainer.draw_views(batch)
    assert all(torch.equal(a.masked, b.masked) for a, b in zip(first, again, strict=True))
    assert any((a.target[0] != b.target[0]).any() for a, b in zip(first, first[1:], strict=False))


def test_every_variant_says_what_it_trains(benchmark):
    from tracerl_cells import VARIANTS, Cell

    cells = {name: Cell(variant.families[-1], name, 1, steps=100) for name, variant in VARIANTS.items()}
    assert len({json.dumps(cell.settings()["training"]) + cell.settings()["trainer"] for cell in cells.values()}) == 9
    assert cells["tracerl-curriculum"].training()["block_length_schedule"] == {"0": [4, 8], "60": 8}
    assert cells["tracerl-value"].training()["value_model"] == "full"
    assert set("".join(variant.parts for variant in VARIANTS.values())) == set("abcde")


def test_cells_are_trained_once_and_reported(benchmark, tmp_path, capsys):
    run = ["run", "--parts", "b", "--seeds", "1", "--families", "sdar", "--output", str(tmp_path), *SMALL]
    benchmark.main([*run, "--steps", "2"])
    assert "3 cells, 0 of them there already" in capsys.readouterr().out
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(files) == [f"sdar-{name}-1.json" for name in ("tracerl", "tracerl-s2", "tracerl-s4")]
    result = json.loads(files["sdar-tracerl-1.json"])
    assert len(result["curves"]["reward"]) == 2 and result["curves"]["views"] == [4, 4]
    assert result["after"]["threshold"]["tokens_per_step"] >= 1

    # Interrupted: one cell is missing, and it alone is trained.
    (tmp_path / "sdar-tracerl-s2-1.json").unlink()
    benchmark.main([*run, "--steps", "2"])
    output = capsys.readouterr().out
    assert "3 cells, 2 of them there already" in output and output.count("solve rate") == 1
    again = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {name for name in files if again[name] != files[name]} <= {"sdar-tracerl-s2-1.json"}
    with pytest.raises(ValueError, match="steps was 2 and is 1"):
        benchmark.main([*run, "--steps", "1"])

    benchmark.main(["report", "--output", str(tmp_path), "--figures", str(tmp_path / "figures")])
    text = capsys.readouterr().out
    assert "### (b)" in text and "### (a)" not in text
    assert "| tracerl-s2 | 1 |" in text and "tracerl-s4 − tracerl, solve rate after" in text
    charts = sorted((tmp_path / "figures").iterdir())
    assert [chart.name for chart in charts] == ["tracerl_b_sdar.svg"]
    assert len(ElementTree.parse(charts[0]).findall("{http://www.w3.org/2000/svg}polyline")) == 3


def test_a_report_needs_cells_that_compare(benchmark, tmp_path):
    from reporting import mean_and_deviation
    from tracerl_report import read_results

    with pytest.raises(ValueError, match="has no cells"):
        read_results(tmp_path)
    for seed, steps in ((1, 2), (2, 3)):
        settings = {"family": "sdar", "variant": "tracerl", "seed": seed, "steps": steps, "puzzles": 1, "num_test": 1}
        (tmp_path / f"{seed}.json").write_text(json.dumps({"settings": settings}))
    with pytest.raises(ValueError, match="different steps"):
        read_results(tmp_path)
    assert mean_and_deviation([1.0, 3.0, None], 1) == "2.0 ± 1.4"
    assert mean_and_deviation([None], 1) == "–"


def test_timing(benchmark, capsys):
    benchmark.main(["timing", "--puzzles", "1", "--repetitions", "1", "--families", "sdar"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| sudoku")]
    assert [(row[1], row[2]) for row in rows] == [("1", "4"), ("2", "2"), ("4", "1")]
