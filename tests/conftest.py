# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

import os


# Before anything imports the libraries: a stray call to the Hub must fail at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from trl_diffusion import models
from trl_diffusion.tasks import character_tokenizer


# One thread: the models are tiny, and a second one only waits when other processes run.
torch.set_num_threads(1)

DATA = Path(__file__).parent / "data"


_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
# Golden checkpoint -> its classes, and what a tiny random model needs beyond the fields that all have.
FAMILIES = {
    "llada": (models.LLaDAConfig, models.LLaDAModelLM, {}),
    "mmada": (models.MMadaConfig, models.MMadaModelLM, {}),
    "dream": (models.DreamConfig, models.DreamModel, {}),
    "sdar": (models.SDARConfig, models.SDARForCausalLM, {"head_dim": 8}),
    "sdar_moe": (models.SDARMoeConfig, models.SDARMoeForCausalLM, {"head_dim": 8, "num_experts": 6, **_MOE}),
    "llada2_moe": (
        models.LLaDA2MoeConfig,
        models.LLaDA2MoeModelLM,
        {"head_dim": 8, "n_routed_experts": 8, "n_group": 2, "first_k_dense_replace": 1, "block_length": 4, **_MOE},
    ),
    "lladamoe": (models.LLaDAMoEConfig, models.LLaDAMoEModelLM, {"num_experts": 6, **_MOE}),
    "a2d-llama": (models.A2DLlamaConfig, models.A2DLlamaLMHeadModel, {}),
    "a2d-qwen2": (models.A2DQwen2Config, models.A2DQwen2LMHeadModel, {}),
    "a2d-qwen3": (models.A2DQwen3Config, models.A2DQwen3LMHeadModel, {"head_dim": 8, "block_length": 4}),
}


def golden_model(family: str, **kwargs):
    """A golden checkpoint of tests/data, loaded as a user loads one."""
    return AutoModelForCausalLM.from_pretrained(DATA / "models" / family, dtype=torch.float32, **kwargs).eval()


def random_config(family: str, tokenizer, spread: float = 0.3, **kwargs):
    """Config of a tiny model of a family."""
    config_class, _, extra = FAMILIES[family]
    fields = {
        "vocab_size": len(tokenizer),
        "mask_token_id": tokenizer.mask_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": spread,
    }
    return config_class(**{**fields, **extra, **kwargs})


def random_model(family: str, tokenizer, seed: int = 0, spread: float = 0.3, **kwargs):
    """A tiny model with random weights, spread enough for its distributions to differ from uniform."""
    torch.manual_seed(seed)
    return FAMILIES[family][1](random_config(family, tokenizer, spread, **kwargs)).eval()


@pytest.fixture(autouse=True)
def shapes_of_this_test_alone(request):
    """Flex attention is compiled once for a process, for changing shapes from the second shape on, and there torch's
    compiler writes code that does not compile on some CPUs: a test must not fail for what ran before it."""
    if "flex_attention" in request.node.name:
        torch.compiler.reset()


@pytest.fixture(params=["llada", "sdar"])
def family(request):
    """One family of either kind of attention, for what does not depend on more than that."""
    return request.param


@pytest.fixture(params=list(FAMILIES))
def every_family(request):
    return request.param


@pytest.fixture
def tokenizer():
    return character_tokenizer("01234")


@pytest.fixture
def norms_in_fp64(monkeypatch):
    """The library's norms compute in fp32, whose rounding finite differences would see."""

    def forward(self, hidden_states):
        scale = hidden_states.pow(2).mean(-1, keepdim=True).add(self.variance_epsilon).rsqrt()
        return self.weight * hidden_states * scale

    for norm in (LlamaRMSNorm, Qwen3RMSNorm):
        monkeypatch.setattr(norm, "forward", forward)
