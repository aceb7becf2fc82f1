# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Mathematics: published datasets in the shape that the trainers take."""

import re

from datasets import Dataset


INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def map_gsm8k(rows: Dataset) -> Dataset:
    """Map rows of openai/gsm8k to conversational prompts with a verifiable answer.

    Args:
        rows (`Dataset`):
            Columns `question` and `answer`, the latter ending in `#### <number>`.

    Returns:
        `Dataset`: `prompt` (one user message, the question and the field's instruction to box the answer) and
        `solution` (the final number, thousands separators removed), as `trl.rewards.accuracy_reward` reads it.

    Raises:
        ValueError: an answer has no `####` line with a number.
    """

    def convert(row: dict[str, str], index: int) -> dict:
        match = re.search(r"####\s*(-?[\d,]*\.?\d+)\s*$", row["answer"].strip())
        if match is None:
            raise ValueError(
                f"answer of row {index} does not end in '#### <number>': {row['answer'][-40:]!r}. Pass the rows of "
                "openai/gsm8k as they are."
            )
        return {
            "prompt": [{"role": "user", "content": f"{row['question'].strip()}\n{INSTRUCTION}"}],
            "solution": match.group(1).replace(",", ""),
        }

    return rows.map(convert, with_indices=True, remove_columns=rows.column_names)
