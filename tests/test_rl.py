# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import random_model
from peft import LoraConfig, PeftModel
from rl import generated_batch, prompts, rl_trainer, share_of_ones
from test_replay import slow_logprobs, visibility

from trl_diffusion.models import diffusion_model


def slow_row(model, inputs, row, temperature, block_length, prompt_masked=None):
    """Log-probability of each completion token of one row, with graph, by the definition in float64: all of its block
    (full attention: of the canvas) is masked, and so is what comes after, and some of the prompt."""
    prompt = inputs["prompt_ids"][row].clone()
    if prompt_masked is not None:
        prompt[prompt_masked[row]] = model.mask_token_id
    prompt = prompt[inputs["prompt_mask"][row].bool()]
    canvas = inputs["completion_ids"][row]
    found = {}
    for position in inputs["completion_mask"][row].nonzero().flatten().tolist():
        state, kwargs = torch.full_like(canvas, model.mask_token_id), {}
        if model.attention == "block_causal":
            first = max((len(prompt) + position) // block_length * block_length - len(prompt), 0)
            state[:first] = canvas[:first]
        ids = torch.cat([prompt, state])[None]
        if model.attention == "block_causal":
            kwargs = {"attention_mask": visibility(ids.size(1), block_length)}
            kwargs["position_ids"] = torch.arange(ids.size(1))[None]
        logits = model(ids, **kwargs).logits[0, len(prompt) + position]
        keep = torch.arange(len(logits)) != model.mask_token_id
        log_probs = (logits.double() / temperature)[keep].log_softmax(-1)
        found[position] = log_probs[canvas[position] - (canvas[position] > model.mask_token_id).long()]
    return found


@pytest.mark.parametrize("loss_type, share", [("step", 0.0), ("grpo", 0.5)])
def test_loss_and_gradient_of_diffu_grpo_equal_a_slow_loop(family, tokenizer, tmp_path, loss_type, share):
    model = random_model(family, tokenizer).double()
    settings = {"loss_type": loss_type, "prompt_mask_probability": share}
    trainer = rl_trainer("grpo", model, tokenizer, tmp_path, **settings)
    inputs = generated_batch(trainer)
    prompt_masked = trainer.draw_views(inputs)[0].prompt_masked
    if share:
        assert 0 < prompt_masked.sum() < inputs["prompt_mask"].sum()
        assert not (prompt_masked & ~inputs["prompt_mask"].bool()).any()
    else:
        assert prompt_masked is None
    torch.manual_seed(4)
    inputs["old_per_token_logps"] = torch.randn(inputs["completion_ids"].shape) * 0.3 - 1.5
    inputs["advantages"] = torch.randn(len(inputs["completion_ids"]))
    model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]

    model.zero_grad()
    total = 0.0
    batch_size = len(inputs["completion_ids"])
    for row in range(batch_size):
        tokens = slow_row(model, inputs, row, trainer.temperature, 4, prompt_masked)
        for position, log_prob in tokens.items():
            advantage = inputs["advantages"][row].double()
            ratio = torch.exp(log_prob - inputs["old_per_token_logps"][row, position].double())
            # One view is one step; nothing else distinguishes the two here.
            total = total - torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage) / len(tokens) / batch_size
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    for found, parameter in zip(gradients, model.parameters(), strict=True):
        assert (found - parameter.grad).norm() <= 1e-5 * parameter.grad.norm() + 1e-9


def replayed(model, inputs, row):
    """Log-probabilities of one row's completion, replayed step by step without the package's layouts."""
    rollout = SimpleNamespace(
        prompt_ids=inputs["prompt_ids"],
        prompt_mask=inputs["prompt_mask"],
        canvas_ids=inputs["completion_ids"],
        unmask_step=inputs["unmask_step"],
        block_length=4,
    )
    return slow_logprobs(model, rollout, row, 0.9) * inputs["completion_mask"][row]


def test_old_log_probabilities_are_those_of_the_rollout(family, tokenizer, tmp_path):
    model = random_model(family, tokenizer)
    # Two passes over each rollout: the second is off-policy, so the old log-probabilities are needed.
    trainer = rl_trainer("tracerl", model, tokenizer, tmp_path, num_iterations=2)
    inputs = generated_batch(trainer)
    for row in range(len(inputs["completion_ids"])):
        expected = replayed(model, inputs, row)
        assert torch.allclose(inputs["old_per_token_logps"][row], expected, atol=1e-5)


def test_a_block_that_is_not_the_models_own_is_used_everywhere(tokenizer, tmp_path):
    """The config's block of 4 over a model of block 8, in the rollout, the old pass and the reference."""
    random_model("sdar", tokenizer, block_length=8).save_pretrained(tmp_path / "model")
    trainer = rl_trainer("tracerl", str(tmp_path / "model"), tokenizer, tmp_path, num_iterations=2, beta=0.1)
    inputs = generated_batch(trainer)
    model = trainer.model
    for row in range(len(inputs["completion_ids"])):
        expected = replayed(model, inputs, row)
        for name in ("old_per_token_logps", "ref_per_token_logps"):
            assert torch.allclose(inputs[name][row], expected, atol=1e-5)
    own = rl_trainer(
        "tracerl", str(tmp_path / "model"), tokenizer, tmp_path, num_iterations=2, beta=0.1, block_length=None
    )
    diffusion_model(own.model).config.block_length = 2  # in memory alone: the reference on disk still says 8
    inputs = generated_batch(own)
    assert torch.allclose(inputs["old_per_token_logps"], inputs["ref_per_token_logps"], atol=1e-6)


@pytest.mark.parametrize(
    "name, loss_type", [("tracerl", "step"), ("tracerl", "dapo"), ("grpo", "grpo"), ("bgpo", "grpo")]
)
def test_accumulated_micro_batches_equal_one_batch(family, tokenizer, tmp_path, name, loss_type):
    results = []
    for size, steps in ((8, 1), (2, 4)):
        model = random_model(family, tokenizer)
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "optim": "sgd"}
        rl_trainer(
            name, model, tokenizer, tmp_path, loss_type=loss_type, learning_rate=0.1, max_steps=1, **settings
        ).train()
        results.append([parameter.detach().clone() for parameter in model.parameters()])
    start = list(random_model(family, tokenizer).parameters())
    assert max((a - b).abs().max() for a, b in zip(results[0], start, strict=True)) > 1e-3
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*results, strict=True))


def test_every_generation_and_every_evaluation_batch_draws_anew(tokenizer, tmp_path):
    trainer = rl_trainer("tracerl", random_model("llada", tokenizer), tokenizer, tmp_path)
    trainer.model.train()
    seeds = [trainer._row_seeds(4)]
    trainer._step += 1
    seeds.append(trainer._row_seeds(4))
    trainer.model.eval()
    seeds += [trainer._row_seeds(4), trainer._row_seeds(4)]
    assert len({seed for rows in seeds for seed in rows}) == 16


def test_evaluations_at_different_steps_draw_the_same(tokenizer, tmp_path):
    trainer = rl_trainer(
        "tracerl",
        random_model("llada", tokenizer),
        tokenizer,
        tmp_path,
        learning_rate=0.0,
        max_steps=1,
        per_device_eval_batch_size=8,
    )
    before = trainer.evaluate(prompts(8))["eval_reward"]
    trainer.train()
    assert trainer.evaluate(prompts(8))["eval_reward"] == before


def test_scores_far_off_target_cannot_make_the_loss_nan(tokenizer, tmp_path):
    trainer = rl_trainer("tracerl", random_model("llada", tokenizer), tokenizer, tmp_path, beta=0.0)
    inputs = generated_batch(trainer)
    views = trainer.draw_views(inputs)
    assert len(views) > 1
    # The old policy found one token next to impossible; with a positive advantage its own ratio is clipped.
    inputs["old_per_token_logps"] = torch.full(inputs["completion_ids"].shape, -1.0)
    inputs["old_per_token_logps"][0, views[1].target[0].nonzero()[0]] = -200.0
    inputs["advantages"] = torch.ones(8)
    trainer.current_gradient_accumulation_steps = 1
    assert torch.isfinite(trainer._compute_loss(trainer.model, inputs))


def test_filters_of_the_rollout_are_reported(tokenizer, tmp_path, caplog):
    with caplog.at_level("WARNING", logger="trl_diffusion"):
        rl_trainer("tracerl", random_model("llada", tokenizer), tokenizer, tmp_path, top_p=0.9)
    assert "top_p=0.9" in caplog.text


def test_on_policy_runs_skip_the_old_pass(tokenizer, tmp_path):
    trainer = rl_trainer("tracerl", random_model("llada", tokenizer), tokenizer, tmp_path)
    assert "old_per_token_logps" not in generated_batch(trainer)


@pytest.mark.parametrize("name", ["grpo", "tracerl", "bgpo"])
def test_every_parameter_is_trained(family, tokenizer, tmp_path, name):
    settings = {"epsilon": 0.2} if name == "bgpo" else {}
    trainer = rl_trainer(name, random_model(family, tokenizer), tokenizer, tmp_path, **settings)
    before = {key: parameter.clone() for key, parameter in trainer.model.named_parameters()}
    trainer.train()
    log = trainer.state.log_history[-2]
    for metric in ("reward", "entropy", "views", "generation/forward_passes", "clip_ratio/region_mean"):
        assert metric in log, metric
    for key, parameter in trainer.model.named_parameters():
        assert not torch.equal(before[key], parameter), key


def test_equal_rewards_move_nothing(family, tokenizer, tmp_path):
    trainer = rl_trainer(
        "tracerl",
        random_model(family, tokenizer),
        tokenizer,
        tmp_path,
        reward=lambda completions, **kwargs: [0.5] * len(completions),
    )
    before = {key: parameter.clone() for key, parameter in trainer.model.named_parameters()}
    trainer.train()
    for key, parameter in trainer.model.named_parameters():
        assert torch.equal(before[key], parameter), key


def test_the_reward_rises_and_falls_when_inverted(family, tokenizer, tmp_path):
    curves = {}
    for sign in (1, -1):

        def reward(completions, sign=sign, **kwargs):
            return [sign * share for share in share_of_ones(completions)]

        trainer = rl_trainer(
            "tracerl", random_model(family, tokenizer), tokenizer, tmp_path, reward=reward, max_steps=25
        )
        trainer.train()
        rewards = [log["reward"] * sign for log in trainer.state.log_history if "reward" in log]
        curves[sign] = (sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5)
    assert curves[1][1] > curves[1][0] + 0.2
    # A few steps take the share to almost nothing, from not much.
    assert curves[-1][1] < 0.2 * curves[1][1]


def test_the_kl_term_uses_the_frozen_reference(family, tokenizer, tmp_path):
    model = random_model(family, tokenizer)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    trainer = rl_trainer("tracerl", str(tmp_path / "model"), tokenizer, tmp_path, beta=0.1, max_steps=3)
    before = {key: parameter.clone() for key, parameter in trainer.ref_model.named_parameters()}
    trainer.train()
    kl = [log["kl"] for log in trainer.state.log_history if "kl" in log]
    assert kl[0] == pytest.approx(0.0, abs=1e-6) and kl[-1] > 1e-4
    for key, parameter in trainer.ref_model.named_parameters():
        assert torch.equal(before[key], parameter), key


@pytest.mark.parametrize("lora", [False, True])
def test_rollouts_run_in_the_precision_of_the_training(tokenizer, tmp_path, lora):
    """Under bf16 both are autocast; PEFT's forward, which accelerate wraps, is not the one that generates."""
    model = random_model("llada", tokenizer)
    peft_config = LoraConfig(target_modules="all-linear", r=2) if lora else None
    trainer = rl_trainer("grpo", model, tokenizer, tmp_path, peft_config=peft_config, bf16=True, max_steps=1)
    seen = set()
    head = diffusion_model(trainer.model).lm_head
    head.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    trainer.train()
    assert seen == {torch.bfloat16}


def test_lora_trains_saves_and_loads(family, tokenizer, tmp_path):
    model = random_model(family, tokenizer)
    model.save_pretrained(tmp_path / "base")
    trainer = rl_trainer(
        "tracerl",
        model,
        tokenizer,
        tmp_path,
        peft_config=LoraConfig(target_modules="all-linear", r=4, lora_alpha=32),
        max_steps=4,
        learning_rate=0.1,
        beta=0.01,
    )
    before = {key: parameter.clone() for key, parameter in trainer.model.named_parameters()}
    trainer.train()
    for key, parameter in trainer.model.named_parameters():
        assert torch.equal(before[key], parameter) == ("lora_" not in key), key
    trainer.save_model(str(tmp_path / "adapter"))
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    base = type(model).from_pretrained(tmp_path / "base")
    ids = torch.tensor([tokenizer("0123")["input_ids"]] * 4)
    settings = {"max_new_tokens": 8, "temperature": 1.0, "seed": 3, "eos_token_id": None}
    plain = base.generate(ids, **settings)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert not torch.equal(adapted.generate(input_ids=ids, **settings), plain)
    trained = trainer.model.generate(input_ids=ids, **settings)
    assert torch.equal(adapted.generate(input_ids=ids, **settings), trained)


def test_rewards_see_the_completion_cut_after_eos(family, tokenizer, tmp_path):
    seen = []

    def reward(completions, completion_ids, want, **kwargs):
        seen.extend(zip(completions, completion_ids, want, strict=True))
        return [0.0] * len(completions)

    trainer = rl_trainer("tracerl", random_model(family, tokenizer, seed=6), tokenizer, tmp_path, reward=reward)
    inputs = generated_batch(trainer)
    assert len(seen) == 8 and inputs["completion_ids"].shape == (8, 6)
    eos = tokenizer.eos_token_id
    cut = 0
    for row, (text, ids, _) in enumerate(seen):
        canvas = inputs["completion_ids"][row].tolist()
        end = canvas.index(eos) + 1 if eos in canvas else 6
        assert ids == canvas[:end]
        assert text == tokenizer.decode(ids, skip_special_tokens=True)
        assert inputs["completion_mask"][row].tolist() == [1] * end + [0] * (6 - end)
        cut += end < 6
    assert cut > 0  # the seed was chosen so that some completion ends early


def test_truncated_completions_can_be_left_out(tokenizer, tmp_path):
    trainer = rl_trainer(
        "tracerl", random_model("llada", tokenizer, seed=6), tokenizer, tmp_path, mask_truncated_completions=True
    )
    inputs = generated_batch(trainer)
    ended = (inputs["completion_ids"] == tokenizer.eos_token_id).any(1)
    assert ended.any() and not ended.all()
    assert torch.equal(inputs["completion_mask"].any(1), ended)


def test_a_resumed_run_equals_an_uninterrupted_one(family, tokenizer, tmp_path):
    # Each generation feeds two micro-batches for two iterations; the checkpoint falls between.
    settings = {
        "steps_per_generation": 2,
        "num_iterations": 2,
        "max_steps": 7,
        "save_strategy": "steps",
        "save_steps": 5,
        "learning_rate": 0.01,
    }
    whole = rl_trainer("tracerl", random_model(family, tokenizer), tokenizer, tmp_path / "a", **settings)
    whole.train()
    again = rl_trainer("tracerl", random_model(family, tokenizer, seed=9), tokenizer, tmp_path / "b", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-5"))
    for (name, found), expected in zip(again.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_a_run_resumed_in_a_later_epoch_sees_the_same_prompts(tokenizer, tmp_path):
    # Two prompts a step of eight: an epoch is four steps, the checkpoint falls into the second.
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 6, "learning_rate": 0.01}
    whole = rl_trainer("tracerl", random_model("llada", tokenizer), tokenizer, tmp_path / "a", **settings)
    whole.train()
    again = rl_trainer("tracerl", random_model("llada", tokenizer, seed=9), tokenizer, tmp_path / "b", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))
    for (name, found), expected in zip(again.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_a_checkpoint_without_its_rollouts_is_refused(tokenizer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    trainer = rl_trainer("tracerl", random_model("llada", tokenizer), tokenizer, tmp_path, **settings)
    trainer.train()
    (tmp_path / "checkpoint-1" / "rollouts_0.pt").unlink()
    with pytest.raises(ValueError, match="rollouts_0.pt"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_evaluation_runs_and_moves_nothing(family, tokenizer, tmp_path):
    trainer = rl_trainer("tracerl", random_model(family, tokenizer), tokenizer, tmp_path, per_device_eval_batch_size=8)
    before = {key: parameter.clone() for key, parameter in trainer.model.named_parameters()}
    metrics = trainer.evaluate(prompts(4))
    assert "eval_reward" in metrics
    for key, parameter in trainer.model.named_parameters():
        assert torch.equal(before[key], parameter) and parameter.grad is None, key


def test_the_card_has_a_quick_start_that_runs(family, tokenizer, tmp_path):
    model = random_model(family, tokenizer)
    trainer = rl_trainer("tracerl", model, tokenizer, tmp_path)
    trainer.save_model(str(tmp_path))
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "TraceRL" in card and "2509.06949" in card and "pipeline(" not in card
    code = card.split("```python\n")[1].split("```")[0]
    exec(compile(code, "quick start", "exec"), {})
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == family
