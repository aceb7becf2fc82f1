# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""`trl-diffusion chat`, in a terminal of its own and in process."""

import time

import pytest
import torch
from conftest import random_model
from terminal import Terminal, visible
from transformers import AutoTokenizer

from trl_diffusion import AutoModelForDiffusionLM
from trl_diffusion.checkpoints import tiny_checkpoint
from trl_diffusion.scripts import chat
from trl_diffusion.scripts.chat import Conversation
from trl_diffusion.scripts.cli import main
from trl_diffusion.tasks import character_tokenizer


MODEL = "sudoku-llada-tiny"
PUZZLES = ["0430100000410000", "4021000020000010"]
START = ["chat", "--model", MODEL, "--device", "cpu"]


@pytest.fixture(scope="module")
def complete():
    """The answer of `model.generate` to a text."""
    path = tiny_checkpoint(MODEL)
    model, tokenizer = AutoModelForDiffusionLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)

    def answer(text, **settings):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        output = model.generate(ids, return_dict_in_generate=True, **settings)
        return tokenizer.decode(output.rollout.completions()[0], skip_special_tokens=True)

    return answer


def exchange(terminal, line):
    """What a line brings about, up to the next prompt, without control codes and without the line itself."""
    terminal.send(line + "\r")
    return visible(terminal.read_until(">>> ")).removesuffix(">>> ").split("\n", 1)[1].rstrip("\n")


# In a terminal


def test_a_chat_in_a_terminal(complete, tmp_path):
    sampled = {"temperature": 1.0, "unmasking": "random", "seed": 3}
    arguments = [part for name, value in sampled.items() for part in (f"--{name}", str(value))]
    with Terminal(*START, *arguments, cwd=tmp_path) as terminal:
        introduction = visible(terminal.read_until(">>> "))
        assert "LLaDAModelLM, full attention, cpu, a canvas of 17 tokens" in introduction
        assert "Mode: plain text" in introduction

        # The canvas fills up: pictures drawn over each other, with fewer masks each time.
        terminal.send(PUZZLES[0] + "\r")
        printed = terminal.read_until(">>> ")
        assert printed.count("\x1b[1A\x1b[2K") > 8
        pictures = [line.count("·") for line in visible(printed).split("\n") if "│" in line]
        assert pictures[0] == 17 and pictures[-1] == 0 and pictures == sorted(pictures, reverse=True)
        assert len(set(pictures)) == 9  # eight steps
        first = complete(PUZZLES[0], **sampled)
        lines = visible(printed).split("\n")
        assert lines[-3] == first
        assert lines[-2].startswith("17 tokens, 8 forward passes, 2.1 tokens per pass, ")

        # Settings: wrong ones change nothing, and those that need each other are set together.
        for wrong, message in (
            ("/set temperature=-1", "temperature=-1.0 must be 0, or lie in"),
            ("/set seed=1 threshold=0.9", "threshold=0.9 must be None unless"),
            ("/set seed=1 speed=3", "speed='3' is not a setting"),
            ("/set cache=block", "cache='block' needs block-causal attention"),
            ("/set temperature", "'temperature' must be name=value"),
            ("/set", "/set needs name=value"),
            ("/reset", "/reset is no command"),
            ("/system be brief", "/system needs a chat template"),
            ("hello", "Missing [UNK] token"),
        ):
            assert message in exchange(terminal, wrong).replace("\n", " ")
        settings = exchange(terminal, "/settings").split("\n")
        assert {"temperature=1.0", "unmasking=random", "seed=3", "threshold=none", "cache=none"} <= set(settings)

        # The second turn continues the first, also after one that did not fit.
        assert exchange(terminal, "/set max_new_tokens=120") == "max_new_tokens=120"
        refused = exchange(terminal, PUZZLES[1])
        assert "exceed the model's 128 positions. /clear forgets it" in " ".join(refused.split())
        exchange(terminal, "/set max_new_tokens=17")
        second = complete(PUZZLES[0] + first + PUZZLES[1], **sampled)
        assert f"\n{second}\n" in exchange(terminal, PUZZLES[1])

        assert exchange(terminal, "/clear") == "The conversation is forgotten."
        assert f"\n{complete(PUZZLES[1], **sampled)}\n" in exchange(terminal, PUZZLES[1])
        exchange(terminal, "/clear")
        told = exchange(terminal, "/set unmasking=threshold threshold=0.9 temperature=0 seed=none")
        assert told == "unmasking=threshold, threshold=0.9, temperature=0.0, seed=none"
        assert f"\n{complete(PUZZLES[0], unmasking='threshold', threshold=0.9)}\n" in exchange(terminal, PUZZLES[0])

        assert "/set name=value" in exchange(terminal, "/help")
        terminal.send("/exit\r")
        status, _ = terminal.finish()
        assert status == 0


def test_ctrl_c_stops_the_answer_and_not_the_chat(complete, tmp_path):
    (tmp_path / "slow_rule.py").write_text(
        "import time\n\ndef leftmost(state):\n    time.sleep(0.2)\n"
        "    return state.candidates & (state.candidates.cumsum(1) == 1)\n"
    )
    with Terminal(*START, "--unmasking", "slow_rule.leftmost", cwd=tmp_path) as terminal:
        terminal.read_until(">>> ")
        terminal.send(PUZZLES[0] + "\r")
        terminal.read_until("step 3")
        terminal.send("\x03")
        stopped = terminal.read_until(">>> ", seconds=5)
        assert "Stopped. This turn is forgotten." in visible(stopped)
        assert "\x1b[?25h" in stopped  # the cursor is back
        # Ctrl-C where nothing runs; the prompt is written a moment before the line is waited for.
        time.sleep(1)
        terminal.send("\x03")
        assert "/exit or Ctrl-D to leave." in visible(terminal.read_until(">>> "))
        assert exchange(terminal, "/settings").split("\n")[3] == "unmasking=slow_rule.leftmost"
        exchange(terminal, "/set unmasking=low_confidence")
        assert f"\n{complete(PUZZLES[0])}\n" in exchange(terminal, PUZZLES[0])
        terminal.send("\x04")
        status, _ = terminal.finish()
        assert status == 0


# In process


def type_in(lines, monkeypatch):
    """Let `input` give these lines, and then the end of the input."""
    left = iter(lines)

    def read(prompt):
        line = next(left, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", read)


def test_a_prompt_holds_the_conversation():
    chatting = Conversation(has_template=True)
    chatting.turns.append(("one", "two"))
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    assert chatting.prompt("three") == [*turns, {"role": "user", "content": "three"}]
    chatting.system = "be brief"
    assert chatting.prompt("three")[:2] == [{"role": "system", "content": "be brief"}, turns[0]]
    plain = Conversation(has_template=False)
    plain.turns.append(("one", "two"))
    assert plain.prompt("three") == "onetwothree"


def test_the_second_turn_sees_the_first_answer_through_the_chat_template(tmp_path, monkeypatch, capsys):
    tokenizer = character_tokenizer("01234suar>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{{ '>' }}{% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}"
    )
    random_model("sdar", tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    prompts, answers = [], []

    def spy(model, tokenizer, ids, *args):
        prompts.append(tokenizer.decode(ids[0]))
        answers.append(generate_answers(model, tokenizer, ids, *args)[0])
        return answers[-1:]

    generate_answers = chat.generate_answers
    monkeypatch.setattr(chat, "generate_answers", spy)
    type_in(["/system 44", "012", "34", "/clear", "2", "4", "1", "/system", "/clear", "3", "  "], monkeypatch)
    arguments = ["--model", str(tmp_path), "--device", "cpu", "--max_new_tokens", "6"]
    assert main(["chat", *arguments]) == 0
    first, _, third, fourth = [answer.text for answer in answers[:4]]
    assert first and prompts == [
        "s44>u012>a",
        f"s44>u012>a{first}>u34>a",
        "s44>u2>a",
        f"s44>u2>a{third}>u4>a",
        f"s44>u2>a{third}>u4>a{fourth}>u1>a",
        "u3>a",
    ]
    printed = capsys.readouterr().out
    assert "Mode: chat." in printed and "The system message is set." in printed and "\x1b[" not in printed
    assert f"\n{first}\n" in printed and "·" not in printed


def test_without_a_seed_every_chat_draws_anew(monkeypatch, capsys):
    texts = []
    for _ in range(3):
        torch.manual_seed(0)
        type_in([PUZZLES[0]], monkeypatch)
        # So hot that two answers are hardly ever the same.
        assert main([*START, "--temperature", "5", "--unmasking", "random", "--suppress_tokens", "0,1"]) == 0
        texts.append(capsys.readouterr().out.splitlines()[-3])
    assert len(set(texts)) > 1 and all(len(text) >= 16 for text in texts)


def test_a_wrong_option_ends_the_command_before_the_chat(monkeypatch, capsys):
    type_in([], monkeypatch)
    assert main([*START, "--top_p", "7"]) == 1
    captured = capsys.readouterr()
    assert "trl-diffusion chat: top_p=7.0 must lie in (0, 1]" in captured.err and captured.out == ""
