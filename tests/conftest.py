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

import trl_diffusion  # noqa: F401
from trl_diffusion.models import LLaDAConfig, LLaDAModelLM, SDARConfig, SDARForCausalLM
from trl_diffusion.tasks import character_tokenizer


# One thread: the models are tiny, and a second one only waits when other processes run.
torch.set_num_threads(1)

DATA = Path(__file__).parent / "data"


def golden_model(family: str):
    """A golden checkpoint of tests/data, loaded as a user loads one."""
    return AutoModelForCausalLM.from_pretrained(DATA / "models" / family, dtype=torch.float32).eval()


def random_model(family: str, tokenizer, seed: int = 0, spread: float = 0.3, **kwargs):
    """A tiny model with random weights, spread enough for its distributions to differ from uniform."""
    torch.manual_seed(seed)
    shared = {
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
        **kwargs,
    }
    if family == "llada":
        return LLaDAModelLM(LLaDAConfig(**shared)).eval()
    return SDARForCausalLM(SDARConfig(head_dim=8, **shared)).eval()


@pytest.fixture(params=["llada", "sdar"])
def family(request):
    return request.param


@pytest.fixture
def tokenizer():
    return character_tokenizer("01234")
