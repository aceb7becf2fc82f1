# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Published datasets of mathematics, on rows written by hand in their form."""

import pytest
from datasets import Dataset, DatasetDict
from trl.rewards import accuracy_reward

from trl_diffusion.scripts import local_data, tasks
from trl_diffusion.tasks.answers import answer_spans, final_answer
from trl_diffusion.tasks.math import INSTRUCTION, map_gsm8k, map_metamathqa


GSM8K = Dataset.from_dict(
    {
        "question": ["Ann had 48 pens and gave half of them away, then bought 1,200. How many has she? ", "2 - 7?"],
        "answer": [
            "She gave away 48/2 = <<48/2=24>>24 pens.\nNow she has 24+1200 = <<24+1200=1224>>1,224.\n#### 1,224",
            "It is negative.\n#### -5",
        ],
    }
)

METAMATH = Dataset.from_dict(
    {
        "type": ["GSM_Rephrased", "MATH_AnsAug", "MATH_FOBAR", "GSM_SV", "MATH_Rephrased"],
        "query": ["How many pens?\n", "Solve $x^2 = 3$ for $x > 0$.", "What is X?", "What is x?", "Which fraction?"],
        "original_question": ["?"] * 5,
        "response": [
            "She has 24 + 1200 = 1224 pens.\n#### 1224\nThe answer is: 1224",
            "Thus $x = \\boxed{\\sqrt{3}}$.\nThe answer is: \\sqrt{3}",
            "The answer is: 4, one may think. It is 5.\nThe answer is: 5",
            "So x is twelve thousand.\n#### 12,000\nThe answer is: 12,000",
            "The answer is: $\\frac{1}{2}$\n",
        ],
    }
)


def test_gsm8k_rows_bring_their_trace_without_the_calculator():
    rows = map_gsm8k(GSM8K)
    assert rows.column_names == ["prompt", "solution", "reasoning"]
    assert rows[0]["reasoning"] == (
        "She gave away 48/2 = 24 pens.\nNow she has 24+1200 = 1,224.\nThe answer is: \\boxed{1224}"
    )
    assert rows["solution"][:] == ["1224", "-5"]
    for row, answer in zip(rows, ("1224", "-5"), strict=True):
        ((begin, end),) = answer_spans(row["reasoning"])
        assert row["reasoning"][begin:end] == f"\\boxed{{{answer}}}" and end == len(row["reasoning"])


def test_metamathqa_rows_become_prompts_with_a_trace():
    rows = map_metamathqa(METAMATH)
    assert sorted(rows.column_names) == ["prompt", "reasoning", "solution", "type"]
    assert rows[0]["prompt"] == [{"role": "user", "content": f"How many pens?\n{INSTRUCTION}"}]
    assert rows["type"][:] == METAMATH["type"][:]
    assert rows["reasoning"][:4] == [
        "She has 24 + 1200 = 1224 pens.\nThe answer is: \\boxed{1224}",
        "Thus $x = \\boxed{\\sqrt{3}}$.\nThe answer is: \\boxed{\\sqrt{3}}",
        "The answer is: 4, one may think. It is 5.\nThe answer is: \\boxed{5}",
        "So x is twelve thousand.\nThe answer is: \\boxed{12,000}",
    ]
    answers = ["1224", "\\sqrt{3}", "5", "12,000", "\\frac{1}{2}"]
    assert rows["solution"][:] == [f"\\boxed{{{answer}}}" for answer in answers]
    assert all(answer_spans(row["reasoning"]) for row in rows)


@pytest.mark.parametrize(
    "answer",
    [
        "-3",
        "1,200",
        "\\frac{1}{2}",
        "$\\frac{1}{2}$",
        "\\sqrt{3}",
        "x^2+1",
        "(2,3)",
        "\\text{Friday}",
        "50\\%",
        "\\$18",
    ]
    + ["2\\pi", "A", "10:30", "[0,1]", "12^\\circ", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"],
)
def test_the_reward_knows_right_from_wrong_for_answers_of_many_kinds(answer):
    row = {"type": ["MATH_AnsAug"], "query": ["?"], "response": [f"So.\nThe answer is: {answer}"]}
    solution = list(map_metamathqa(Dataset.from_dict(row))["solution"])
    texts = [f"It is $\\boxed{{{answer.strip('$')}}}$.", "It is $\\boxed{7777}$.", "I do not know."]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    assert accuracy_reward(completions, solution * 3) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("rows", [map_gsm8k(GSM8K), map_metamathqa(METAMATH)], ids=["gsm8k", "metamathqa"])
def test_a_trace_is_rewarded_and_its_answer_hidden(rows):
    traces = [[{"role": "assistant", "content": trace}] for trace in rows["reasoning"]]
    assert accuracy_reward(traces, list(rows["solution"])) == [1.0] * len(rows)
    for row in rows:
        begin, end = answer_spans(row["reasoning"])[-1]
        assert end == len(row["reasoning"]) and row["reasoning"][begin:end].endswith("}")
        assert final_answer(row["reasoning"]) == row["solution"].removeprefix("\\boxed{").removesuffix("}")


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("18.", "18"),
        ("$18$.", "18"),
        ("5\n\nNote that x is even.", "5"),
        ("\\boxed{5}", "5"),
        ("$\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("\\begin{pmatrix}\n1\\\\\n2\n\\end{pmatrix}\nDone", "\\begin{pmatrix}\n1\\\\\n2\n\\end{pmatrix}"),
    ],
)
def test_what_stands_around_an_answer_of_metamathqa_is_left_out(response, answer):
    row = {"type": ["GSM_SV"], "query": ["?"], "response": [f"So.\nThe answer is: {response}"]}
    (row,) = map_metamathqa(Dataset.from_dict(row))
    assert row["solution"] == f"\\boxed{{{answer}}}"
    assert row["reasoning"] == f"So.\nThe answer is: \\boxed{{{answer}}}"


@pytest.mark.parametrize(
    ("answer", "number"),
    [("$5", "5"), ("5.", "5"), ("-$5", "-5"), ("$-5", "-5"), ("-1,000.50", "-1000.50"), (".5", ".5"), ("5 ", "5")],
)
def test_what_stands_around_an_answer_of_gsm8k_is_left_out(answer, number):
    (row,) = map_gsm8k(Dataset.from_dict({"question": ["?"], "answer": [f"So.\n#### {answer}"]}))
    assert row["solution"] == number and row["reasoning"] == f"So.\nThe answer is: \\boxed{{{number}}}"


@pytest.mark.parametrize("answer", ["#### 1/2", "#### 5%", "#### five", "####", "#### $", "#### --5"])
def test_a_gsm8k_row_without_a_number_is_named(answer):
    with pytest.raises(ValueError, match="answer of row 1 does not end in '#### <number>'"):
        map_gsm8k(Dataset.from_dict({"question": ["?"] * 2, "answer": ["#### 1", answer]}))


def test_missing_columns_are_named():
    with pytest.raises(ValueError, match="rows have no 'answer', only question, reply: .*openai/gsm8k"):
        map_gsm8k(Dataset.from_dict({"question": ["?"], "reply": ["#### 1"]}))
    with pytest.raises(ValueError, match="rows have no 'query' and no 'type', only response: .*MetaMathQA"):
        map_metamathqa(Dataset.from_dict({"response": ["The answer is: 1"]}))


def test_a_metamathqa_answer_that_no_box_can_hold_is_named():
    with pytest.raises(ValueError, match="response of row 0 has an answer with unmatched braces: 'x}{'"):
        map_metamathqa(Dataset.from_dict({"type": ["GSM"], "query": ["?"], "response": ["The answer is: x}{"]}))


@pytest.mark.parametrize("response", ["So it is 5.", "", "The answer is:", "The answer is: \n", "#### 5"])
def test_a_metamathqa_row_without_its_answer_is_named(response):
    rows = {"type": ["GSM_SV"] * 2, "query": ["?"] * 2, "response": ["The answer is: 1", response]}
    with pytest.raises(ValueError, match="response of row 1 .*The answer is:"):
        map_metamathqa(Dataset.from_dict(rows))


def test_metamathqa_is_tested_on_gsm8k(monkeypatch):
    sources = {
        "openai/gsm8k": DatasetDict(train=GSM8K.select([0]), test=GSM8K.select([1])),
        "meta-math/MetaMathQA": DatasetDict(train=METAMATH),
    }
    monkeypatch.setattr(local_data, "load_dataset", lambda name, config, split: sources[name][split])
    task = tasks.load_rl_task("meta-math/MetaMathQA")
    assert len(task.train_dataset) == 5 and task.train_dataset["reasoning"][2].endswith("The answer is: \\boxed{5}")
    assert task.test_dataset["solution"][:] == ["-5"]
    assert task.hub_dataset == "meta-math/MetaMathQA" and task.reward_funcs == [accuracy_reward]
    assert "reasoning" in tasks.load_rl_task("gsm8k").train_dataset.column_names
