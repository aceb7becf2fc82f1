# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""`trl-diffusion generate`."""

import io
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import random_model
from terminal import Terminal, visible
from transformers import AutoTokenizer

from trl_diffusion import AutoModelForDiffusionLM, UnmaskPolicyModel, UnmaskPolicyModelConfig
from trl_diffusion.checkpoints import tiny_checkpoint
from trl_diffusion.generation import configuration
from trl_diffusion.generation.noise import row_seeds
from trl_diffusion.scripts import generate
from trl_diffusion.scripts.cli import main
from trl_diffusion.scripts.generation_options import SETTINGS
from trl_diffusion.tasks import character_tokenizer


MODEL = "sudoku-llada-tiny"
PUZZLES = ["0430100000410000", "4021000020000010", "1000030000400002"]
# One of three sampled rows, so that the seeds matter.
SAMPLED = ["--temperature", "1", "--unmasking", "random", "--seed", "7"]


@pytest.fixture(scope="module")
def loaded():
    path = tiny_checkpoint(MODEL)
    return AutoModelForDiffusionLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def run(*arguments, model=MODEL):
    return main(["generate", "--model", model, "--device", "cpu", *arguments])


def expected(loaded, prompts, **settings):
    """Completions of one call of `generate`, in whose batch all prompts are as long."""
    model, tokenizer = loaded
    ids = torch.tensor(tokenizer(prompts)["input_ids"])
    output = model.generate(ids, return_dict_in_generate=True, **settings)
    return tokenizer.batch_decode(output.rollout.completions(), skip_special_tokens=True), output.rollout


# Prompts and completions


def test_a_completion_is_what_generate_writes_and_nothing_else_is_printed(loaded, capsys):
    assert run("--prompt", PUZZLES[0]) == 0
    assert capsys.readouterr().out == expected(loaded, PUZZLES[:1])[0][0] + "\n"


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_completions_are_one_call_of_generate_whatever_the_batch_size(loaded, batch_size, capsys):
    texts, _ = expected(loaded, PUZZLES, temperature=1.0, unmasking="random", seed=7, num_return_sequences=2)
    more = ["--num_return_sequences", "2", "--batch_size", str(batch_size)]
    assert run("--prompt", *PUZZLES, *SAMPLED, *more) == 0
    assert capsys.readouterr().out.split("\n\n") == [*texts[:-1], texts[-1] + "\n"]
    assert len(set(texts)) == 6


@pytest.mark.parametrize("source", ["prompt_file", "stdin"])
def test_prompts_are_lines(source, loaded, tmp_path, monkeypatch, capsys):
    lines = f"{PUZZLES[0]}\n\n{PUZZLES[1]}\n"
    if source == "stdin":
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        assert run() == 0
    else:
        (tmp_path / "prompts.txt").write_text(lines)
        assert run("--prompt_file", str(tmp_path / "prompts.txt")) == 0
    assert capsys.readouterr().out == "\n\n".join(expected(loaded, PUZZLES[:2])[0]) + "\n"


def test_prompts_of_different_lengths_do_not_change_each_other(loaded, capsys):
    assert run("--prompt", PUZZLES[0], "04", *SAMPLED, "--max_new_tokens", "9") == 0
    settings = {"temperature": 1.0, "unmasking": "random", "seed": 7, "max_new_tokens": 9}
    texts = capsys.readouterr().out.rstrip("\n").split("\n\n")
    assert texts[0] == expected(loaded, PUZZLES[:1], **settings)[0][0]
    seed = row_seeds(7, 2)[1]
    assert texts[1] == expected(loaded, ["04"], **{**settings, "seed": [seed]})[0][0]


def test_without_a_seed_every_run_draws_anew(loaded, capsys):
    texts = []
    for _ in range(3):
        # As a new process begins.
        torch.manual_seed(0)
        run("--prompt", PUZZLES[0], "--temperature", "5", "--unmasking", "random", "--num_return_sequences", "4")
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) > 1


def test_settings_reach_the_generation(loaded, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    given = [
        "--unmasking",
        "threshold",
        "--threshold",
        "0.7",
        "--suppress_tokens",
        "4,5",
        "--num_denoising_steps",
        "2",
    ]
    assert run("--prompt", PUZZLES[0], *given, "--output", str(out)) == 0
    settings = {"unmasking": "threshold", "threshold": 0.7, "suppress_tokens": [4, 5], "num_denoising_steps": 2}
    texts, rollout = expected(loaded, PUZZLES[:1], **settings)
    row = json.loads(out.read_text())
    assert row["completion"] == texts[0] and not set(texts[0]) & {"1", "2"}
    assert row["num_forward_passes"] == int(rollout.num_forward_passes[0])


def test_a_policy_is_named_by_its_folder(loaded, tmp_path, capsys):
    torch.manual_seed(0)
    policy, out = UnmaskPolicyModel(UnmaskPolicyModelConfig()), tmp_path / "out.jsonl"
    policy.save_pretrained(tmp_path / "policy")
    given = ["--unmasking", str(tmp_path / "policy"), "--policy_temperature", "0.5", "--policy_beta", "20"]
    more = ["--seed", "7", "--num_denoising_steps", "none"]
    assert run("--prompt", PUZZLES[0], *given, *more, "--output", str(out)) == 0
    settings = {"policy_temperature": 0.5, "policy_beta": 20.0, "num_denoising_steps": None, "seed": 7}
    texts, rollout = expected(loaded, PUZZLES[:1], unmasking=policy, **settings)
    row = json.loads(out.read_text())
    assert (row["completion"], row["num_forward_passes"]) == (texts[0], int(rollout.num_forward_passes[0]))


def test_every_setting_of_a_generation_is_an_option():
    fields = set(configuration._OWN_DEFAULTS) | configuration._SHARED_FIELDS
    # Settings of what comes out, and tokens that are the model's.
    others = {"num_return_sequences", "return_dict_in_generate", "transformers_version", "output_entropies"}
    others |= {"pad_token_id", "bos_token_id", "eos_token_id"}
    assert set(SETTINGS) == fields - others


def test_a_rule_is_imported_from_the_current_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_first_rule.py").write_text("def everything(state):\n    return state.candidates\n")
    monkeypatch.chdir(tmp_path)
    assert run("--prompt", PUZZLES[0], "--unmasking", "my_first_rule.everything", "--output", "out.jsonl") == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["num_forward_passes"] == 1


def test_a_chat_template_is_applied(tmp_path, capsys):
    tokenizer = character_tokenizer("01234>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    random_model("sdar", tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = []
    for arguments in (["--chat_template", "--prompt", "012"], ["--prompt", "012>"], ["--prompt", "012"]):
        assert run(*arguments, "--max_new_tokens", "6", model=str(tmp_path)) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_an_adapter_without_a_tokenizer_uses_that_of_its_base_model(loaded, tmp_path, capsys):
    from peft import LoraConfig, get_peft_model

    base = AutoModelForDiffusionLM.from_pretrained(tiny_checkpoint(MODEL))
    get_peft_model(base, LoraConfig(target_modules="all-linear")).save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer_config.json").exists()
    assert run("--prompt", PUZZLES[0], model=str(tmp_path)) == 0
    # A new adapter changes nothing.
    assert capsys.readouterr().out == expected(loaded, PUZZLES[:1])[0][0] + "\n"


# Infilling


def test_masks_in_the_prompt_are_filled_and_the_rest_stays(loaded, capsys):
    model, tokenizer = loaded
    prompt = PUZZLES[0] + "<|mask|>43<|mask|>1<|mask|><|mask|>2"
    assert run("--infill", "--prompt", prompt) == 0
    ids = torch.tensor(tokenizer([prompt])["input_ids"])
    filled = model.generate(ids, infill_mask=ids == model.mask_token_id)
    text = capsys.readouterr().out.strip("\n")
    assert text == tokenizer.decode(filled[0])
    assert text.startswith(PUZZLES[0]) and text[17:19] == "43" and text[20] == "1" and len(text) == 24


def test_infilling_counts_the_tokens_drawn_and_may_append(tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    prompts = [PUZZLES[0] + "<|mask|>4", "<|mask|><|mask|>2"]
    assert run("--infill", "--prompt", *prompts, "--output", str(out)) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["num_tokens"] for row in rows] == [1, 2]
    assert rows[0]["completion"].startswith(PUZZLES[0]) and rows[1]["completion"].endswith("2")
    # The model's own number of steps is too many for this canvas.
    more = ["--max_new_tokens", "3", "--num_denoising_steps", "none", "--suppress_tokens", "0,1"]
    assert run("--infill", "--prompt", *prompts, *more, "--output", str(out)) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["num_tokens"] for row in rows] == [4, 5]
    assert [len(row["completion"]) for row in rows] == [21, 6]


# The file


def test_the_file_has_one_object_per_completion(loaded, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert run("--prompt", *PUZZLES, *SAMPLED, "--num_return_sequences", "2", "--output", str(out)) == 0
    texts, rollout = expected(loaded, PUZZLES, temperature=1.0, unmasking="random", seed=7, num_return_sequences=2)
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {"prompt": PUZZLES[row // 2], "completion": text, "num_tokens": len(ids), "num_forward_passes": int(passes)}
        for row, (text, ids, passes) in enumerate(
            zip(texts, rollout.completions(), rollout.num_forward_passes, strict=True)
        )
    ]
    assert capsys.readouterr().out == f"{out}: 6 completions.\n"


def test_tokens_behind_an_eos_are_not_counted_and_the_last_position_is_used(loaded, tmp_path):
    out = tmp_path / "out.jsonl"
    more = ["--max_new_tokens", "112", "--temperature", "5", "--seed", "1"]
    assert run("--prompt", PUZZLES[0], *more, "--output", str(out)) == 0  # 16 + 112 = 128 positions
    row = json.loads(out.read_text())
    _, rollout = expected(loaded, PUZZLES[:1], max_new_tokens=112, temperature=5.0, seed=1)
    assert row["num_tokens"] == len(rollout.completions()[0]) < (rollout.unmask_step > 0).sum()
    assert run("--prompt", PUZZLES[0], "--max_new_tokens", "113") == 1


def test_a_file_that_cannot_be_written_is_refused_before_any_work(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "no" / "out.jsonl"):
        assert run("--prompt", PUZZLES[0], "--output", str(path), model="no/such/model") == 1
        assert f"output='{path}' cannot be written" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_failure_leaves_the_old_file_alone(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.jsonl"
    out.write_text("before\n")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(generate.os, "replace", fail)
    assert run("--prompt", PUZZLES[0], "--output", str(out)) == 1
    assert "disk full" in capsys.readouterr().err
    assert out.read_text() == "before\n" and os.listdir(tmp_path) == ["out.jsonl"]


# Errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--temperature", "-1"], "temperature=-1.0 must be 0, or lie in"),
        (["--temperature", "warm"], "temperature='warm' must be a number, or none"),
        (["--threshold", "0.9"], "threshold=0.9 must be None unless unmasking='threshold'"),
        (["--unmasking", "threshold"], "threshold=None must lie in (0, 1]"),
        (["--unmasking", "best"], "unmasking='best' must be one of low_confidence"),
        (["--unmasking", "no_such_module.rule"], "unmasking='no_such_module.rule' cannot be imported"),
        (["--unmasking", "os.sep"], "unmasking='os.sep' is a str"),
        (["--cache", "block"], "cache='block' needs block-causal attention"),
        (["--torch_compile", "yes"], "torch_compile='yes' must be true or false"),
        (["--suppress_tokens", "1,x"], "suppress_tokens='1,x' must be token ids joined by commas"),
        (["--suppress_tokens", "400"], "suppress_tokens has the id 400"),
        (["--num_return_sequences", "3"], "num_return_sequences=3 would give the same row"),
        (["--max_new_tokens", "120"], "max_new_tokens=120 exceed the model's 128 positions"),
        (["--batch_size", "0"], "batch_size=0 must be at least 1"),
        (["--live"], "live=True draws on a terminal"),
        (["--chat_template"], "chat_template=True, and this model's tokenizer has no chat template"),
        (["--infill"], "has no mask token: write <|mask|>"),
        (["--output", "no/such/folder/out.jsonl"], "output='no/such/folder/out.jsonl'"),
        (["--dtype", "floaty"], "dtype='floaty' must be auto"),
        (["--device", "gpu"], "device='gpu' cannot be used"),
        (["--model", "no/such-model"], "model='no/such-model' is no folder and no tiny checkpoint"),
    ],
)
def test_a_wrong_option_is_one_line_with_its_name(arguments, message, capsys):
    assert run("--prompt", PUZZLES[0], *arguments) == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.err.rstrip("\n").split("\n") if "Loading weights" not in line]
    assert captured.out == "" and len(lines) == 1
    assert lines[0].startswith("trl-diffusion generate: ") and message in lines[0]


def test_no_prompt_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert run() == 1
    assert "The standard input has no prompt" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert run() == 1
    assert "prompt is not given" in capsys.readouterr().err


def test_ctrl_c_ends_the_command_without_a_traceback(monkeypatch, tmp_path, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "load_model", interrupt)
    assert run("--prompt", PUZZLES[0]) == 130
    assert capsys.readouterr().err == ""


def test_generating_does_not_wait_for_trl():
    code = "import sys; from trl_diffusion.scripts.cli import main; "
    code += f"status = main(['generate', '--model', '{MODEL}', '--prompt', '{PUZZLES[0]}']); "
    code += "sys.exit(status or 'trl' in sys.modules or 'peft' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr[-2000:]


# On a terminal


def test_a_terminal_shows_the_canvas_and_a_heading_per_prompt(loaded, tmp_path):
    arguments = ["generate", "--model", MODEL, "--device", "cpu", "--prompt", *PUZZLES[:2]]
    with Terminal(*arguments, cwd=tmp_path) as terminal:
        status, printed = terminal.finish()
    assert status == 0, printed
    assert "\x1b[1A\x1b[2K" in printed  # a picture drawn over the last one
    text = visible(printed)
    assert "·" * 15 in text and "step 4" in text
    for puzzle, completion in zip(PUZZLES, expected(loaded, PUZZLES[:2])[0], strict=False):
        place = text.index(f"{puzzle} ─")
        assert f"\n{completion}\n" in text[place:]


def test_pictures_higher_than_the_terminal_leave_nothing_behind(tmp_path):
    arguments = ["generate", "--model", MODEL, "--device", "cpu", "--batch_size", "10", "--prompt", *PUZZLES[:1] * 10]
    with Terminal(*arguments, cwd=tmp_path) as terminal:
        status, printed = terminal.finish()
    # 24 lines hold seven pictures and the head of the eighth.
    assert status == 0 and printed.count("step 8") == 8


def test_no_live_prints_the_completions_alone(loaded, tmp_path):
    arguments = ["generate", "--model", MODEL, "--device", "cpu", "--no-live", "--prompt", PUZZLES[0]]
    with Terminal(*arguments, cwd=tmp_path) as terminal:
        status, printed = terminal.finish()
    assert status == 0 and "·" not in printed
    assert visible(printed).endswith(expected(loaded, PUZZLES[:1])[0][0] + "\n")
