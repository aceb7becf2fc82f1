# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What is measured on a trajectory, and the entropies it is measured from, against loops."""

import math

import pytest
import torch
from conftest import random_model
from slow_sampler import visibility

from trl_diffusion import Rollout
from trl_diffusion.generation import trajectory_statistics


def slow_statistics(rollout: Rollout, row: int, block_causal: bool) -> dict[str, float]:
    """Token by token."""
    offset = int(rollout.prompt_mask[row].sum()) if block_causal else 0
    # Positions of block-causal models are counted from the row's first token: the prompt's length goes before, and
    # padding is none.
    for place in range(rollout.canvas_ids.size(1) if block_causal else 0):
        fields = (rollout.unmask_step, rollout.fixed, rollout.completion_mask)
        if any(field[row, place] for field in fields):
            break
        offset -= 1
    places = [
        (place, int(rollout.unmask_step[row, place]), (offset + place) // rollout.block_length)
        for place in range(rollout.canvas_ids.size(1))
        if rollout.completion_mask[row, place] and rollout.unmask_step[row, place] > 0
    ]
    if not places:
        return dict.fromkeys(("tokens_per_step", "steps_per_block", "forced", "entropy_at_commit"), math.nan)
    blocks = {}
    for _, step, block in places:
        blocks.setdefault(block, set()).add(step)
    return {
        "tokens_per_step": len(places) / len({step for _, step, _ in places}),
        "steps_per_block": sum(len(steps) for steps in blocks.values()) / len(blocks),
        "forced": sum(bool(rollout.forced[row, place]) for place, _, _ in places) / len(places),
        "entropy_at_commit": sum(float(rollout.entropies[row, place]) for place, _, _ in places) / len(places),
    }


def slow_entropies(model, rollout: Rollout, row: int, top_k: int | None) -> torch.Tensor:
    """Replays one row step by step, alone, and sums −p log p over the tokens that could have been drawn."""
    prompt = rollout.prompt_ids[row][rollout.prompt_mask[row].bool()]
    canvas, steps = rollout.canvas_ids[row], rollout.unmask_step[row]
    found = torch.zeros(len(canvas))
    for step in range(1, int(steps.max()) + 1):
        ids = torch.cat([prompt, torch.where(steps >= step, model.mask_token_id, canvas)])[None]
        kwargs = {}
        if model.attention == "block_causal":
            kwargs["attention_mask"] = visibility(ids.size(1), rollout.block_length)
            kwargs["position_ids"] = torch.arange(ids.size(1))[None]
        with torch.no_grad():
            logits = model(ids, **kwargs).logits[0, len(prompt) :].double() / rollout.temperature
        for place in (steps == step).nonzero().flatten().tolist():
            values = [float(value) for token, value in enumerate(logits[place]) if token != model.mask_token_id]
            values = sorted(values, reverse=True)[:top_k]
            total = sum(math.exp(value) for value in values)
            found[place] = -sum(math.exp(v) / total * math.log(math.exp(v) / total) for v in values)
    return found


def rollout_of(model, tokenizer, **kwargs) -> Rollout:
    """Prompts of 3, 7 and 4 tokens, in a padded batch; a canvas that is no multiple of the block."""
    padded = tokenizer.pad({"input_ids": [[3, 4, 5], [3, 4, 5, 6, 7, 5, 4], [7, 6, 3, 3]]}, return_tensors="pt")
    settings = {"max_new_tokens": 11, "block_length": 4, "seed": 3, "eos_token_id": tokenizer.eos_token_id, **kwargs}
    return model.generate(**padded, output_entropies=True, return_dict_in_generate=True, **settings).rollout


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.9, "num_denoising_steps": 7},
        {"temperature": 0.0, "unmasking": "threshold", "threshold": 0.3},
        {"temperature": 0.9, "top_k": 3},
        {"temperature": 0.9, "cache": "exact", "num_denoising_steps": 5},
    ],
    ids=["sampled", "greedy-threshold", "top-k", "cache"],
)
def test_statistics_and_entropies_are_those_of_a_loop(family, tokenizer, settings):
    model = random_model(family, tokenizer)
    if "cache" in settings:
        # An approximate cache that is computed anew at every step is exact.
        exact = {"cache": "block"} if family == "sdar" else {"cache": "dual", "cache_refresh_interval": 1}
        settings = {**settings, **exact}
    rollout = rollout_of(model, tokenizer, **settings)
    assert (rollout.unmask_step > 0).sum() > 20
    statistics = trajectory_statistics(rollout, block_causal=model.attention == "block_causal")
    for row in range(3):
        entropies = slow_entropies(model, rollout, row, settings.get("top_k"))
        torch.testing.assert_close(rollout.entropies[row], entropies, atol=1e-4, rtol=0)
        expected = slow_statistics(rollout, row, model.attention == "block_causal")
        assert {name: values[row].item() for name, values in statistics.items()} == pytest.approx(expected)


def hand_written(**kwargs) -> Rollout:
    """Two rows: a hint, steps out of order, a forced token, a tail behind EOS; and one that was not drawn at all."""
    steps = torch.tensor([[1, 0, 1, 4, 3, 3, 5], [0, 0, 0, 0, 0, 0, 0]], dtype=torch.int16)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]])
    forced = torch.tensor([[0, 0, 0, 1, 0, 0, 1], [0] * 7], dtype=torch.bool)
    fields = {
        "prompt_ids": torch.zeros(2, 3, dtype=torch.long),
        "prompt_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        "canvas_ids": torch.ones(2, 7, dtype=torch.long),
        "unmask_step": steps,
        "logprobs": torch.zeros(2, 7),
        "forced": forced,
        "fixed": torch.tensor([[0, 1, 0, 0, 0, 0, 0], [0] * 7], dtype=torch.bool),
        "completion_mask": mask,
        "num_forward_passes": torch.tensor([5, 0]),
        "block_length": 4,
    }
    return Rollout(**{**fields, **kwargs})


def test_statistics_of_a_row_by_hand():
    rollout = hand_written(entropies=torch.tensor([[1.0, 9, 2, 3, 4, 5, 9], [0] * 7]))
    full = trajectory_statistics(rollout, block_causal=False)
    # Tokens at steps 1, 1 and 4 in block 0; 3 and 3 in block 1.
    assert full["tokens_per_step"][0] == pytest.approx(5 / 3)
    assert full["steps_per_block"][0] == pytest.approx((2 + 1) / 2)
    assert full["forced"][0] == pytest.approx(1 / 5)
    assert full["entropy_at_commit"][0] == pytest.approx(15 / 5)
    # The prompt of two tokens shares its block with the first two of the canvas: {1} · {1, 4, 3}.
    assert trajectory_statistics(rollout, block_causal=True)["steps_per_block"][0] == pytest.approx((1 + 3) / 2)
    assert all(values[1].isnan() for values in full.values())
    assert "entropy_at_commit" not in trajectory_statistics(hand_written(), block_causal=False)


def test_random_statistics_are_those_of_a_loop():
    generator = torch.Generator().manual_seed(0)

    def integers(top, *shape):
        return torch.randint(top, shape, generator=generator)

    rows = 40
    real = torch.arange(13) >= integers(5, rows, 1)  # padding inside the canvas
    rollout = hand_written(
        prompt_ids=torch.zeros(rows, 9, dtype=torch.long),
        prompt_mask=(torch.arange(9) >= integers(10, rows, 1)).long(),
        canvas_ids=torch.ones(rows, 13, dtype=torch.long),
        unmask_step=integers(9, rows, 13).short() * real,
        fixed=(integers(2, rows, 13).bool() & real),
        forced=integers(2, rows, 13).bool(),
        completion_mask=((torch.arange(13) <= integers(13, rows, 1)) & real).long(),
        entropies=torch.rand(rows, 13, generator=generator),
    )
    for block_causal in (False, True):
        statistics = trajectory_statistics(rollout, block_causal)
        for row in range(rows):
            expected = slow_statistics(rollout, row, block_causal)
            found = {name: values[row].item() for name, values in statistics.items()}
            assert found == pytest.approx(expected, nan_ok=True, rel=1e-5)


def test_statistics_of_a_filled_row_do_not_depend_on_the_batch(tokenizer):
    """Padding stands inside the canvas where another row is filled to its left."""
    model = random_model("sdar", tokenizer)
    prompts = [[3, 4, 5, 6, 7, 5, 4, 3, 6, 6, 5], [7, 6, 3, 3, 4, 4, 5, 6], [5, 5, 4, 3, 6]]
    settings = {"block_length": 4, "num_denoising_steps": 4, "temperature": 0.0, "max_new_tokens": 3}

    def statistics(rows: list[list[int]]) -> tuple[Rollout, dict[str, torch.Tensor]]:
        padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        infill = (padded["input_ids"] % 2 == 1) & padded["attention_mask"].bool()
        rollout = model.generate(
            **padded, infill_mask=infill, output_entropies=True, return_dict_in_generate=True, **settings
        ).rollout
        return rollout, trajectory_statistics(rollout, block_causal=True)

    batch, together = statistics(prompts)
    assert batch.completion_mask[1:, 0].tolist() == [0, 0]
    for row, prompt in enumerate(prompts):
        assert together["steps_per_block"][row].item() == pytest.approx(
            slow_statistics(batch, row, True)["steps_per_block"]
        )
        for name, value in statistics([prompt])[1].items():
            assert together[name][row].item() == pytest.approx(value.item(), rel=1e-4), (name, row)
