# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Training an unmasking policy: what is learned, what stays as it was, what is saved and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from conftest import random_model
from peft import LoraConfig, get_peft_model
from policies import CANVAS, TwoWaves, all_right, policy_trainer, small_policy, two_waves
from rl import prompts, share_of_ones
from transformers import BitsAndBytesConfig

from trl_diffusion import (
    AutoModelForDiffusionLM,
    DiffusionGRPOConfig,
    TraceRLConfig,
    TraceRLTrainer,
    UnmaskPolicyConfig,
    UnmaskPolicyModel,
    UnmaskPolicyTrainer,
)
from trl_diffusion.models import diffusion_model


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(before, model):
    after = model.state_dict()
    return before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


def first_digit(completions, **kwargs):
    """A reward that differs between completions."""
    return [int((completion or "0")[0]) / 4 for completion in completions]


# Learning


@pytest.mark.parametrize("seed", range(5))
def test_a_schedule_that_is_known_to_be_best_is_found(tokenizer, tmp_path, seed):
    """The even places in one step, the odd ones in another: R = (1 − 2/6)^½. Who goes by confidence is half wrong, as
    is who reveals everything at once, R = ½ (1 − 1/6)^½."""
    model = random_model("llada", tokenizer)
    TwoWaves(model, CANVAS, tokenizer)
    best = (1 - 2 / CANVAS) ** 0.5
    for rule, passes in (("threshold", None), ("low_confidence", 2)):
        kwargs = {"threshold": 0.7} if rule == "threshold" else {"num_denoising_steps": passes}
        out = model.generate(torch.tensor([[3]]), max_new_tokens=CANVAS, unmasking=rule, eos_token_id=[], **kwargs)
        assert tokenizer.decode(out[0, 1:]) != "1" * CANVAS
    policy = small_policy(seed, hidden_size=32, intermediate_size=64, spread=0.0)
    trainer = policy_trainer(
        model, tokenizer, tmp_path, policy, share_of_ones, two_waves(rows=128), seed=seed, num_generations=16,
        per_device_train_batch_size=128, per_device_eval_batch_size=64, max_steps=120, learning_rate=2e-3, alpha=0.5,
        lr_scheduler_type="cosine", max_grad_norm=0.2, logging_steps=40,
    )  # fmt: skip
    trainer.train()
    row = trainer.evaluate(two_waves())
    assert best * 0.98 <= row["eval_reward"] <= best + 1e-6
    assert row["eval_generation/forward_passes"] < 2.2


def test_the_model_is_bit_for_bit_as_it_was(tokenizer, tmp_path, family):
    model = random_model(family, tokenizer)
    model.train()
    before, policy = weights(model), small_policy()
    start = weights(policy)
    settings = {"block_length": 4} if family == "sdar" else {"cache": "prefix", "block_length": 3}
    trainer = policy_trainer(model, tokenizer, tmp_path, policy, max_steps=4, **settings)
    trainer.train()
    assert equal(before, model) and not any(parameter.requires_grad for parameter in model.parameters())
    assert all(not torch.equal(value, policy.state_dict()[name]) for name, value in start.items())
    assert model.config.to_dict() == random_model(family, tokenizer).config.to_dict()


@pytest.mark.parametrize("action", ["bernoulli", "ordered"])
def test_every_setting_trains(tokenizer, tmp_path, action):
    policy = small_policy(action=action, num_confidences=3, entropy=True, dllm_hidden_size=32, initial_bias=1.0)
    start = weights(policy)
    trainer = policy_trainer(
        random_model("llada", tokenizer), tokenizer, tmp_path, policy, first_digit, max_steps=3, expert_steering=True,
        expert_block_length=3, num_iterations=3, gradient_accumulation_steps=2, per_device_train_batch_size=4,
        alpha=0.5, temperature=0.8, policy_temperature=0.7, eval_strategy="steps", eval_steps=2, save_strategy="steps",
        save_steps=2,
    )  # fmt: skip
    trainer.train()
    assert policy.config.policy_temperature == 0.7
    assert all(not torch.equal(value, policy.state_dict()[name]) for name, value in start.items())
    logged = {name for row in trainer.state.log_history for name in row}
    assert {
        "reward",
        "rewards/first_digit/mean",
        "skipped_groups",
        "policy/waiting_steps",
        "policy/log_prob",
    } <= logged
    assert {"generation/forward_passes", "clip_ratio/region_mean", "eval_reward", "expert/reward"} <= logged


def test_the_best_policy_is_kept(tokenizer, tmp_path, monkeypatch):
    rewards = iter([0.2, 0.9, 0.1])
    trainer = policy_trainer(
        random_model("llada", tokenizer), tokenizer, tmp_path, max_steps=3, eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1,
    )  # fmt: skip
    assert trainer.args.load_best_model_at_end and trainer.args.greater_is_better
    evaluation_loop = type(trainer).evaluation_loop

    def with_reward(*args, **kwargs):
        output = evaluation_loop(trainer, *args, **kwargs)
        trainer._metrics["eval"]["reward"] = [next(rewards)]
        return output

    monkeypatch.setattr(trainer, "evaluation_loop", with_reward)
    saved, save = {}, trainer._save_checkpoint

    def keep(*args):
        save(*args)
        saved[trainer.state.global_step] = weights(trainer.model)

    monkeypatch.setattr(trainer, "_save_checkpoint", keep)
    trainer.train()
    assert trainer.state.best_global_step == 2
    assert equal(saved[2], trainer.model) and not equal(saved[3], trainer.model)


def test_an_evaluation_reveals_something_at_every_step_and_is_the_same_every_time(tokenizer, tmp_path):
    lazy = small_policy(initial_bias=-8.0)
    trainer = policy_trainer(
        random_model("llada", tokenizer), tokenizer, tmp_path, lazy, eval_strategy="steps", max_steps=1
    )
    rows = [trainer.evaluate() for _ in range(2)]
    first, second = ({k: v for k, v in row.items() if "second" not in k and "runtime" not in k} for row in rows)
    assert first == second and first["eval_generation/forward_passes"] <= CANVAS
    assert first["eval_loss"] == pytest.approx(-first["eval_reward"], abs=1e-6)


# Joint training


@pytest.mark.parametrize("adapter", [False, True])
def test_joint_training_moves_both_and_saves_both(tokenizer, tmp_path, adapter):
    model = random_model("llada", tokenizer)
    if adapter:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", r=2))
    before, policy = weights(model), small_policy()
    start = weights(policy)
    settings = {"max_steps": 4, "temperature": 0.9, "dllm_learning_rate": 0.01, "num_iterations": 2}
    trainer = policy_trainer(model, tokenizer, tmp_path / "a", policy, save_strategy="steps", save_steps=2, **settings)
    trainer.train()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all("lora" in name for name in moved) == adapter
    assert all(not torch.equal(value, policy.state_dict()[name]) for name, value in start.items())
    logs = trainer.state.log_history
    assert {"dllm/grad_norm", "dllm/entropy", "dllm/clip_ratio/region_mean"} <= {name for row in logs for name in row}
    trainer.save_model(str(tmp_path / "out"))
    again = AutoModelForDiffusionLM.from_pretrained(tmp_path / "out" / "dllm") if not adapter else None
    if again is not None:
        assert equal(weights(model), again)
    assert UnmaskPolicyModel.from_pretrained(tmp_path / "out").config.hidden_size == 16

    # And goes on from a checkpoint as if nothing had been.
    other = random_model("llada", tokenizer, seed=9 * (not adapter))
    if adapter:
        other = get_peft_model(other, LoraConfig(target_modules="all-linear", r=2))
    resumed = policy_trainer(other, tokenizer, tmp_path / "b", small_policy(seed=3), save_strategy="no", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert equal(weights(policy), resumed.model)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_best_model_comes_back_with_the_best_policy(tokenizer, tmp_path, monkeypatch):
    model = random_model("llada", tokenizer)
    rewards, saved = iter([0.9, 0.2]), {}
    trainer = policy_trainer(
        model, tokenizer, tmp_path, max_steps=2, temperature=0.9, dllm_learning_rate=0.01, eval_strategy="steps",
        eval_steps=1, save_strategy="steps", save_steps=1,
    )  # fmt: skip
    evaluation_loop, save = type(trainer).evaluation_loop, trainer._save_checkpoint

    def with_reward(*args, **kwargs):
        output = evaluation_loop(trainer, *args, **kwargs)
        trainer._metrics["eval"]["reward"] = [next(rewards)]
        return output

    def keep(*args):
        save(*args)
        saved[trainer.state.global_step] = weights(model)

    monkeypatch.setattr(trainer, "evaluation_loop", with_reward)
    monkeypatch.setattr(trainer, "_save_checkpoint", keep)
    trainer.train()
    assert trainer.state.best_global_step == 1
    assert equal(saved[1], model) and not equal(saved[2], model)


def test_what_joint_training_cannot_do_is_refused(tokenizer, tmp_path):
    settings = {
        "temperature": 0.9,
        "dllm_learning_rate": 0.01,
        "max_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    policy_trainer(random_model("llada", tokenizer), tokenizer, tmp_path, **settings).train()
    alone = policy_trainer(random_model("llada", tokenizer), tokenizer, tmp_path, temperature=0.9, max_steps=2)
    with pytest.raises(ValueError, match="checkpoint-1' is of joint training, with a model of its own in 'dllm'"):
        alone.train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="would train weights in torch.bfloat16"):
        policy_trainer(random_model("llada", tokenizer).bfloat16(), tokenizer, tmp_path, **settings)
    named = get_peft_model(random_model("llada", tokenizer), LoraConfig(target_modules="all-linear"), "mine")
    with pytest.raises(ValueError, match="dllm has adapters named mine"):
        policy_trainer(named, tokenizer, tmp_path, **settings)


def test_joint_training_is_that_of_tracerl(tokenizer, tmp_path):
    """The model's gradient is the one that TraceRL's trainer computes on the same rollouts."""
    model = random_model("llada", tokenizer)
    trainer = policy_trainer(
        model, tokenizer, tmp_path / "a", temperature=0.9, dllm_learning_rate=0.01, num_iterations=1,
        max_grad_norm=0.0, learning_rate=0.0,
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([row for row in trainer.train_dataset for _ in range(4)][:8])
    inputs["advantages"] = torch.tensor([-1.0, 0.7, 1.2, -0.4, 0.9, -0.8, 1.1, -1.3])
    trainer.joint.optimizer.step = trainer.joint.optimizer.zero_grad = lambda: None
    trainer.joint.prepare(1)
    trainer.joint.optimizer.step = trainer.joint.optimizer.zero_grad = lambda: None
    trainer.joint.update_on(inputs)
    found = torch.cat([p.grad.flatten() for p in model.parameters()])

    copy = random_model("llada", tokenizer)
    args = TraceRLConfig(
        str(tmp_path / "b"), temperature=0.9, use_cpu=True, bf16=False, num_generations=4,
        per_device_train_batch_size=8, max_completion_length=CANVAS, activation_checkpointing=False, report_to="none",
    )  # fmt: skip
    reference = TraceRLTrainer(copy, all_right, args, train_dataset=prompts(), processing_class=tokenizer)
    reference.current_gradient_accumulation_steps = 1
    reference.model.train()
    reference._compute_loss(reference.model, inputs).backward()
    expected = torch.cat([p.grad.flatten() for p in copy.parameters()])
    assert (found - expected).abs().max() < 1e-6 < expected.abs().max()


# Files and other trainers


def test_a_trained_policy_is_a_small_folder_that_other_trainers_and_models_use(tokenizer, tmp_path):
    model = random_model("llada", tokenizer)
    trainer = policy_trainer(model, tokenizer, tmp_path / "run", max_steps=2)
    trainer.train()
    folder = tmp_path / "policy"
    trainer.save_model(str(folder))
    names = {path.name for path in folder.iterdir()}
    files = {"config.json", "model.safetensors", "generation_config.json"}
    assert names == files | {"training_args.bin", "training_args.json"}
    config = json.loads((folder / "config.json").read_text())
    assert not {"pad_token_id", "eos_token_id"} & {name for name, value in config.items() if value is not None}
    again = UnmaskPolicyModel.from_pretrained(folder)
    assert equal(weights(trainer.model), again)

    args = TraceRLConfig(
        str(tmp_path / "tracerl"), unmasking=str(folder), policy_beta=2.0, policy_temperature=0.8, temperature=0.9,
        use_cpu=True, bf16=False, num_generations=4, per_device_train_batch_size=8, max_completion_length=CANVAS,
        max_steps=1, activation_checkpointing=False, report_to="none", save_strategy="no",
    )  # fmt: skip
    other = TraceRLTrainer(
        random_model("sdar", tokenizer), lambda completions, **kw: [float(len(set(c))) for c in completions], args,
        train_dataset=prompts(), processing_class=tokenizer,
    )  # fmt: skip
    used, load = [], diffusion_model(other.model).unmasking_policy
    other.model.unmasking_policy = lambda name: used.append(name) or load(name)
    other.train()
    assert str(folder) in used and other.state.global_step == 1
    # Its tokens are replayed exactly, whoever decided when they were drawn.
    assert not any(row.get("old_logprobs/from_rollout") == 0.0 for row in other.state.log_history)
    with pytest.raises(ValueError, match="no-policy' is no unmasking policy"):
        TraceRLTrainer(
            random_model("sdar", tokenizer), all_right,
            TraceRLConfig(str(tmp_path / "x"), unmasking=str(tmp_path / "no-policy"), use_cpu=True, bf16=False),
            train_dataset=prompts(), processing_class=tokenizer,
        )  # fmt: skip


def test_a_policy_that_was_evaluated_is_saved_as_plainly(tokenizer, tmp_path):
    """The Trainer puts the tokenizer's ids into what it trains, and an evaluation a setting of caches."""
    trainer = policy_trainer(
        random_model("llada", tokenizer), tokenizer, tmp_path, max_steps=1, eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1,
    )  # fmt: skip
    trainer.train()
    trainer.evaluate()
    trainer.save_model(str(tmp_path / "policy"))
    for folder in ("checkpoint-1", "policy"):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        named = {name for name, value in config.items() if value is not None}
        assert not named & {"bos_token_id", "eos_token_id", "pad_token_id", "use_cache"}


def test_policy_and_model_by_name(tokenizer, tmp_path):
    random_model("llada", tokenizer).save_pretrained(tmp_path / "dllm")
    tokenizer.save_pretrained(tmp_path / "dllm")
    small_policy().save_pretrained(tmp_path / "policy")
    args = UnmaskPolicyConfig(str(tmp_path / "out"), use_cpu=True, report_to="none", max_completion_length=CANVAS)
    trainer = UnmaskPolicyTrainer(
        str(tmp_path / "policy"), all_right, args, train_dataset=prompts(), dllm=str(tmp_path / "dllm")
    )
    assert trainer.processing_class.get_vocab() == tokenizer.get_vocab() and trainer.model.config.hidden_size == 16
    assert trainer.args.eval_strategy == "no" and not trainer.args.load_best_model_at_end
    new = UnmaskPolicyTrainer(reward_funcs=all_right, args=args, train_dataset=prompts(), dllm=str(tmp_path / "dllm"))
    assert new.model.num_parameters() == 330_753


def test_a_quantized_model_is_an_environment_too(tokenizer, tmp_path):
    random_model("llada", tokenizer, hidden_size=64, num_attention_heads=4).save_pretrained(tmp_path / "dllm")
    tokenizer.save_pretrained(tmp_path / "dllm")
    args = UnmaskPolicyConfig(
        str(tmp_path / "out"), use_cpu=True, report_to="none", max_completion_length=CANVAS, max_steps=1,
        num_generations=4, per_device_train_batch_size=4, save_strategy="no", dllm_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    trainer = UnmaskPolicyTrainer(
        small_policy(), all_right, args, train_dataset=prompts(), dllm=str(tmp_path / "dllm"),
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
    )  # fmt: skip
    before = weights(trainer.dllm)
    trainer.train()
    assert trainer.dllm.is_quantized and equal(before, trainer.dllm)


# Refusals


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"unmasking": "random"}, "unmasking='random' is not supported by UnmaskPolicyConfig"),
        ({"threshold": 0.9}, "threshold=0.9 is not supported.*expert_threshold"),
        ({"policy_beta": 2.0}, "policy_beta=2.0 is not supported"),
        ({"beta": 0.1}, "beta=0.1 is not supported"),
        ({"loss_type": "dapo"}, "loss_type='dapo' is not supported"),
        ({"alpha": -1.0}, "alpha=-1.0 must be a number that is not negative"),
        ({"reward_form": "none"}, "reward_form='none' must be one of multiplicative, additive"),
        ({"policy_temperature": 0.0}, "policy_temperature=0.0 must be positive"),
        ({"expert_threshold": 0.5}, "expert_threshold=0.5 has no effect without expert_steering=True"),
        ({"expert_steering": True, "expert_threshold": 1.5}, "expert_threshold=1.5 must lie in"),
        ({"expert_steering": True, "expert_block_length": 0}, "expert_block_length=0 must be at least 1"),
        (
            {"expert_steering": True, "block_length": 48},
            "block_length=48 must be a multiple of expert_block_length=32",
        ),
        ({"expert_steering": True, "cache": "dual", "block_length": 32}, "cache='dual' with expert_steering=True"),
        ({"expert_steering": True, "num_denoising_steps": 64}, "num_denoising_steps=64 with expert_steering=True"),
        ({"reward_weights": [1.0, -0.5]}, r"reward_weights=\[1.0, -0.5\] with reward_form='multiplicative'"),
        ({"truncated_reward": -1.0}, "truncated_reward=-1.0 with reward_form='multiplicative'"),
        ({"block_length": 1}, "block_length=1 leave one step"),
        ({"block_length": 32, "num_denoising_steps": 16}, "num_denoising_steps=16 and block_length=32 leave one step"),
        ({"num_denoising_steps": 1}, "num_denoising_steps=1 and block_length=None leave one step"),
        ({"top_k": 5}, "top_k=5 and top_p=1.0 have no effect with temperature=0"),
        ({"top_p": 0.9}, "top_p=0.9 have no effect with temperature=0"),
        (
            {"multi_objective_aggregation": "normalize_then_sum"},
            "multi_objective_aggregation='normalize_then_sum' is not supported",
        ),
        ({"cast_lm_head_to_fp32": True}, "cast_lm_head_to_fp32=True is not supported"),
        ({"alpha": float("nan")}, "alpha=nan must be a number"),
        ({"dllm_learning_rate": 1e-6}, "dllm_learning_rate=1e-06 with temperature=0.0"),
        ({"dllm_learning_rate": -1.0, "temperature": 1.0}, "dllm_learning_rate=-1.0 must be positive"),
        ({"activation_checkpointing": True}, "activation_checkpointing=True is not supported"),
    ],
)
def test_bad_settings_are_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        UnmaskPolicyConfig(str(tmp_path), use_cpu=True, **fields)


def test_two_steps_for_each_block_are_enough(tmp_path):
    args = UnmaskPolicyConfig(
        str(tmp_path), use_cpu=True, max_completion_length=256, block_length=32, num_denoising_steps=16
    )
    assert args.num_denoising_steps == 16


def test_bad_arguments_are_refused(tokenizer, tmp_path):
    model = random_model("llada", tokenizer)
    with pytest.raises(ValueError, match="dllm is None"):
        policy_trainer(None, tokenizer, tmp_path)
    with pytest.raises(TypeError, match="model is a LLaDAModelLM; it must be an UnmaskPolicyModel"):
        policy_trainer(model, tokenizer, tmp_path, model)
    with pytest.raises(TypeError, match="dllm is a UnmaskPolicyModel|not a masked diffusion language model"):
        policy_trainer(small_policy(), tokenizer, tmp_path)
    args = UnmaskPolicyConfig(
        str(tmp_path), use_cpu=True, max_completion_length=CANVAS, dllm_init_kwargs={"dtype": "auto"}
    )
    arguments = {"train_dataset": prompts(), "processing_class": tokenizer, "dllm": model}
    with pytest.raises(ValueError, match="dllm_init_kwargs has no effect"):
        UnmaskPolicyTrainer(small_policy(), all_right, args, **arguments)
    args = UnmaskPolicyConfig(str(tmp_path), use_cpu=True, max_completion_length=CANVAS, model_init_kwargs={"a": 1})
    with pytest.raises(ValueError, match="model_init_kwargs has no effect"):
        UnmaskPolicyTrainer(small_policy(), all_right, args, **arguments)
    args = UnmaskPolicyConfig(str(tmp_path), use_cpu=True, max_completion_length=CANVAS)
    with pytest.raises(ValueError, match="processing_class is None, and dllm has no tokenizer"):
        UnmaskPolicyTrainer(small_policy(), all_right, args, **{**arguments, "processing_class": None})
    with pytest.raises(ValueError, match="peft_config is not supported"):
        UnmaskPolicyTrainer(small_policy(), all_right, args, peft_config=LoraConfig(), **arguments)
    with pytest.raises(TypeError, match="args is a DiffusionGRPOConfig"):
        other = DiffusionGRPOConfig(str(tmp_path), use_cpu=True, bf16=False)
        UnmaskPolicyTrainer(small_policy(), all_right, other, **arguments)
    with pytest.raises(ValueError, match="hidden states of size 7"):
        policy_trainer(model, tokenizer, tmp_path, small_policy(dllm_hidden_size=7))
    with pytest.raises(ValueError, match="expert_block_length=2 must be the model's block, 4"):
        policy_trainer(
            random_model("sdar", tokenizer), tokenizer, tmp_path, expert_steering=True, expert_block_length=2,
            block_length=4,
        )  # fmt: skip
    with pytest.raises(ValueError, match="returned -1.0: with reward_form='multiplicative'"):
        policy_trainer(model, tokenizer, tmp_path, reward=lambda **kwargs: [-1.0] * 8).train()


def test_processes_on_a_cpu_share_the_weights_of_the_frozen_model(tokenizer, tmp_path):
    """They lie in the checkpoint's file, mapped into memory, and are never written to: a process has no copy."""
    model = random_model("llada", tokenizer, hidden_size=256, intermediate_size=512, num_attention_heads=4)
    model.save_pretrained(tmp_path / "dllm")
    trainer = policy_trainer(str(tmp_path / "dllm"), tokenizer, tmp_path / "run", max_steps=1)
    trainer.train()
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("there is no /proc to look into")
    spans = [line.split()[0] for line in maps.read_text().splitlines() if str(tmp_path / "dllm") in line]
    ranges = [tuple(int(end, 16) for end in span.split("-")) for span in spans]
    for name, parameter in trainer.dllm.named_parameters():
        if parameter.numel() > 10_000:
            assert any(low <= parameter.data_ptr() < high for low, high in ranges), name
