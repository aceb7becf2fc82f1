# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Where the final answer stands in a text."""

import re
from collections.abc import Callable


# What closes an answer, or the end of a text that was cut there.
_TAGS = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"####\s*(.*)")  # GSM8K: "#### 42"
_PHRASE = re.compile(r"\banswer(?:\s+is\b|\s*[:=])\s*[:=]?\s*(.*)", re.IGNORECASE)  # MetaMathQA: "The answer is: 42"
_BOX = re.compile(r"\\f?box(?:ed)?\s*(\{|\S)")
_TO_THE_END = ("hashes", "phrase")
_TOKEN = re.compile(r"\\[A-Za-z]+|\S")
_BRACE = re.compile(r"[{}]")
_INK = re.compile(r"\S")
_TAG_END = re.compile(r"</answer>.*", re.DOTALL | re.IGNORECASE)

Span = tuple[int, int]
# Where the mark begins, and begin and end of the answer.
_Mark = tuple[int, int, int]


def _groups(pattern: re.Pattern) -> Callable[[str], list[_Mark]]:
    return lambda text: [(match.start(), *match.span(1)) for match in pattern.finditer(text)]


def _boxes(text: str) -> list[_Mark]:
    # One pass over all braces: counting from every box on would take quadratic time where none is closed.
    closing, open_braces = {}, []
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            open_braces.append(brace.start())
        elif open_braces:
            closing[open_braces.pop()] = brace.start()
    marks = []
    for match in _BOX.finditer(text):
        begin = match.start(1)
        if match[1] == "{":
            marks.append((match.start(), begin + 1, closing.get(begin, len(text))))
        else:  # TeX takes one token: "\boxed 5", "\boxed\pi"
            marks.append((match.start(), begin, _TOKEN.match(text, begin).end()))
    return marks


def closed_boxes(text: str) -> list[str]:
    """What each `\\boxed{…}` of a text holds whose brace closes, in their order; without blanks around it."""
    # A box that does not close ends where the text does, which no closing brace is at.
    return [
        text[begin:end].strip()
        for _, begin, end in _boxes(text)
        if begin > 0 and text[begin - 1] == "{" and text[end : end + 1] == "}"
    ]


def last_box(text: str) -> str | None:
    """What the last `\\boxed{…}` of a text holds, as it is; `None` without one, or when its brace does not close."""
    _, box, content = text.rpartition(r"\boxed{")
    depth = 1
    for position, character in enumerate(content if box else ""):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return content[:position]
    return None


def last_tag(text: str) -> str | None:
    """What the last complete `<answer>…</answer>` of a text holds, as it is; `None` without one."""
    before, end, _ = text.rpartition("</answer>")
    _, start, content = before.rpartition("<answer>")
    return content if start and end else None


_FINDERS = {"boxed": _boxes, "tags": _groups(_TAGS), "hashes": _groups(_HASHES), "phrase": _groups(_PHRASE)}
ANSWER_FORMATS = ("auto", *_FINDERS)


def _marks(text: str) -> list[tuple[_Mark, str]]:
    """All marks that have an answer, with their formats, in the order of the text."""
    found = [(mark, name) for name, finder in _FINDERS.items() for mark in finder(text)]
    return sorted((mark, name) for mark, name in found if _INK.search(text, mark[1], mark[2]))


def _check_format(answer_format: str):
    if answer_format not in ANSWER_FORMATS:
        raise ValueError(f"answer_format={answer_format!r} must be one of {', '.join(ANSWER_FORMATS)}.")


def answer_spans(text: str, answer_format: str = "auto") -> list[Span]:
    r"""
    Every place that a text marks as its final answer, for hiding it.

    Args:
        text (`str`):
            A solution.
        answer_format (`str`, *optional*, defaults to `"auto"`):
            `"boxed"`: inside `\boxed{…}` or `\fbox{…}`; `"tags"`: between `<answer>` and `</answer>`; `"hashes"`: from
            `####` to the end of the text; `"phrase"`: from "answer is", or "Answer:", to the end of the text, since an
            answer may take several lines. `"auto"`: all of these. What is not closed reaches to the end of the text.

    Returns:
        `list[tuple[int, int]]`: begin and end of each answer, in characters, sorted and disjoint, none of them blank.

    Raises:
        `ValueError`: an unknown format.
    """
    _check_format(answer_format)
    found = []
    for (_, begin, end), name in _marks(text):
        if answer_format in ("auto", name):
            found.append((begin, len(text) if name in _TO_THE_END else end))
    merged: list[Span] = []
    for begin, end in sorted(found):
        if merged and begin <= merged[-1][1]:
            begin, end = merged[-1][0], max(end, merged.pop()[1])
        merged.append((begin, end))
    return merged


def marked_answers(text: str, answer_format: str = "auto") -> list[tuple[str, str]]:
    r"""
    What a text marks as its answer, for reading it.

    Unlike [`answer_spans`], which rather hides too much, this tells answers from what merely looks like one:

    - Of a mark inside another one, as in `The answer is: \boxed{5}`, the inner one counts alone.
    - `####` is an answer only at the end of a text, where nothing but other marks follow on the lines behind it;
      elsewhere it is a heading.
    - Of `"hashes"` and `"phrase"` the answer is the rest of the line, or, where that is blank, the next one.

    Arguments and errors are those of [`answer_spans`].

    Returns:
        `list[tuple[str, str]]`: format and answer, without blanks around it, in the order of the text.
    """
    _check_format(answer_format)
    marks = _marks(text)
    tail = _tail(text, [mark for mark, _ in marks])
    marks = [
        (mark, name)
        for place, (mark, name) in enumerate(marks)
        if answer_format in ("auto", name) and (name != "hashes" or place >= tail)
    ]
    answers = []
    for ((_, begin, end), name), following in zip(marks, [*marks[1:], None], strict=False):
        if following is None or following[0][0] >= end:
            answer = text[begin:end].strip()
            answers.append((name, _TAG_END.sub("", answer).strip() if name in _TO_THE_END else answer))
    return [(name, answer) for name, answer in answers if answer]


def _tail(text: str, marks: list[_Mark]) -> int:
    """From which mark on a text has nothing but lines with marks."""
    following = len(text)
    for place in reversed(range(len(marks))):
        mark, _, end = marks[place]
        # The lines between: behind the mark's own, and before that of the next mark.
        first = text.find("\n", end, following)
        last = text.rfind("\n", end, following) if following < len(text) else following
        if first >= 0 and _INK.search(text, first, last):
            return place + 1
        following = mark
    return 0


def final_answer(text: str, answer_format: str = "auto") -> str | None:
    """
    The final answer of a text: the one of [`marked_answers`] that stands last, whatever its format.

    Arguments and errors are those of [`answer_spans`].

    Returns:
        `str`, without blanks around it; `None` where no answer is found.
    """
    answers = marked_answers(text, answer_format)
    return answers[-1][1] if answers else None
