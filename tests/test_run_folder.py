# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The folder of an evaluation: who may write in it, and what stays there."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from trl_diffusion import AutoModelForDiffusionLM, DiffusionGenerationConfig
from trl_diffusion.checkpoints import tiny_checkpoint
from trl_diffusion.evaluation import evaluate_tasks
from trl_diffusion.evaluation.task import sudoku_task
from trl_diffusion.scripts.cli import main
from trl_diffusion.tasks import sudoku_dataset


MODEL = "sudoku-llada-tiny"
ROWS = sudoku_dataset("test", num_puzzles=4, num_clues=(12, 13))
CONFIG = DiffusionGenerationConfig(max_new_tokens=17, num_denoising_steps=2, eos_token_id=1, pad_token_id=0)


def test_one_process_at_a_time_is_at_work_in_a_folder(tmp_path):
    path, task, refused = tiny_checkpoint(MODEL), sudoku_task(ROWS), []
    loaded = AutoModelForDiffusionLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)

    def run(judge=task.judge):
        tasks = {"sudoku": replace(task, judge=judge)}
        return evaluate_tasks(*loaded, tasks, CONFIG, batch_size=2, output_dir=tmp_path)

    def judge(made, rows):  # in the middle of a run
        if not refused:
            with pytest.raises(ValueError, match="output_dir=.* is in use: another process, or another call") as error:
                run()
            refused.append(error)
            inside = f"from trl_diffusion.evaluation.run_folder import locked\nwith locked({str(tmp_path)!r}): pass"
            found = subprocess.run([sys.executable, "-c", inside], capture_output=True, text=True, check=False)
            assert found.returncode == 1 and "is in use" in found.stderr
        return task.judge(made, rows)

    run(judge)
    assert refused and (tmp_path / "sudoku.jsonl").read_bytes().count(b"\n") == 4
    run()  # and it is free again
    loaded[0].bfloat16()
    with pytest.raises(ValueError, match="of another call: dtype was 'float32' and is 'bfloat16'"):
        run()


def test_results_say_where_the_data_of_all_tasks_come_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        ROWS.to_json(f"{name}.jsonl")
        given = ["--model", MODEL, "--device", "cpu", "--max_new_tokens", "17", "--num_denoising_steps", "2"]
        assert main(["eval", *given, "--tasks", f"{name}.jsonl", "--output_dir", "out"]) == 0
    results = json.loads(Path("out/results.json").read_text())
    assert list(results["tasks"]) == ["one", "two"]
    assert results["sources"] == {"one": "one.jsonl", "two": "two.jsonl"}


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_rows_do_not_take_the_place_of_the_data(more, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ROWS.to_json("easy.jsonl")
    content = Path("easy.jsonl").read_bytes()
    assert main(["eval", "--model", MODEL, "--tasks", "easy.jsonl", "--output_dir", ".", *more]) == 1
    assert "output_dir='.': easy.jsonl there is the data of 'easy.jsonl'. Name another one." in capsys.readouterr().err
    assert Path("easy.jsonl").read_bytes() == content and os.listdir() == ["easy.jsonl"]
