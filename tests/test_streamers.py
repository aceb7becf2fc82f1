# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Watching a generation."""

import io
from threading import Thread

import pytest
import torch
from conftest import random_model
from rich.console import Console
from test_generation_interface import PROMPT, full_rollout
from transformers import TextIteratorStreamer, TextStreamer

from trl_diffusion.generation import CanvasStreamer
from trl_diffusion.generation.streamers import printable


def test_the_canvas_streamer_draws_every_state(family, tokenizer):
    model = random_model(family, tokenizer)
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60, height=24, color_system=None)
    ids = PROMPT.expand(2, -1)
    sequences = full_rollout(model, ids, streamer=CanvasStreamer(tokenizer, console), num_denoising_steps=4).sequences
    drawn = file.getvalue()
    for step in range(5):
        assert f"step {step}" in drawn
    assert "········" in drawn
    text = tokenizer.decode(sequences[0, 5:], skip_special_tokens=True)
    assert drawn.rstrip().endswith(text)


def test_the_canvas_streamer_highlights_the_newest_tokens_and_cuts_at_the_canvas_s_eos(tokenizer):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=40, height=24, color_system="standard")
    streamer = CanvasStreamer(tokenizer, console)
    ids = torch.tensor([[3, 1, 4, 5, 1, 6]])  # an EOS of the input, and one of the canvas
    streamer.show(ids, torch.tensor([[1, 1, 0, 2, 2, 2]]), ids == 4, eos_token_ids=[1], input_length=3)
    picture = file.getvalue()
    # The text of step 2 and no other is green.
    green = [piece.split("\x1b[0m")[0] for piece in picture.split("\x1b[1;32m")[1:]]
    assert green == [tokenizer.decode([5, 1, 6])]
    streamer.end()
    assert file.getvalue().rstrip().endswith(tokenizer.decode([3, 5]))
    assert tokenizer.decode([6]) not in file.getvalue()[len(picture) :]


def test_what_steers_a_terminal_is_not_written():
    assert printable("a\x1b[2Jb\tc\nd\u202ee\x00 漢🙂") == "a\ufffd[2Jb\tc\nd\ufffde\ufffd 漢🙂"


def test_the_canvas_streamer_shows_the_part_of_a_high_canvas_that_is_being_filled(tokenizer):
    model = random_model("llada", tokenizer)
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=20, height=6, color_system=None)
    streamer = CanvasStreamer(tokenizer, console, print_text=False)
    full_rollout(model, max_new_tokens=120, block_length=40, num_denoising_steps=6, streamer=streamer)
    pictures = file.getvalue().split("step ")[1:]
    # Two rows of text fit; the last pictures are of the end of the canvas.
    assert all(picture.count("│") <= 2 * 4 for picture in pictures)
    assert "··" in pictures[0] and "··" in pictures[-2] and "·" not in pictures[-1]


def test_the_canvas_streamer_writes_the_text_alone_off_a_terminal(tokenizer):
    model = random_model("llada", tokenizer)
    file = io.StringIO()
    streamer = CanvasStreamer(tokenizer, Console(file=file, width=10))
    sequences = full_rollout(model, max_new_tokens=30, streamer=streamer, suppress_tokens=[0, 1]).sequences
    assert file.getvalue() == tokenizer.decode(sequences[0, 5:]) + "\n"


@pytest.mark.parametrize("eos", [None, 7])
def test_streamers_of_transformers_get_text_that_does_not_change(family, tokenizer, eos, capsys):
    model = random_model(family, tokenizer)
    kwargs = {"num_denoising_steps": 4, "eos_token_id": eos}
    output = full_rollout(model, **kwargs)
    expected = tokenizer.decode(output.rollout.completions()[0])
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    thread = Thread(target=lambda: full_rollout(model, streamer=streamer, **kwargs))
    thread.start()
    assert "".join(streamer) == expected
    thread.join()
    capsys.readouterr()
    full_rollout(model, streamer=TextStreamer(tokenizer), **kwargs)
    assert capsys.readouterr().out == tokenizer.decode(PROMPT[0]) + expected + "\n"


def test_a_streamer_of_one_row_refuses_more_and_is_ended_after_an_error(tokenizer):
    model = random_model("llada", tokenizer)
    with pytest.raises(ValueError, match="TextStreamer, which writes one row"):
        full_rollout(model, PROMPT.expand(2, -1), streamer=TextStreamer(tokenizer))

    def fail(state):
        raise RuntimeError("stop")

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=5)
    with pytest.raises(RuntimeError, match="stop"):
        full_rollout(model, unmasking=fail, streamer=streamer)
    assert "".join(streamer) == ""
