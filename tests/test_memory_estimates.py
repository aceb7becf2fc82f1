# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Estimated memory against what real tiny models take."""

import runpy
import sys
import weakref

import pytest
import torch
from conftest import random_config
from doc_blocks import ROOT
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from trl_diffusion.likelihood import fully_masked_view, score_view
from trl_diffusion.models import LLaDAConfig
from trl_diffusion.models.memory import (
    LOGIT_BYTES,
    estimate_memory,
    parameter_count,
    saved_bytes,
    training_length,
)
from trl_diffusion.tasks import character_tokenizer


TOKENIZER = character_tokenizer("01234")


class PeakMemory(TorchDispatchMode):
    """Bytes of all storages that operators make and that are alive at once, at most."""

    def __init__(self):
        super().__init__()
        self.live, self.now, self.peak = {}, 0, 0

    def _free(self, place: int, size: int):
        del self.live[place]
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if torch.is_tensor(tensor) else None
            if storage is not None and storage._cdata not in self.live and storage._cdata not in given:
                place, size = storage._cdata, storage.nbytes()
                self.live[place] = weakref.ref(storage, lambda _, place=place, size=size: self._free(place, size))
                self.now += size
                self.peak = max(self.peak, self.now)
        return result


def real_model(config, method: str):
    dtype = torch.float32 if method == "full" else torch.bfloat16
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).train()
    return model if method == "full" else get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))


def size(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_weights_gradients_and_optimizer_are_exact(every_family, method):
    config = random_config(every_family, TOKENIZER)
    model = real_model(config, method)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    estimate = estimate_memory(config, method, lora_rank=4)
    assert estimate.weights == size(model.parameters())
    assert estimate.gradients == size(parameter.grad for parameter in trained)
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert estimate.optimizer == size(moments)
    if method == "full":
        assert parameter_count(config) == sum(parameter.numel() for parameter in model.parameters())
    # Shared out, rounded up.
    shared = estimate_memory(config, method, lora_rank=4, num_shards=8)
    assert shared.weights == -(-estimate.weights // 8) and shared.optimizer == -(-estimate.optimizer // 8)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_activations_are_what_autograd_keeps(every_family, method):
    config = random_config(every_family, TOKENIZER, num_hidden_layers=4)
    sizes = {"prompt_length": 7, "completion_length": 12, "batch_size": 3}
    estimate = estimate_memory(config, method, lora_rank=4, gradient_checkpointing=False, **sizes)
    model = real_model(config, method)
    family = model if method == "full" else model.get_base_model()
    length = training_length(7, 12, getattr(config, "block_length", None))
    inputs = {"position_ids": torch.arange(length).expand(3, length)}
    if family.attention == "block_causal":
        inputs["attention_mask"] = torch.ones(3, 1, length, length, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept = saved_bytes(lambda: family.model(input_ids=torch.zeros(3, length, dtype=torch.long), **inputs), model)
    assert estimate.activations == kept


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_peak_of_a_step_with_gradient_checkpointing(family, method):
    # Wide and deep enough for the parts to count: the layers' inputs, one layer, the logits.
    config = random_config(
        family, TOKENIZER, num_hidden_layers=6, hidden_size=64, intermediate_size=192, vocab_size=2000, spread=0.02
    )
    model = real_model(config, method)
    model.gradient_checkpointing_enable()
    if method == "lora":
        model.enable_input_require_grads()
    canvas = torch.randint(4, 9, (4, 48))
    prompt = torch.randint(4, 9, (4, 16))
    target = torch.zeros_like(canvas, dtype=torch.bool)
    target[:, ::4] = True
    view = fully_masked_view(torch.ones_like(target))
    view.target = target
    tracker = PeakMemory()
    with tracker:
        for _ in range(2):  # gradients of the first micro-batch are there in the second
            with torch.autocast("cpu", dtype=torch.bfloat16):
                scores = score_view(model, prompt, torch.ones_like(prompt), canvas, view)
            scores.logprobs.sum().backward()
    measured = tracker.peak + size(model.parameters())
    estimate = estimate_memory(
        config, method, prompt_length=16, completion_length=48, batch_size=4, num_targets=48, lora_rank=4
    )
    wanted = estimate.total - estimate.optimizer
    print(f"{family} {method}: measured {measured / 1e6:.2f} MB, estimated {wanted / 1e6:.2f} MB")
    # An upper bound: the logits are gone when a layer is computed again.
    assert 0.75 * wanted < measured < 1.02 * wanted


def test_the_peak_of_scoring_is_that_of_the_logits():
    config = LLaDAConfig(
        vocab_size=20000,
        mask_token_id=9,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()
    canvas, prompt = torch.randint(10, 1000, (4, 32)), torch.ones(4, 8, dtype=torch.long)
    tracker = PeakMemory()
    with tracker:
        view = fully_masked_view(torch.ones_like(canvas, dtype=torch.bool))
        score_view(model, prompt, prompt, canvas, view)
    peak = tracker.peak
    assert peak / (canvas.numel() * config.vocab_size) == pytest.approx(LOGIT_BYTES, rel=0.02)


def test_weights_in_four_bits(tmp_path):
    config = random_config("llada", TOKENIZER, hidden_size=64, intermediate_size=256)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, quantization_config=quantization)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    scales = [p.quant_state.absmax for p in model.parameters() if hasattr(p, "quant_state")]
    assert len(scales) == 14
    estimate = estimate_memory(config, "qlora", lora_rank=4)
    assert estimate.weights == pytest.approx(size(model.parameters()) + size(scales), rel=0.005)
    assert estimate.gradients == estimate_memory(config, "lora", lora_rank=4).gradients


def test_what_makes_memory_smaller_does():
    config = random_config("sdar", TOKENIZER, num_hidden_layers=8, hidden_size=64)
    base = estimate_memory(config, "full")
    assert estimate_memory(config, "full", gradient_checkpointing=False).activations > base.activations
    assert estimate_memory(config, "full", num_targets=10).logits < base.logits
    assert estimate_memory(config, "full", batch_size=2).activations > base.activations
    assert training_length(10, 12, None) == 22 and training_length(10, 12, 4) == 10 + 24 + 3


@pytest.mark.parametrize(
    ("arguments", "message"), [({"method": "dora"}, "dora"), ({"method": "qlora", "num_shards": 2}, "num_shards=2")]
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        estimate_memory(random_config("llada", TOKENIZER), **arguments)


def test_the_table_of_the_page_is_the_commands(capsys):
    page = (ROOT / "docs" / "scaling.md").read_text()
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        script = runpy.run_path(str(ROOT / "benchmarks" / "memory_estimates.py"))
    finally:
        sys.path.pop(0)
    # The published numbers of parameters, in billions, as far as cards give them.
    counts = {name: parameter_count(script["load_config"](name)) / 1e9 for name in script["PRESETS"]}
    published = {"llada-8b": 8.02, "dream-7b": 7.62, "sdar-30b-a3b": 30.5, "llada2-mini-16b": 16.26, "sdar-8b": 8.19}
    assert all(counts[name] == pytest.approx(count, rel=0.003) for name, count in published.items())
    for options in (["--models", "sdar-4b", "llada2-mini-16b"], ["--models", "llada-8b", "--detail", "lora"]):
        script["main"](options)
        rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
        assert len(rows) > 2 and all(row in page for row in rows), rows
    with pytest.raises(SystemExit, match="neither a folder"):
        script["main"](["--models", "nothing"])
