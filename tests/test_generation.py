# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

import json

import numpy as np
import pytest
import torch
from conftest import DATA, golden_model, random_model
from transformers import AutoModelForCausalLM, GenerationConfig

from trl_diffusion import DiffusionGenerationConfig
from trl_diffusion.generation.distribution import draw, token_distribution
from trl_diffusion.generation.schedule import even_share, steps_per_block
from trl_diffusion.generation.unmasking import commit


CASES = sorted(path.stem for path in (DATA / "samplers").glob("*.json"))


def settings_of(case: dict, length: int) -> dict:
    """A golden run's parameters in the names of this package."""
    params = case["params"]
    if "remasking_strategy" in params:  # SDAR
        dynamic = params["remasking_strategy"] == "low_confidence_dynamic"
        rule = {"sequential": "sequential", "low_confidence_static": "low_confidence"}
        return {
            "block_length": params["block_length"],
            "num_denoising_steps": length * params["denoising_steps"] // params["block_length"],
            "unmasking": "threshold" if dynamic else rule[params["remasking_strategy"]],
            "threshold": params["confidence_threshold"] if dynamic else None,
            "eos_token_id": params.get("stopping_criteria_idx"),
        }
    if "alg" in params:  # Dream
        return {
            "num_denoising_steps": params["steps"],
            "unmasking": params["alg"],
            "alg_temp": params.get("alg_temp"),
            "step_schedule": "linear_time",
        }
    threshold, factor = params.get("threshold"), params.get("factor")
    caches = {"generate_with_prefix_cache": "prefix", "generate_with_dual_cache": "dual"}
    return {
        "block_length": params["block_length"],
        "num_denoising_steps": params["steps"],
        "unmasking": "factor" if factor else "threshold" if threshold else "low_confidence",
        "threshold": threshold,
        "factor": factor,
        "guidance_scale": params["cfg_scale"] + 1 if "cfg_scale" in params else None,
        "cache": caches.get(params.get("function"), "none"),
    }


def check_golden(name: str, **settings):
    case = json.loads((DATA / "samplers" / f"{name}.json").read_text())
    model = golden_model(case["model"].split("/")[1])
    prompts, final = torch.tensor(case["prompt_ids"]), torch.tensor(case["final_ids"])
    mask = None if case["attention_mask"] is None else torch.tensor(case["attention_mask"])
    width = prompts.size(1)
    length = final.size(1) - width
    settings = {**settings_of(case, length), **settings}
    rollout = model.generate(
        prompts, attention_mask=mask, max_new_tokens=length, return_dict_in_generate=True, **settings
    ).rollout
    assert torch.equal(rollout.canvas_ids, final[:, width:])
    steps = torch.tensor(case["unmask_step"])[:, width:]
    # SDAR's runs count denoising calls apart from those that fill its cache. Dream's first step may commit nothing,
    # and is a step all the same.
    calls = case.get("denoise_calls", case["model_calls"])
    if name.startswith("fastdllm"):
        # Where a block's first pass finished it, Fast-dLLM makes one more, useless, call: its calls are numbered anew
        # without those.
        calls -= case["calls_without_unmask"]
        steps = steps.unique(return_inverse=True)[1].view_as(steps) + 1
    assert torch.equal(rollout.unmask_step.long(), steps)
    assert rollout.num_forward_passes.tolist() == [calls] * len(prompts)
    assert rollout.approximate == (settings["cache"] in ("prefix", "dual") if "cache" in settings else False)


@pytest.mark.parametrize("name", CASES)
def test_sampler_equals_the_original_implementation(name):
    check_golden(name)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("sdar")])
def test_block_cache_equals_the_original_implementation(name):
    check_golden(name, cache="block")


def test_golden_cases_are_there():
    # All of the reference but the one whose order is arbitrary.
    assert len(CASES) == 43


# Rows, blocks, seeds


def prompts_of(lengths, seed=1):
    """Left-padded random prompts of the given lengths, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, width - length :] = torch.randint(3, 8, (length,), generator=generator)
        mask[row, width - length :] = 1
    return ids, mask


@pytest.mark.parametrize("unmasking", ["low_confidence", "random", "threshold"])
def test_a_row_does_not_depend_on_its_batch(family, tokenizer, unmasking):
    model = random_model(family, tokenizer)
    lengths = [3, 8, 5]
    ids, mask = prompts_of(lengths)
    settings = {
        "max_new_tokens": 11,
        "num_denoising_steps": 7,
        "unmasking": unmasking,
        "threshold": 0.5 if unmasking == "threshold" else None,
        "temperature": 0.8,
        "eos_token_id": 4,
        "pad_token_id": 0,
        "return_dict_in_generate": True,
    }
    together = model.generate(ids, attention_mask=mask, seed=[11, 12, 13], **settings).rollout
    for row, length in enumerate(lengths):
        alone = model.generate(ids[row : row + 1, -length:], seed=[11 + row], **settings).rollout
        assert torch.equal(alone.canvas_ids[0], together.canvas_ids[row])
        assert torch.equal(alone.unmask_step[0], together.unmask_step[row])
        assert torch.allclose(alone.logprobs[0], together.logprobs[row], atol=1e-5)


def test_the_seed_decides_and_rows_differ(family, tokenizer):
    model = random_model(family, tokenizer)
    ids = prompts_of([6])[0].repeat(4, 1)
    first, again, other = (
        model.generate(ids, max_new_tokens=12, temperature=1.0, seed=seed, eos_token_id=None) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(row) for row in first.tolist()}) == 4


def test_blocks_are_filled_from_left_to_right_with_a_ragged_end(family, tokenizer):
    model = random_model(family, tokenizer)
    ids, mask = prompts_of([5, 8])
    rollout = model.generate(
        ids, attention_mask=mask, max_new_tokens=10, block_length=4, eos_token_id=None, return_dict_in_generate=True
    ).rollout
    # Block-causal grids start at the first real token: a prompt of 5 leaves 3 places in its last block.
    edges = {"llada": [[0, 4, 8, 10], [0, 4, 8, 10]], "sdar": [[0, 3, 7, 10], [0, 4, 8, 10]]}
    for row, bounds in enumerate(edges[model.config.model_type]):
        steps = rollout.unmask_step[row].tolist()
        assert sorted(steps) == list(range(1, 11))
        for start, end in zip(bounds, bounds[1:], strict=False):
            assert sorted(steps[start:end]) == list(range(start + 1, end + 1))


def test_generation_ends_after_the_block_of_the_first_eos(family, tokenizer):
    model = random_model(family, tokenizer)
    ids = prompts_of([4, 4])[0]
    free = model.generate(ids, max_new_tokens=16, block_length=4, eos_token_id=None, temperature=1.0, seed=3)
    canvas = free[:, 4:]
    eos = canvas[0, 5].item()  # in the second block of the first row, at the latest
    output = model.generate(
        ids,
        max_new_tokens=16,
        block_length=4,
        eos_token_id=eos,
        pad_token_id=0,
        temperature=1.0,
        seed=3,
        return_dict_in_generate=True,
    )
    for row in range(2):
        hits = (canvas[row] == eos).nonzero().flatten().tolist()
        end = (hits[0] // 4 + 1) * 4 if hits else 16
        assert torch.equal(output.rollout.canvas_ids[row, :end], canvas[row, :end])
        assert (output.rollout.canvas_ids[row, end:] == tokenizer.mask_token_id).all()
        assert (output.rollout.unmask_step[row, end:] == 0).all()
        last = hits[0] if hits else 15
        assert output.rollout.completion_mask[row].tolist() == [1] * (last + 1) + [0] * (15 - last)
        assert (output.sequences[row, 4 + last + 1 :] == 0).all()
        assert output.rollout.completions()[row] == canvas[row, : last + 1].tolist()
    assert (output.rollout.canvas_ids[0] == tokenizer.mask_token_id).any()


def test_no_eos_at_all_is_a_choice(family, tokenizer):
    model = random_model(family, tokenizer)
    model.generation_config.pad_token_id = None
    for eos in (None, [], [None]):
        assert model.generate(prompts_of([4])[0], max_new_tokens=5, eos_token_id=eos).shape == (1, 9)


def test_a_mask_token_in_the_prompt_is_left_alone(family, tokenizer):
    model = random_model(family, tokenizer)
    ids = prompts_of([6])[0]
    ids[0, 2] = tokenizer.mask_token_id
    sequence = model.generate(ids, max_new_tokens=8, eos_token_id=None)
    assert torch.equal(sequence[:, :6], ids)
    assert (sequence[:, 6:] != tokenizer.mask_token_id).all()


def test_threshold_commits_what_reaches_it_and_marks_what_does_not(tokenizer):
    model = random_model("llada", tokenizer)
    rollout = model.generate(
        prompts_of([6])[0],
        max_new_tokens=12,
        unmasking="threshold",
        threshold=0.8,
        eos_token_id=None,
        return_dict_in_generate=True,
    ).rollout
    # Greedy log-probabilities are at temperature 1, and so is the confidence.
    assert torch.equal(rollout.forced, rollout.logprobs.exp() < 0.8)
    assert rollout.forced.any() and not rollout.forced.all()
    for step in rollout.unmask_step.unique():
        assert rollout.forced[rollout.unmask_step == step].sum() <= 1


@pytest.mark.parametrize(
    "length, block, steps, expected",
    [
        (32, 8, 16, [4, 4, 4, 4]),
        (32, 16, 6, [3, 3]),
        (12, 4, 7, [3, 2, 2]),
        (17, 4, 4, [1, 1, 1, 1, 1]),
        (10, 4, 5, [2, 2, 2]),
        (10, 4, 6, [3, 2, 2]),
        (9, 4, 9, [4, 4, 1]),
        (8, 8, 8, [8]),
    ],
)
def test_steps_are_shared_out_block_by_block(length, block, steps, expected):
    sizes = np.array([[min(block, length - start) for start in range(0, length, block)]])
    assert steps_per_block(sizes, np.array([length]), block, steps).tolist() == [expected]


def test_even_share_gives_the_remainder_to_the_first_steps():
    shares = [even_share(np.array([7, 4]), step, np.array([3, 4])).tolist() for step in range(4)]
    assert shares == [[3, 1], [2, 1], [2, 1], [0, 1]]


def test_commit_takes_the_best_candidates_only():
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    candidates = torch.tensor([[False, True, True, True]])
    best, forced = commit(scores, candidates, torch.tensor([1]))
    assert best.tolist() == [[False, True, False, False]] and not forced.any()
    both, forced = commit(scores, candidates, torch.tensor([3]), lambda ordered: ordered >= 0.7)
    assert both.tolist() == [[False, True, True, True]] and forced.tolist() == [[False, False, False, True]]


# The distribution


def test_the_mask_token_is_never_drawn_and_the_temperature_divides():
    logits = torch.tensor([[1.0, 2.0, 9.0, 0.5]])
    expected = (torch.tensor([1.0, 2.0, 0.5]) / 0.7).log_softmax(-1)
    found = token_distribution(logits, mask_token_id=2, temperature=0.7)
    assert found[0, 2] == float("-inf")
    assert torch.allclose(found[0, [0, 1, 3]], expected)


def test_top_k_and_top_p_cut_the_distribution():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]])
    assert (token_distribution(logits, 4, top_k=2) > float("-inf")).sum() == 2
    kept = token_distribution(logits, 4, top_p=0.6)
    assert kept[0, 0].exp().item() == pytest.approx(1.0)


def test_draw_inverts_the_cumulative_distribution():
    probabilities = torch.tensor([0.1, 0.0, 0.4, 0.0, 0.5, 0.0])
    # A fine grid of numbers has to give each token its share of the grid, and tokens of probability 0 none.
    grid = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    tokens = draw(probabilities.expand(10_000, -1), grid)
    assert torch.bincount(tokens, minlength=6).tolist() == [1000, 0, 4000, 0, 5000, 0]
    edge = draw(probabilities.expand(2, -1), torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
    assert edge.tolist() == [0, 4]


# Settings


@pytest.mark.parametrize(
    "settings, field",
    [
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"max_new_tokens": 8, "block_length": 0}, "block_length=0"),
        ({"max_new_tokens": 8, "block_length": 9}, "block_length=9"),
        ({"max_new_tokens": 8, "num_denoising_steps": 9}, "num_denoising_steps=9"),
        ({"max_new_tokens": 8, "num_denoising_steps": 0}, "num_denoising_steps=0"),
        ({"unmasking": "best"}, "unmasking='best'"),
        ({"unmasking": "threshold"}, "threshold=None"),
        ({"threshold": 0.9}, "threshold=0.9"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"cache": "static"}, "cache='static'"),
        ({"cache_refresh_interval": 4}, "cache_refresh_interval=4"),
        ({"unmasking": "factor"}, "factor=None"),
        ({"factor": 1.0}, "factor=1.0"),
        ({"unmasking": "entropy_bounded", "entropy_bound": 0.0}, "entropy_bound=0.0"),
        ({"unmasking": "threshold", "threshold": 0.9, "alg_temp": 0.5}, "alg_temp=0.5"),
        ({"alg_temp": -0.5}, "alg_temp=-0.5"),
        ({"step_schedule": "cosine"}, "step_schedule='cosine'"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0"),
        ({"num_return_sequences": 0}, "num_return_sequences=0"),
        ({"suppress_tokens": [-1]}, "suppress_tokens"),
        ({"num_beams": 4}, "num_beams=4"),
        ({"do_sample": True}, "do_sample=True"),
        ({"blocklength": 4}, "blocklength=4"),
    ],
)
def test_wrong_settings_are_named(settings, field):
    with pytest.raises(ValueError, match=field):
        DiffusionGenerationConfig(**settings)


def test_unknown_keywords_of_generate_are_errors(family, tokenizer):
    model = random_model(family, tokenizer)
    with pytest.raises(ValueError, match="blok_length=4"):
        model.generate(prompts_of([4])[0], blok_length=4)
    with pytest.raises(ValueError, match="GenerationConfig"):
        model.generate(prompts_of([4])[0], generation_config=GenerationConfig())


def test_right_padding_and_long_prompts_are_refused(family, tokenizer):
    model = random_model(family, tokenizer)
    ids, mask = prompts_of([4, 6])
    with pytest.raises(ValueError, match="attention_mask"):
        model.generate(ids, attention_mask=mask.flip(1), max_new_tokens=4)
    with pytest.raises(ValueError, match="max_new_tokens=126"):
        model.generate(ids, attention_mask=mask, max_new_tokens=126)
    with pytest.raises(ValueError, match="seed has 3 entries"):
        model.generate(ids, attention_mask=mask, max_new_tokens=4, temperature=1.0, seed=[1, 2, 3])


def test_generation_config_travels_with_the_model(family, tokenizer, tmp_path):
    model = random_model(family, tokenizer)
    model.generation_config = DiffusionGenerationConfig(
        max_new_tokens=12, block_length=4, temperature=0.7, unmasking="threshold", threshold=0.8, eos_token_id=1
    )
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded.generation_config) is DiffusionGenerationConfig
    assert loaded.generation_config == model.generation_config


def test_an_autoregressive_generation_config_is_read_and_reported(tmp_path, caplog):
    content = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "repetition_penalty": 1.1, "eos_token_id": [1, 2]}
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    with caplog.at_level("WARNING", logger="trl_diffusion"):
        config = DiffusionGenerationConfig.from_pretrained(tmp_path)
    assert (config.temperature, config.top_p, config.eos_token_id) == (0.6, 0.95, [1, 2])
    assert "repetition_penalty" in caplog.text
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.6}))
    assert DiffusionGenerationConfig.from_pretrained(tmp_path).temperature == 0.0
