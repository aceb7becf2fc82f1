# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Caches: exact ones change nothing, approximate ones say so; and what a step costs."""

import gc
import weakref

import pytest
import torch
from conftest import FAMILIES, golden_model, random_model
from test_replay import check, rollout_of
from torch.utils._python_dispatch import TorchDispatchMode

from trl_diffusion.generation import block
from trl_diffusion.generation.cache import CanvasCache


FULL = ["llada", "mmada", "dream", "lladamoe", "a2d-llama", "a2d-qwen2", "a2d-qwen3"]
BLOCKS = ["sdar", "sdar_moe", "llada2_moe"]
RULES = {
    "low_confidence": {"num_denoising_steps": 9},
    "threshold": {},
    "origin": {"num_denoising_steps": 7},
    "entropy": {"num_denoising_steps": 9, "step_schedule": "linear_time"},
}


def load(family: str, **kwargs):
    """A golden checkpoint; A2D-Qwen3's has blocks, and here attends to the whole row unless they are asked for."""
    model = golden_model(family, **kwargs)
    if family in FULL:
        model.config.block_length = None
    return model


def same(one, other):
    for name in ("canvas_ids", "unmask_step", "forced", "completion_mask", "num_forward_passes"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert torch.allclose(one.logprobs, other.logprobs, atol=1e-4)


# Exact: the block cache


@pytest.mark.parametrize("unmasking", RULES)
@pytest.mark.parametrize("block_length", [4, 8])
@pytest.mark.parametrize("family", BLOCKS)
def test_block_cache_is_exact(family, block_length, unmasking):
    """Replay of a padded, ragged batch, and the rollout without a cache again."""
    model = load(family)
    kwargs = {"unmasking": unmasking, "block_length": block_length, **RULES[unmasking]}
    cached = rollout_of(model, 0.7, cache="block", **kwargs)
    assert not cached.approximate
    check(model, cached)
    same(cached, rollout_of(model, 0.7, **kwargs))


def test_block_cache_with_rows_that_end_early():
    model = load("sdar")
    free = rollout_of(model, 0.7, block_length=4)
    eos = free.canvas_ids[1, 2].item()
    cached = rollout_of(model, 0.7, eos=eos, block_length=4, cache="block")
    assert (cached.canvas_ids == model.mask_token_id).any() and (cached.completion_mask.sum(1) == 14).any()
    check(model, cached)
    same(cached, rollout_of(model, 0.7, eos=eos, block_length=4))


@pytest.mark.parametrize("family", ["a2d-llama", "a2d-qwen2", "a2d-qwen3"])
def test_block_cache_of_a_converted_model(family):
    model = golden_model(family, block_length=4)
    cached = rollout_of(model, 0.7, cache="block")
    check(model, cached)
    same(cached, rollout_of(model, 0.7))


@pytest.mark.parametrize("family, cache", [("sdar", "block"), ("llada", "dual"), ("dream", "prefix")])
def test_caches_with_eager_attention(family, cache):
    kwargs = {"cache": cache, "block_length": 4 if family == "sdar" else 5}
    expected = rollout_of(load(family), 0.7, **kwargs)
    same(rollout_of(load(family, attn_implementation="eager"), 0.7, **kwargs), expected)


@pytest.mark.parametrize("family, cache", [("sdar", "block"), ("llada", "dual")])
def test_flex_attention_generates_and_refuses_a_cache_on_a_cpu(family, cache):
    model = load(family, attn_implementation="flex_attention")
    kwargs = {"block_length": 7, "num_denoising_steps": 2}
    same(rollout_of(model, 0.7, **kwargs), rollout_of(load(family), 0.7, **kwargs))
    with pytest.raises(ValueError, match=f"cache='{cache}'.*sdpa"):
        rollout_of(model, 0.7, cache=cache, **kwargs)


# Approximate: prefix and dual


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("family", FULL)
def test_a_cache_refreshed_at_every_step_is_exact(family, cache):
    model = load(family)
    kwargs = {"block_length": 5, "num_denoising_steps": 10}
    refreshed = rollout_of(model, 0.7, cache=cache, cache_refresh_interval=1, **kwargs)
    assert not refreshed.approximate
    same(refreshed, rollout_of(model, 0.7, **kwargs))


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("family", FULL)
def test_approximate_caches_report_so(family, cache):
    model = load(family)
    rollout = rollout_of(model, 0.7, cache=cache, block_length=7)
    assert rollout.approximate
    with pytest.raises(AssertionError):
        check(model, rollout)


@pytest.mark.parametrize("family", FULL)
def test_a_window_sees_what_the_whole_row_saw(family):
    """As long as no token changes, the logits of a window over a cache are those of the pass that filled it; for the
    first column too, whose prediction shifted logits keep one column to its left."""
    model = load(family)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 240, (2, 20), generator=generator)
    first_real = torch.tensor([0, 3])
    real = torch.arange(20) >= first_real[:, None]
    positions = (torch.arange(20) - first_real[:, None]).clamp(min=0)
    cache = CanvasCache(model.config.num_hidden_layers, 20)
    columns = torch.arange(8, 13).expand(2, -1)
    with torch.no_grad():
        cache.look_at(torch.arange(20), 20)
        whole = model.window_logits(ids, columns, positions, real, torch.arange(20), None, cache)
        start = 8 - model.logits_shift
        cache.look_at(torch.arange(start, 13), 20)
        places = torch.arange(start, 13)
        window = model.window_logits(ids[:, places], columns - start, positions[:, places], real, places, None, cache)
    assert (window - whole).abs().max() <= 2e-5
    with torch.no_grad():
        alone = model(ids[1:, 3:]).logits[0, 5 - model.logits_shift : 10 - model.logits_shift]
    assert (whole[1] - alone).abs().max() <= 2e-5


def test_refresh_interval_counts_steps():
    """Which columns every step computes, for each cache."""
    model = load("llada")
    seen = []
    original = type(model).window_logits

    def spy(self, input_ids, *args, **kwargs):
        seen.append(input_ids.size(1))
        return original(self, input_ids, *args, **kwargs)

    expected = {
        ("none", None): [18] * 8,
        ("dual", None): [18, 4, 4, 4] * 2,
        ("prefix", None): [18, 8, 8, 8, 18, 4, 4, 4],
        ("dual", 2): [18, 4, 18, 4] * 2,
        ("prefix", 3): [18, 8, 8, 18, 18, 4, 4, 18],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "window_logits", spy)
        for (cache, interval), widths in expected.items():
            seen.clear()
            kwargs = {"cache": cache, "cache_refresh_interval": interval}
            model.generate(torch.full((1, 10), 5), max_new_tokens=8, block_length=4, eos_token_id=None, **kwargs)
            assert seen == widths, (cache, interval)


def test_the_commit_of_a_block_rides_on_the_next_ones_first_step():
    model = load("sdar")
    seen = []
    original = type(model).window_logits

    def spy(self, input_ids, *args, **kwargs):
        seen.append(input_ids.size(1))
        return original(self, input_ids, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "window_logits", spy)
        model.generate(
            torch.full((1, 9), 5), max_new_tokens=9, block_length=4, cache="block", eos_token_id=None
        )  # 8 of the prompt, then 1 + 3, 4 and 2 tokens
    assert seen == [12, 4, 4, 8, 4, 4, 4, 6, 2]


# Costs


class Watch(TorchDispatchMode):
    """Largest tensor with a vocabulary axis, in bytes; and operations whose result the CPU has to wait for."""

    WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero", "aten::equal")

    def __init__(self, vocabulary: int, weights=()):
        super().__init__()
        self.weights = {weight.data_ptr() for weight in weights}
        self.vocabulary, self.largest, self.waits, self.sorts = vocabulary, 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        indices = args[1] if name in ("aten::index", "aten::index_put_") else []
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        self.waits += name in self.WAITING or by_mask
        self.sorts += name == "aten::sort"
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if not isinstance(tensor, torch.Tensor) or self.vocabulary not in tensor.shape:
                continue
            if tensor.data_ptr() not in self.weights:
                self.largest = max(self.largest, tensor.numel() * tensor.element_size())
        return result


CHOICES = {
    "greedy": {},
    "temperature": {"temperature": 0.7},
    "top-k": {"temperature": 1.0, "top_k": 5},
    "top-p": {"temperature": 0.7, "top_p": 0.9},
    "entropy": {"unmasking": "entropy", "temperature": 1.0},
    "margin": {"unmasking": "topk_margin"},
    "threshold": {"unmasking": "threshold", "threshold": 0.5},
    "guidance": {"guidance_scale": 2.0, "temperature": 1.0},
    "suppress": {"suppress_tokens": [3, 4], "begin_suppress_tokens": [5]},
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("cache", ["none", "dual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_no_tensor_of_the_vocabulary_exceeds_a_block(tokenizer, choice, cache, dtype):
    batch, block_length, vocabulary = 3, 6, 1009
    model = random_model("llada", tokenizer, vocab_size=vocabulary).to(dtype)
    with Watch(vocabulary, model.parameters()) as watch:
        model.generate(
            torch.full((batch, 9), 5),
            max_new_tokens=12,
            block_length=block_length,
            cache=cache,
            eos_token_id=None,
            seed=0,
            **CHOICES[choice],
        )
    assert 0 < watch.largest <= batch * block_length * vocabulary * 4


@pytest.mark.parametrize("cache", ["none", "dual", "block"])
@pytest.mark.parametrize("choice", ["greedy", "temperature", "entropy", "margin", "suppress", "guidance"])
def test_a_step_does_not_wait_for_the_device_and_sorts_once(tokenizer, choice, cache):
    model = random_model("sdar" if cache == "block" else "llada", tokenizer)
    counts = []
    for steps in (2, 10):
        with Watch(-1) as watch:
            model.generate(
                torch.full((3, 9), 5),
                max_new_tokens=10,
                block_length=10,
                num_denoising_steps=steps,
                cache=cache,
                seed=0,
                **CHOICES[choice],
            )
        counts.append((watch.waits, watch.sorts))
    (few_waits, few_sorts), (many_waits, many_sorts) = counts
    print(f"{choice}, cache={cache}: {few_waits} waits in 2 steps, {many_waits} in 10")
    assert many_waits == few_waits
    blocks = 2 if cache == "block" else 1  # 9 prompt tokens: the canvas lies in two blocks of 10
    assert many_sorts == (10 if blocks == 1 else many_sorts) and many_sorts - few_sorts <= 8


@pytest.mark.parametrize("unmasking", ["threshold", "origin", "custom"])
@pytest.mark.parametrize("family, cache", [("llada", "none"), ("llada", "dual"), ("sdar", "block"), ("sdar", "none")])
def test_looking_rarely_at_the_device_changes_nothing(family, cache, unmasking):
    """On a GPU rows are looked at every few steps: those that are done meanwhile must stay as they are."""
    model = load(family)

    def two_at_once(state):
        return state.candidates & (state.candidates.long().cumsum(1) <= 2)

    rule = two_at_once if unmasking == "custom" else unmasking
    kwargs = {"unmasking": rule, "cache": cache, "block_length": 7, "num_denoising_steps": None}
    kwargs = {**kwargs, **({"num_denoising_steps": 10} if unmasking == "origin" else {})}
    always = rollout_of(model, 0.9, **kwargs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "steps_per_look", lambda device: 3)
        same(rollout_of(model, 0.9, **kwargs), always)


@pytest.mark.slow
@pytest.mark.parametrize("family, cache", [("llada", "none"), ("llada", "dual"), ("sdar", "block")])
def test_compiled_steps_give_the_same_rollout(family, cache):
    model = load(family)
    kwargs = {"cache": cache, "block_length": 7, "unmasking": "low_confidence"}
    free = rollout_of(model, 0.7, **kwargs)
    eos = free.canvas_ids[0, 3].item()
    same(rollout_of(model, 0.7, eos=eos, torch_compile=True, **kwargs), rollout_of(model, 0.7, eos=eos, **kwargs))


def test_a_cache_is_freed_with_the_generation(tokenizer):
    """By counting references: waiting for the garbage collector would hold several caches at a time."""
    model = random_model("llada", tokenizer)
    caches = []
    original = CanvasCache.__init__

    def spy(self, *args):
        original(self, *args)
        caches.append(weakref.ref(self))

    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CanvasCache, "__init__", spy)
            model.generate(torch.full((2, 4), 5), max_new_tokens=6, cache="dual", block_length=3)
        assert caches and all(cache() is None for cache in caches)
    finally:
        gc.enable()


def test_settings_the_model_cannot_serve_are_refused(tokenizer):
    ids = torch.full((1, 4), 5)
    full, blocks = random_model("llada", tokenizer), random_model("sdar", tokenizer)
    for model, settings, field in [
        (full, {"cache": "block"}, "cache='block'"),
        (blocks, {"cache": "dual"}, "cache='dual'"),
        (blocks, {"cache": "prefix"}, "cache='prefix'"),
        (full, {"cache": "prefix", "torch_compile": True}, "torch_compile=True"),
        (blocks, {"torch_compile": True}, "torch_compile=True"),
    ]:
        with pytest.raises(ValueError, match=field):
            model.generate(ids, max_new_tokens=8, **settings)
    assert set(FULL) | set(BLOCKS) == set(FAMILIES)
