# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Answers of GSM8K and MATH."""

import threading
import time

import pytest

from trl_diffusion.tasks import (
    GSM8KMetric,
    MathMetric,
    RewardMetric,
    equal_mathematics,
    gsm8k_answer,
    gsm8k_verdicts,
    math_answer,
    math_verdicts,
)
from trl_diffusion.tasks.answers import closed_boxes, last_box, last_tag


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{12}", 12.0),
        ("\\boxed{-3.5}", -3.5),
        ("\\boxed{\\$1,200}", 1200.0),
        ("\\boxed{1{,}200}", 1200.0),
        ("\\boxed{50\\%}", 50.0),
        ("\\boxed{x = 5}", 5.0),
        ("\\boxed{\\frac{1}{4}}", 0.25),
        ("\\boxed{-\\dfrac{1}{4}}", -0.25),
        ("\\boxed{\\text{7 apples}}", 7.0),
        ("\\boxed{1,2}", 1.0),  # no thousands separator
        ("\\boxed{} \\boxed{none} \\boxed{4} \\boxed{5}", 4.0),  # the first that has a number
        ("\\boxed{8", None),
        ("\\boxed{8 <answer>9</answer>", 9.0),
        ("<answer>first 3, then 4.</answer> <answer>5</answer>", 4.0),  # the first tag's last number
        ("<answer>none</answer> <answer>5</answer>", None),
        ("<answer>6", None),
        ("the answer is 6", None),
        ("\\boxed{٣}", None),
        ("\\boxed{.5}", 0.5),
        ("\\boxed{\\$-.5}", -0.5),
        ("\\boxed{1.2e3}", 1200.0),
        ("<answer> 1e3 </answer>", 1000.0),
        ("<answer>3 or .25</answer>", 0.25),
        ("\\boxed{−5}", -5.0),
        ("<answer>" * 100_000, None),  # in a moment
        ("", None),
    ],
)
def test_the_number_of_a_gsm8k_completion(text, expected):
    assert gsm8k_answer(text) == expected


def test_gsm8k_verdicts_compare_floats():
    texts = ["\\boxed{12.0}", "\\boxed{13}", "12", [{"role": "assistant", "content": "\\boxed{12}"}]]
    assert gsm8k_verdicts(texts, ["12"] * 4) == [True, False, False, True]
    assert GSM8KMetric().compute(predictions=texts[:3], references=["12"] * 3) == {"solve_rate": 1 / 3}
    with pytest.raises(ValueError, match="solution='twelve' must be a number"):
        gsm8k_verdicts(["12"], ["twelve"])
    with pytest.raises(ValueError, match="1 completions and 2 solutions"):
        gsm8k_verdicts(["12"], ["1", "2"])
    with pytest.raises(ValueError, match="predictions=.. has nothing to score"):
        GSM8KMetric().compute(predictions=[], references=[])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{1} so \\boxed{ \\frac{1}{2} }.", "\\frac{1}{2}"),
        ("\\boxed{1} so \\boxed{2", None),
        ("\\boxed{1} so \\boxed{2 <answer> 3 </answer>", "3"),
        ("\\boxed{} <answer>x</answer>", "x"),
        ("<answer>1</answer><answer>2</answer>", "2"),
        (" 23 ", "23"),
        ("It is 23,\nI think", None),
        ("", None),
    ],
)
def test_the_answer_of_a_math_completion(text, expected):
    assert math_answer(text) == expected


@pytest.mark.parametrize(
    ("expected", "answer", "equal"),
    [
        ("\\frac{3}{2}", "1.5", True),
        ("\\frac{3}{2}", "\\dfrac32", True),
        ("(5,\\infty)", "\\left( 5, \\infty \\right)", True),
        ("(5,\\infty)", "[5,\\infty)", False),
        ("(3,5)", "(5,3)", False),
        ("x^2+2x+1", "(x+1)^2", True),
        ("2k", "k", False),
        ("2k", "2K", False),
        ("A", "a", False),
        ("\\text{(C)}", "C", True),
        ("\\text{(C)}", "D", False),
        ("\\text{even}", "\\text{Even}", True),
        ("\\text{even}", "odd", False),
        ("1 \\pm \\sqrt{19}", "1-\\sqrt{19}, 1+\\sqrt{19}", True),
        ("5", "x = 5", True),
        ("1{,}000", "1000", True),
        ("90^\\circ", "90", True),
        ("\\frac{1}{3}", "0.333333", False),
        ("\\begin{pmatrix} 1/5 \\\\ -18/5 \\end{pmatrix}", "\\begin{pmatrix} 0.2 \\\\ -3.6 \\end{pmatrix}", True),
        ("\\begin{pmatrix} 1/5 \\\\ -18/5 \\end{pmatrix}", "\\begin{pmatrix} 3 \\\\ -2 \\end{pmatrix}", False),
        ("2^{20000}", "2^{20000}", True),  # as text
        ("", "", False),
    ],
)
def test_equal_mathematics(expected, answer, equal):
    assert equal_mathematics(expected, answer) is equal


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^{9}}}",
        "((9^{9999})^{9999})^{9999}",
        "(10^9)!",
        "99999999!",
        "9**9**9**9",
        "{" * 3000,
        "\\sqrt{" * 200,
        "1" * 5000,
    ],
)
def test_no_answer_takes_long(answer):
    started = time.perf_counter()
    assert not equal_mathematics("5", answer)
    assert time.perf_counter() - started < 2


def test_math_verdicts_outside_of_the_main_thread_are_the_same():
    texts, solutions = ["\\boxed{0.5}", "\\boxed{3}", "no"], ["\\boxed{\\frac{1}{2}}", "\\frac{6}{2}", "\\boxed{1}"]
    found = []
    thread = threading.Thread(target=lambda: found.append(math_verdicts(texts, solutions)))
    thread.start()
    thread.join()
    equal_mathematics.cache_clear()
    assert found == [[True, True, False]] and math_verdicts(texts, solutions) == found[0]
    assert MathMetric().compute(predictions=texts, references=solutions) == {"solve_rate": 2 / 3}
    with pytest.raises(ValueError, match="solution='' must be the right answer"):
        math_verdicts(["5"], [""])


def test_the_metric_of_rewards():
    assert RewardMetric().compute(predictions=[1.5, 1.0, 0.5, -1.0]) == {"reward": 0.5, "solve_rate": 0.5}


def test_boxes_and_tags():
    text = "\\boxed{ a{b}c } \\boxed {d} \\fbox{e} \\boxed 5 \\boxed{\\boxed{f}} \\boxed{g"
    assert closed_boxes(text) == ["a{b}c", "d", "e", "\\boxed{f}", "f"]
    assert last_box(text) is None and last_box(text[:-9]) == "f"
    assert last_tag("<answer>1</answer> <answer> 2</answer> <answer>3") == " 2"
    assert last_tag("<answer>1") is None is last_box("none")
    started = time.perf_counter()
    closed_boxes("\\boxed{" * 20_000)
    assert time.perf_counter() - started < 2
