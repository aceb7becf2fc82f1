# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What TraceRL does beyond its loss: views, old log-probabilities, blocks."""

import json

import pytest
import torch
from conftest import random_model
from peft import LoraConfig
from rl import generated_batch, rl_trainer, saved_bytes, watch_blocks, watch_rollouts

from trl_diffusion import DiffusionGenerationConfig, TraceRLConfig
from trl_diffusion.generation import trajectory_statistics
from trl_diffusion.models import diffusion_model


def count_calls(model):
    calls = []
    model.register_forward_hook(lambda *args: calls.append(1))
    return calls


@pytest.mark.parametrize("value_model", [None, "head"])
@pytest.mark.parametrize("shrinkage", [1, 2, 4])
def test_forward_passes_are_as_many_as_merged_steps(family, tokenizer, tmp_path, shrinkage, value_model):
    trainer = rl_trainer(
        "tracerl",
        random_model(family, tokenizer),
        tokenizer,
        tmp_path,
        shrinkage=shrinkage,
        value_model=value_model,
        max_completion_length=9,
        num_denoising_steps=9,
    )
    inputs = generated_batch(trainer)
    trainer.current_gradient_accumulation_steps = 1
    if value_model:
        trainer.value.prepare(1)
        value_calls = count_calls(trainer.value.model)
    calls = count_calls(trainer.model)
    trainer._compute_loss(trainer.model, inputs)
    # ⌈T/s⌉ of the longest row: full attention; block-causal: the block with most steps of its own. Steps after EOS
    # have no target.
    wanted = 0
    for row, steps in enumerate(inputs["unmask_step"].tolist()):
        blocks = [0] * 9
        if family == "sdar":
            blocks = [(int(inputs["prompt_mask"][row].sum()) + c) // 4 for c in range(9)]
        for block in set(blocks):
            distinct = sorted({s for s, b in zip(steps, blocks, strict=True) if b == block and s > 0})
            groups = {
                distinct.index(s) // shrinkage
                for s, b, kept in zip(steps, blocks, inputs["completion_mask"][row].tolist(), strict=True)
                if b == block and kept and s > 0
            }
            wanted = max(wanted, len(groups))
    bound = 9 if family == "llada" else 4
    assert len(calls) == wanted <= -(-bound // shrinkage)
    assert trainer._metrics["train"]["views"] == [wanted]
    if value_model:
        assert len(value_calls) == wanted


@pytest.mark.parametrize("value_model", [None, "full"])
def test_saved_activations_do_not_grow_with_the_number_of_views(family, tokenizer, tmp_path, value_model):
    """From 1 to 8 views of the same completions, with one token of each row scored in each."""
    trainer = rl_trainer(
        "tracerl",
        random_model(family, tokenizer),
        tokenizer,
        tmp_path,
        value_model=value_model,
        max_completion_length=16,
        block_length=8,
        num_denoising_steps=16,
    )
    inputs = generated_batch(trainer)
    if value_model:
        trainer.value.prepare(1)
        trainer.value.optimizer.step = lambda: None
    trainer.current_gradient_accumulation_steps = 1
    inputs["prompt_mask"] = torch.ones_like(inputs["prompt_mask"])
    inputs["completion_mask"] = torch.ones_like(inputs["completion_mask"])
    start = -inputs["prompt_mask"].size(1) % 8  # of the first whole block of the canvas
    peaks, counts = [], []

    def step():
        loss = trainer._compute_loss(trainer.model, inputs)
        counts.append(trainer._metrics["train"]["views"][-1])
        loss.backward()

    for views in (1, 8):
        inputs["unmask_step"] = torch.zeros(inputs["completion_ids"].shape, dtype=torch.int16)
        inputs["unmask_step"][:, start : start + views] = torch.arange(1, views + 1)
        step()  # warm up
        peaks.append(saved_bytes(step))
    assert counts == [1, 1, 8, 8]
    assert peaks[1] <= 1.1 * peaks[0]


# Old log-probabilities


def off_policy(tokenizer, tmp_path, family="llada", dtype=torch.float32, trainer_name="tracerl", **kwargs):
    model = random_model(family, tokenizer).to(dtype)
    return rl_trainer(trainer_name, model, tokenizer, tmp_path, num_iterations=2, **kwargs)


@pytest.mark.parametrize("family, cache", [("llada", "none"), ("sdar", "none"), ("sdar", "block")])
def test_old_log_probabilities_of_the_rollout_are_reused_where_the_replay_is_exact(tokenizer, tmp_path, family, cache):
    trainer = off_policy(tokenizer, tmp_path, family, cache=cache)
    calls = count_calls(trainer.model)
    rollouts = watch_rollouts(trainer)
    inputs = generated_batch(trainer)
    assert trainer._metrics["train"]["old_logprobs/from_rollout"] == [1.0]
    # Nothing but the rollout ran the model.
    (rollout,) = rollouts
    assert len(calls) <= int(rollout.num_forward_passes.max()) + 1
    mask = inputs["completion_mask"].bool()
    assert torch.equal(inputs["old_per_token_logps"], rollout.logprobs * mask)
    again = trainer._score(trainer.model, inputs)
    assert (again - inputs["old_per_token_logps"]).abs().max() <= 1e-4


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"shrinkage": 2}, "shrinkage=2"),
        ({"top_p": 0.8}, "top-p"),
        ({"cache": "prefix"}, "cache='prefix'"),
        ({"dtype": torch.bfloat16}, "below fp32"),
        ({"bf16": True}, "below fp32"),
        ({"peft_config": LoraConfig(target_modules="all-linear", r=2, lora_dropout=0.1)}, "dropout is on"),
        ({"family": "sdar", "block_length_schedule": {"0": [2, 4]}}, "blocks of 2, training of 4"),
        ({"trainer_name": "grpo"}, "not the states"),
    ],
)
def test_old_log_probabilities_are_computed_where_it_is_not(tokenizer, tmp_path, caplog, settings, reason):
    trainer = off_policy(tokenizer, tmp_path, **settings)
    with caplog.at_level("INFO", logger="trl_diffusion"):
        inputs = generated_batch(trainer)
    assert reason in caplog.text and "computed anew" in caplog.text
    assert trainer._metrics["train"]["old_logprobs/from_rollout"] == [0.0]
    if "dropout" not in reason:
        assert torch.equal(inputs["old_per_token_logps"], trainer._score(trainer.model, inputs))


def test_the_kl_to_the_old_policy_warns_where_it_has_no_gradient(tokenizer, tmp_path, caplog):
    with caplog.at_level("WARNING", logger="trl_diffusion"):
        trainer = rl_trainer(
            "tracerl", random_model("llada", tokenizer), tokenizer, tmp_path, beta=0.1, kl_reference="old"
        )
    assert "kl_reference='old' has no effect" in caplog.text
    assert trainer.ref_model is None and trainer.args.beta == 0.1
    caplog.clear()
    with caplog.at_level("WARNING", logger="trl_diffusion"):
        trainer = off_policy(tokenizer, tmp_path, beta=0.1, kl_reference="old", learning_rate=0.1, max_steps=2)
    assert "kl_reference" not in caplog.text
    trainer.train()
    kl = [log["kl"] for log in trainer.state.log_history if "kl" in log]
    # The second update of the rollout is off the policy that made it.
    assert kl[0] == pytest.approx(0.0, abs=1e-6) and kl[1] > 1e-4


# Blocks


def test_the_schedule_sets_the_blocks_of_rollouts_and_training(tokenizer, tmp_path):
    schedule = {"0": 2, "1": [2, 4], "3": 4}
    trainer = rl_trainer(
        "tracerl",
        random_model("sdar", tokenizer),
        tokenizer,
        tmp_path,
        block_length=None,
        block_length_schedule=schedule,
        max_steps=4,
        save_strategy="steps",
        save_steps=1,
    )
    rollouts, blocks = watch_rollouts(trainer), watch_blocks(trainer)
    trainer.train()
    assert [rollout.block_length for rollout in rollouts] == [2, 2, 2, 4]
    assert blocks == [2, 4, 4, 4]
    # A checkpoint says which blocks its weights were trained for.
    sizes = [
        json.loads((tmp_path / f"checkpoint-{step}" / "config.json").read_text())["block_size"] for step in (1, 2, 4)
    ]
    assert sizes == [2, 4, 4]


def test_a_schedule_of_a_full_attention_model_goes_into_its_generation_config(tokenizer, tmp_path):
    trainer = rl_trainer(
        "tracerl",
        random_model("llada", tokenizer),
        tokenizer,
        tmp_path,
        block_length=None,
        block_length_schedule='{"0": 2, "1": 3}',
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert saved["block_length"] == 3
    with pytest.raises(ValueError, match=r"block_length_schedule\[1\]=\[2, 3\]: a full-attention model"):
        rl_trainer(
            "tracerl", random_model("llada", tokenizer), tokenizer, tmp_path, block_length_schedule={"1": [2, 3]}
        )


def test_rollouts_are_trained_on_with_the_blocks_of_their_generation(tokenizer, tmp_path):
    """A switch in the middle of a buffer waits for the next rollouts."""
    trainer = rl_trainer(
        "tracerl",
        random_model("sdar", tokenizer),
        tokenizer,
        tmp_path,
        block_length_schedule={0: 2, 1: 4},
        num_iterations=2,
        max_steps=4,
    )
    used = watch_blocks(trainer)
    trainer.train()
    assert used == [2, 2, 4, 4]


def test_a_block_longer_than_the_canvas_can_be_saved(tokenizer, tmp_path):
    model = random_model("sdar", tokenizer, block_length=8)
    model.generation_config = DiffusionGenerationConfig(block_length=4, max_new_tokens=6)
    trainer = rl_trainer("tracerl", model, tokenizer, tmp_path, block_length=None, max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    # The model's own block is meant, and the canvas of the run.
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (saved["block_length"], saved["max_new_tokens"]) == (None, 6)


def test_a_second_training_begins_with_the_blocks_of_the_first(tokenizer, tmp_path):
    trainer = rl_trainer(
        "tracerl",
        random_model("sdar", tokenizer),
        tokenizer,
        tmp_path,
        block_length=None,
        block_length_schedule={"1": 2},
        value_model="head",
    )
    rollouts = watch_rollouts(trainer)
    trainer.train()
    assert trainer.value.model.backbone.config.block_length == 2
    trainer.train()
    assert [rollout.block_length for rollout in rollouts] == [4, 2, 4, 2]


@pytest.mark.parametrize(
    "schedule, message",
    [
        ({}, "must map optimizer steps"),
        ([4, 8], "must map optimizer steps"),
        ({"-1": 4}, "the step '-1'"),
        ({"a": 4}, "the step 'a'"),
        ({"1": 4, 1: 8}, "two entries for step 1"),
        ({"0": 0}, "must be a block length"),
        ({"0": [4]}, "must be a block length"),
        ({"0": [4, True]}, "must be a block length"),
        ({"0": 999}, "block_length=999"),
        ({"0": [2, 999]}, "block_length=999"),
    ],
)
def test_wrong_schedules_are_named(tmp_path, schedule, message):
    with pytest.raises(ValueError, match=message):
        TraceRLConfig(str(tmp_path), bf16=False, block_length_schedule=schedule)


def test_trajectories_are_logged(family, tokenizer, tmp_path):
    trainer = rl_trainer(
        "tracerl", random_model(family, tokenizer), tokenizer, tmp_path, unmasking="threshold", threshold=0.7
    )
    rollouts = watch_rollouts(trainer)
    generated_batch(trainer)
    (rollout,) = rollouts
    block_causal = diffusion_model(trainer.model).attention == "block_causal"
    statistics = trajectory_statistics(rollout, block_causal=block_causal)
    assert set(statistics) == {"tokens_per_step", "steps_per_block", "forced", "entropy_at_commit"}
    for name, values in statistics.items():
        assert trainer._metrics["train"][f"trajectory/{name}"] == [pytest.approx(values.mean().item())]
    assert statistics["forced"].max() > 0
