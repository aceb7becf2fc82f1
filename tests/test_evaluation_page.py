# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What is written about evaluations is true, and runs."""

import re
import shlex
from pathlib import Path

from trl_diffusion import DiffusionGenerationConfig, UnmaskPolicyModel, UnmaskPolicyModelConfig
from trl_diffusion.evaluation import read_frontier
from trl_diffusion.generation.unmasking import RULES
from trl_diffusion.scripts.cli import main
from trl_diffusion.scripts.curves import SWEEPS
from trl_diffusion.scripts.eval_presets import PRESETS
from trl_diffusion.scripts.tasks import GSM8K, MATH500, TASK_NAMES


ROOT = Path(__file__).parents[1]


def test_the_page_says_what_is_swept():
    page = (ROOT / "docs" / "evaluation.md").read_text()
    assert all(f"`{rule}`" in page for rule in RULES)
    for field, values in SWEEPS.values():
        written = re.search(rf"`{field}`: ([\d., /]+) \|", page)[1].split(", ")
        assert tuple(eval(value) for value in written) == values  # the project's own text


def test_the_blocks_of_the_page_run_in_their_order(tmp_path, monkeypatch, capsys):
    """The Python as it stands, the commands on fewer problems and along one curve."""
    page = (ROOT / "docs" / "evaluation.md").read_text()
    monkeypatch.chdir(tmp_path)
    UnmaskPolicyModel(UnmaskPolicyModelConfig()).save_pretrained("sudoku-policy")
    languages = []
    for language, block in re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL):
        if block.startswith("# needs a GPU and the Hub"):
            continue
        languages.append(language)
        if language == "python":
            exec(block, {"__name__": "page"})  # the project's own text
            continue
        for line in block.replace("\\\n", " ").splitlines():
            command = shlex.split(line)
            assert command.pop(0) == "trl-diffusion"
            if "--compare" not in command:
                command += ["--num_test", "4", "--device", "cpu"]
            if "--frontier" in command:
                command += ["--curves", "sequential"]
            assert main(command) == 0, line
    assert languages.count("python") == 3 and languages.count("bash") == 5
    out = capsys.readouterr().out
    assert "'steps': " in out and "easy-puzzles" in out and "after (B) against before (A)" in out and ", p = " in out
    assert len(read_frontier("frontier-mine/frontier.csv")) == 9 and Path("frontier-mine/frontier.png").exists()


def test_the_page_says_what_there_is():
    page = (ROOT / "docs" / "evaluation.md").read_text()
    for name in (*TASK_NAMES, *PRESETS, GSM8K, MATH500):
        assert name in page, name
    for option in ("tasks", "num_test", "seeds", "split", "preset", "compare", "output_dir", "reward_funcs"):
        assert f"`--{option}" in page, option
    for size in PRESETS["d1-256"].num_test.values():
        assert str(size) in page


def test_presets_are_the_protocol():
    assert list(PRESETS) == ["d1-128", "d1-256", "d1-512"]
    sizes = {"gsm8k": 1319, "math500": 500, "countdown": 256, "countdown3": 256, "sudoku": 256}
    for length, preset in zip((128, 256, 512), PRESETS.values(), strict=True):
        protocol = {
            "max_new_tokens": length,
            "num_denoising_steps": length // 2,
            "block_length": 32,
            "temperature": 0.0,
            "unmasking": "low_confidence",
            "cache": "none",
        }
        assert protocol.items() <= preset.generation.items()
        assert (preset.dtype, preset.seed, preset.num_test) == ("bfloat16", 42, sizes)
        assert not DiffusionGenerationConfig(**preset.generation).guides


def test_the_commands_of_the_readme_run(tmp_path, monkeypatch, capsys):
    """On fewer problems of one task, and along one curve."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    commands = [line.split()[1:] for line in text.splitlines() if line.startswith("trl-diffusion eval ")]
    assert commands
    monkeypatch.chdir(tmp_path)
    UnmaskPolicyModel(UnmaskPolicyModelConfig()).save_pretrained("sudoku-policy")
    for command in commands:
        if "--compare" in command:
            assert main(command) == 0, command
            continue
        short = ["--num_test", "2", "--tasks", "sudoku", "--model", "sudoku-llada-tiny"]
        if "--frontier" in command:
            short += ["--curves", "sequential"]
        assert main([*command, *short]) == 0, command
