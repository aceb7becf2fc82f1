# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""`trl-diffusion` itself: its help, what it says of a misspelt word, errors, `env`."""

import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import trl_diffusion
from trl_diffusion.models.auto import supported_model_types
from trl_diffusion.scripts import env, launching
from trl_diffusion.scripts.cli import COMMANDS, TRAINING, main
from trl_diffusion.scripts.command import CommandParser
from trl_diffusion.scripts.training import TRAINING_COMMANDS, make_parser


ROOT = Path(__file__).parents[1]
# Runs command lines that end without work; then says what was imported for them.
LIGHT = """
import sys
from trl_diffusion_cli import main
for line in sys.argv[1:]:
    try:
        main(line.split())
    except SystemExit:
        pass
print(sorted({"torch", "transformers", "trl", "datasets", "numpy"} & set(sys.modules)))
"""


def ended(arguments: list[str], capsys) -> tuple[int, str, str]:
    """Exit status and what was printed, of a command line that ends the process."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def test_what_needs_no_model_imports_none():
    lines = ["--help", "--version", "env --help", "tracrl", "--verison", "env --hlp"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", LIGHT, *lines], env=environment, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0 and run.stdout.splitlines()[-1] == "[]", run.stdout + run.stderr
    assert "did you mean tracerl?" in run.stderr and "did you mean --version?" in run.stderr
    assert "did you mean --help?" in run.stderr


def test_families_are_registered_when_a_command_runs_and_in_every_other_import():
    command = "from trl_diffusion_cli import main; main(['generate', '--model', 'no-model', '--prompt', 'x']); "
    other = "import trl_diffusion; "
    known = "from transformers import AutoConfig; print(AutoConfig.for_model('llada2_moe').model_type)"
    for before in (command, other):
        run = subprocess.run(
            [sys.executable, "-c", before + known],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.stdout.splitlines()[-1:] == ["llada2_moe"], run.stderr


def test_the_overview_names_every_command(capsys):
    status, printed, _ = ended(["--help"], capsys)
    assert status == 0 and max(map(len, printed.splitlines())) <= 100
    assert re.findall(r"^  ([a-z][a-z-]+)  ", printed, re.MULTILINE) == [*TRAINING, *COMMANDS]
    assert set(TRAINING) == set(TRAINING_COMMANDS)
    assert main([]) == 0 and capsys.readouterr().out == printed
    assert ended(["--version"], capsys)[:2] == (0, f"trl-diffusion {trl_diffusion.__version__}\n")


@pytest.mark.parametrize(
    ("word", "meant"),
    [("tracrl", "tracerl"), ("unmask_policy", "unmask-policy"), ("align_length", "align-lengths"), ("Chat", "chat")],
)
def test_a_misspelt_command_names_the_nearest(word, meant, capsys):
    status, _, error = ended([word, "--help"], capsys)
    assert status == 2 and f"{word!r} is no command: did you mean {meant}?" in error


def test_a_word_that_is_near_none_gets_no_suggestion(capsys):
    status, _, error = ended(["frobnicate"], capsys)
    assert status == 2 and "'frobnicate' is no command." in error and "did you mean" not in error


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("generate --modle x", "--model"),
        ("generate --model x --no_live", "--no-live"),
        ("chat --temprature 1", "--temperature"),
        ("eval --batch_sise=1", "--batch_size"),
        ("convert --model x --out_dir y", "--output_dir"),
        ("align-lengths --datset x", "--dataset"),
        ("env --debgu", "--debug"),
        ("sft --canvas_lenght 17", "--canvas_length"),
        ("tracerl --learning_rat 1", "--learning_rate"),
        ("bgpo --num-mc-sample=2", "--num_mc_samples"),
        ("igpo --hint_ratio 0 1", "--hint_ratio_range"),
        ("grpo --num_process 8", "--num_processes"),
        ("unmask-policy --accelerate_conf zero3", "--accelerate_config"),
    ],
)
def test_a_misspelt_option_names_the_nearest(line, meant, capsys):
    status, _, error = ended(line.split(), capsys)
    assert status == 2 and error.splitlines()[0].endswith(f": did you mean {meant}?"), error
    assert len(error.splitlines()) == 2  # no usage of hundreds of options


def test_values_that_look_like_options_are_values(capsys):
    # A text with a space is one for argparse; what stands behind "--" is too.
    assert main(["generate", "--model", "no-model", "--prompt", "--what is this"]) == 1
    assert "no-model" in capsys.readouterr().err


def test_errors_are_a_line_unless_debug_asks_for_more(capsys, monkeypatch):
    def fail():
        raise KeyError("rows")

    monkeypatch.setattr(env, "describe", fail)
    assert main(["env"]) == 1
    assert capsys.readouterr().err == "trl-diffusion env: KeyError: 'rows' (--debug shows where)\n"
    with pytest.raises(KeyError):
        main(["env", "--debug"])
    # Which of many processes it was.
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    assert main(["env"]) == 1 and "trl-diffusion env [process 3]: " in capsys.readouterr().err
    monkeypatch.setattr(env, "describe", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["env"]) == 130


def test_env_says_what_a_bug_report_needs_and_nothing_else(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("accelerate.commands.config.default_config_file", str(tmp_path / "accelerate.yaml"))
    (tmp_path / "accelerate.yaml").write_text(
        f"compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nnum_processes: 1\nmixed_precision: 'no'\n"
        f"use_cpu: true\ndebug: false\nmachine_rank: 0\nmain_process_ip: {tmp_path}/ip\n"
    )
    assert main(["env"]) == 0
    printed = capsys.readouterr().out
    said = dict(re.findall(r"^\s*- ([^:]+): ?(.*)$", printed, re.MULTILINE))
    assert said["TRL-diffusion version"].startswith(trl_diffusion.__version__)
    for title, package in (("PyTorch", "torch"), ("TRL", "trl"), ("Transformers", "transformers"), ("PEFT", "peft")):
        assert said[f"{title} version"].startswith(version(package))
    assert said["Model families"].split(", ") == supported_model_types()
    assert "sdpa" in said["Attention implementations"] and "Extras" in said and "accelerator(s)" in said
    assert str(tmp_path) not in printed and said["main_process_ip"] == "~/ip" and "hf_secret" not in printed


def test_every_command_has_a_help_of_its_own(capsys):
    for name in COMMANDS:
        status, printed, _ = ended([name, "--help"], capsys)
        assert status == 0 and f"trl-diffusion {name}" in printed and "--debug" in printed, name


PAGE = (ROOT / "docs" / "command_line.md").read_text()
COMMAND_LINES = [
    shlex.split(line)[1:]
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


@pytest.mark.parametrize("arguments", COMMAND_LINES, ids=lambda arguments: f"{arguments[0]}-{len(arguments)}")
def test_the_options_of_the_page_are_options(arguments):
    name, rest = arguments[0], arguments[1:]
    if name.startswith("-"):
        return
    if name in TRAINING:
        parser = make_parser(name)
        rest = [str(ROOT / part) if part.startswith("examples/") else part for part in rest]
        given = parser.split(rest)
        assert parser.check(given).model_name_or_path
        return
    parser = CommandParser()
    command = import_module(f"trl_diffusion.scripts.{COMMANDS[name][0]}")
    command.add_arguments(parser)
    parser.parse_args(rest)


def test_the_page_names_every_command_and_file():
    for name in (*TRAINING, *COMMANDS):
        assert f"`{name}`" in PAGE, name
        assert any(line[0] == name for line in COMMAND_LINES) or name in ("eval", "igpo", "unmask-policy"), name
    named = set(re.findall(r"`(\w+_(?:tiny|1gpu_\w+|8gpu_\w+))`", PAGE))
    named |= {stem.replace("_zero3", "_fsdp2") for stem in named if stem.endswith("_zero3")}
    assert named == {path.stem for path in (ROOT / "examples" / "configs").glob("*.yaml")} - {
        "length_aligned_sft_tiny"
    }


@pytest.mark.filterwarnings("ignore")
def test_the_page_trains_as_it_says(tmp_path, monkeypatch, capsys):
    """The commands on tiny checkpoints, but for the number of steps."""
    rows = "".join(f'{{"prompt": "{n}+1=", "completion": "####{n + 1}"}}\n' for n in range(1, 9))
    for name in ("rows.jsonl", "held_out.jsonl"):
        (tmp_path / name).write_text(rows)
    (tmp_path / "my_rewards.py").write_text(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1])
    monkeypatch.setattr(launching, "default_config_file", str(tmp_path / "none.yaml"))
    monkeypatch.chdir(tmp_path)
    short = {"--max_steps": "1", "--num_train_epochs": "1", "--num_test": "4", "--per_device_train_batch_size": "8"}
    ran = 0
    for arguments in COMMAND_LINES:
        if arguments[0] not in TRAINING or "--config" in arguments:
            continue
        for option, value in short.items():
            if option in arguments and arguments[arguments.index(option) + 1] != "0":
                arguments = [*arguments, option, value]
        assert main([*arguments, "--use_cpu", "--report_to", "none", "--save_strategy", "no"]) == 0, arguments
        assert (Path(arguments[arguments.index("--output_dir") + 1]) / "results.json").exists()
        ran += 1
    assert ran == 4
