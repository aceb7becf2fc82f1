# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""A policy as a network, and as an unmasking rule of any model."""

import json
import os

import pytest
import torch
from conftest import random_model
from policies import slow_logits, small_policy
from test_caches import Watch
from transformers import AutoConfig, AutoModel

import trl_diffusion
from trl_diffusion import DiffusionGenerationConfig, UnmaskPolicyModel, UnmaskPolicyModelConfig
from trl_diffusion.generation import block
from trl_diffusion.generation.policy import PolicyInputs
from trl_diffusion.generation.recording import RecordingPolicy, revealed_at
from trl_diffusion.likelihood import canvas_blocks


def watched(policy, may_wait=False, temperature=1.0):
    recorder = RecordingPolicy(policy, policy.inputs, temperature=temperature, beta=1.0)
    recorder.may_wait = may_wait
    return recorder


def prompts(tokenizer, texts=("01234012", "31", "0123")):
    return tokenizer(list(texts), padding=True, padding_side="left", return_tensors="pt")


def generate(model, inputs, length=10, **kwargs):
    """A rollout whose rows are written to the end of their canvases."""
    settings = {"max_new_tokens": length, "seed": 5, "eos_token_id": [], "return_dict_in_generate": True, **kwargs}
    return model.generate(**inputs, generation_config=DiffusionGenerationConfig(pad_token_id=0), **settings).rollout


# The network


@pytest.mark.parametrize("kwargs", [{}, {"num_confidences": 3, "entropy": True, "dllm_hidden_size": 5}])
def test_the_network_equals_a_second_implementation(kwargs):
    policy = small_policy(**kwargs).double()
    size = policy.inputs.size
    features, masked = torch.rand(2, 5, size, dtype=torch.float64), torch.rand(2, 5) < 0.6
    time = torch.tensor([0.0, 0.37], dtype=torch.float64)
    found = policy(features, masked, time)
    for row in range(2):
        slow = slow_logits(policy, features[row], masked[row], time[row])
        assert (found[row] - slow).abs().max() < 1e-9
    # Behind its end a canvas is not looked at.
    inside = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    found = policy(features, masked, time, inside)
    slow = slow_logits(policy, features[1, :3], masked[1, :3], time[1])
    assert (found[1, :3] - slow).abs().max() < 1e-9


def test_the_papers_network():
    policy = UnmaskPolicyModel(UnmaskPolicyModelConfig())
    assert policy.num_parameters() == 330_753
    assert not policy.block.modulation.weight.any() and not policy.block.modulation.bias.any()
    assert policy.head.bias.item() == -2
    policy.requires_grad_(False)
    confidence = torch.rand(1, 8, 1)
    # The time embedding tells times apart, close ones too.
    clock = policy.embed_time(torch.tensor([0.0, 1 / 256, 2 / 256, 0.5, 1.0]))
    distances = torch.cdist(clock, clock) + torch.eye(5)
    assert distances.min() > 1e-2
    # And confidences near 1.
    apart = policy(confidence.fill_(0.9), torch.ones(1, 8, dtype=torch.bool), torch.zeros(1))
    assert not torch.allclose(
        apart, policy(confidence.fill_(0.99), torch.ones(1, 8, dtype=torch.bool), torch.zeros(1)), atol=1e-4
    )


def test_it_computes_in_fp32_within_autocast():
    policy = small_policy()
    features, masked, time = torch.rand(2, 5, 1), torch.ones(2, 5, dtype=torch.bool), torch.zeros(2)
    plain = policy(features, masked, time)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(policy(features, masked, time), plain)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"action": "greedy"}, "action='greedy' must be one of bernoulli, ordered"),
        ({"hidden_size": 18, "num_attention_heads": 2}, "hidden_size=18 must be a multiple of"),
        ({"num_confidences": 0}, "num_confidences=0 must be at least 1"),
        ({"dllm_hidden_size": -1}, "dllm_hidden_size=-1"),
        ({"policy_temperature": -0.5}, "policy_temperature=-0.5"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        UnmaskPolicyModelConfig(**fields)


# Files


def test_a_policy_is_saved_and_loaded(tmp_path):
    policy = small_policy(action="ordered", policy_temperature=0.5)
    policy.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again = UnmaskPolicyModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in policy.state_dict().items())
    assert again.config.action == "ordered" and again.config.policy_temperature == 0.5
    assert isinstance(AutoModel.from_pretrained(tmp_path), UnmaskPolicyModel)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), UnmaskPolicyModelConfig)
    assert trl_diffusion.UnmaskPolicyModel is UnmaskPolicyModel


def test_another_model_or_a_part_of_one_is_no_policy(tokenizer, tmp_path):
    random_model("llada", tokenizer).save_pretrained(tmp_path / "llada")
    with pytest.raises(ValueError, match="model_type='llada' and is no unmasking policy"):
        UnmaskPolicyModel.from_pretrained(tmp_path / "llada")
    policy = small_policy()
    policy.save_pretrained(tmp_path / "policy")
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    for change in ({"hidden_size": 32}, {"num_confidences": 2}):
        (tmp_path / "policy" / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises((ValueError, RuntimeError), match="weights|mismatched_sizes"):
            UnmaskPolicyModel.from_pretrained(tmp_path / "policy")


def test_generation_settings_name_a_policy_by_its_folder(tokenizer, tmp_path):
    model, inputs = random_model("llada", tokenizer), prompts(tokenizer)
    policy = small_policy()
    policy.save_pretrained(tmp_path / "policy")
    name = str(tmp_path / "policy")
    live = generate(model, inputs, unmasking=policy)
    assert torch.equal(generate(model, inputs, unmasking=name).unmask_step, live.unmask_step)
    model.generation_config = DiffusionGenerationConfig(max_new_tokens=10, unmasking=name, policy_beta=3.0, seed=5)
    model.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text())["unmasking"] == name
    again = trl_diffusion.AutoModelForDiffusionLM.from_pretrained(tmp_path / "model")
    out = again.generate(**inputs, return_dict_in_generate=True).rollout
    fast = generate(model, inputs, unmasking=policy, policy_beta=3.0)
    assert torch.equal(out.unmask_step, fast.unmask_step)
    assert fast.num_forward_passes.sum() < live.num_forward_passes.sum()
    # A policy is loaded once, and anew when its folder has changed.
    assert model.unmasking_policy(name) is model.unmasking_policy(name)
    other = small_policy(seed=9)
    other.save_pretrained(tmp_path / "policy")
    assert torch.equal(model.unmasking_policy(name).head.weight, other.head.weight)
    # What draws positions at random gives another row every time, by its name too.
    out = model.generate(**inputs, unmasking=name, num_return_sequences=2, max_new_tokens=10, seed=5)
    again = model.generate(**inputs, unmasking=other, num_return_sequences=2, max_new_tokens=10, seed=5)
    assert out.size(0) == 6 and torch.equal(out, again)
    # It is no part of the model.
    assert not any("polic" in key for key in model.state_dict())
    with pytest.raises(ValueError, match="no-such-policy' is no unmasking policy that can be loaded"):
        generate(model, inputs, unmasking=str(tmp_path / "no-such-policy"))


def test_a_relative_folder_is_found_from_elsewhere(tokenizer, tmp_path, monkeypatch):
    small_policy().save_pretrained(tmp_path / "policy")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    model, inputs = random_model("llada", tokenizer), prompts(tokenizer)
    model.generation_config = DiffusionGenerationConfig(max_new_tokens=10, unmasking="policy", seed=5)
    model.save_pretrained(tmp_path / "model")
    written = json.loads((tmp_path / "model" / "generation_config.json").read_text())["unmasking"]
    assert os.path.isabs(written) and os.path.samefile(written, tmp_path / "policy")
    here = model.generate(**inputs, return_dict_in_generate=True).rollout
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = trl_diffusion.AutoModelForDiffusionLM.from_pretrained(tmp_path / "model")
    assert torch.equal(again.generate(**inputs, return_dict_in_generate=True).rollout.unmask_step, here.unmask_step)


def test_older_weights_that_are_moved_into_the_folder_are_noticed(tokenizer, tmp_path):
    """As large as those before, and from long ago: a backup that is put back."""
    model, first, second = random_model("llada", tokenizer), small_policy(), small_policy(seed=9)
    first.save_pretrained(tmp_path / "policy")
    second.save_pretrained(tmp_path / "backup")
    assert torch.equal(model.unmasking_policy(str(tmp_path / "policy")).head.weight, first.head.weight)
    os.utime(tmp_path / "backup" / "model.safetensors", (1e9, 1e9))
    os.replace(tmp_path / "backup" / "model.safetensors", tmp_path / "policy" / "model.safetensors")
    assert torch.equal(model.unmasking_policy(str(tmp_path / "policy")).head.weight, second.head.weight)


def test_fields_of_a_policy_need_one(tokenizer):
    for field in ("policy_temperature", "policy_beta"):
        with pytest.raises(ValueError, match=f"{field}=0.5 must be None unless unmasking is a learned policy"):
            DiffusionGenerationConfig(**{field: 0.5})
    with pytest.raises(ValueError, match="policy_beta=0 must be positive"):
        DiffusionGenerationConfig(unmasking="some/policy", policy_beta=0)
    with pytest.raises(ValueError, match="policy_beta=2.0 must be None with policy_temperature=0"):
        DiffusionGenerationConfig(unmasking="some/policy", policy_beta=2.0, policy_temperature=0)
    with pytest.raises(ValueError, match="step_schedule='linear_time' must be 'even' with a learned policy"):
        DiffusionGenerationConfig(unmasking="some/policy", step_schedule="linear_time")
    with pytest.raises(ValueError, match="hidden states of size 7; the model's have 32"):
        generate(random_model("llada", tokenizer), prompts(tokenizer), unmasking=small_policy(dllm_hidden_size=7))


def test_a_policy_elsewhere_than_the_model_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"policy on meta, the model is on cpu.*policy.to\('cpu'\)"):
        generate(random_model("llada", tokenizer), prompts(tokenizer), unmasking=small_policy().to("meta"))


# What it is told


INPUTS = {"num_confidences": 2, "entropy": True, "dllm_hidden_size": 32}
SETTINGS = [
    {},
    {"block_length": 4},
    {"block_length": 4, "cache": "prefix", "cache_refresh_interval": 1},
    {"block_length": 4, "num_denoising_steps": 5},
]


@pytest.mark.parametrize("may_wait", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
def test_it_is_told_what_a_softmax_over_the_vocabulary_says(tokenizer, family, settings, may_wait):
    """Every step of every row, rebuilt from the step map alone, and looked at with a plain forward pass."""
    if family == "sdar":
        settings = {**settings, "block_length": 4}
        settings = {name: value for name, value in settings.items() if not name.startswith("cache")}
    model, inputs, policy = random_model(family, tokenizer), prompts(tokenizer), small_policy(**INPUTS)
    recorder = watched(policy, may_wait)
    rollout = generate(model, inputs, unmasking=recorder, **settings)
    steps = int(rollout.num_forward_passes.max())
    record = recorder.record(3, steps)
    assert record.features.shape == (3, steps, 10, 35) and (rollout.unmask_step > 0).all()
    block = settings.get("block_length", 10)
    offset = rollout.prompt_mask.sum(dim=1) % block if family == "sdar" else torch.zeros(3, dtype=torch.long)
    blocks = canvas_blocks((3, 10), block, offset, "cpu")
    seen, waited = 0, 0
    for row in range(3):
        prompt = rollout.prompt_ids[row][rollout.prompt_mask[row].bool()]
        for step in range(1, int(rollout.num_forward_passes[row]) + 1):
            masked = rollout.unmask_step[row] >= step
            candidates = masked & (blocks[row] == blocks[row][masked].min())
            told = [
                found[0].tolist()
                for found in revealed_at(
                    rollout.unmask_step[row : row + 1],
                    record.rank[row : row + 1],
                    blocks[row : row + 1],
                    torch.tensor([step]),
                )
            ]
            assert told[:2] == [masked.tolist(), candidates.tolist()]
            chosen = rollout.unmask_step[row] == step
            waited += not chosen.any()
            free = record.decided[row, step - 1]
            if free and not (chosen.sum() == 1 and rollout.forced[row][chosen].all() and not may_wait):
                assert torch.equal(chosen, torch.tensor(told[2]) > 0)
            if not free:
                assert torch.equal(chosen, candidates)  # everything that is left
            features = record.features[row, step - 1]
            assert torch.equal(features[~masked][:, 0], torch.ones(int((~masked).sum())))
            assert not features[~masked][:, 1:].any()
            canvas = rollout.canvas_ids[row].masked_fill(masked, tokenizer.mask_token_id)
            # Blocks to the right are not in sight of a block-causal model's.
            in_sight = masked if family == "llada" else candidates
            current = blocks[row] == blocks[row][candidates][0]
            last = 10 if family == "llada" else int(current.nonzero().max()) + 1
            length = len(prompt) + last
            with torch.no_grad():
                output = model(torch.cat([prompt, canvas[:last]])[None], output_hidden_states=True)
            logits = output.logits[0, len(prompt) : length].double()
            logits[:, tokenizer.mask_token_id] = -torch.inf
            probabilities = logits.softmax(dim=1)
            two = probabilities.topk(2, dim=1).values
            entropy = -(probabilities * probabilities.clamp(min=1e-300).log()).sum(dim=1, keepdim=True)
            hidden = output.hidden_states[-1][0, len(prompt) : length]
            slow = torch.cat([two, entropy, hidden], dim=1).float()
            assert torch.allclose(features[:last][in_sight[:last]], slow[in_sight[:last]], atol=2e-5)
            assert not features[masked & ~in_sight].any()
            seen += 1
    assert seen > 12 and (waited > 0) == may_wait


def test_confidences_of_the_drawn_distribution_are_at_temperature_one(tokenizer):
    model, inputs, policy = random_model("llada", tokenizer), prompts(tokenizer), small_policy()
    first = {}
    for name, kwargs in {"greedy": {}, "hot": {"temperature": 3.0, "top_k": 2}}.items():
        recorder = watched(policy)
        generate(model, inputs, unmasking=recorder, **kwargs)
        first[name] = recorder.record(3, 10).features[:, 0]
    assert torch.equal(first["greedy"], first["hot"])


@pytest.mark.parametrize("action", ["bernoulli", "ordered"])
@pytest.mark.parametrize("kwargs", [{}, {"block_length": 4}, {"block_length": 4, "num_denoising_steps": 5}])
def test_a_row_does_not_depend_on_its_batch(tokenizer, action, kwargs):
    model, policy = random_model("llada", tokenizer), small_policy(action=action)
    texts = ("01234012", "31", "0123", "4")
    whole = generate(model, prompts(tokenizer, texts), unmasking=policy, **{**kwargs, "seed": [1, 2, 3, 4]})
    assert len({tuple(row) for row in whole.unmask_step.tolist()}) == 4
    for row, text in enumerate(texts):
        alone = generate(model, prompts(tokenizer, [text]), unmasking=policy, **{**kwargs, "seed": [row + 1]})
        assert torch.equal(alone.unmask_step[0], whole.unmask_step[row])
        assert torch.equal(alone.canvas_ids[0], whole.canvas_ids[row])


# Steps


@pytest.mark.parametrize("action", ["bernoulli", "ordered"])
@pytest.mark.parametrize("kind, cache", [("llada", "none"), ("llada", "prefix"), ("llada", "dual"), ("sdar", "block")])
def test_steps_do_not_wait_for_the_device(tokenizer, monkeypatch, action, kind, cache):
    """But where the CPU looks at which rows are done, which it does rarely on a GPU, and without a difference."""
    policy = small_policy(action=action, num_confidences=2, entropy=True, initial_bias=-1.0)
    inputs = {"input_ids": torch.full((3, 9), 5)}
    for recorded in (False, True):
        waits, model = [], random_model(kind, tokenizer)
        monkeypatch.setattr(block, "steps_per_look", lambda device: 1000)
        for steps in (2, 10):
            rule = watched(policy, may_wait=True) if recorded else policy
            with Watch(-1) as watch:
                generate(model, inputs, unmasking=rule, cache=cache, block_length=10, num_denoising_steps=steps)
            waits.append(watch.waits)
        assert waits[0] == waits[1]
    found = []
    for looks in (1, 3):
        monkeypatch.setattr(block, "steps_per_look", lambda device, looks=looks: looks)
        recorder = watched(policy, may_wait=True)
        rollout = generate(model, inputs, unmasking=recorder, cache=cache, block_length=5)
        record = recorder.record(3, int(rollout.num_forward_passes.max()))
        found.append((rollout.unmask_step, rollout.num_forward_passes, record.rank, record.decided, record.features))
    assert all(torch.allclose(often, rarely, atol=1e-5) for often, rarely in zip(*found, strict=True))


def test_a_step_that_reveals_nothing_reveals_the_likeliest_position(tokenizer):
    model, inputs = random_model("llada", tokenizer), prompts(tokenizer)
    policy = small_policy(initial_bias=-50.0)
    policy.head.weight.data.mul_(1e-3)
    rollout = generate(model, inputs, unmasking=policy)
    assert rollout.num_forward_passes.tolist() == [10, 10, 10] and rollout.forced.all()
    recorder = watched(policy, may_wait=True)
    rollout = generate(model, inputs, unmasking=recorder)
    # It waits until the last step of the block, and is then overruled.
    assert (rollout.unmask_step == 10).all() and rollout.forced.all()
    assert recorder.record(3, 10).decided.tolist() == [[True] * 9 + [False]] * 3
    logits = [policy(torch.zeros(1, 3, 1), torch.ones(1, 3, dtype=torch.bool), torch.zeros(1))]
    assert logits[0].max() < -40


@pytest.mark.parametrize("steps, expected", [(10, None), (4, 4), (1, 1)])
def test_the_steps_of_a_block_are_bounded(tokenizer, steps, expected):
    model, inputs = random_model("llada", tokenizer), prompts(tokenizer)
    policy = small_policy(initial_bias=-4.0)
    rollout = generate(model, inputs, unmasking=policy, num_denoising_steps=steps)
    assert (rollout.num_forward_passes <= steps).all() and (rollout.unmask_step > 0).all()
    if expected is not None:
        assert rollout.num_forward_passes.tolist() == [expected] * 3 and rollout.forced.any()


def test_ends_of_rows_infilling_and_hints(tokenizer):
    """Rows that end early, canvases of different lengths, and places that are given: the policy is told so."""
    model, policy = random_model("llada", tokenizer), small_policy()
    inputs = prompts(tokenizer, ("0123401", "3142013"))
    infill = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    infill[0, 2:5] = True
    infill[1, [1, 6]] = True
    recorder = watched(policy)
    rollout = generate(model, inputs, length=0, unmasking=recorder, infill_mask=infill)
    assert torch.equal(rollout.unmask_step > 0, infill[:, 1:])
    record = recorder.record(2, int(rollout.num_forward_passes.max()))
    # Row 0 fills from its place 2, row 1 from its place 1: canvases of 5 and 6 places.
    assert (record.features[0, 0, :, 0] == 1).tolist() == [False] * 3 + [True] * 2 + [False]
    assert (record.features[1, 0, :, 0] == 1).tolist() == [False] + [True] * 4 + [False]
    assert record.features[0, 0, 5, 0] == 0

    hints = torch.full((2, 6), -100)
    hints[0, 1], hints[1, 4] = 5, 6
    recorder = watched(policy)
    rollout = generate(model, inputs, length=6, unmasking=recorder, hint_ids=hints)
    assert rollout.unmask_step[0, 1] == 0 and (rollout.unmask_step > 0).sum() == 10
    record = recorder.record(2, int(rollout.num_forward_passes.max()))
    assert record.features[0, 0, 1, 0] == 1 and record.rank[0, 1] == 0
    assert recorder.inputs == PolicyInputs()


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_policies_work_with_caches_and_guidance(tokenizer, cache):
    model, inputs, policy = random_model("llada", tokenizer), prompts(tokenizer), small_policy(dllm_hidden_size=32)
    for guidance in (None, 2.0):
        rollout = generate(model, inputs, unmasking=policy, cache=cache, block_length=4, guidance_scale=guidance)
        assert (rollout.unmask_step > 0).all()


def test_every_family_is_served_by_one_policy(every_family, tokenizer, tmp_path):
    model, inputs, policy = random_model(every_family, tokenizer), prompts(tokenizer), small_policy(entropy=True)
    cache = "block" if model.attention == "block_causal" else "none"
    rollouts = [generate(model, inputs, unmasking=policy, cache=name) for name in ("none", cache)]
    assert (rollouts[0].unmask_step > 0).all()
    assert torch.equal(rollouts[0].unmask_step, rollouts[1].unmask_step)
