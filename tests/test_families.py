# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Random small configurations of every family against a float64 recomputation from their Hub files."""

import json
import os
import random

import pytest
import torch
from conftest import FAMILIES
from safetensors.torch import load_file
from slow_layer import slow_logits
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)


TOLERANCE = 2e-5
# The two configurations of a run are drawn from these seeds. Any two will do: TRL_DIFFUSION_TEST_SEEDS="3 4".
SEEDS = [int(seed) for seed in os.environ.get("TRL_DIFFUSION_TEST_SEEDS", "11 12").split()]


def drawn_config(family: str, seed: int):
    """Grouped heads, odd sizes, tied or separate heads, biases where the family has the choice."""
    rng = random.Random(f"{family}-{seed}")
    config_class, _, _ = FAMILIES[family]
    kv_heads, group = rng.choice([1, 2, 3]), rng.choice([2, 3] if seed == SEEDS[0] else [1, 2, 3])
    head_dim = rng.choice([6, 10, 14])
    fields = {
        "vocab_size": rng.choice([53, 67, 101]),
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "hidden_size": kv_heads * group * head_dim,
        "intermediate_size": rng.choice([29, 37, 51]),
        "num_hidden_layers": 1,
        "max_position_embeddings": 64,
        "rope_theta": rng.choice([100.0, 10000.0, 500000.0]),
        "rms_norm_eps": rng.choice([1e-5, 1e-6]),
        "tie_word_embeddings": seed == SEEDS[0],
        "mask_token_id": 5,
    }
    if family in ("sdar", "sdar_moe", "a2d-qwen3"):
        fields |= {"head_dim": rng.choice([8, 12]), "attention_bias": rng.choice([True, False])}
    if family == "a2d-llama":
        fields |= {"attention_bias": seed == SEEDS[1], "mlp_bias": seed == SEEDS[1]}
    if family == "llada2_moe":
        fields |= {
            "head_dim": rng.choice([8, 12]),
            "partial_rotary_factor": rng.choice([0.5, 1.0]),
            "use_qkv_bias": seed == SEEDS[1],
            "num_experts": 9,
            "n_group": 3,
            "topk_group": 2,
            "num_experts_per_tok": 1 if seed == SEEDS[0] else 4,
            "num_shared_experts": rng.choice([1, 2]),
            "moe_intermediate_size": 13,
            "first_k_dense_replace": 0,
            "routed_scaling_factor": 2.5,
        }
    if family in ("sdar_moe", "lladamoe"):
        fields |= {"num_experts": 7, "num_experts_per_tok": rng.choice([1, 3]), "moe_intermediate_size": 13}
    if family == "sdar_moe":
        fields |= {"norm_topk_prob": seed == SEEDS[0]}
    if family == "lladamoe" and rng.random() < 0.25:
        fields |= {"moe_layer_freq": [0]}
    if config_class.__name__.startswith(("SDAR", "LLaDA2")) or (family.startswith("a2d") and seed == SEEDS[1]):
        fields |= {"block_length": rng.choice([3, 4, 5])}
    return config_class(**fields)


@pytest.fixture(params=SEEDS)
def checkpoint(request, every_family, tmp_path):
    """A random checkpoint on disk, every weight of it non-trivial."""
    torch.manual_seed(request.param)
    model = FAMILIES[every_family][1](drawn_config(every_family, request.param))
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in name:
                continue
            around = 1.0 if "norm" in name else 0.0
            tensor.copy_(around + 0.2 * torch.randn_like(tensor))
    model.save_pretrained(tmp_path)
    return every_family, tmp_path


def expected_logits(family, folder, ids, block):
    config = json.loads((folder / "config.json").read_text())
    return slow_logits(family, config, load_file(folder / "model.safetensors"), ids, block)


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
def test_random_configurations_equal_a_float64_recomputation(checkpoint, implementation):
    family, folder = checkpoint
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=implementation
    ).eval()
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(0, model.config.vocab_size, (length,), generator=generator) for length in (11, 7)]
    ids, mask = torch.full((2, 11), 1), torch.zeros(2, 11, dtype=torch.long)
    for row, tokens in enumerate(rows):
        ids[row, 11 - len(tokens) :], mask[row, 11 - len(tokens) :] = tokens, 1
    with torch.no_grad():
        alone = model(rows[0][None]).logits[0]
        padded = model(ids, attention_mask=mask).logits
    for row, tokens in enumerate(rows):
        expected = expected_logits(family, folder, tokens, model.block_length)
        assert expected.abs().max() > 1  # spread enough for the comparison to mean something
        assert (padded[row, 11 - len(tokens) :] - expected).abs().max() <= TOLERANCE
    assert (alone - expected_logits(family, folder, rows[0], model.block_length)).abs().max() <= TOLERANCE


def test_random_configurations_round_trip(checkpoint, tmp_path):
    family, folder = checkpoint
    model = AutoModelForCausalLM.from_pretrained(folder)
    again = tmp_path / "again"
    model.save_pretrained(again)
    before, after = load_file(folder / "model.safetensors"), load_file(again / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert json.loads((folder / "config.json").read_text()) == json.loads((again / "config.json").read_text())
    # Straight into a model, as a trainer that resumes does it.
    fresh = type(model)(model.config)
    fresh.load_state_dict(before, strict=not model.config.tie_word_embeddings)
    fresh.tie_weights()
    expected = model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in fresh.state_dict().items())


def relative_error(model_class, config, state_dict, folder, ids, **kwargs):
    """Root mean square of what bf16 changes in the logits, over that of the logits."""
    model = model_class(config).eval()
    model.load_state_dict(state_dict)
    model.save_pretrained(folder)
    half = model_class.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        exact, rounded = model(ids, **kwargs).logits, half(ids, **kwargs).logits.float()
    return ((rounded - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt()).item()


@pytest.mark.parametrize(
    "family, plain_config, plain_model",
    [
        ("llada", LlamaConfig, LlamaForCausalLM),
        ("mmada", LlamaConfig, LlamaForCausalLM),
        ("a2d-llama", LlamaConfig, LlamaForCausalLM),
        ("dream", Qwen2Config, Qwen2ForCausalLM),
        ("a2d-qwen2", Qwen2Config, Qwen2ForCausalLM),
        ("sdar", Qwen3Config, Qwen3ForCausalLM),
        ("a2d-qwen3", Qwen3Config, Qwen3ForCausalLM),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bf16_is_as_exact_as_in_the_plain_model(family, plain_config, plain_model, seed, tmp_path):
    config_class, model_class, _ = FAMILIES[family]
    fields = {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "initializer_range": 0.08,
    }
    torch.manual_seed(seed)
    state_dict = plain_model(plain_config(**fields)).state_dict()
    ids = torch.randint(0, 512, (4, 96))
    native = relative_error(model_class, config_class(**fields), state_dict, tmp_path / "native", ids)
    plain = relative_error(plain_model, plain_config(**fields), state_dict, tmp_path / "plain", ids)
    print(f"bf16 error: {family} {native:.4f}, {plain_model.__name__} {plain:.4f}, ratio {native / plain:.3f}")
    assert 0 < native <= 1.5 * plain
