# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Answers of GSM8K and MATH: where they stand in a completion, and whether they are right."""

import functools
import logging
import re
import threading
from typing import Any

from .answers import closed_boxes, last_box, last_tag
from .checks import completion_text
from .verification import has_math_verify, normalized_answer, powers_are_small


# Seconds after which an answer that math-verify works on counts as wrong.
_TIMEOUT = 5
# What goes beyond these is compared as text, since no time limit interrupts arithmetic on huge numbers.
_MAX_EXPRESSION = 300
_MAX_POWER = 10_000
_HUGE = re.compile(r"[0-9]{31}|[0-9]{4}\s*!|[!)}\]]\s*!|\*\*")
_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")

_NUMBER = re.compile(r"-?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")
_SCIENTIFIC = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]{1,3}")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{([0-9]{1,30})\}\{([0-9]{1,30})\}")
_WORDS = re.compile(r"\(?([A-Za-z ]+)\)?")  # "(C)" is the choice C


# GSM8K


def gsm8k_answer(text: str) -> float | None:
    r"""
    The number that a completion gives as its answer, as d1's evaluation finds it.

    It is the first number of the first `\boxed{…}` that has one; without any, the last number of the first complete
    `<answer>…</answer>`. Thousands separators (`1,200`), `\frac{1}{2}`, `1.2e3` and the sign `−` are read as what
    they mean.

    Args:
        text (`str`):
            A completion.

    Returns:
        `float`, or `None` where there is no such number.
    """
    text = text.replace("−", "-")
    for content in closed_boxes(text):
        content = content.replace("{,}", ",").replace("\\!", "").replace("\\,", "")
        fraction = _FRACTION.fullmatch(content)
        if fraction and int(fraction[3]):
            return (-1 if fraction[1] else 1) * int(fraction[2]) / int(fraction[3])
        number = _SCIENTIFIC.fullmatch(content) or _NUMBER.search(content)
        if number:
            return _as_float(number[0])
    # By hand, as a pattern is quadratic in tags that do not close.
    _, start, behind = text.partition("<answer>")
    tag, end, _ = behind.partition("</answer>")
    if not start or not end:
        return None
    number = _SCIENTIFIC.fullmatch(tag.strip())
    numbers = [number[0]] if number else _NUMBER.findall(tag)
    return _as_float(numbers[-1]) if numbers else None


def _as_float(number: str) -> float:
    return float(number.replace(",", ""))


def gsm8k_verdicts(completions: list[Any], solutions: list[str]) -> list[bool]:
    """
    For each completion whether [`gsm8k_answer`] is the right number: equal as floats.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Texts, or conversations whose last message is read.
        solutions (`list[str]`):
            For each completion the right number.

    Returns:
        `list[bool]`.

    Raises:
        `ValueError`: the lists differ in length, a solution is no number, or a completion holds no text.
    """
    _check_lengths(completions, solutions)
    verdicts = []
    for completion, solution in zip(completions, solutions, strict=True):
        try:
            expected = float(solution)
        except (TypeError, ValueError) as error:
            raise ValueError(f"solution={solution!r} must be a number as a string, such as '21'.") from error
        verdicts.append(gsm8k_answer(completion_text(completion)) == expected)
    return verdicts


# MATH


def math_answer(text: str) -> str | None:
    r"""
    The answer of a completion: what the last `\boxed{…}` holds; where that is empty, does not close or is not there,
    what the last complete `<answer>…</answer>` holds, and without one the text itself, if it is a single short line.

    Args:
        text (`str`):
            A completion, special tokens left out.

    Returns:
        `str`, without white space around it; `None` where there is no answer.
    """
    for found in (last_box(text), last_tag(text)):
        if found is not None and found.strip():
            return found.strip()
    bare = text.strip()
    return bare if bare and "\\boxed" not in bare and "\n" not in bare and len(bare) <= 40 else None


def math_verdicts(completions: list[Any], solutions: list[str]) -> list[bool]:
    r"""
    For each completion whether [`math_answer`] is right: the same as text but for spacing and the like, or equal to
    the solution as mathematics, as math-verify compares them.

    math-verify is given expressions of at most 300 characters, without towers of powers and huge factorials; others
    are compared as text. Words are compared as text too, and single letters with their case.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Texts, or conversations whose last message is read.
        solutions (`list[str]`):
            For each completion the right answer, in a `\boxed{…}` or bare.

    Returns:
        `list[bool]`.

    Raises:
        `ValueError`: the lists differ in length, a solution is empty, or a completion holds no text.
        `ImportError`: math-verify is not installed.
    """
    _check_lengths(completions, solutions)
    check_math_verify()
    verdicts = []
    for completion, solution in zip(completions, solutions, strict=True):
        if not isinstance(solution, str) or not solution.strip():
            raise ValueError(
                f"solution={solution!r} must be the right answer, such as '\\\\boxed{{\\\\frac{{1}}{{2}}}}'."
            )
        boxed = last_box(solution)
        answer = math_answer(completion_text(completion))
        expected = solution.strip() if boxed is None else boxed.strip()
        verdicts.append(answer is not None and equal_mathematics(expected, answer))
    return verdicts


@functools.lru_cache(maxsize=4096)  # a verdict for the row and one for the metric
def equal_mathematics(expected: str, answer: str) -> bool:
    """Whether an answer is the expected one, see [`math_verdicts`]."""
    texts = [normalized_answer(expected), normalized_answer(answer)]
    if texts[0] == texts[1]:
        return bool(texts[0])
    words = [match and match[1] for match in map(_WORDS.fullmatch, texts)]
    if any(words):  # math-verify makes products of letters
        same = all(words) and words[0].casefold() == words[1].casefold()
        return same and (len(words[0]) > 1 or words[0] == words[1])
    if any(text.count("{") != text.count("}") for text in texts):
        return False
    if any(len(t) > _MAX_EXPRESSION or _HUGE.search(t) or not powers_are_small(t, _MAX_POWER) for t in texts):
        return False
    letters = [set(_LETTER.findall(text)) for text in texts]
    if letters[0] != letters[1] and {c.lower() for c in letters[0]} == {c.lower() for c in letters[1]}:
        return False  # to math-verify "A" is "a"
    import math_verify

    in_main_thread = threading.current_thread() is threading.main_thread()
    timeout = _TIMEOUT if in_main_thread else None  # it waits by means of signals
    if not in_main_thread:  # it would warn of that
        for name in ("math_verify.parser", "math_verify.grader"):
            logging.getLogger(name).setLevel(logging.ERROR)
    parsed = [math_verify.parse(f"\\boxed{{{text}}}", parsing_timeout=timeout) for text in (expected, answer)]
    return all(parsed) and math_verify.verify(*parsed, float_rounding=12, timeout_seconds=timeout)


def check_math_verify():
    """Raises `ImportError` where math-verify is not installed."""
    if not has_math_verify():
        raise ImportError("Answers of mathematics are scored with math-verify: pip install 'trl-diffusion[math]'.")


def _check_lengths(completions: list[Any], solutions: list[str]):
    if len(completions) != len(solutions):
        raise ValueError(
            f"{len(completions)} completions and {len(solutions)} solutions: pass one solution for each completion."
        )
