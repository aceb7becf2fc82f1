# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Accuracy against forward passes: measuring, and the file."""

import math

import pytest
import torch
from conftest import random_model
from policies import small_policy
from slow_sampler import slow_generate
from transformers import AutoTokenizer

import trl_diffusion.evaluation.frontier as frontier
from trl_diffusion import AutoModelForDiffusionLM, DiffusionGenerationConfig
from trl_diffusion.checkpoints import tiny_checkpoint
from trl_diffusion.evaluation import (
    DecodingPoint,
    FrontierRow,
    measure,
    measure_frontier,
    read_frontier,
    wilson_interval,
    write_frontier,
)
from trl_diffusion.evaluation.fingerprint import rule_identity
from trl_diffusion.tasks import character_tokenizer, sudoku_dataset


PROBLEMS = sudoku_dataset("test", num_puzzles=5, num_clues=(10, 12))
PROMPTS = PROBLEMS["prompt"][:]


def shared(**fields):
    return DiffusionGenerationConfig(max_new_tokens=17, eos_token_id=1, pad_token_id=0, **fields)


CONFIG = shared()
POINTS = [
    DecodingPoint("low_confidence", {"num_denoising_steps": 4}),
    DecodingPoint("threshold", {"unmasking": "threshold", "threshold": 0.9}),
    DecodingPoint("threshold", {"unmasking": "threshold", "threshold": 0.6}),
    DecodingPoint("factor", {"unmasking": "factor", "factor": 1.0}),
]


@pytest.fixture(scope="module")
def loaded():
    path = tiny_checkpoint("sudoku-llada-tiny")
    return AutoModelForDiffusionLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def grade(text, solution):
    """Share of the 16 digits that are right."""
    return sum(text[cell : cell + 1] == solution[cell] for cell in range(16)) / 16


def score(completions):
    return [grade(text, solution) for text, solution in zip(completions.texts, PROBLEMS["solution"], strict=True)]


def run(loaded, points=None, file=None, **kwargs):
    settings = {"generation_config": CONFIG, "batch_size": 3, "score": score, **kwargs}
    return measure_frontier(*loaded, PROMPTS, POINTS if points is None else points, file=file, **settings)


@pytest.fixture
def measured(monkeypatch):
    """The settings of each point that is measured."""
    configs = []

    def watched(model, tokenizer, prompts, score, config, *args):
        configs.append(config)
        return measure(model, tokenizer, prompts, score, config, *args)

    monkeypatch.setattr(frontier, "measure", watched)
    return configs


def row(curve, passes, accuracy, **fields):
    defaults = {"unmasking": curve, "setting": f"x={passes}", "seeds": (), "num_problems": 10, "accuracy_low": 0.0}
    defaults |= {"accuracy_high": 1.0, "tokens_per_pass": 1.5, "length": 17.0, "seconds": 0.5}
    return FrontierRow(curve=curve, forward_passes=passes, accuracy=accuracy, **{**defaults, **fields})


# Measuring


def test_points_against_loops_over_problems_and_steps(loaded):
    model, tokenizer = loaded
    rows = run(loaded)
    for point, found in zip(POINTS, rows, strict=True):
        graded, passes, tokens = 0.0, 0, 0
        for prompt, solution in zip(PROMPTS, PROBLEMS["solution"], strict=True):
            prompt_ids = tokenizer([prompt])["input_ids"][0]
            slow = slow_generate(model, prompt_ids, 17, eos_token_id=1, **point.fields)
            written = slow.ids[len(prompt_ids) :]
            written = written[: written.index(1) + 1] if 1 in written else written
            graded += grade(tokenizer.decode(written, skip_special_tokens=True), solution)
            passes, tokens = passes + slow.passes, tokens + len(written)
        assert found.curve == point.curve and found.num_problems == 5 and found.seeds == ()
        assert found.accuracy == pytest.approx(graded / 5) and 0 < found.accuracy < 1
        assert found.forward_passes == pytest.approx(passes / 5, abs=1e-6)
        assert found.tokens_per_pass == pytest.approx(tokens / passes, rel=1e-6)
        assert found.length == tokens / 5 and found.seconds > 0
        # Wilson's formula as it stands in the books, with n = 5.
        p, z = graded / 5, 1.959964
        middle, half = p + z * z / 10, z * math.sqrt(p * (1 - p) / 5 + z * z / 100)
        assert found.accuracy_low == pytest.approx((middle - half) / (1 + z * z / 5))
        assert found.accuracy_high == pytest.approx((middle + half) / (1 + z * z / 5))
    assert [found.setting for found in rows[:2]] == ["num_denoising_steps=4", "threshold=0.9"]
    assert [found.unmasking for found in rows] == ["low_confidence", "threshold", "threshold", "factor"]
    assert rows[2].forward_passes < rows[1].forward_passes


@pytest.mark.parametrize(("rate", "count"), [(0.0, 7), (1.0, 7), (0.3, 10), (0.999, 1319)])
def test_the_ends_of_the_interval_are_where_the_rate_is_just_likely_enough(rate, count):
    low, high = wilson_interval(rate, count)
    assert 0 <= low <= rate <= high <= 1 and low < high
    for end in (low, high):
        if 0 < end < 1:
            assert abs(rate - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count))


def test_what_has_no_interval_is_refused():
    with pytest.raises(ValueError, match=r"rate=1.2 must lie in \[0, 1\]"):
        wilson_interval(1.2, 3)
    with pytest.raises(ValueError, match="count=0 must be at least 1"):
        wilson_interval(0.5, 0)


def test_seeds_are_averaged_problem_by_problem_and_do_not_narrow_the_interval(loaded):
    random = shared(unmasking="random", num_denoising_steps=3)
    single = [measure(*loaded, PROMPTS, score, random, 2, (seed,)) for seed in (3, 8)]
    both = measure(*loaded, PROMPTS, score, random, 5, (3, 8))
    assert single[0].correct != single[1].correct and both.seeds == (3, 8)
    assert both.correct == [(a + b) / 2 for a, b in zip(single[0].correct, single[1].correct, strict=True)]
    assert both.accuracy == pytest.approx((single[0].accuracy + single[1].accuracy) / 2)
    assert both.interval == wilson_interval(both.accuracy, len(PROMPTS))
    (found,) = run(loaded, [DecodingPoint("random", {"unmasking": "random", "num_denoising_steps": 3})], seeds=(3, 8))
    assert found.seeds == (3, 8) and found.accuracy == both.accuracy and found.forward_passes == 3


def test_what_depends_on_no_seed_is_measured_once(loaded):
    calls = []

    def counted(completions):
        calls.append(len(completions.texts))
        return score(completions)

    points = [*POINTS[:1], DecodingPoint("random", {"unmasking": "random", "num_denoising_steps": 2})]
    rows = run(loaded, points, seeds=(0, 1, 2), score=counted)
    assert calls == [5] * 4 and [found.seeds for found in rows] == [(), (0, 1, 2)]


def test_guidance_makes_two_passes_of_a_step(loaded):
    (found,) = run(loaded, [DecodingPoint("guided", {"num_denoising_steps": 3, "guidance_scale": 2.0})])
    assert found.forward_passes == 6


def surest(state):
    return state.candidates & (state.confidence >= 0.8)


def test_a_callable_is_a_curve_like_any_other(loaded, tmp_path):
    points = [DecodingPoint("mine", {"unmasking": surest, "num_denoising_steps": 9})]
    file = tmp_path / "frontier.csv"
    rows = run(loaded, points, file, seeds=(4,))
    assert rows[0].unmasking.endswith("test_frontier.surest") and rows[0].seeds == (4,)
    assert run(loaded, points, file, seeds=(4,)) == rows == read_frontier(file)


# What is refused, before anything is measured


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": []}, "points is empty"),
        ({"points": [*POINTS, DecodingPoint("bad", {"tau": 1})]}, "tau=1 in 'bad', which is not a field"),
        (
            {"points": [*POINTS, DecodingPoint("t", {"unmasking": "threshold", "threshold": 2.0})]},
            r"points has \(t: threshold=2.0\): threshold=2.0 must lie in",
        ),
        ({"points": [*POINTS, DecodingPoint("c", {"cache": "block"})]}, "cache='block' needs block-causal"),
        ({"points": [*POINTS, DecodingPoint("s", {"seed": 1})]}, "generation_config.seed=1 has no place here"),
        ({"points": [*POINTS, POINTS[1]]}, r"\('threshold', 'threshold', 'threshold=0.9'\) twice"),
        (
            {"points": [*POINTS, DecodingPoint("n", {"num_return_sequences": 2, "temperature": 1.0})]},
            "num_return_sequences=2 must be 1",
        ),
        (
            {"points": [*POINTS, DecodingPoint("long", {"max_new_tokens": 120})]},
            r"the longest prompt \(16 tokens\) and max_new_tokens=120 exceed the model's 128",
        ),
        ({"seeds": ()}, "seeds is empty"),
        ({"seeds": (1, 1)}, "seeds=.* has one of them twice"),
        ({"seeds": (True,)}, "must be whole numbers"),
        ({"file": "frontier.txt"}, "must end in .csv"),
    ],
)
def test_every_point_is_checked_first(changes, message, loaded, measured, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        run(loaded, **changes)
    assert measured == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0] * 4, "score returned 4 numbers for 5 completions"),
        ([0.0, 1.5, 0.0, 0.0, 0.0], "score returned 1.5 for completion 1"),
        ([float("nan")] * 5, "score returned nan for completion 0"),
    ],
)
def test_a_wrong_score_is_reported(values, message, loaded):
    with pytest.raises(ValueError, match=message):
        run(loaded, POINTS[:1], score=lambda completions: values)


# The file


def test_rows_come_back_as_they_were(tmp_path):
    rows = [
        row("a", 1 / 3, 0.1 + 0.2, seeds=(0, 7)),
        row('runs/my "policy", β', 2.0, 1e-17, setting="policy_beta=0.25, policy_temperature=0.5"),
    ]
    write_frontier(rows, tmp_path / "rows.csv")
    assert read_frontier(tmp_path / "rows.csv") == rows
    header, first, *_ = (tmp_path / "rows.csv").read_text().splitlines()
    assert header.startswith("curve,unmasking,setting,seeds,num_problems,accuracy,") and first.startswith("a,a,")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_a_file_that_is_none_of_ours_is_refused(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("curve,accuracy\na,1\n")
    with pytest.raises(ValueError, match="has the columns .*; a frontier's are"):
        read_frontier(file)
    write_frontier([row("a", 1.0, 0.5), row("a", 2.0, 0.5)], file)
    for text, broken in (("2.0,1.5", "two,1.5"), (",17.0,0.5\n", "\n")):
        whole = file.read_text()
        before, after = whole.rsplit(text, 1)
        file.write_text(before + broken + after)
        with pytest.raises(ValueError, match=r"row 2 of .*: (forward_passes='two'|length=None) cannot be read"):
            read_frontier(file)
        file.write_text(whole)


def test_a_second_call_measures_only_what_is_missing(loaded, measured, tmp_path):
    file = tmp_path / "new" / "frontier.csv"
    first = run(loaded, POINTS[:2], file)
    assert len(measured) == 2 and read_frontier(file) == first
    again = run(loaded, [POINTS[3], *POINTS[:2]], file, batch_size=5)
    assert [config.unmasking for config in measured[2:]] == ["factor"]
    assert again[1:] == first and read_frontier(file) == [*first, again[0]]
    # Fewer points leave the others where they are.
    assert run(loaded, POINTS[1:2], file) == first[1:] and len(measured) == 3 and len(read_frontier(file)) == 3
    run(loaded, POINTS[1:2], file, overwrite=True)
    assert len(measured) == 4 and len(read_frontier(file)) == 1


def test_an_interrupted_call_keeps_what_it_measured(loaded, measured, tmp_path):
    file = tmp_path / "frontier.csv"

    def fails_at_third(completions):
        if len(measured) == 3:
            raise KeyboardInterrupt
        return score(completions)

    fails_at_third.__qualname__, fails_at_third.__module__ = score.__qualname__, score.__module__
    with pytest.raises(KeyboardInterrupt):
        run(loaded, file=file, score=fails_at_third)
    assert len(read_frontier(file)) == 2
    rows = run(loaded, file=file)
    assert len(measured) == 3 + 2 and len(rows) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frontier.csv", "frontier.json"]


def test_other_settings_are_refused_by_name(loaded, measured, tmp_path):
    file = tmp_path / "frontier.csv"
    run(loaded, POINTS[:1], file, settings={"num_test": 5})
    before = file.read_text()
    model, tokenizer = loaded
    other = random_model("llada", character_tokenizer("01234"))
    changes = [
        ({"settings": {"num_test": 6}}, "num_test was 5 and is 6"),
        ({"seeds": (1,)}, r"seeds was \[0\] and is \[1\]"),
        ({"score": surest}, "score was '.*test_frontier.score' and is '.*surest'"),
        (
            {"generation_config": shared(cache="dual")},
            "generation_config.cache was 'none' and is 'dual'",
        ),
    ]
    for change, message in changes:
        with pytest.raises(ValueError, match=f"has frontier.csv of another call: {message}.*overwrite=True"):
            run(loaded, POINTS[:1], file, **{"settings": {"num_test": 5}, **change})
    with pytest.raises(ValueError, match="model was '.*' and is '"):
        run((other, tokenizer), POINTS[:1], file, settings={"num_test": 5})
    with pytest.raises(ValueError, match="prompts was '.*' and is '"):
        measure_frontier(model, tokenizer, PROMPTS[:4], POINTS[:1], score, CONFIG, file=file, settings={"num_test": 5})
    assert len(measured) == 1 and file.read_text() == before


class Learned(torch.nn.Module):
    """Stands for a policy: weights that decide how sure it has to be."""

    def __init__(self, bias):
        super().__init__()
        self.name_or_path = "runs/policy"
        self.bias = torch.nn.Parameter(torch.tensor(bias))

    def forward(self, state):
        return state.candidates & (state.confidence >= self.bias)


def test_a_policy_trained_on_is_not_the_one_that_was_measured(loaded, measured, tmp_path):
    file = tmp_path / "frontier.csv"
    rows = run(loaded, [DecodingPoint("policy", {"unmasking": Learned(0.9)})], file)
    assert rows[0].unmasking == "runs/policy"
    run(loaded, [*POINTS[:1], DecodingPoint("policy", {"unmasking": Learned(0.9)})], file)
    assert len(measured) == 2
    # In a call without it nothing is compared, and nothing forgotten.
    run(loaded, POINTS[:2], file)
    with pytest.raises(ValueError, match="unmasking runs/policy was '.*Learned.*' and is '.*Learned"):
        run(loaded, [DecodingPoint("policy", {"unmasking": Learned(0.8)})], file)


def test_a_live_policy_is_known_by_its_config_too(loaded, measured, tmp_path):
    file, policy = tmp_path / "frontier.csv", small_policy()
    point = DecodingPoint("policy", {"unmasking": policy})
    run(loaded, [point], file)
    run(loaded, [point], file)
    assert len(measured) == 1
    policy.config.policy_temperature = 0.1
    with pytest.raises(ValueError, match="unmasking UnmaskPolicyModel was"):
        run(loaded, [point], file)
    both = [point, DecodingPoint("other", {"unmasking": small_policy(seed=1)})]
    with pytest.raises(ValueError, match="two rules that are both called 'UnmaskPolicyModel'"):
        run(loaded, both, tmp_path / "both.csv")


def test_a_folder_of_a_policy_is_known_by_its_weights(tmp_path):
    for name, content in (("config.json", "{}"), ("model.safetensors", "1"), ("README.md", "a")):
        (tmp_path / name).write_text(content)
    before = rule_identity(str(tmp_path))
    (tmp_path / "README.md").write_text("b")
    assert rule_identity(str(tmp_path)) == before
    (tmp_path / "model.safetensors").write_text("2")
    assert rule_identity(str(tmp_path)) != before
    assert rule_identity("threshold") == "threshold" and rule_identity("user/policy") == "user/policy"


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": {}}'])
def test_a_damaged_settings_file_is_named(content, loaded, tmp_path):
    (tmp_path / "frontier.json").write_text(content)
    with pytest.raises(ValueError, match="frontier.json' does not say what frontier.csv was measured with"):
        run(loaded, POINTS[:1], tmp_path / "frontier.csv")


def test_rows_without_their_settings_are_not_gone_on_with(loaded, tmp_path):
    write_frontier([row("a", 1.0, 0.5)], tmp_path / "frontier.csv")
    with pytest.raises(ValueError, match="frontier.json beside it, which says .* is missing"):
        run(loaded, POINTS[:1], tmp_path / "frontier.csv")
