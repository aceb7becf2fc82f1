# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Accuracy against forward passes: at matched passes, and as a picture."""

import struct

import pytest

from trl_diffusion.evaluation import FrontierRow, best_at, plot_frontier
from trl_diffusion.evaluation.frontier_plot import _figure, check_plot


def row(curve, passes, accuracy, **fields):
    defaults = {"unmasking": curve, "setting": f"x={passes}", "seeds": (), "num_problems": 10, "accuracy_low": 0.0}
    defaults |= {"accuracy_high": 1.0, "tokens_per_pass": 1.5, "length": 17.0, "seconds": 0.5}
    return FrontierRow(curve=curve, forward_passes=passes, accuracy=accuracy, **{**defaults, **fields})


# Matched forward passes


def test_the_best_accuracy_at_so_many_forward_passes():
    rows = [row("a", 8.0, 0.4), row("a", 2.0, 0.2), row("a", 4.0, 0.6), row("b", 3.0, 0.5), row("b", 3.0, 0.1)]
    # Before the first point nothing, at and between points the line, behind a peak the peak, behind the last its best.
    for passes, accuracy in ((1.9, None), (2.0, 0.2), (3.0, 0.4), (3.5, 0.5), (4.0, 0.6), (6.0, 0.6), (99.0, 0.6)):
        assert best_at(rows, passes)["a"] == (None if accuracy is None else pytest.approx(accuracy))
    assert best_at(rows, 2.9)["b"] is None and best_at(rows, 3.0)["b"] == best_at(rows, 5.0)["b"] == 0.5
    assert best_at([], 3.0) == {}


def test_a_line_leads_to_the_better_of_two_points_with_the_same_passes():
    rows = [row("a", 2.0, 0.2), row("a", 4.0, 0.1), row("a", 4.0, 0.6)]
    assert best_at(rows, 3.0)["a"] == pytest.approx(0.4)


# The picture


def test_the_plot_is_a_png_of_the_promised_size(tmp_path):
    rows = [row(f"curve {number}", 2.0**k, k / 8 + number / 100) for number in range(9) for k in range(6)]
    plot_frontier(rows, tmp_path / "new" / "plot.png", "title")
    content = (tmp_path / "new" / "plot.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", content[16:24]) == (1000, 650)
    assert 20_000 < len(content) < 500_000
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["plot.png"]
    plot_frontier(rows[:1], tmp_path / "one.svg")
    assert "<svg" in (tmp_path / "one.svg").read_text()


def test_what_is_drawn(tmp_path):
    long = "runs/" + "x" * 60 + "/policy"
    rows = [row("a", 8.0, 0.4), row("a", 2.0, 0.2, accuracy_low=0.1, accuracy_high=0.3), row(long, 3.0, 0.5)]
    figure = _figure(rows, None)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "forward passes per completion"
    assert axes.get_ylabel() == "accuracy"
    assert [list(map(float, line.get_xdata())) for line in axes.lines] == [[2.0, 8.0], [3.0]]
    assert list(axes.lines[0].get_ydata()) == [0.2, 0.4]
    assert len(axes.collections) == 2 and axes.lines[0].get_color() != axes.lines[1].get_color()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0] == "a" and len(labels[1]) == 40 and labels[1].endswith("x/policy")


def test_a_plot_that_cannot_be_drawn_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="rows is empty"):
        plot_frontier([], tmp_path / "plot.png")
    with pytest.raises(ValueError, match="must end in .png, .svg, .pdf"):
        check_plot("plot.jpg")
    monkeypatch.setattr("trl_diffusion.evaluation.frontier_plot.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'trl-diffusion\[plots\]'"):
        check_plot("plot.png")
