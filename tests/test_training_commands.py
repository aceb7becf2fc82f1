# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The training commands: options and YAML files, help, launching, and whole runs of a step or two."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from trl import ModelConfig, TrlParser

from trl_diffusion import DiffusionGenerationConfig
from trl_diffusion.scripts import launching, sft, training
from trl_diffusion.scripts.cli import main
from trl_diffusion.scripts.rl import RLScriptArguments, check_not_sharded
from trl_diffusion.scripts.sft import with_completions
from trl_diffusion.scripts.training import TRAINING_COMMANDS, make_parser
from trl_diffusion.tasks import TINY_COUNTDOWN, countdown_dataset, sudoku_dataset
from trl_diffusion.tasks.math import map_gsm8k
from trl_diffusion.trainer import BGPOConfig, TraceRLConfig


ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "examples" / "configs"
SHORT = ["--use_cpu", "--bf16", "false", "--disable_tqdm", "true", "--max_steps", "1", "--logging_steps", "1"]
SHORT += ["--save_strategy", "no", "--report_to", "none"]


@pytest.fixture(autouse=True)
def one_process(monkeypatch, tmp_path):
    """No `accelerate config` of the machine's, and no launcher around the tests, decides what happens."""
    monkeypatch.setattr(launching, "default_config_file", str(tmp_path / "no default_config.yaml"))
    for name in ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def build(name: str, *arguments: str):
    parser = make_parser(name)
    return parser.build(parser.split(arguments))


def refused(arguments: list[str], capsys) -> str:
    """What is said of a command line that is wrong."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


# YAML files


def test_a_file_means_what_trls_own_parser_makes_of_it():
    file = str(CONFIGS / "bgpo_countdown_tiny.yaml")
    command = ["--config", file, "--use_cpu", "true", "--num_mc_samples", "4"]
    ours = build("bgpo", *command)
    theirs = TrlParser((RLScriptArguments, BGPOConfig, ModelConfig)).parse_args_and_config(command)
    assert ours[0] == theirs[0] and ours[2] == theirs[2]
    assert {**ours[1].to_dict(), "logging_dir": 0} == {**theirs[1].to_dict(), "logging_dir": 0}
    assert ours[1].num_mc_samples == 4 and ours[1].max_completion_length == 10


def test_the_command_line_wins_over_the_file(tmp_path):
    file = write(tmp_path / "a.yaml", "learning_rate: 1e-5\nmax_steps: 7\nshrinkage: 2\nbf16: false\n")
    _, config, _ = build("tracerl", "--max_steps", "9", f"--config={file}", "--use_cpu")
    assert (config.learning_rate, config.max_steps, config.shrinkage) == (1e-5, 9, 2)


def test_values_of_a_file_become_what_the_options_are(tmp_path, monkeypatch):
    monkeypatch.setenv("COLOUR", "red")
    file = write(
        tmp_path / "a.yaml",
        "env: {COLOUR: blue}\ndataset_name: arithmetic\nreward-funcs: my.reward\ndifficulty_range: ['0.2', 1]\n"
        "lora_target_modules: all-linear\nblock_length: 'none'\nbeta: 0\nuse_cpu: 'yes'\nbf16: false\n"
        "model_init_kwargs: {device_map: cpu}\nblock_length_schedule: {0: 2}\ntop_p: null\n",
    )
    script, config, model = build("tracerl", "--config", file)
    assert (script.dataset, script.reward_funcs) == ("arithmetic", ["my.reward"])
    assert config.difficulty_range == [0.2, 1.0] and config.block_length is None and config.top_p is None
    assert config.use_cpu is True and config.model_init_kwargs == {"device_map": "cpu"}
    assert config.block_length_schedule == {0: 2} and model.lora_target_modules == "all-linear"
    assert os.environ["COLOUR"] == "blue"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "has the key 'learning_rat', which is no option: did you mean learning_rate?"),
        ("num_proceses: 8", "'num_proceses', which is no option: did you mean num_processes?"),
        ("xyzzy: 1", "has the key 'xyzzy', which is no option."),
        ("max_steps: many", "max_steps='many' in "),
        ("max_steps: 1.5", "must be a whole number"),
        ("max_steps: true", "must be a whole number"),
        ("learning_rate: [1]", "must be a number"),
        ("use_cpu: 3", "must be true or false"),
        ("dtype: float8", "dtype='float8' in "),
        ("difficulty_range: [low, high]", "difficulty_range='low' in "),
        ("- 1", "must hold `option: value` lines"),
        ("a: [", "cannot be read"),
        ("env: 3", "must hold `NAME: value` lines"),
        ("max_steps: .inf", "must be a whole number"),
        ("max_steps: .nan", "must be a whole number"),
        ("max_steps:", "max_steps in "),
        ("seed: null", "has no value. Leave the line out for the default."),
        ("max_steps: 1\nmax_steps: 2", "the key 'max_steps' stands there twice"),
        ("output_dir: 2024", "output_dir=2024 in "),
        ("output_dir: [a]", "must be a text; put it in quotes"),
        ("dataset: {a: b}", "must be a text; put it in quotes"),
        ("model_revision: 1e5\ncache: off", "cache=False in "),
        ("reward_funcs: [5]", "reward_funcs=5 in "),
        ("lora_target_modules: {a: b}", "must be a text; put it in quotes"),
        ("model_init_kwargs: 5", "must hold `name: value` lines"),
        ("multi_gpu: maybe", "multi_gpu='maybe' in "),
        ("config: b.yaml", "has the key 'config', which is no option"),
        ("model: m", "did you mean model_name_or_path?"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_key_and_file(text, message, tmp_path, capsys):
    file = write(tmp_path / "a.yaml", text)
    error = refused(["tracerl", "--config", file], capsys)
    assert message in error and file in error and "Traceback" not in error


def test_words_that_yaml_reads_as_something_else(tmp_path):
    file = write(
        tmp_path / "a.yaml",
        "save_strategy: no\nlr_scheduler_kwargs: {min_lr: 1e-6, name: a}\nreport_to: [none]\ndebug: true\n"
        "scale_rewards: false\nresume_from_checkpoint: true\nuse_cpu: true\nbf16: false\nnum_processes: null\n",
    )
    _, config, _ = build("tracerl", "--config", file)
    assert config.save_strategy == "no" and config.lr_scheduler_kwargs == {"min_lr": 1e-6, "name": "a"}
    assert config.scale_rewards == "none" and config.resume_from_checkpoint is True
    given = make_parser("tracerl").split(["--config", file])
    assert given.debug and not given.launch_in_file


@pytest.mark.parametrize(
    ("word", "value"), [("true", True), ("false", None), ("out/checkpoint-5", "out/checkpoint-5")]
)
def test_resuming_from_the_last_checkpoint_or_one_by_name(word, value):
    _, config, _ = build("sft", "--resume_from_checkpoint", word, "--use_cpu", "--bf16", "false")
    assert config.resume_from_checkpoint == value


def test_a_wrong_command_line_is_an_error(tmp_path, capsys):
    assert "argument --config: one file can be given" in refused(["sft", "--config", "a", "--config", "b"], capsys)
    assert "did you mean --model_name_or_path?" in refused(["sft", "--model", "m"], capsys)
    missing = str(tmp_path / "missing.yaml")
    assert f"config={missing!r} cannot be read" in refused(["sft", "--config", missing], capsys)
    assert "argument --config: expected one argument" in refused(["sft", "--config"], capsys)
    assert "unrecognized argument 'stray'" in refused(["sft", "stray"], capsys)
    assert "invalid int value: 'x'" in refused(["sft", "--max_steps", "x"], capsys)
    assert "invalid choice: 'float8'" in refused(["sft", "--dtype", "float8"], capsys)
    # Not the model, nor the bf16 of a GPU that is not there, but what is missing.
    assert main(["tracerl"]) == 1
    assert capsys.readouterr().err == (
        "trl-diffusion tracerl: model_name_or_path is not set. Name a checkpoint, e.g. sudoku-llada-tiny.\n"
    )


def test_debug_without_a_value_is_the_commands_and_with_one_the_trainers(tmp_path):
    parser = make_parser("sft")
    given = parser.split(["--debug", "--debug", "underflow_overflow", "--max_steps", "1", "--debug"])
    assert given.debug and given.own == ["--debug", "underflow_overflow", "--max_steps", "1"]
    with pytest.raises(ValueError, match="model_name_or_path is not set"):
        main(["sft", "--debug"])


# Help


@pytest.mark.parametrize("name", TRAINING_COMMANDS)
def test_help_shows_the_fields_of_the_method_first(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    pages = {}
    for option in ("--help", "--help_all"):
        with pytest.raises(SystemExit) as stop:
            main([name, option])
        assert stop.value.code == 0
        pages[option] = capsys.readouterr().out
    short, everything = pages["--help"], pages["--help_all"]
    assert max(map(len, short.splitlines())) <= 80 and len(short.splitlines()) < 300
    assert not re.findall(r"\(default: (None|False|\[\]|\{\}|)\)", " ".join(everything.split()))
    shown = [line.split()[0] for line in short.splitlines() if line.startswith("  --")]
    assert len(shown) == len(set(shown))
    config_class, script_class = TRAINING_COMMANDS[name].config_class, TRAINING_COMMANDS[name].script_class
    for field in config_class.__annotations__:
        fixed = config_class.__dataclass_fields__[field].metadata["help"].startswith(("Always", "Not supported"))
        assert (f"--{field}" in shown) != fixed, field
    for field in script_class.__dataclass_fields__:
        assert shown.index(f"--{field}") < shown.index("--model_name_or_path") < shown.index("--learning_rate")
    # What few set stands in the long page alone, which holds all.
    assert "--torch_empty_cache_steps" not in shown and "--help_all` shows" in short.replace("\n", " ")
    listed = {line.split()[0] for line in everything.splitlines() if line.startswith("  --")}
    for cls in (config_class, script_class, ModelConfig):
        assert {f"--{field.name}" for field in cls.__dataclass_fields__.values() if field.init} <= listed


# Launching


@pytest.fixture
def launched(monkeypatch):
    """What `accelerate launch` is asked for."""
    calls = []
    monkeypatch.setattr(launching, "launch_command", calls.append)
    return calls


def test_launch_options_go_to_accelerate_and_the_others_to_the_training(launched, tmp_path):
    file = write(
        tmp_path / "a.yaml",
        "accelerate_config: zero3\nnum_processes: 4\nmain_process_port: 1234\nmulti_gpu: true\nshrinkage: 2\n",
    )
    command = ["tracerl", "--num_processes", "8", "--config", file, "--model_name_or_path", "m", "--debug"]
    command += ["--reward_funcs", "a.b", "c.d", "--mixed-precision=bf16"]
    assert main(command) == 0
    (args,) = launched
    assert args.num_processes == 8 and args.main_process_port == 1234 and args.mixed_precision == "bf16"
    assert args.multi_gpu and args.config_file.endswith("trl/accelerate_configs/zero3.yaml")
    assert args.module and args.training_script == "trl_diffusion.scripts.training"
    expected = ["tracerl", "--config", file, "--debug", "--model_name_or_path", "m", "--reward_funcs", "a.b", "c.d"]
    assert args.training_script_args == expected
    # The process that accelerate starts reads the same settings, and leaves the launching alone.
    parser = make_parser("tracerl")
    script, config, model = parser.build(parser.split([*expected[1:], "--use_cpu"]))
    assert (config.shrinkage, script.reward_funcs, model.model_name_or_path) == (2, ["a.b", "c.d"], "m")


def test_a_file_of_accelerate_config_wins_over_the_name_in_the_yaml(launched, tmp_path):
    own = write(tmp_path / "mine.yaml", "num_processes: 2\n")
    file = write(tmp_path / "a.yaml", "accelerate_config: fsdp2\nmodel_name_or_path: m\n")
    assert main(["sft", "--config", file, "--accelerate_config", own]) == 0
    assert launched[0].config_file == own


def test_defaults_of_accelerate_are_given_so_that_it_does_not_warn(launched, monkeypatch, tmp_path):
    assert main(["sft", "--num_processes", "2", "--model_name_or_path", "m"]) == 0
    args = launched.pop()
    assert (args.num_machines, args.mixed_precision, args.dynamo_backend) == (1, "no", "no")
    # With a file of `accelerate config` the command launches by itself, and the file decides.
    monkeypatch.setattr(launching, "default_config_file", write(tmp_path / "default.yaml", "num_processes: 2\n"))
    assert main(["sft", "--model_name_or_path", "m"]) == 0
    assert launched.pop().mixed_precision is None


def test_several_gpus_are_used_as_accelerate_would(launched, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert main(["bgpo", "--model_name_or_path", "m"]) == 0 and len(launched) == 1


def test_the_status_of_a_training_that_failed_is_passed_on(monkeypatch):
    def fail(args):
        raise subprocess.CalledProcessError(returncode=3, cmd="python")

    monkeypatch.setattr(launching, "launch_command", fail)
    assert main(["sft", "--num_processes", "1", "--model_name_or_path", "m"]) == 3


def test_an_unknown_accelerate_config_names_those_there_are(launched, capsys):
    assert main(["sft", "--accelerate_config", "zero4", "--model_name_or_path", "m"]) == 1
    error = capsys.readouterr().err
    assert "accelerate_config='zero4' is no file" in error and "fsdp1, fsdp2, multi_gpu, single_gpu, zero1" in error
    assert "did you mean zero" in error and not launched


def test_a_process_that_is_launched_already_launches_nothing(launched, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # as `accelerate launch` sets it
    ran, said = [], []
    monkeypatch.setattr(training, "run_reporting", lambda prog, run, debug: ran.append(prog) or 0)
    monkeypatch.setattr(training.logger, "warning", said.append)
    file = write(tmp_path / "a.yaml", "accelerate_config: zero3\nnum_processes: 8\nmodel_name_or_path: m\n")
    assert main(["sft", "--config", file]) == 0 and ran and not launched
    assert "--accelerate_config=zero3 --num_processes=8" in said[0] and "has no effect" in said[0]
    assert "--num_processes=2 has no effect" in refused(["sft", "--num_processes", "2"], capsys)


def test_two_processes_train_through_accelerate(tmp_path):
    """As many rows as two processes take in one step: alone, the command would need two."""
    command = [sys.executable, "-m", "trl_diffusion.scripts.cli", "sft", "--num_processes", "2", "--multi_gpu"]
    command += ["--config", str(CONFIGS / "sft_sudoku_tiny.yaml"), "--output_dir", str(tmp_path / "out"), *SHORT]
    command += [
        "--num_rows",
        "8",
        "--per_device_train_batch_size",
        "4",
        "--max_steps",
        "-1",
        "--num_train_epochs",
        "1",
    ]
    command += ["--num_test", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [point["step"] for point in results["loss_curve"]] == [1]
    assert run.stdout.count("Model, card and results.json are in") == 1


# Reinforcement learning


@pytest.mark.filterwarnings("ignore")
def test_rewards_are_named_by_a_dotted_path_in_a_file_too(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_rewards_of_this_test.py").write_text(
        "def short(completions, **kwargs):\n    return [1 / (1 + len(text)) for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "a.yaml", "reward_funcs: my_rewards_of_this_test.short\nnum_test: 0\noutput_dir: out\n")
    settings = ["--model_name_or_path", "sudoku-llada-tiny", "--max_completion_length", "17", *SHORT]
    settings += [
        "--num_denoising_steps",
        "4",
        "--per_device_train_batch_size",
        "8",
        "--activation_checkpointing",
        "false",
    ]
    assert main(["grpo", "--config", file, *settings]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert 0 < results["reward_curve"][0]["reward"] < 1 and "solve_rate_after" not in results
    assert "my_rewards_of_this_test.short" in results["config"]["script"]["reward_funcs"]
    assert "short" in (tmp_path / "out" / "README.md").read_text()


def test_weights_that_are_shared_out_cannot_be_evaluated_here(monkeypatch, tmp_path):
    """With FSDP no process has the whole model."""

    class Sharded:
        is_fsdp_enabled = True

    with pytest.raises(ValueError, match="num_test=None: with FSDP and ZeRO-3"):
        check_not_sharded(Sharded(), None)
    check_not_sharded(Sharded(), 0)
    Sharded.is_fsdp_enabled = False
    check_not_sharded(Sharded(), 8)


def test_the_value_model_is_an_option(tmp_path):
    _, config, _ = build("tracerl", "--value_model", "head", "--use_cpu", "--bf16", "false")
    assert isinstance(config, TraceRLConfig) and config.value_model == "head"


# Supervised fine-tuning


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_sft_trains_on_a_file(suffix, tmp_path):
    rows = with_completions(countdown_dataset("train", 8, **TINY_COUNTDOWN))
    file = tmp_path / f"rows.{suffix}"
    {"jsonl": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[suffix](file)
    out = tmp_path / "out"
    command = ["sft", "--model_name_or_path", "countdown-llada-tiny", "--dataset", str(file), "--output_dir", str(out)]
    command += ["--eval_dataset", str(file), "--eval_strategy", "steps", "--eval_steps", "1", *SHORT]
    assert main([*command, "--canvas_length", "10", "--activation_checkpointing", "false"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert len(results["loss_curve"]) == len(results["eval_loss"]) == 1
    assert {"model.safetensors", "README.md", "results.json"} <= {path.name for path in out.iterdir()}
    assert "datasets:" not in (out / "README.md").read_text().split("---")[1]  # a file is none of the Hub's
    # The loss is that of these rows, which are learned by heart.
    before = results["eval_loss"][0]["loss"]
    steps = ["--max_steps", "30", "--learning_rate", "1e-3", "--eval_steps", "30", "--logging_steps", "30"]
    assert main([*command, "--canvas_length", "10", "--activation_checkpointing", "false", *steps]) == 0
    assert json.loads((out / "results.json").read_text())["eval_loss"][-1]["loss"] < before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lora", [False, True])
def test_the_demo_of_sft_trains_and_solves(lora, tmp_path, capsys):
    command = ["sft", "--config", str(CONFIGS / "sft_sudoku_tiny.yaml"), "--output_dir", str(tmp_path), *SHORT]
    command += ["--num_rows", "16", "--num_test", "8", "--per_device_train_batch_size", "8", "--max_steps", "2"]
    assert main([*command, *(["--use_peft"] if lora else [])]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [point["step"] for point in results["loss_curve"]] == [1, 2] and results["eval_loss"] == []
    assert 0 <= results["solve_rate_before"] <= 1 and 0 <= results["cell_accuracy_after"] <= 1
    assert results["config"]["script"]["num_rows"] == 16
    weights = "adapter_model.safetensors" if lora else "model.safetensors"
    assert (tmp_path / weights).exists() and "| solve_rate |" in (tmp_path / "README.md").read_text()
    assert "Held-out problems, decoded greedily" in capsys.readouterr().out


def test_right_solutions_become_completions():
    sudoku = with_completions(sudoku_dataset("train", 2))
    assert sudoku.column_names == ["prompt", "completion"] and set(sudoku[0]["completion"]) == set("1234")
    chat = map_gsm8k(Dataset.from_dict({"question": ["1+1?"], "answer": ["1+1=<<1+1=2>>2\n#### 2"]}))
    assert with_completions(chat)[0]["completion"] == [
        {"role": "assistant", "content": "1+1=2\nThe answer is: \\boxed{2}"}
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "dataset is not set. Name a file"),
        (["--dataset", "no-such-file.jsonl"], "dataset='no-such-file.jsonl'"),
        (["--dataset", "sudoku", "--eval_dataset", "x.jsonl"], "eval_dataset='x.jsonl' has no effect"),
        (["--dataset", "sudoku", "--num_test", "-1"], "num_test=-1 must not be negative"),
        (["--dataset", "sudoku", "--num_rows", "0"], "num_rows=0 must lie between 1 and the dataset's 4000"),
        (["--dataset", "FILE", "--num_test", "4"], "which brings no verdict on answers"),
        (["--dataset", "FILE", "--eval_strategy", "epoch"], "a file, which has one split"),
        (["--dataset", "DIGITS"], "Column 'prompt' of"),
        (["--dataset", "sudoku", "--num_masks", "0"], "num_masks=0 must be at least 1"),
    ],
)
def test_what_sft_cannot_do_is_said_before_the_training(arguments, message, tmp_path, capsys):
    files = {"FILE": "a.jsonl", "DIGITS": "a.csv"}
    write(tmp_path / "a.jsonl", '{"prompt": "1", "completion": "2"}\n')
    write(tmp_path / "a.csv", "prompt,completion\n12,34\n")
    arguments = [str(tmp_path / files[part]) if part in files else part for part in arguments]
    command = ["sft", "--model_name_or_path", "sudoku-llada-tiny", "--output_dir", str(tmp_path / "out"), *SHORT]
    assert main([*command, *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_what_sft_measures_is_decoded_as_the_saved_model_decodes(tmp_path, monkeypatch):
    used = []

    def complete(model, tokenizer, prompts, config, *args, **kwargs):
        used.append(config)
        return real(model, tokenizer, prompts, config, *args, **kwargs)

    real = sft.complete
    monkeypatch.setattr(sft, "complete", complete)
    options = "--model_name_or_path sudoku-llada-tiny --dataset sudoku --num_rows 8 --num_test 4 --max_steps 1"
    options += " --canvas_length 24 --masking block --block_length 8 --bf16 false --use_cpu true --report_to none"
    assert main(["sft", *options.split(), "--output_dir", str(tmp_path)]) == 0
    saved = DiffusionGenerationConfig.from_pretrained(tmp_path)
    # So many steps as the base takes were meant for its own canvas.
    assert (saved.max_new_tokens, saved.block_length, saved.num_denoising_steps) == (24, 8, None)
    for config in used:
        for name in ("max_new_tokens", "block_length", "num_denoising_steps", "unmasking", "eos_token_id"):
            assert getattr(config, name) == getattr(saved, name), name
    assert len(used) == 2
