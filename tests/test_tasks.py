# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

import gc
import os
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from trl_diffusion.tasks import (
    SudokuMetric,
    all_grids,
    cell_accuracy,
    character_tokenizer,
    extract_grid,
    greedy_row_fill,
    has_unique_solution,
    make_puzzle,
    pretraining_dataset,
    read_csv,
    solve,
    solve_rate,
    split_grids,
    sudoku_dataset,
    sudoku_reward,
)


SOLUTION = "1234341221434321"
# Two blanks, cells 0 and 15; the rest is given.
PUZZLE = "0234341221434320"
D1_FILE = Path(__file__).parents[1] / ".." / "shared" / "data" / "4x4_test_sudoku.csv"


def backtrack(puzzle, limit=288):
    """Cell-by-cell search that shares nothing with the package: the rules written out once more."""
    if "0" not in puzzle:
        return [puzzle]
    cell = puzzle.index("0")
    row, column = divmod(cell, 4)
    solutions = []
    for digit in "1234":
        clash = any(
            puzzle[r * 4 + c] == digit
            for r in range(4)
            for c in range(4)
            if r == row or c == column or (r // 2 == row // 2 and c // 2 == column // 2)
        )
        if not clash:
            solutions += backtrack(puzzle[:cell] + digit + puzzle[cell + 1 :], limit - len(solutions))
        if len(solutions) >= limit:
            break
    return solutions


@pytest.fixture
def tokenizer():
    return character_tokenizer("01234 .\né")


def test_tokenizer_ids_are_special_tokens_then_the_alphabet(tokenizer):
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == ["<|pad|>", "<|eos|>", "<|mask|>", *"01234 .\né"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id) == (0, 1, 2)
    assert tokenizer.bos_token is None


@pytest.mark.parametrize("text", ["0123", "1 2 .\n\n 3", " é", "0<|mask|> 1<|eos|>", ""])
def test_tokenizer_decode_gives_back_the_text(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_tokenizer_pads_left_and_returns_two_inputs(tokenizer):
    inputs = dict(tokenizer(["1", "12"], padding=True))
    assert inputs == {"input_ids": [[0, 4], [4, 5]], "attention_mask": [[0, 1], [1, 1]]}


def test_tokenizer_skips_special_tokens_when_asked(tokenizer):
    assert tokenizer.decode([0, 4, 2, 5, 1], skip_special_tokens=True) == "12"


def test_tokenizer_save_and_load_round_trip(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "1 2 .\n<|mask|> é"
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.decode(loaded(text).input_ids) == text
    for name in ("padding_side", "model_max_length", "model_input_names", "special_tokens_map"):
        assert getattr(loaded, name) == getattr(tokenizer, name)


@pytest.mark.parametrize("reload", [False, True])
def test_tokenizer_unknown_character_raises(tokenizer, tmp_path, reload):
    if reload:
        tokenizer.save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(Exception, match=r"Missing \[UNK\]"):
        tokenizer("12x3")


@pytest.mark.parametrize(
    "arguments", [{"alphabet": "0120"}, {"alphabet": ""}, {"alphabet": "01", "model_max_length": 0}]
)
def test_tokenizer_bad_arguments_raise(arguments):
    with pytest.raises(ValueError, match="alphabet" if "model_max_length" not in arguments else "model_max_length"):
        character_tokenizer(**arguments)


def test_all_grids_are_those_of_backtracking():
    assert len(all_grids()) == 288
    assert all_grids() == sorted(backtrack("0" * 16))


@pytest.mark.parametrize("seed", [0, 1])
def test_split_is_a_partition_of_the_grids(seed):
    train, test = split_grids(seed)
    assert (len(train), len(test)) == (200, 88)
    assert sorted(train + test) == all_grids()


def test_split_depends_on_the_seed_alone():
    assert split_grids(0) == split_grids(0) != split_grids(1)


def test_solve_matches_backtracking():
    rng = random.Random(0)
    for _ in range(150):
        puzzle = "".join(digit if rng.random() < 0.3 else "0" for digit in rng.choice(all_grids()))
        # One more clue, at random, so that some puzzles have no solution. The search takes clues as they are, so it
        # gets the puzzle without this clue and its solutions are filtered.
        cell, digit = rng.randrange(16), rng.choice("1234")
        without, changed = (puzzle[:cell] + clue + puzzle[cell + 1 :] for clue in ("0", digit))
        solutions = [grid for grid in backtrack(without) if grid[cell] == digit]
        assert solve(changed, limit=288) == solutions
        assert has_unique_solution(changed) == (len(solutions) == 1)


def test_solve_stops_at_the_limit():
    assert solve("0" * 16, limit=3) == all_grids()[:3]
    assert len(solve("0" * 16)) == 2


@pytest.mark.parametrize("num_clues", [4, 5, 8, 16])
def test_make_puzzle_has_the_clues_asked_for_and_one_solution(num_clues):
    rng = random.Random(0)
    for solution in all_grids()[::12]:
        puzzle = make_puzzle(solution, num_clues, rng)
        assert 16 - puzzle.count("0") == num_clues
        assert backtrack(puzzle, limit=2) == [solution]


@pytest.mark.parametrize(
    ("solution", "num_clues", "name"),
    [(SOLUTION, 3, "num_clues"), (SOLUTION, 17, "num_clues"), ("1" * 16, 8, "solution")],
)
def test_make_puzzle_bad_arguments_raise(solution, num_clues, name):
    with pytest.raises(ValueError, match=f"{name}="):
        make_puzzle(solution, num_clues, random.Random(0))


def test_greedy_row_fill_looks_at_rows_only():
    assert greedy_row_fill("3000" + "0420" + "0000" + "4321") == "3124" + "1423" + "1234" + "4321"


def test_greedy_row_fill_refuses_a_row_that_repeats_a_clue():
    with pytest.raises(ValueError, match="repeats a clue in row '3300'"):
        greedy_row_fill("3300" + "0" * 12)


@pytest.mark.parametrize("puzzle", ["0" * 15, "0" * 17, "5" + "0" * 15, 0, None])
def test_malformed_puzzle_raises(puzzle):
    for function in (solve, has_unique_solution, greedy_row_fill):
        with pytest.raises(ValueError, match="puzzle="):
            function(puzzle)


@pytest.mark.parametrize("split", ["train", "test"])
def test_dataset_puzzles_are_unique_and_have_one_solution(split):
    dataset = sudoku_dataset(split, 150, num_clues=(5, 8))
    assert dataset.column_names == ["prompt", "puzzle", "solution"]
    assert dataset["prompt"] == dataset["puzzle"]
    assert len(set(dataset["puzzle"])) == len(dataset) == 150
    assert {16 - puzzle.count("0") for puzzle in dataset["puzzle"]} == {5, 6, 7, 8}
    for row in dataset:
        assert backtrack(row["puzzle"], limit=2) == [row["solution"]]


def test_dataset_splits_share_no_solution_whatever_the_seed():
    train = {solution for seed in range(3) for solution in sudoku_dataset("train", 400, seed=seed)["solution"]}
    test = {solution for seed in range(3) for solution in sudoku_dataset("test", 400, seed=seed)["solution"]}
    assert not train & test
    assert test <= set(split_grids()[1])


def test_dataset_depends_on_the_seed_alone():
    first, same, other = (sudoku_dataset("train", 50, seed=seed)["puzzle"][:] for seed in (0, 0, 1))
    assert first == same != other


def test_dataset_repeats_puzzles_only_when_there_are_no_others():
    puzzles = sudoku_dataset("test", 300, num_clues=(16, 16))["puzzle"]
    assert len(puzzles) == 300
    assert set(puzzles) == set(split_grids()[1])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("dev", 10), "split"),
        (("train", 0), "num_puzzles"),
        (("train", 10, (3, 8)), "num_clues"),
        (("train", 10, (8, 5)), "num_clues"),
        (("train", 10, (5, 17)), "num_clues"),
    ],
)
def test_dataset_bad_arguments_raise(arguments, name):
    with pytest.raises(ValueError, match=f"{name}="):
        sudoku_dataset(*arguments)


def test_pretraining_completions_are_the_solution_or_the_greedy_fill():
    train = set(split_grids()[0])
    for row in pretraining_dataset(500):
        (solution,) = backtrack(row["prompt"], limit=2)
        assert solution in train
        assert row["completion"] == (solution if row["correct"] else greedy_row_fill(row["prompt"]))


@pytest.mark.parametrize("correct_fraction", [0.0, 0.4, 1.0])
def test_pretraining_correct_fraction_is_met(correct_fraction):
    correct = pretraining_dataset(4_000, correct_fraction)["correct"]
    # 0.4 +- 0.03 is four standard errors of 4,000 draws.
    assert sum(correct) / len(correct) == pytest.approx(correct_fraction, abs=0.03 * (0 < correct_fraction < 1))


def test_pretraining_depends_on_the_seed_alone():
    first, same, other = (pretraining_dataset(50, seed=seed).to_dict() for seed in (0, 0, 1))
    assert first == same != other


@pytest.mark.parametrize(
    ("arguments", "name"), [((0,), "num_examples"), ((10, 1.5), "correct_fraction"), ((10, 0.4, (0, 8)), "num_clues")]
)
def test_pretraining_bad_arguments_raise(arguments, name):
    with pytest.raises(ValueError, match=f"{name}="):
        pretraining_dataset(*arguments)


def test_read_csv_keeps_leading_zeros(tmp_path):
    path = tmp_path / "puzzles.csv"
    path.write_text(f"Puzzle,Solution\n{PUZZLE},{SOLUTION}\n")
    assert list(read_csv(path)) == [{"prompt": PUZZLE, "puzzle": PUZZLE, "solution": SOLUTION}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "header="),
        (f"puzzle,solution\n{PUZZLE},{SOLUTION}\n", "header='puzzle,solution'"),
        ("Puzzle,Solution\n", "no rows"),
        (f"Puzzle,Solution\n{PUZZLE},{SOLUTION}\n{PUZZLE[1:]},{SOLUTION}\n", f"row 2: puzzle='{PUZZLE[1:]}'"),
        (f"Puzzle,Solution\n{PUZZLE},{PUZZLE}\n", f"row 1: solution='{PUZZLE}'"),
        (f"Puzzle,Solution\n{PUZZLE}\n", f"row 1: '{PUZZLE}'"),
        (f"Puzzle,Solution\n01{PUZZLE[2:]},{SOLUTION}\n", "row 1: .* contradicts"),
    ],
)
def test_read_csv_names_file_and_row_of_a_fault(tmp_path, text, message):
    path = tmp_path / "puzzles.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"puzzles.csv.*{message}"):
        read_csv(path)


@pytest.mark.skipif(not D1_FILE.exists(), reason=f"the d1 test file is not at {D1_FILE}: its reading is NOT tested")
def test_read_csv_reads_the_d1_file():
    dataset = read_csv(D1_FILE)
    assert len(dataset) == 500
    for row in dataset:
        # Some puzzles of the file have several solutions; the one given must be among them.
        assert row["solution"] in backtrack(row["puzzle"])


def reward(completion, **kwargs):
    # The call of a trainer: keywords, with columns that the function does not use.
    (value,) = sudoku_reward(
        prompts=[PUZZLE],
        completions=[completion],
        completion_ids=[[3]],
        puzzle=[PUZZLE],
        solution=[SOLUTION],
        **kwargs,
    )
    return value


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (SOLUTION, 2.0),
        (" 1234 3412\n2143\t4321\n", 2.0),
        ("2" + SOLUTION[1:], 0.5),  # one blank wrong
        ("2" + SOLUTION[1:15] + "2", 0.0),  # both blanks wrong
        ("1" * 16, 1.0),  # both blanks right, clues changed: no bonus
        (SOLUTION + "1", 1.0),  # too long: cells count, no bonus
        (SOLUTION + "</answer>", 2.0),
        (SOLUTION[:15], 0.5),  # too short: the last cell is missing
        ("", 0.0),
        ("x" + SOLUTION[1:], 0.5),
        ("The grid is: " + SOLUTION, 2.0),
        (f"First {'1' * 16}, then <answer>\n1234 3412\n2143 4321</answer> {'1' * 16}", 2.0),
        (f"<answer>{SOLUTION}2</answer>", 1.0),
        (f"<answer></answer> {SOLUTION}", 0.0),
        (f"No: {'1' * 16}. Yes: {SOLUTION}", 2.0),
        # Prose is no grid, though its first character would do for the first cell.
        ("1 is what must stand in the first cell, for the row has no other", 0.0),
        ("１" + SOLUTION[1:], 0.5),  # a full-width digit is not a digit 1-4
        ([{"role": "assistant", "content": SOLUTION}], 2.0),
        ([{"role": "assistant", "content": SOLUTION[:15]}], 0.5),
    ],
)
def test_reward_by_hand(completion, expected):
    assert reward(completion) == expected
    assert isinstance(reward(completion), float)


def test_reward_bonus_can_be_set():
    assert reward(SOLUTION, solve_bonus=0.25) == 1.25
    assert reward(SOLUTION, solve_bonus=0.0) == 1.0


@pytest.mark.parametrize(("completion", "expected"), [(SOLUTION, 2.0), (SOLUTION[:15], 0.0), (SOLUTION + "1", 0.0)])
def test_reward_of_a_puzzle_without_blanks(completion, expected):
    assert sudoku_reward([completion], [SOLUTION], [SOLUTION]) == [expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([SOLUTION] * 2, [PUZZLE], [SOLUTION]), "2 completions, 1 puzzles"),
        (([SOLUTION], [int(PUZZLE)], [SOLUTION]), "puzzle="),
        (([SOLUTION], [PUZZLE], [PUZZLE]), "solution="),
        (([SOLUTION], ["4" + PUZZLE[1:]], [SOLUTION]), "contradicts"),
        (([None], [PUZZLE], [SOLUTION]), "completions"),
        (([[]], [PUZZLE], [SOLUTION]), "completions"),
        (([[{"role": "assistant"}]], [PUZZLE], [SOLUTION]), "completions"),
    ],
)
def test_scores_refuse_bad_input(arguments, message):
    for function in (sudoku_reward, cell_accuracy, solve_rate):
        with pytest.raises(ValueError, match=message):
            function(*arguments)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1234 3412 2143 4321 done", SOLUTION), (SOLUTION[:15], None), (PUZZLE, None), ("", None)],
)
def test_extract_grid(text, expected):
    assert extract_grid(text) == expected


# 2 of 2 blanks right and solved; 0 of 16 right; so pooled 2/18, where the mean of the fractions is 1/2.
BATCH = ([SOLUTION, "x"], [PUZZLE, "0" * 16], [SOLUTION, SOLUTION])


def test_cell_accuracy_is_pooled_over_blanks():
    assert cell_accuracy(*BATCH) == 2 / 18


def test_solve_rate_is_a_mean_over_puzzles():
    assert solve_rate(*BATCH) == 0.5


def test_cell_accuracy_and_solve_rate_refuse_nothing():
    with pytest.raises(ValueError, match="no blank cell"):
        cell_accuracy([SOLUTION], [SOLUTION], [SOLUTION])
    with pytest.raises(ValueError, match="completions="):
        solve_rate([], [], [])


def test_metric_over_batches_equals_the_functions():
    completions, puzzles, solutions = BATCH
    metric, expected = SudokuMetric(), {"cell_accuracy": 2 / 18, "solve_rate": 0.5}
    for completion, puzzle, solution in zip(*BATCH, strict=True):
        metric.add_batch(predictions=[completion], references=[solution], puzzles=[puzzle])
    assert metric.compute() == expected
    # The batches are gone after compute, so the metric can be used again.
    assert metric.compute(predictions=completions, references=solutions, puzzles=puzzles) == expected


def test_metric_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    metric = SudokuMetric()
    metric.compute(predictions=[SOLUTION], references=[SOLUTION], puzzles=[PUZZLE])
    assert os.listdir(tmp_path)
    del metric
    gc.collect()  # a metric refers to itself
    assert not os.listdir(tmp_path)
