# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

import itertools
import json
from pathlib import Path

import pytest
from slow_countdown import slow_reachable

from trl_diffusion.tasks import (
    COUNTDOWN_ALPHABET,
    TINY_COUNTDOWN,
    TINY_COUNTDOWN_CANVAS,
    CountdownMetric,
    countdown_dataset,
    countdown_pretraining_dataset,
    countdown_reward,
    countdown_solve_rate,
    extract_expression,
    is_held_out,
    read_countdown_jsonl,
    subtract_all,
)


SHARED = Path(__file__).parents[1] / ".." / "shared"
D1_FILE = SHARED / "data" / "countdown_cd3_test.jsonl"
D1_SCORES = SHARED / "reference" / "scorers" / "d1_countdown.jsonl"


# Datasets


def multisets(dataset):
    return {tuple(sorted(numbers)) for numbers in dataset["numbers"]}


def check_rows(dataset, num_numbers, number_range, target_range, operators):
    for row in dataset:
        assert num_numbers[0] <= len(row["numbers"]) <= num_numbers[1]
        assert all(number_range[0] <= number <= number_range[1] for number in row["numbers"])
        assert target_range[0] <= row["target"] <= target_range[1]
        assert row["prompt"] == ",".join(map(str, row["numbers"])) + f"={row['target']}:"
        assert row["target"] in slow_reachable(row["numbers"], operators)
        assert countdown_reward([row["solution"]], [row["numbers"]], [row["target"]]) == [1.0]


@pytest.mark.parametrize("split", ["train", "test"])
def test_problems_have_a_solution_and_do_not_repeat(split):
    dataset = countdown_dataset(split, 60)
    assert dataset.column_names == ["prompt", "numbers", "target", "solution"]
    check_rows(dataset, (3, 4), (1, 100), (1, 100), "+-*/")
    assert {len(numbers) for numbers in dataset["numbers"]} == {3, 4}
    problems = {(tuple(sorted(row["numbers"])), row["target"]) for row in dataset}
    assert len(problems) == len(dataset) == 60


def test_tiny_problems_fit_the_tiny_canvas_and_alphabet():
    for split in ("train", "test"):
        dataset = countdown_dataset(split, 250, **TINY_COUNTDOWN)
        check_rows(dataset, **TINY_COUNTDOWN)
        assert len({(tuple(sorted(row["numbers"])), row["target"]) for row in dataset}) == 250
        for row in dataset:
            assert len(row["solution"]) < TINY_COUNTDOWN_CANVAS
            assert set(row["prompt"] + row["solution"]) <= set(COUNTDOWN_ALPHABET)


def test_splits_share_no_multiset_whatever_the_seed_and_the_ranges():
    train, test = set(), set()
    for seed in range(3):
        for kwargs in (TINY_COUNTDOWN, {"num_numbers": (3, 3)}):
            train |= multisets(countdown_dataset("train", 300, **kwargs, seed=seed))
            test |= multisets(countdown_dataset("test", 300, **kwargs, seed=seed))
    assert train and test and not train & test
    assert all(map(is_held_out, test)) and not any(map(is_held_out, train))
    for numbers in itertools.islice(test, 20):
        assert all(map(is_held_out, itertools.permutations(numbers)))


def test_the_split_is_that_of_the_checkpoint():
    """Another one would test the shipped checkpoint on what it was trained on."""
    held_out = [numbers for numbers in itertools.combinations_with_replacement(range(1, 6), 3) if is_held_out(numbers)]
    assert held_out == [(1, 1, 1), (1, 2, 3), (1, 4, 4), (1, 5, 5), (2, 4, 5), (3, 3, 3), (3, 4, 5), (4, 5, 5)]


def test_a_fifth_of_the_multisets_is_held_out():
    held_out = [is_held_out(m) for m in itertools.combinations_with_replacement(range(1, 31), 3)]
    assert sum(held_out) / len(held_out) == pytest.approx(0.2, abs=0.03)


def test_dataset_depends_on_the_seed_alone():
    first, same, other = (countdown_dataset("train", 50, **TINY_COUNTDOWN, seed=seed)[:] for seed in (0, 0, 1))
    assert first == same != other


def test_dataset_repeats_problems_only_when_there_are_no_others():
    few = {"num_numbers": (2, 2), "number_range": (1, 5), "target_range": (1, 3), "operators": "+-"}
    rows = countdown_dataset("train", 60, **few)
    problems = [(tuple(sorted(row["numbers"])), row["target"]) for row in rows]
    distinct = len(set(problems))
    assert len(rows) == 60 and len(set(problems[:distinct])) == distinct < 30


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"split": "dev"}, "split"),
        ({"num_problems": 0}, "num_problems"),
        ({"num_numbers": (1, 3)}, "num_numbers"),
        ({"num_numbers": (4, 3)}, "num_numbers"),
        ({"num_numbers": (3, 5)}, "num_numbers"),
        ({"number_range": (-1, 3)}, "number_range"),
        ({"number_range": (9, 3)}, "number_range"),
        ({"target_range": (-1, 3)}, "target_range"),
        ({"operators": "+^"}, "operators"),
        ({"num_numbers": (3, 3), "number_range": (1, 2), "target_range": (900, 999)}, "target_range"),
    ],
)
def test_dataset_bad_arguments_raise(arguments, name):
    with pytest.raises(ValueError, match=f"{name}="):
        countdown_dataset(**{"split": "train", "num_problems": 5, **arguments})


def test_pretraining_completions_are_a_solution_or_the_difference():
    rows = countdown_pretraining_dataset(500)
    for row in rows:
        given, target = row["prompt"].rstrip(":").split("=")
        numbers = [int(number) for number in given.split(",")]
        assert not is_held_out(numbers)
        if row["correct"]:
            assert countdown_reward([row["completion"]], [numbers], [int(target)]) == [1.0]
        else:
            assert row["completion"] == subtract_all(numbers) == given.replace(",", "-")
    given = [[int(number) for number in row["prompt"].split("=")[0].split(",")] for row in rows]
    assert sum(numbers != sorted(numbers) for numbers in given) > 300  # in any order
    # 0.4 +- 0.09 is four standard errors of 500 draws.
    assert sum(rows["correct"]) / 500 == pytest.approx(0.4, abs=0.09)


def test_pretraining_depends_on_the_seed_alone():
    first, same, other = (countdown_pretraining_dataset(50, seed=seed).to_dict() for seed in (0, 0, 1))
    assert first == same != other


@pytest.mark.parametrize(("arguments", "name"), [((0,), "num_examples"), ((10, 1.5), "correct_fraction")])
def test_pretraining_bad_arguments_raise(arguments, name):
    with pytest.raises(ValueError, match=f"{name}="):
        countdown_pretraining_dataset(*arguments)


def test_read_jsonl_gives_the_generated_columns(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text('{"input": "30,100,93", "output": "23"}\n{"input": "1,1", "output": "7"}\n')
    assert list(read_countdown_jsonl(path)) == [
        {"prompt": "30,100,93=23:", "numbers": [30, 100, 93], "target": 23, "solution": "30+93-100"},
        {"prompt": "1,1=7:", "numbers": [1, 1], "target": 7, "solution": None},
    ]


GOOD = '{"input": "30,100,93", "output": "23"}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        (f"{GOOD}\noops\n", "row 2: "),
        (f"{GOOD}\n\n{GOOD}\n", "row 2: "),
        ("[" * 100_000, "row 1: "),
        ("[1]\n", "row 1: .*object"),
        ('{"input": "1,2"}\n', "row 1: .*`output`"),
        ('{"input": "1", "output": "1"}\n', "row 1: input='1'"),
        ('{"input": "1,2,3,4,5", "output": "1"}\n', "row 1: input="),
        ('{"input": "1, 2", "output": "1"}\n', "row 1: input="),
        ('{"input": "1,-2", "output": "1"}\n', "row 1: input="),
        ('{"input": [1, 2], "output": "1"}\n', "row 1: input="),
        ('{"input": "1,2", "output": 3}\n', "row 1: output=3"),
        ('{"input": "1,2", "output": "x"}\n', "row 1: output='x'"),
        ('{"input": "1,2", "output": "' + "9" * 10 + '"}\n', "row 1: output="),
    ],
)
def test_read_jsonl_names_file_and_row_of_a_fault(tmp_path, text, message):
    path = tmp_path / "problems.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"problems.jsonl.*{message}"):
        read_countdown_jsonl(path)


@pytest.mark.skipif(not D1_FILE.exists(), reason=f"the d1 test file is not at {D1_FILE}: its reading is NOT tested")
def test_read_jsonl_reads_the_d1_file():
    dataset = read_countdown_jsonl(D1_FILE)
    assert len(dataset) == 256
    for row in dataset:
        assert row["target"] in slow_reachable(row["numbers"])
        assert countdown_reward([row["solution"]], [row["numbers"]], [row["target"]]) == [1.0]


# Scoring


@pytest.mark.skipif(not D1_SCORES.exists(), reason=f"no d1 verdicts at {D1_SCORES}: they are NOT reproduced")
def test_verdicts_are_d1s():
    rows = [json.loads(line) for line in D1_SCORES.read_text().splitlines()]
    assert rows
    for row in rows:
        numbers, target = row["ground_truth"]
        solved = countdown_solve_rate([row["generation"]], [numbers], [target])
        assert (solved, extract_expression(row["generation"])) == (row["score"], row["parsed"]), row["question"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3*5+8", "3*5+8"),
        ("so \\boxed{1+2} or \\boxed{ 3*5+8 }.", "3*5+8"),
        ("\\boxed{3*{5}+8}", "3*{5}+8"),
        ("\\boxed{}<answer>1+2</answer>", ""),
        ("<answer>1+2</answer> \\boxed{3+4", "1+2"),
        ("<answer>1</answer> <answer>\n1+2\n</answer>", "1+2"),
        ("<answer>3+4", "<answer>3+4"),
        ("<answer>\\boxed{3+4}</answer>", "3+4"),
        ("\\boxed{3 \\times 5 \\cdot 2 \\div 6}", "3 * 5 * 2 / 6"),
        ("3×5·2÷6−1", "3*5*2/6-1"),
        ("\\boxed{3*5+8 = 23}", "3*5+8"),
        ("\\boxed{3*5+8=x}", "3*5+8=x"),
        ("first 87 - 88 = -1, then 4 + 1 = 5", "87 - 88"),
        ("x = 5, 4 + 1 = 5", ""),
        ("= 5, 4 + 1 = 5", "4 + 1"),
        ("a=b, 4 + 1 = 5", "4 + 1"),
        ("nothing", "nothing"),
        ("", ""),
    ],
)
def test_extract_expression(text, expected):
    assert extract_expression(text) == expected


def reward(completion, numbers=(3, 5, 8), target=23):
    # The call of a trainer: keywords, with columns that the function does not use.
    (value,) = countdown_reward(
        prompts=["3,5,8=23:"],
        completions=[completion],
        completion_ids=[[3]],
        numbers=[list(numbers)],
        target=[target],
        solution=[None],
    )
    return value


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("3*5+8", 1.0),
        (" 8 + (5*3) ", 1.0),
        ("8+5×3 = 23", 1.0),
        ("<answer>8+5*3</answer>", 1.0),
        ("I get \\boxed{8 + 5 \\times 3} with certainty", 1.0),
        ("3+5+8", 0.1),  # another value
        ("23", 0.1),  # no number given
        ("3*5+8+0", 0.1),  # a number too many
        ("3*5+4+4", 0.1),
        ("15+8", 0.1),  # the digits, not the numbers
        ("3*5+8/1*1", 0.1),
        ("3*5+8/(5-5)", 0.1),
        ("3/(5-5)", 0.1),
        ("-3*5+8", 0.0),  # signs are not read
        ("3*5+8.0", 0.0),
        ("3*5+8!", 0.0),
        ("3*5+", 0.0),
        ("", 0.0),
        ("I do not know", 0.0),
        ("\\boxed{}", 0.0),
        ([{"role": "assistant", "content": "3*5+8"}], 1.0),
        ([{"role": "user", "content": "?"}, {"role": "assistant", "content": "3+5+8"}], 0.1),
    ],
)
def test_reward_by_hand(completion, expected):
    assert reward(completion) == expected
    assert isinstance(reward(completion), float)


def test_repeated_numbers_must_be_used_as_often():
    assert reward("3*(3+5)", numbers=(3, 3, 5), target=24) == 1.0
    assert reward("3*(5+3)", numbers=(3, 5), target=24) == 0.1


def test_values_are_exact_up_to_the_protocols_tolerance():
    assert reward("1/3+1/3+1/3", numbers=(1, 3, 1, 3, 1, 3), target=1) == 1.0
    # 1e-5 itself is too far, a little less is not.
    assert reward("1+1/100000", numbers=(1, 1, 100000), target=1) == 0.1
    assert reward("1+1/100001", numbers=(1, 1, 100001), target=1) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["1+2"] * 2, [[1, 2]], [3]), "2 completions, 1 lists"),
        ((["1+2"], [[1, 2]], []), "0 targets"),
        ((["1+2"], ["1,2"], [3]), "numbers="),
        ((["1+2"], [[]], [3]), "numbers="),
        ((["1+2"], [[1, "2"]], [3]), "numbers="),
        ((["1+2"], [[1, 2]], ["3"]), "target="),
        (([None], [[1, 2]], [3]), "completions"),
        (([[{"role": "assistant"}]], [[1, 2]], [3]), "completions"),
    ],
)
def test_scores_refuse_bad_input(arguments, message):
    for function in (countdown_reward, countdown_solve_rate):
        with pytest.raises(ValueError, match=message):
            function(*arguments)


def test_solve_rate_counts_right_ones_and_refuses_nothing():
    assert countdown_solve_rate(["1+2", "2", "x", "2+1"], [[1, 2]] * 4, [3] * 4) == 0.5
    with pytest.raises(ValueError, match="completions="):
        countdown_solve_rate([], [], [])


def test_metric_over_batches_equals_the_function():
    metric = CountdownMetric()
    for text in ("1+2", "2"):
        metric.add_batch(predictions=[text], references=[3], numbers=[[1, 2]])
    assert metric.compute() == {"solve_rate": 0.5}
    assert metric.compute(predictions=["2+1"], references=[3], numbers=[[1, 2]]) == {"solve_rate": 1.0}
