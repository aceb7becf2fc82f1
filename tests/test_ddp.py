# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Two processes compute and learn what one does with the doubled batch."""

import pytest
import torch
from ddp_worker import CASES, train
from processes import run_two_processes


# Not of the run: its clock. Not of the rows alone: means over micro-batches, which hold other rows together.
TIMES = {"step_time"}
# Processes estimate the variance from the samples of their own rows: another estimate of the same.
ESTIMATES = {"gradient/mc_variance", "gradient/mc_variance_share"}
CLIPPED = {f"clip_ratio/{where}_mean" for where in ("low", "high", "region")}
PER_MICRO_BATCH = {
    "policy/log_prob",
    "dllm/entropy",
    *(f"dllm/{name}" for name in CLIPPED),
    "views",
    "entropy",
    "kl",
    "value/loss",
    "value/clip_ratio",
} | CLIPPED
PER_MICRO_BATCH |= {
    f"elbo/{name}" for name in ("per_token", "difference_mean", "difference_std", "difference_above_one")
}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Case → what two processes made of it: they are started once for all."""
    out = tmp_path_factory.mktemp("ddp")
    run_two_processes("ddp_worker.py", out)
    return torch.load(out / "results.pt", weights_only=False)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """Case → what one process makes of it."""
    results = {}

    def result(case):
        if case not in results:
            results[case] = train(case, str(tmp_path_factory.mktemp("single")))
        return results[case]

    return result


def assert_equal_generations(found, expected):
    for generation, (given, wanted) in enumerate(zip(found, expected, strict=True)):
        assert given.keys() == wanted.keys()
        for name in wanted:
            difference = (given[name].double() - wanted[name].double()).abs().max()
            # ELBOs are sums of log-probabilities with weights up to 1/t.
            assert difference <= 1e-5 * max(1.0, wanted[name].double().abs().max() / 10), (generation, name)


def assert_equal_parameters(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert (found[name] - expected[name]).abs().max() <= 1e-5, name


@pytest.mark.parametrize("case", list(CASES))
def test_two_processes_equal_one_with_the_doubled_batch(case, two_processes, one_process):
    found, expected = two_processes[case], one_process(case)
    assert_equal_generations(found["generations"], expected["generations"])
    assert_equal_parameters(found["end"], expected["end"])
    # The comparison is not between models that stood still.
    for model in {name.split(" ")[0] for name in expected["end"]}:
        names = [name for name in expected["end"] if name.startswith(model)]
        moved = max((expected["end"][name] - expected["start"][name]).abs().max().item() for name in names)
        assert moved > 1e-3, model
    assert ("value_model" in CASES[case]) == any(name.startswith("value ") for name in expected["end"])


@pytest.mark.parametrize("case", list(CASES))
def test_two_processes_log_what_one_does(case, two_processes, one_process):
    skipped = TIMES | ESTIMATES | (PER_MICRO_BATCH if "gradient_accumulation_steps" in CASES[case] else set())
    for given, wanted in zip(two_processes[case]["logs"], one_process(case)["logs"], strict=True):
        assert given.keys() == wanted.keys()
        for name in ESTIMATES & wanted.keys():
            assert wanted[name] / 1.6 < given[name] < wanted[name] * 1.6
        for name in wanted.keys() - skipped:
            assert given[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-5), (wanted["step"], name)


def test_the_cases_hold_what_they_are_for(one_process):
    """Without it, a comparison of the parts would be one of nothing."""
    rewards = one_process("token rewards")
    kept = [row["difficulty/kept_groups"] for row in rewards["logs"]]
    assert min(kept) < 1 and max(kept) > 0, kept
    for generation in rewards["generations"]:
        assert generation["advantages"].shape == generation["completion_mask"].shape
    truncated = [row["completions/clipped_ratio"] for row in rewards["logs"]]
    assert 0 < max(truncated) and min(truncated) < 1, truncated
    for case in ("full value model", "lora value model", "head value model"):
        logs = [row for row in one_process(case)["logs"] if "reward" in row]  # a generation came before
        for name in ("loss", "explained_variance", "mean", "returns"):
            assert len({row[f"value/{name}"] for row in logs}) > 1, (case, name)
        assert all(row["advantages/std"] > 0 for row in logs)


def test_hints_go_to_groups_that_fail_wherever_their_rows_are(two_processes):
    """Of three groups of eight on twice twelve rows the second lies on both processes."""
    found = {0: 0, 1: 0}
    for generation in two_processes["hints"]["generations"]:
        injected = generation["injected"].any(dim=1).view(3, 8)  # all processes' rows side by side
        for process in (0, 1):
            found[process] += int(injected[1, 4 * process : 4 * process + 4].sum())
    assert min(found.values()) > 0, found
    # One process had rows to replace while the other had none.
    alone = [
        generation["injected"].any(dim=1).view(2, -1).any(dim=1).tolist()
        for generation in two_processes["some hints"]["generations"]
    ]
    assert [True, False] in alone or [False, True] in alone, alone


def test_two_processes_resume_in_the_second_epoch(two_processes, one_process):
    found, expected = two_processes["resumed"], one_process("lora value model")
    assert_equal_generations(found["generations"], expected["generations"][3:])
    assert_equal_parameters(found["end"], expected["end"])


def test_a_checkpoint_is_whole_only_when_every_process_has_written(two_processes):
    assert len(two_processes["files"]) == 3
    for files in two_processes["files"]:
        assert {f"{name}_{rank}" for name in ("rollouts", "rng_state") for rank in (0, 1)} <= {
            name.split(".")[0] for name in files
        }


def test_rewards_of_two_kinds_are_refused_on_every_process(two_processes):
    # One process alone sees only one kind, and would leave the other's completions without a reward.
    assert "'a_list_on_one_process' returned a number per completion on one process" in two_processes["error"]
