# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Looking at how a canvas filled up."""

import re
from html.parser import HTMLParser

import pytest
import torch
from conftest import random_model

from trl_diffusion.evaluation import plot_rollout, show_rollout
from trl_diffusion.evaluation.trajectory_view import some_steps, step_color
from trl_diffusion.generation import Rollout
from trl_diffusion.tasks import character_tokenizer


# Every character that HTML or a terminal would take for something else.
HOSTILE = "<>&\"'\x1b\u202e\n$x"


class Cells(HTMLParser):
    """(attributes, text) of each span of the canvas; fails on a tag that the view has no reason to write."""

    def __init__(self, source: str):
        super().__init__()
        self.cells, self.open, self.tags, self.in_cell = [], [], [], False
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag != "input":
            self.open.append(tag)
        self.in_cell = tag == "span" and "title" in dict(attrs)
        if self.in_cell:
            self.cells.append([dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.in_cell = False

    def handle_data(self, data):
        if self.in_cell:
            self.cells[-1][1] += data


def made_rollout(tokenizer, text: str, **changes) -> Rollout:
    """One row whose canvas is a text, committed from right to left, one token per step, with probability 1/2."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    length = ids.size(1)
    fields = {
        "prompt_ids": torch.tensor([[tokenizer.pad_token_id, *tokenizer("<b>")["input_ids"]]]),
        "prompt_mask": torch.tensor([[0, 1, 1, 1]]),
        "canvas_ids": ids,
        "unmask_step": torch.arange(length, 0, -1, dtype=torch.int16)[None],
        "logprobs": torch.full((1, length), 0.5).log(),
        "forced": torch.zeros(1, length, dtype=torch.bool),
        "fixed": torch.zeros(1, length, dtype=torch.bool),
        "completion_mask": torch.ones(1, length, dtype=torch.long),
        "num_forward_passes": torch.tensor([length]),
        "block_length": length,
    }
    return Rollout(**{**fields, **changes})


@pytest.fixture
def letters():
    return character_tokenizer(HOSTILE + "abcde")


def test_what_a_model_writes_is_text_and_nothing_else(letters):
    rollout = made_rollout(letters, HOSTILE)
    view = show_rollout(rollout, letters)
    parsed = Cells(view.html())
    assert set(parsed.tags) == {"figure", "div", "span", "label", "input", "output"}
    shown = [text for _, text in parsed.cells]
    assert "".join(shown) == "<>&\"'\ufffd\ufffd↵\n$x"
    assert "<b>" not in view.html() and "&lt;b&gt;" in view.html()  # the prompt, without its padding
    assert "\x1b" not in str(view) and "\u202e" not in str(view) and str(view).count("\n") == 7


def test_each_token_has_the_step_and_the_probability_of_the_rollout(tokenizer, family):
    model = random_model(family, tokenizer)
    ids = torch.tensor([[0, 3, 4, 5, 6, 3], [3, 5, 4, 5, 6, 4]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1] * 6])
    rollout = model.generate(
        ids, attention_mask=mask, max_new_tokens=12, num_denoising_steps=6, return_dict_in_generate=True
    ).rollout
    for row in range(2):
        cells = Cells(show_rollout(rollout, tokenizer, row).html()).cells
        assert len(cells) >= 12
        for place, (attributes, text) in enumerate(cells[:12]):
            step = int(rollout.unmask_step[row, place])
            probability = rollout.logprobs[row, place].exp()
            assert attributes["data-step"] == str(step)
            assert attributes["title"].startswith(f"position {place + 1}: step {step}, probability {probability:.3f}")
            assert text == tokenizer.decode([rollout.canvas_ids[row, place]])
            faded = "opacity" in attributes["style"]
            assert faded == (not rollout.completion_mask[row, place])


def test_the_states_as_text_are_those_of_the_trajectory(letters):
    rollout = made_rollout(letters, "abcde")
    assert show_rollout(rollout, letters).text().splitlines() == [
        "step 1  ····e",
        "step 2  ···de",
        "step 3  ··cde",
        "step 4  ·bcde",
        "step 5  abcde",
    ]
    view = show_rollout(rollout, letters, columns=2)
    assert view.text(frames=2) == "step 1  ·· ·· e\nstep 5  ab cd e"
    assert repr(view) == view.text() and view._repr_html_() == view.html()
    # A line of the board is a line of the picture.
    assert [text for _, text in Cells(view.html()).cells] == list("abcde")
    assert view.html().count("</span>\n") == 2


def test_what_the_model_did_not_draw_is_marked(letters):
    canvas = torch.tensor([letters("abcde")["input_ids"]])
    canvas[0, 2], canvas[0, 3] = letters.mask_token_id, letters.eos_token_id
    rollout = made_rollout(
        letters,
        "abcde",
        canvas_ids=canvas,
        unmask_step=torch.tensor([[0, 1, 0, 2, 2]], dtype=torch.int16),
        fixed=torch.tensor([[True, False, False, False, False]]),
        forced=torch.tensor([[False, True, False, False, False]]),
        completion_mask=torch.tensor([[1, 1, 1, 1, 0]]),
    )
    view = show_rollout(rollout, letters)
    assert view.text() == "step 1  ab···\nstep 2  ab·∎e"
    titles = [attributes["title"] for attributes, _ in Cells(view.html()).cells]
    assert titles[0] == "position 1: given" and titles[2] == "position 3: never filled"
    assert titles[1] == "position 2: step 1, probability 0.500, only to fill the step"
    assert Cells(view.html()).cells[3][1] == letters.eos_token
    steps = [attributes.get("data-step") for attributes, _ in Cells(view.html()).cells]
    assert steps == [None, "1", None, "2", "2"]


def test_the_colors_go_from_step_to_step_and_black_letters_can_be_read_on_them():
    def luminance(color):  # WCAG 2
        channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for steps in (1, 2, 8, 256):
        colors = [step_color(step, steps) for step in range(1, steps + 1)]
        assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in colors)
        assert all((luminance(color) + 0.05) / 0.05 >= 7 for color in colors)
        if steps <= 8:
            assert len(set(colors)) == steps


@pytest.mark.parametrize("steps", [0, 1, 2, 8, 9, 100])
def test_a_long_trajectory_is_shown_from_its_first_step_to_its_last(steps):
    shown = some_steps(steps, at_most=8)
    assert shown == sorted(set(shown)) and len(shown) == min(steps, 8)
    assert not steps or (shown[0], shown[-1]) == (1, steps)


def test_a_page_of_its_own(letters, tmp_path):
    view = show_rollout(made_rollout(letters, "abc"), letters)
    view.save(tmp_path / "view.html")
    page = (tmp_path / "view.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and view.html() in page
    assert [path.name for path in tmp_path.iterdir()] == ["view.html"]
    assert not re.search(r"https?://|<script|src=", page)  # nothing from outside


@pytest.mark.parametrize("settings", [{"row": 1}, {"row": -1}, {"columns": 0}])
def test_what_there_is_not_is_refused(letters, settings):
    rollout = made_rollout(letters, "abc")
    (name, value) = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        show_rollout(rollout, letters, **settings)
    with pytest.raises(ValueError, match=f"{name}={value}"):
        plot_rollout(rollout, letters, **settings)


def test_the_picture_has_the_color_of_each_step_and_grey_masks(letters, tmp_path):
    from matplotlib.colors import to_hex

    figure = plot_rollout(made_rollout(letters, "abcd$"), letters, columns=2, title="$x", path=tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    frames = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in frames] == [f"step {step}" for step in range(1, 6)]
    for step, axes in enumerate(frames, start=1):
        picture = axes.images[0].get_array().reshape(-1, 3)
        colors = [to_hex(color) for color in picture]
        committed = [step_color(5 - place, 5) if 5 - place <= step else "#e6e6e6" for place in range(5)]
        assert colors == [*committed, "#ffffff"]  # and a place behind the canvas
        assert [text.get_text() for text in axes.texts] == list("abcd$")[5 - step :]
        assert len(axes.patches) == 1  # what is new
    with pytest.raises(ValueError, match="frames=1"):
        plot_rollout(made_rollout(letters, "abc"), letters, frames=1)
    with pytest.raises(ValueError, match="no token that the model drew"):
        plot_rollout(made_rollout(letters, "abc", unmask_step=torch.zeros(1, 3, dtype=torch.int16)), letters)


def test_the_picture_of_a_long_canvas(letters, tmp_path):
    figure = plot_rollout(made_rollout(letters, "abcde" * 60), letters, columns=60, frames=4, path=tmp_path / "p.svg")
    frames = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in frames] == ["step 1", "step 101", "step 200", "step 300"]
    assert not any(axes.texts for axes in frames)
    assert [len(axes.patches) for axes in frames] == [1, 100, 99, 100]
