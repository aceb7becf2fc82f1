# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Evaluations side by side: tests of pairs against closed forms and slow enumerations, and the command."""

import itertools
import json
import math
import random

import pytest

from trl_diffusion.evaluation import bootstrap_interval, compare_runs, mcnemar_test, paired_interval, permutation_test
from trl_diffusion.evaluation.run_folder import RunFolder
from trl_diffusion.scripts.cli import main


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (0, 5), (1, 7), (7, 1), (4, 4), (3, 9), (6, 5)])
def test_mcnemar_against_every_outcome_of_the_coins(only_first, only_second):
    count = only_first + only_second
    distance = abs(only_first - only_second)
    outcomes = itertools.product((0, 1), repeat=count)
    as_far = sum(abs(2 * sum(outcome) - count) >= distance for outcome in outcomes)
    assert mcnemar_test(only_first, only_second) == as_far / 2**count


def test_mcnemar_of_known_pairs_and_of_many():
    # 12 and 1 of 21 changed one way and the other in a textbook's example: 1 and 7 disagree.
    assert mcnemar_test(1, 7) == 18 / 256
    assert mcnemar_test(0, 10) == 2 / 2**10
    # In the limit the square of a normal number, with the correction for continuity.
    expected = math.erfc((abs(5000 - 5200) - 1) / math.sqrt(5000 + 5200) / math.sqrt(2))
    assert mcnemar_test(5000, 5200) == pytest.approx(expected, rel=1e-3)
    with pytest.raises(ValueError, match="only_first=-1"):
        mcnemar_test(-1, 2)


def test_the_interval_of_paired_rates():
    # Airway reactions of 21 children before and after a transplantation: 1 and 7 pairs disagree.
    low, high = paired_interval(7, 1, 21)
    assert (round(low, 3), round(high, 3)) == (-0.508, -0.013)
    assert paired_interval(1, 7, 21) == (-high, -low)
    low, high = paired_interval(0, 0, 50)
    assert low == -high and 0 < high < 0.06
    assert paired_interval(0, 3, 3)[1] == 1.0
    for wrong in ((1, 1, 1), (-1, 0, 5), (0, 0, 0)):
        with pytest.raises(ValueError, match="must be parts of num_problems"):
            paired_interval(*wrong)


def test_the_interval_covers_the_difference_as_often_as_it_says():
    rng, covered = random.Random(0), 0
    for _ in range(2000):
        # Right in both with 0.5, in the second alone with 0.2, in the first alone with 0.1.
        draws = [rng.random() for _ in range(60)]
        only_second, only_first = sum(0.5 <= d < 0.7 for d in draws), sum(0.7 <= d < 0.8 for d in draws)
        low, high = paired_interval(only_first, only_second, 60)
        covered += low <= 0.1 <= high
    assert 0.935 < covered / 2000 < 0.975


@pytest.mark.parametrize(
    "differences", [[0.5], [0.1, 0.2, 0.3, -0.1], [1.0, -1.0, 0.25, 0.0, 0.5, 0.5, 0.0], [0.0] * 4]
)
def test_permutations_against_all_signs(differences):
    signs = list(itertools.product((-1, 1), repeat=len(differences)))
    observed = abs(sum(differences))
    as_far = [abs(sum(s * d for s, d in zip(sign, differences, strict=True))) >= observed - 1e-9 for sign in signs]
    assert permutation_test(differences) == pytest.approx(sum(as_far) / len(signs))


def test_permutations_of_many_verdicts_are_mcnemars():
    """With differences of ±1 the two tests are one."""
    differences = [1.0] * 24 + [-1.0] * 10 + [0.0] * 30
    exact = mcnemar_test(10, 24)
    assert permutation_test(differences) == pytest.approx(exact, abs=4 * math.sqrt(exact / 20_000))
    assert permutation_test(differences) == permutation_test(differences)  # seeded
    assert permutation_test([0.3] * 200) == 1 / 20_001


def test_the_bootstrap_is_about_the_mean_and_its_error():
    rng = random.Random(1)
    values = [rng.gauss(0.1, 0.5) for _ in range(400)]
    mean = sum(values) / 400
    error = math.sqrt(sum((value - mean) ** 2 for value in values)) / 400
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(mean - 1.96 * error, abs=0.003) and high == pytest.approx(
        mean + 1.96 * error, abs=0.003
    )
    assert bootstrap_interval([0.25] * 5) == (0.25, 0.25)
    assert bootstrap_interval(values) == (low, high)


# Folders


def write_run(folder, tasks, seeds=(None,), finished=True, columns="aa"):
    """A folder as an evaluation leaves it: `tasks` has for each task a list of (correct, score) for each seed."""
    contents = {
        name: {"num_problems": len(rows[0]), "scorer": name, "columns": {"prompt": columns, "solution": "bb"}}
        for name, rows in tasks.items()
    }
    run = RunFolder(folder, {"seeds": list(seeds)}, contents)
    for name, rows in tasks.items():
        order = [(seed, place) for seed in seeds for place in range(len(rows[0]))]
        verdicts = [verdict for of_seed in rows for verdict in of_seed]
        run.rows(name, order).append(
            [
                {"id": place, "seed": seed, "correct": correct, "score": score}
                for (seed, place), (correct, score) in zip(order, verdicts, strict=True)
            ]
        )
    if finished:
        drawn = [seed for seed in seeds if seed is not None]
        run.write_results({"tasks": {n: {"num_problems": len(rows[0]), "seeds": drawn} for n, rows in tasks.items()}})
    return folder


def verdicts(pattern):
    return [[(character == "1", None) for character in pattern]]


def test_verdicts_are_paired_by_problem(tmp_path):
    first = write_run(tmp_path / "a", {"x": verdicts("1111000000"), "only_a": verdicts("1")})
    second = write_run(tmp_path / "b", {"only_b": verdicts("1"), "x": verdicts("0111111100")})
    (found,) = compare_runs(first, second)
    assert (found.task, found.quantity, found.test, found.num_problems) == ("x", "accuracy", "McNemar", 10)
    assert (found.first, found.second, found.difference) == (0.4, 0.7, pytest.approx(0.3))
    assert found.p_value == mcnemar_test(1, 4) and (found.low, found.high) == paired_interval(1, 4, 10)
    # The other way round, everything is.
    (back,) = compare_runs(second, first)
    assert (back.difference, back.p_value) == (-found.difference, found.p_value)
    assert (back.low, back.high) == (-found.high, -found.low)


def test_scores_and_means_over_seeds_are_permuted(tmp_path):
    rng = random.Random(0)
    rows = [[[(rng.random() < p, rng.random() * p) for _ in range(30)] for _ in range(2)] for p in (0.3, 0.9)]
    first, second = (write_run(tmp_path / n, {"x": r}, seeds=(0, 1)) for n, r in zip("ab", rows, strict=True))
    accuracy, score = compare_runs(first, second)
    for found, place in ((accuracy, 0), (score, 1)):
        means = [[(a[place] + b[place]) / 2 for a, b in zip(*seeds, strict=True)] for seeds in rows]
        differences = [b - a for a, b in zip(*means, strict=True)]
        assert found.test == "permutation" and found.num_problems == 30
        assert found.difference == pytest.approx(sum(differences) / 30)
        assert found.p_value == permutation_test(differences) < 0.01
        assert (found.low, found.high) == bootstrap_interval(differences)
    assert (accuracy.quantity, score.quantity) == ("accuracy", "score")


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    first = write_run(tmp_path / "a", {"x": verdicts("101")})
    for folder, message in (
        (
            write_run(tmp_path / "b", {"x": verdicts("101")}, columns="cc"),
            "x.columns.prompt is 'aa' in the first and 'cc'",
        ),
        (write_run(tmp_path / "c", {"x": verdicts("10")}), "x.num_problems is 3 in the first and 2 in the second"),
        (
            write_run(tmp_path / "d", {"y": verdicts("101")}),
            r"a' \(x\) and '.*d' \(y\) have no finished task in common",
        ),
        (write_run(tmp_path / "e", {"x": verdicts("101")}, finished=False), "e/results.json' is missing or damaged"),
        (tmp_path / "f", "f/results.json' is missing or damaged"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_runs(first, folder)
    (tmp_path / "a" / "x.jsonl").write_text('{"id": 0, "seed": null, "correct": true, "score": null}\n')
    with pytest.raises(ValueError, match="x.jsonl' has 1 rows, and its results.json is about 3"):
        compare_runs(first, tmp_path / "a")


# The command


def test_the_command_compares_the_first_with_each_of_the_others(tmp_path, capsys):
    names = []
    for name, pattern in (("a", "1000000000"), ("b", "1111111110"), ("c", "1000000001")):
        names.append(str(write_run(tmp_path / name, {"x": verdicts(pattern)})))
    assert main(["eval", "--compare", *names]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.startswith(" x ")]
    p_value = 2 / 2**8
    low, high = paired_interval(0, 8, 10)
    assert rows[0] == ["x", "10", "0.100", "0.900", "+0.800", f"{low:+.3f}", "to", f"{high:+.3f}", f"{p_value:.3f}"]
    assert rows[1][:5] == ["x", "10", "0.100", "0.200", "+0.100"] and rows[1][-1] == "1.000" and len(rows) == 2
    assert "McNemar's exact test" in out and "permutation" not in out
    for arguments, message in (
        (names[:1], "needs another folder"),
        ([names[0], str(tmp_path / "no")], "results.json' is missing or damaged"),
        ([*names, "--tasks", "sudoku"], "tasks=['sudoku'] does nothing with compare"),
        ([*names, "--seeds", "1"], "seeds=[1] does nothing with compare"),
        ([*names, "--temperature", "0.5"], "temperature=0.5 does nothing with compare"),
        ([*names, "--model", "sudoku-llada-tiny"], "model='sudoku-llada-tiny' does nothing with compare"),
    ):
        assert main(["eval", "--compare", *arguments]) == 1
        captured = capsys.readouterr()
        assert message in captured.err and captured.out == ""


def test_evaluations_by_the_command_can_be_compared(tmp_path, capsys):
    given = ["--device", "cpu", "--tasks", "sudoku", "--num_test", "16", "--batch_size", "16"]
    folders = []
    for name in ("sudoku-llada-tiny", "sudoku-llada-solver-tiny"):
        folders.append(tmp_path / name)
        assert main(["eval", "--model", name, *given, "--output_dir", str(folders[-1])]) == 0
    capsys.readouterr()
    assert main(["eval", "--compare", *map(str, folders)]) == 0
    out = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in out if line.startswith((" sudoku ", "   score "))]
    figures = [json.loads((folder / "results.json").read_text())["tasks"]["sudoku"] for folder in folders]
    assert rows[0][2:4] == [f"{of_run['accuracy']:.3f}" for of_run in figures] and rows[1][0] == "score"
    assert float(rows[0][-1]) < 0.01
