# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Whether two texts end in the same answer."""

import math
import re
import threading
from fractions import Fraction
from importlib.util import find_spec

from .answers import marked_answers


# Seconds after which an expression that math-verify works on counts as different.
_MATH_TIMEOUT = 5
# Expressions beyond these are compared as texts: characters, digits of a number, numbers in exponents, multiplied.
_MAX_EXPRESSION = 100
_MAX_DIGITS = 20
_MAX_EXPONENT = 100
# Different answers of one text beyond this number are compared as texts.
_MAX_ANSWERS = 16
# Formats of which a text may have several, that together are its answer.
_PARTS = ("boxed", "tags")

_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")
_WITH_COMMAS = re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?")
_FRACTION = re.compile(r"([-+]?)(?:\\frac\{([0-9]+)\}\{([0-9]+)\}|\\frac([0-9])([0-9])|\{?([0-9]+)\}?/\{?([0-9]+)\}?)")
# Letters stand alone, as variables do: of longer words and of units ("5 m"), math-verify makes products of variables,
# or nothing at all. Relations, sets, bases, times and percentages are left out: it takes some of them for others.
_EXPRESSION = re.compile(
    rf"(?:[0-9]{{1,{_MAX_DIGITS}}}(?:\.[0-9]{{1,{_MAX_DIGITS}}})?(?![0-9.])|(?<![A-Za-z])[A-Za-z](?![A-Za-z])"
    r"|\\(?:frac|sqrt|pi|cdot|times)(?![A-Za-z])[ ]?|[-+/(){}\[\]]|\*(?!\*)|\^(?=[0-9A-Za-z{]))+"
)
_VARIABLE = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def answer_and_format(text: str, answer_format: str = "auto") -> tuple[str, str] | None:
    """The final answer of a text, and the format it is given in.

    Args:
        text (`str`):
            A solution.
        answer_format (`str`, *optional*, defaults to `"auto"`):
            As in [`final_answer`].

    Returns:
        `tuple[str, str]`: answer and format (never `"auto"`); `None` where the text has no answer.

    Raises:
        ValueError: an unknown format.
    """
    answers = marked_answers(text, answer_format)
    return answers[-1][::-1] if answers else None


def has_math_verify() -> bool:
    """Whether answers are compared as mathematics, too."""
    return find_spec("math_verify") is not None


def same_final_answer(trace: str, rewrite: str, answer_format: str = "auto") -> bool:
    r"""Whether a rewrite ends in the answer of its trace, and says nothing else on the way.

    A text's answer is what [`final_answer`] says: the marked answer that stands last. The rewrite

    - must end in the answer that the trace ends in, in any of the trace's formats,
    - must give, in each format it has, that answer, or what the trace gives in this format,
    - and where the trace ends in several boxes (or tags) with different answers, as in `x=\boxed{3}, y=\boxed{5}`,
      they are its answer together: the rewrite must have them all, in their order. The last mention of each counts.

    Answers are compared by [`same_answer`].

    Args:
        trace, rewrite (`str`):
            Two solutions.
        answer_format (`str`, *optional*, defaults to `"auto"`):
            As in [`answer_spans`]; the others are not looked at.

    Raises:
        ValueError: an unknown format.
    """
    expected, given = _readings(trace, answer_format), _readings(rewrite, answer_format)
    last, last_given = answer_and_format(trace, answer_format), answer_and_format(rewrite, answer_format)
    if last is None or last_given is None or last_given[1] not in expected or not same_answer(last[0], last_given[0]):
        return False
    if len(expected[last[1]]) > 1 and last[1] not in given:
        return False
    return all(
        (name in expected and _same_answers(expected[name], answers))
        or (name != last[1] and _same_answers([last[0]], answers))
        for name, answers in given.items()
    )


def _readings(text: str, answer_format: str) -> dict[str, list[str]]:
    """The answers that a text gives in each of its formats: the last one, or all the different ones in their order."""
    readings: dict[str, list[str]] = {}
    for name, answer in marked_answers(text, answer_format):
        readings.setdefault(name, []).append(answer)
    return {name: _different(answers) if name in _PARTS else answers[-1:] for name, answers in readings.items()}


def _different(answers: list[str]) -> list[str]:
    found = list({normalized_answer(answer): answer for answer in reversed(answers)}.values())
    if len(found) <= _MAX_ANSWERS:
        answers, found = found, []
        for answer in answers:
            if not any(same_answer(answer, other) for other in found):
                found.append(answer)
    return found[::-1]


def _same_answers(first: list[str], second: list[str]) -> bool:
    if len(first) != len(second):
        return False
    if len(first) > _MAX_ANSWERS:
        return [normalized_answer(answer) for answer in first] == [normalized_answer(answer) for answer in second]
    return all(same_answer(*pair) for pair in zip(first, second, strict=True))


def same_answer(first: str, second: str) -> bool:
    r"""Whether two answers are the same: as texts, or mathematically, where math-verify is installed.

    As texts they may differ in what says nothing: dollar signs, a box around the whole answer, blanks beside signs, a
    full stop at the end, `\dfrac` for `\frac`, and thousands separators where the whole answer is one number.

    As mathematics, where both are short, numbers and fractions are compared exactly, tuples and lists part by part in
    their order, and expressions of numbers, variables of one letter, roots and powers by math-verify. Everything else,
    such as words, units, percentages (`50%` is not `0.5`), times, bases, relations and very large powers, is compared
    as text: math-verify takes some that differ for the same, or would work on them for ever. So are, outside of the
    main thread, all expressions but numbers and fractions, since its time limit works in the main thread alone.
    """
    first, second = normalized_answer(first), normalized_answer(second)
    if not first or not second:
        return False
    if first == second or not has_math_verify():
        return first == second
    # What is longer could be nested more deeply than Python can follow.
    return max(len(first), len(second)) <= 2 * _MAX_EXPRESSION and _same_mathematics(first, second)


def normalized_answer(answer: str) -> str:
    """The text of an answer without what says nothing, see [`same_answer`]."""
    # "{,}" is the comma that TeX sets without a gap behind it.
    answer = re.sub(r"\\[!,;:]|~|\\(?:left|right)(?![A-Za-z])", " ", answer.replace("{,}", ","))
    answer = answer.replace("\\$", " ").replace("$", " ").replace("\\%", "%").replace("−", "-")
    answer = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", answer)
    answer = " ".join(answer.split()).strip("*").rstrip(".").strip()
    inner = re.fullmatch(r"\\(?:f?box(?:ed)?|text|mathrm|textbf)\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}", answer)
    if inner:
        answer = inner[1].strip().rstrip(".").strip()
    if _WITH_COMMAS.fullmatch(answer):
        answer = answer.replace(",", "")
    return re.sub(r"(?<![\w.]) | (?![\w.])", "", answer)


def _parts(answer: str) -> list[str] | None:
    """The brackets of a tuple or list, and its parts; `None` where it is none."""
    brackets = ["", ""]
    if answer[0] in _BRACKETS and answer[-1] in ")]}":
        brackets, answer = [answer[0], answer[-1]], answer[1:-1]
    parts, depth = [""], 0
    for character in answer:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return None
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [*brackets, *parts] if depth == 0 and len(parts) > 1 and all(parts) else None


def _number(text: str) -> Fraction | None:
    if _NUMBER.fullmatch(text):
        return Fraction(text)
    match = _FRACTION.fullmatch(text)
    if match is None:
        return None
    above, below = (int(digits) for digits in match.groups()[1:] if digits is not None)
    return None if below == 0 else Fraction(-above if match[1] == "-" else above, below)


def _same_mathematics(first: str, second: str) -> bool:
    texts = first, second
    names = [re.match(r"([A-Za-z])=", text) for text in texts]
    if bool(names[0]) != bool(names[1]):  # "x=3" is 3, but not "y=3"
        return same_answer(*(text[2:] if name else text for text, name in zip(texts, names, strict=True)))
    parts = [_parts(text) for text in texts]
    if any(parts):
        if not all(parts) or len(parts[0]) != len(parts[1]) or parts[0][:2] != parts[1][:2]:
            return False
        return all(same_answer(*pair) for pair in zip(parts[0][2:], parts[1][2:], strict=True))
    numbers = [_number(text) for text in texts]
    if None not in numbers:
        return numbers[0] == numbers[1]
    if threading.current_thread() is not threading.main_thread() or not all(_is_tractable(text) for text in texts):
        return False
    if len({frozenset(_VARIABLE.findall(text)) for text in texts}) > 1:  # to math-verify "A" is "a"
        return False
    import math_verify

    parsed = [math_verify.parse(f"\\boxed{{{text}}}", parsing_timeout=_MATH_TIMEOUT) for text in texts]
    return all(parsed) and math_verify.verify(*parsed, float_rounding=12, timeout_seconds=_MATH_TIMEOUT)


def _is_tractable(text: str) -> bool:
    """Whether this is an expression of the kind that math-verify compares reliably and soon."""
    if len(text) > _MAX_EXPRESSION or not _EXPRESSION.fullmatch(text):
        return False
    return powers_are_small(text, _MAX_EXPONENT)


def powers_are_small(text: str, limit: int) -> bool:
    """Whether no exponent of an expression has a power in it, and the product of the numbers in exponents is at most
    `limit`."""
    exponents = []
    for power in re.finditer(r"\^", text):
        end, depth = power.end(), 0
        while end < len(text):
            depth += (text[end] == "{") - (text[end] == "}")
            end += 1
            if depth <= 0:
                break
        exponents.append(text[power.end() : end])
    # Towers grow beyond all bounds, and so do powers of powers.
    if any("^" in exponent for exponent in exponents):
        return False
    return math.prod(max(1, int(number)) for number in re.findall("[0-9]+", " ".join(exponents))) <= limit
