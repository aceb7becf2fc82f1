# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The value model in the trainer."""

import json

import pytest
import torch
from conftest import random_model
from peft import LoraConfig, PeftModel
from rl import generated_batch, prompts, rl_trainer
from test_value_model import VALUE_FILES, batch, trained, view
from transformers import BitsAndBytesConfig

from trl_diffusion import AutoModelForDiffusionLM, DiffusionValueModel
from trl_diffusion.hub import hub_files
from trl_diffusion.likelihood import value_view, value_views
from trl_diffusion.models import diffusion_model


@pytest.mark.parametrize("trains", ["full", "lora", "head"])
@pytest.mark.parametrize("adapter", [False, True])
def test_the_value_model_learns_and_the_policy_does_not_notice(family, tokenizer, tmp_path, trains, adapter):
    trainer = rl_trainer(
        "tracerl",
        random_model(family, tokenizer),
        tokenizer,
        tmp_path,
        peft_config=LoraConfig(target_modules="all-linear", r=2) if adapter else None,
        value_model=trains,
        value_learning_rate=0.05,
        learning_rate=0.0,
        max_steps=8,
    )
    policy = {name: p.clone() for name, p in trainer.model.named_parameters()}
    value = {name: p.clone() for name, p in trainer.value.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, policy[name]), name
    for name, parameter in trainer.value.model.named_parameters():
        assert torch.equal(parameter, value[name]) == (not parameter.requires_grad), name
    logs = [log for log in trainer.state.log_history if "value/loss" in log]
    for name in ("value/returns", "value/mean", "value/explained_variance", "value/clip_ratio", "value/grad_norm"):
        assert name in logs[0], name
    assert logs[0]["value/mean"] == 0.0 and logs[-1]["value/mean"] != 0.0


def test_values_predict_returns_that_can_be_predicted(tokenizer, tmp_path):
    """The reward depends on the prompt alone, so that its value can be known; rewards are not group-normalised, which
    would leave nothing of it. The policy stands still."""
    from datasets import Dataset

    rows = Dataset.from_dict({"prompt": ["0123", "3210"] * 4, "want": [1.0, -1.0] * 4})
    trainer = rl_trainer(
        "tracerl",
        random_model("llada", tokenizer),
        tokenizer,
        tmp_path,
        reward=lambda completions, want, completion_ids, **kwargs: [
            [0.0] * (len(ids) - 1) + [w] for ids, w in zip(completion_ids, want, strict=True)
        ],
        dataset=rows,
        value_model="full",
        value_learning_rate=0.01,
        learning_rate=0.0,
        max_steps=40,
    )
    trainer.train()
    explained = [log["value/explained_variance"] for log in trainer.state.log_history if "value/loss" in log]
    assert explained[0] == pytest.approx(0.0, abs=1e-6) and explained[-1] > 0.5


def test_the_logged_figures_are_those_of_the_batch(family, tokenizer, tmp_path):
    model = random_model(family, tokenizer, seed=6)
    trainer = rl_trainer("tracerl", model, tokenizer, tmp_path, value_model="full", max_completion_length=9)
    trained(trainer.value.model)
    inputs = generated_batch(trainer)
    mask = inputs["completion_mask"].bool()
    values, returns, advantages = (inputs[name][mask].double() for name in ("old_values", "returns", "advantages"))
    metrics = {name: numbers[-1] for name, numbers in trainer._metrics["train"].items()}
    assert metrics["value/returns"] == pytest.approx(returns.mean().item(), abs=1e-6)
    assert metrics["value/mean"] == pytest.approx(values.mean().item(), rel=1e-5)
    explained = 1 - (returns - values).var(correction=0) / returns.var(correction=0)
    assert metrics["value/explained_variance"] == pytest.approx(explained.item(), rel=1e-4)
    assert metrics["advantages/std"] == pytest.approx(advantages.std(correction=0).item(), rel=1e-5)
    # Without discount the advantage of every token is the reward less its value.
    assert (advantages - (returns - values)).abs().max() <= 1e-6


def test_accumulated_micro_batches_equal_one_batch(family, tokenizer, tmp_path):
    results = []
    for size, steps in ((8, 1), (2, 4)):
        trainer = rl_trainer(
            "tracerl",
            random_model(family, tokenizer),
            tokenizer,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            optim="sgd",
            learning_rate=0.1,
            value_model="full",
            value_learning_rate=0.5,
            max_grad_norm=0.05,  # both are clipped
            max_steps=1,  # the second rollout's seeds depend on the number of micro-batches
        )
        trained(trainer.value.model)
        trainer.train()
        norms = [log["value/grad_norm"] for log in trainer.state.log_history if "value/grad_norm" in log]
        assert len(norms) == 1 and norms[0] > 0.05
        results.append([p.detach().clone() for p in trainer.value.model.parameters()])
    assert max((a - b).abs().max() for a, b in zip(*results, strict=True)) <= 1e-5
    start = trained(DiffusionValueModel.from_policy(random_model(family, tokenizer)))
    assert max((a - b).abs().max() for a, b in zip(results[0], start.parameters(), strict=True)) > 1e-3


def test_the_policy_moves_and_the_values_do_not_see_it(tokenizer, tmp_path):
    """TRL wraps the policy's forward in a closure; a copied model must not run it."""
    trainer = rl_trainer("tracerl", random_model("llada", tokenizer), tokenizer, tmp_path, value_model="full")
    trained(trainer.value.model)
    prompts, mask, canvas = batch()
    everything = [view(torch.ones_like(canvas, dtype=torch.bool))]
    before = value_views(trainer.value.model, prompts, mask, canvas, everything)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    assert torch.equal(value_views(trainer.value.model, prompts, mask, canvas, everything), before) and before.any()


@pytest.mark.parametrize("settings", [{"bf16": True}, {"activation_checkpointing": True}])
@pytest.mark.parametrize("trains", ["full", "lora"])
def test_other_precisions_and_recomputed_activations_train(tokenizer, tmp_path, settings, trains):
    model = random_model("llada", tokenizer)
    settings = {"value_model": trains, "value_learning_rate": 0.05, "max_steps": 3, **settings}
    trainer = rl_trainer("tracerl", model, tokenizer, tmp_path, **settings)
    seen = set()
    layer = trainer.value.model.backbone.model.layers[0].mlp
    layer.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    before = [p.clone() for p in trainer.value.model.parameters() if p.requires_grad]
    trainer.train()
    assert seen == {torch.bfloat16 if settings.get("bf16") else torch.float32}
    after = [p for p in trainer.value.model.parameters() if p.requires_grad]
    assert all(not torch.equal(a, b) and a.isfinite().all() for a, b in zip(after, before, strict=True))
    assert trainer.value.model.backbone.is_activation_checkpointing == bool(settings.get("activation_checkpointing"))


def test_it_is_saved_with_the_model_if_asked_and_taken_up_again(family, tokenizer, tmp_path):
    settings = {"value_model": "full", "value_learning_rate": 0.05, "max_steps": 2}
    for push in (False, True):
        folder = tmp_path / str(push)
        trainer = rl_trainer(
            "tracerl", random_model(family, tokenizer), tokenizer, folder, push_value_model=push, **settings
        )
        trainer.train()
        trainer.save_model(str(folder))
        assert (folder / "value_model" / "value_config.json").exists() == push
        # What stands beside it is the model, alone.
        assert json.loads((folder / "config.json").read_text())["model_type"] == family
    saved = trainer.value.model
    again = rl_trainer(
        "tracerl",
        random_model(family, tokenizer),
        tokenizer,
        tmp_path,
        value_model=str(tmp_path / "True" / "value_model"),
        value_learning_rate=0.05,
    )
    for found, wanted in zip(again.value.model.parameters(), saved.parameters(), strict=True):
        assert torch.equal(found, wanted) and found.requires_grad
    again.train()


def test_it_is_pushed_with_the_model_if_asked(tokenizer, tmp_path, monkeypatch):
    """Up to the upload: which files of the folder are chosen."""
    uploads = []
    monkeypatch.setattr("trl_diffusion.trainer.hub.prepare_repo", lambda repo_id, *args: repo_id)
    monkeypatch.setattr("trl_diffusion.trainer.hub.check_kind", lambda *args: None)
    monkeypatch.setattr(
        "trl_diffusion.trainer.hub.push_folder", lambda folder, *args: uploads.append(set(hub_files(folder)))
    )
    for push in (False, True):
        trainer = rl_trainer(
            "tracerl",
            random_model("llada", tokenizer),
            tokenizer,
            tmp_path / str(push),
            value_model="head",
            push_value_model=push,
            hub_model_id="me/model",
        )
        trainer.push_to_hub()
    value_files = [{name for name in files if name.startswith("value_model/")} for files in uploads]
    assert value_files[0] == set()
    assert value_files[1] == {f"value_model/{name}" for name in VALUE_FILES}
    assert {"config.json", "model.safetensors", "README.md"} <= uploads[1]

    # And back, by its id.
    monkeypatch.setattr("trl_diffusion.models.value.snapshot_download", lambda *args, **kwargs: tmp_path / "True")
    again = DiffusionValueModel.from_pretrained("me/model")
    for found, wanted in zip(again.parameters(), trainer.value.model.parameters(), strict=True):
        assert torch.equal(found, wanted)


def test_a_second_adapter_does_not_reach_the_policys_files(tokenizer, tmp_path):
    trainer = rl_trainer(
        "tracerl",
        random_model("llada", tokenizer),
        tokenizer,
        tmp_path,
        peft_config=LoraConfig(target_modules="all-linear", r=2),
        value_model="lora",
        value_learning_rate=0.05,
        learning_rate=0.05,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    assert {p.name for p in (tmp_path / "adapter").iterdir() if p.is_dir()} == set()
    loaded = PeftModel.from_pretrained(random_model("llada", tokenizer), tmp_path / "adapter")
    ids = torch.tensor([tokenizer("0123")["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, trainer.model(ids).logits, atol=1e-5)
    assert not any("value" in name for name, _ in diffusion_model(trainer.model).named_parameters())


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_policy_shares_its_weights(tokenizer, tmp_path, bits):
    random_model("llada", tokenizer, hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "model")
    quantization = (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
        if bits == 4
        else BitsAndBytesConfig(load_in_8bit=True)
    )

    def trainer_of(trains):
        model = AutoModelForDiffusionLM.from_pretrained(
            tmp_path / "model", quantization_config=quantization, dtype=torch.float32
        )
        return rl_trainer(
            "tracerl",
            model,
            tokenizer,
            tmp_path,
            peft_config=LoraConfig(target_modules="all-linear", r=2),
            value_model=trains,
            value_learning_rate=0.05,
            num_iterations=2,
            max_steps=3,
            save_strategy="steps",
            save_steps=3,
        )

    with pytest.raises(ValueError, match="'full' cannot train quantized weights"):
        trainer_of("full")
    trainer = trainer_of("lora")
    trainer.train()
    assert len(trainer.value.model.shared_names) == 20
    assert all("lora_" in name or "lm_head" in name for name in trainer.value.model.own_state_dict())
    assert {log.get("old_logprobs/from_rollout") for log in trainer.state.log_history} == {0.0, None}
    again = DiffusionValueModel.from_pretrained(tmp_path / "checkpoint-3" / "value_model", policy=trainer.model)
    for found, wanted in zip(again.parameters(), trainer.value.model.parameters(), strict=True):
        assert torch.equal(found, wanted)


def test_fp16_is_refused(tokenizer, tmp_path, monkeypatch):
    trainer = rl_trainer("tracerl", random_model("llada", tokenizer), tokenizer, tmp_path)
    from trl_diffusion.trainer.value import ValueTraining

    monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", property(lambda self: "fp16"))
    trainer.args.value_model = "full"
    with pytest.raises(ValueError, match="value_model='full' is not supported with fp16"):
        ValueTraining(DiffusionValueModel.from_policy(trainer.model), trainer.args, trainer.accelerator)


@pytest.mark.parametrize("trains", ["lora", "head"])
def test_a_frozen_backbone_keeps_no_more_than_it_trains(tokenizer, tmp_path, trains):
    """TRL puts hooks into an adapter's policy that make everything behind the embeddings need a gradient."""
    trainer = rl_trainer(
        "tracerl",
        random_model("llada", tokenizer),
        tokenizer,
        tmp_path,
        peft_config=LoraConfig(target_modules="all-linear", r=2),
        value_model=trains,
        value_learning_rate=0.05,
        activation_checkpointing=True,
        max_steps=3,
    )
    before = {name: p.clone() for name, p in trainer.value.model.named_parameters() if p.requires_grad}
    ran = []
    layer = trainer.value.model.backbone.model.layers[0].mlp
    layer.register_forward_hook(lambda module, args, output: ran.append(output.requires_grad))
    trainer.train()
    assert any(ran) == (trains == "lora")
    for name, parameter in trainer.value.model.named_parameters():
        assert not parameter.requires_grad or not torch.equal(parameter, before[name]), name


def test_every_update_takes_the_gradient_of_its_own_batch(tokenizer, tmp_path):
    """Steps in a row, with SGD, against the gradient by hand; some of fewer micro-batches, at the end of an epoch."""
    trainer = rl_trainer(
        "tracerl",
        random_model("llada", tokenizer),
        tokenizer,
        tmp_path,
        dataset=prompts(8).select(range(3)),  # three micro-batches an epoch, in steps of two and one
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        steps_per_generation=1,
        optim="sgd",
        learning_rate=0.0,
        max_grad_norm=0.0,
        value_model="head",
        value_learning_rate=0.5,
        max_steps=-1,
        num_train_epochs=2,
        shuffle_dataset=False,
    )
    head = trainer.value.model.backbone.get_output_embeddings().weight
    steps, seen = [], []
    update, step = trainer._update_value, trainer.value.optimizer.step
    trainer._update_value = lambda inputs: seen.append(inputs) or update(inputs)

    def keep(*args, **kwargs):
        before = head.detach().clone()
        step(*args, **kwargs)
        steps.append((before, head.detach().clone(), list(seen), trainer.current_gradient_accumulation_steps))
        seen.clear()

    trainer.value.optimizer.step = keep
    trainer.train()
    assert [len(micro) for *_, micro, _ in steps] == [2, 1, 2, 1]
    for before, after, micro, accumulated in steps:
        assert len(micro) == accumulated
        with torch.no_grad():
            head.copy_(before)
        head.grad = None
        for inputs in micro:
            loss, mask = 0.0, inputs["completion_mask"].bool()
            for own in trainer.draw_views(inputs):
                values = value_view(trainer.value.model, *trainer._rows(inputs), own)
                errors = (values - inputs["returns"]).square().where(own.target, 0.0)
                clipped = inputs["old_values"] + (values - inputs["old_values"]).clamp(-0.2, 0.2)
                worse = torch.maximum(errors, (clipped - inputs["returns"]).square().where(own.target, 0.0))
                loss = loss + worse.sum() / 2
            (loss / inputs["num_items_in_batch"] / accumulated).backward()
            assert mask.any()
        assert torch.allclose(after, before - 0.5 * head.grad, atol=1e-6)
        with torch.no_grad():
            head.copy_(after)


def test_the_best_checkpoint_brings_its_value_model_back(tokenizer, tmp_path):
    trainer = rl_trainer(
        "tracerl",
        random_model("llada", tokenizer),
        tokenizer,
        tmp_path,
        value_model="head",
        value_learning_rate=0.05,
        max_steps=3,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_reward",
        per_device_eval_batch_size=8,
        eval_dataset=prompts(4),
    )
    rewards = iter([0.0, 1.0, 0.5])
    evaluate = trainer.evaluate
    trainer.evaluate = lambda *args, **kwargs: {**evaluate(*args, **kwargs), "eval_reward": next(rewards)}
    trainer.train()
    best = DiffusionValueModel.from_pretrained(tmp_path / "checkpoint-2" / "value_model")
    last = DiffusionValueModel.from_pretrained(tmp_path / "checkpoint-3" / "value_model")
    found = trainer.value.model.backbone.get_output_embeddings().weight
    assert torch.equal(found, best.backbone.get_output_embeddings().weight)
    assert not torch.equal(found, last.backbone.get_output_embeddings().weight)


def test_schedules_that_follow_a_metric_are_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="lr_scheduler_type='reduce_lr_on_plateau' is not supported with value_model"):
        rl_trainer(
            "tracerl",
            random_model("llada", tokenizer),
            tokenizer,
            tmp_path,
            value_model="head",
            lr_scheduler_type="reduce_lr_on_plateau",
            eval_strategy="steps",
            eval_steps=1,
            eval_dataset=prompts(4),
        )
