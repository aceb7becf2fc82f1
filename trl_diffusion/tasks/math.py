# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Mathematics: published datasets in the shape that the trainers take."""

import re

from datasets import Dataset

from .answers import last_box


INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."

_GSM8K_ANSWER = re.compile(r"####\s*(-?\$?|\$-)([0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)[.,]?\s*$")
# What a calculator wrote into GSM8K's answers: "48/2 = <<48/2=24>>24".
_ANNOTATION = re.compile(r"<<[^<>]*>>")
_METAMATH_MARK = "The answer is:"
# MetaMathQA says the answers of GSM8K's questions twice.
_HASHES_AT_THE_END = re.compile(r"\s*####[^\n]*\Z")
_BOXED = re.compile(r"\\boxed\s*\{(.*)\}", re.DOTALL)


def _prompt(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{question.strip()}\n{INSTRUCTION}"}]


def _trace(steps: str, answer: str) -> str:
    """A trace that does what the prompt asks for."""
    return f"{steps.rstrip()}\n{_METAMATH_MARK} \\boxed{{{answer}}}".lstrip()


def _check_columns(rows: Dataset, names: tuple[str, ...], source: str):
    missing = [name for name in names if name not in rows.column_names]
    if missing:
        raise ValueError(
            f"rows have no {' and no '.join(map(repr, missing))}, only {', '.join(rows.column_names)}: pass the rows "
            f"of {source} as they are."
        )


def map_gsm8k(rows: Dataset) -> Dataset:
    r"""Map rows of openai/gsm8k to conversational prompts with a verifiable answer and a reasoning trace.

    Args:
        rows (`Dataset`):
            Columns `question` and `answer`, the latter ending in `#### <number>`.

    Returns:
        `Dataset`: `prompt` (one user message, the question and the field's instruction to box the answer), `solution`
        (the final number, without thousands separators, a dollar sign and a full stop), as
        `trl.rewards.accuracy_reward` reads it, and `reasoning` (the answer without the calculator's annotations, and
        with `The answer is: \boxed{<number>}` in the place of `#### <number>`, as the prompt asks).

    Raises:
        ValueError: a column is missing, or an answer has no `####` line with a number.
    """
    _check_columns(rows, ("question", "answer"), "openai/gsm8k")

    def convert(row: dict[str, str], index: int) -> dict:
        answer = str(row["answer"]).strip()
        match = _GSM8K_ANSWER.search(answer)
        if match is None:
            raise ValueError(
                f"answer of row {index} does not end in '#### <number>': {answer[-40:]!r}. Pass the rows of "
                "openai/gsm8k as they are."
            )
        number = match[1].replace("$", "") + match[2].replace(",", "")
        return {
            "prompt": _prompt(row["question"]),
            "solution": number,
            "reasoning": _trace(_ANNOTATION.sub("", answer[: match.start()]), number),
        }

    return rows.map(convert, with_indices=True, remove_columns=rows.column_names)


def map_math(rows: Dataset) -> Dataset:
    r"""Map rows of MATH, such as HuggingFaceH4/MATH-500, to conversational prompts with a verifiable answer.

    Args:
        rows (`Dataset`):
            Columns `problem`, and `answer` or, without one, `solution`, whose last `\boxed{…}` is the answer.

    Returns:
        `Dataset`: `prompt` as of [`map_gsm8k`], and `solution`, the answer as `\boxed{…}`; `reasoning`, the whole
        solution, where the rows have one.

    Raises:
        ValueError: a column is missing, or a row has no answer.
    """
    has_answer = "answer" in rows.column_names
    _check_columns(rows, ("problem", "answer" if has_answer else "solution"), "HuggingFaceH4/MATH-500")

    def convert(row: dict[str, str], index: int) -> dict:
        answer = row["answer"] if has_answer else last_box(row["solution"])
        if isinstance(answer, int | float):  # files of AIME have numbers
            answer = f"{answer:.15g}"
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(f"row {index} has no answer: {str(row)[:80]}. Leave it out.")
        trace = {"reasoning": row["solution"].strip()} if isinstance(row.get("solution"), str) else {}
        return {"prompt": _prompt(row["problem"]), "solution": f"\\boxed{{{answer.strip()}}}", **trace}

    return rows.map(convert, with_indices=True, remove_columns=rows.column_names)


def map_metamathqa(rows: Dataset) -> Dataset:
    r"""Map rows of meta-math/MetaMathQA to conversational prompts with a verifiable answer and a reasoning trace.

    Args:
        rows (`Dataset`):
            Columns `query` and `response`, the latter ending in `The answer is: <answer>`, and `type` (`GSM_…` or
            `MATH_…`). Other columns are dropped.

    Returns:
        `Dataset`: `prompt` as of [`map_gsm8k`], `solution` (the answer as `\boxed{…}`: `trl.rewards.accuracy_reward`
        skips most answers that are neither numbers nor marked as mathematics, such as `\sqrt{3}`), `reasoning` (the
        response up to its answer, which is given once, as `The answer is: \boxed{…}`) and `type`.

    Raises:
        ValueError: a column is missing, or a response has no `The answer is:` with an answer behind it, or one that
            no box can hold.
    """
    _check_columns(rows, ("query", "response", "type"), "meta-math/MetaMathQA")

    def convert(row: dict[str, str], index: int) -> dict:
        response = row["response"].strip()
        steps, mark, answer = response.rpartition(_METAMATH_MARK)
        answer = _bare(answer)
        if not mark or not answer:
            raise ValueError(
                f"response of row {index} does not end in '{_METAMATH_MARK} <answer>': {response[-40:]!r}. Pass the "
                "rows of meta-math/MetaMathQA as they are, without those that have no answer."
            )
        if not _is_balanced(answer):
            raise ValueError(
                f"response of row {index} has an answer with unmatched braces: {answer[:80]!r}. Leave the row out."
            )
        return {
            "prompt": _prompt(row["query"]),
            "solution": f"\\boxed{{{answer}}}",
            "reasoning": _trace(_HASHES_AT_THE_END.sub("", steps.rstrip()), answer),
            "type": row["type"],
        }

    return rows.map(convert, with_indices=True, remove_columns=[name for name in rows.column_names if name != "type"])


def _bare(answer: str) -> str:
    """An answer as a box takes it: the first line (a matrix may take several), without a full stop, `$` and a box."""
    answer = answer.strip()
    lines = answer.splitlines()
    for count in range(1, len(lines) + 1):
        first = "\n".join(lines[:count])
        if _is_balanced(first) and first.count("\\begin{") <= first.count("\\end{"):
            answer = first.strip()
            break
    answer = answer.removesuffix(".").rstrip()
    # The box is mathematics already.
    if len(answer) > 2 and answer[0] == answer[-1] == "$" and answer.count("$") == 2:
        answer = answer[1:-1].strip().removesuffix(".").rstrip()
    boxed = _BOXED.fullmatch(answer)
    return boxed[1].strip() if boxed and _is_balanced(boxed[1]) else answer


def _is_balanced(text: str) -> bool:
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0
