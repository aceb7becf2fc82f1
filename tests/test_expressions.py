# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

import itertools
import sys
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_countdown import OPERATE, slow_reachable

from trl_diffusion.tasks import Expression, countdown_reward, parse_expression, reachable


@st.composite
def trees(draw, depth=4):
    """(text with all parentheses or only some, numbers, value), the value computed beside the text."""
    if depth == 0 or draw(st.booleans()):
        number = draw(st.integers(0, 120))
        return str(number), (number,), Fraction(number)
    left, left_numbers, a = draw(trees(depth - 1))
    right, right_numbers, b = draw(trees(depth - 1))
    operator, space = draw(st.sampled_from("+-*/")), draw(st.sampled_from(["", " ", "\n\t"]))
    value = None if a is None or b is None else OPERATE[operator](a, b)
    return f"({left}{space}{operator}{right})", left_numbers + right_numbers, value


@given(trees())
def test_a_fully_bracketed_text_has_the_value_of_its_tree(tree):
    text, numbers, value = tree
    expected = Expression(numbers, value) if len(text) <= 256 else None
    assert parse_expression(text) == expected
    if len(text) <= 250:
        assert parse_expression(f" (({text}) ) ") == expected


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.data())
def test_a_chain_without_brackets_follows_precedence_from_the_left(numbers, data):
    operators = [data.draw(st.sampled_from("+-*/")) for _ in numbers[1:]]
    text = str(numbers[0]) + "".join(f"{op}{number}" for op, number in zip(operators, numbers[1:], strict=True))
    # Python's own rules, on fractions in place of the integers; the text was made here.
    source = "F(" + text.replace("+", ")+F(").replace("-", ")-F(").replace("*", ")*F(").replace("/", ")/F(") + ")"
    try:
        value = eval(source, {"F": Fraction})
    except ZeroDivisionError:
        value = None
    assert parse_expression(text) == Expression(tuple(numbers), value)


@settings(max_examples=500)
@given(st.text("0123456789+-*/() .=_e", max_size=12))
def test_what_is_read_has_pythons_value(text):
    expression = parse_expression(text)
    if expression is not None and expression.value is not None:
        assert float(expression.value) == pytest.approx(eval(text.strip().replace("\n", " ")))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("8-3-2", 3),
        ("8-(3-2)", 7),
        ("16/4/2", 2),
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("1/3*3", 1),
        (" 12\t*\n2 ", 24),
        ("((((7))))", 7),
        ("3-8", -5),
        ("1/0", None),
        ("0*(5/(3-3))", None),
    ],
)
def test_values_by_hand(text, value):
    assert parse_expression(text).value == value


@pytest.mark.parametrize(
    "text",
    [
        *["", " ", "-3", "+3", "(-3)", "2--3", "2*-3", "2+", "*2", "()", "(", ")", "(1+2", "1+2)", "1)+(2", "2(3)"],
        *["(2)(3)", "2 3", "12 3+1", "1**2", "8//2", "8/ /2", "1.5", "1.", "1e3", "1_0", "0x1", "07+1", "00", "1,2"],
        *["x", "1+x", "=3", "1+2=3", "１+2", "٣", "²", "1\u00a0+2", "1\x00", "__import__('os')", "[1]", "1;2", "1%2"],
    ],
)
def test_other_texts_are_no_expressions(text):
    assert parse_expression(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "(" * 100_000 + "1" + ")" * 100_000,
        "9" * 1_000_000,
        "9*" * 500_000 + "9",
        "1+" * 500_000,
        "=" * 1_000_000,
        "x=" * 500_000,
        "1+=" * 500_000,
        "1 + " * 250_000 + "x",
        "\\boxed{" * 150_000,
        "\\boxed{" + "{" * 500_000 + "}" * 500_000,
        "<answer>" * 150_000,
        "</answer>" * 150_000,
        "<answer>" * 70_000 + "</answer>" * 70_000,
        "\ud800" * 1000,
    ],
)
def test_hostile_texts_score_nothing_and_soon(text):
    start = time.perf_counter()
    assert parse_expression(text) is None
    assert countdown_reward([text], [[1, 2, 3]], [6]) == [0.0]
    assert time.perf_counter() - start < 5


def test_the_longest_texts_do_not_depend_on_the_stack():
    text = "(" * 127 + "12" + ")" * 127
    frames = len(list(itertools.takewhile(bool, iter_frames())))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(frames + 50)
    try:
        expressions = [parse_expression(text), parse_expression("9" * 256), parse_expression(text + " ")]
    finally:
        sys.setrecursionlimit(limit)
    assert expressions == [Expression((12,), Fraction(12)), Expression((10**256 - 1,), Fraction(10**256 - 1)), None]


def iter_frames():
    frame = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=4), st.sampled_from(["+-*/", "+-*", "/", "-", "+/"]))
def test_reachable_is_what_a_slow_search_finds(numbers, operators):
    found = reachable(numbers, operators)
    assert set(found) == slow_reachable(numbers, operators)
    for value, text in found.items():
        expression = parse_expression(text)
        assert expression.value == value and sorted(expression.numbers) == sorted(numbers)
        assert set(text) <= set("0123456789()" + operators)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (([],), "numbers"),
        (([1] * 5,), "numbers"),
        (([-1, 2],), "numbers"),
        (([1.0],), "numbers"),
        (([True],), "numbers"),
    ]
    + [(([1, 2], operators), "operators") for operators in ("", "^", "++")],
)
def test_reachable_bad_arguments_raise(arguments, name):
    with pytest.raises(ValueError, match=f"{name}="):
        reachable(*arguments)
