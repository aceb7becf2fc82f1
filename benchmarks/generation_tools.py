# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What benchmarks/generation.py is made of: models, a task whose answer a small model is sure of, the plain loop it
compares with; tables, clocks and memory."""

import ctypes
import dataclasses
import json
import math
import os
import shlex
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedConfig

from trl_diffusion.models import LLaDAConfig, LLaDAModelLM, SDARConfig, SDARForCausalLM


MEGABYTE = 1e6
VOCABULARY = 32768
PROMPT_LENGTH = 32
FAMILIES = {"llada": (LLaDAConfig, LLaDAModelLM), "sdar": (SDARConfig, SDARForCausalLM)}

# Bytes/s and FLOP/s of an H200, bf16 without sparsity; and the part of each that a good program reaches.
BANDWIDTH, COMPUTE = 4.8e12, 989e12
REAL_BANDWIDTH, REAL_COMPUTE = 0.80, 0.65

# The task of the peaked model: four tokens over and over.
PERIOD = 4
USED_TOKENS = 32
TRAINED_LENGTH = 256


def parse_shape(text: str) -> tuple[int, int]:
    """ "256x4" → hidden size 256, 4 layers."""
    hidden, layers = text.split("x")
    return int(hidden), int(layers)


def random_model(
    family: str,
    shape: tuple[int, int],
    vocabulary: int = VOCABULARY,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    **fields,
):
    """A model with random weights: heads of 32, an MLP three times as wide as the hidden state (LLaDA's 12288 / 4096).

    The weights are spread enough for the most probable token to be ahead of rounding errors.
    """
    config_class, model_class = FAMILIES[family]
    hidden, layers = shape
    values = {
        "vocab_size": vocabulary,
        "mask_token_id": vocabulary - 1,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 32,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "initializer_range": 0.1,
        **fields,
    }
    torch.manual_seed(0)
    with torch.device(device):
        return model_class._from_config(config_class(**values), dtype=dtype).eval()


def body_and_head(model) -> tuple[float, float]:
    """Parameters that a token passes through, in millions: those of the layers, and those of the head."""
    body = sum(parameter.numel() for parameter in model.model.layers.parameters())
    return body / 1e6, model.get_output_embeddings().weight.numel() / 1e6


def repeating_rows(batch_size: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Rows that repeat their first PERIOD tokens, (B, L)."""
    pattern = torch.randint(0, USED_TOKENS, (batch_size, PERIOD), generator=generator)
    return pattern.repeat(1, -(-length // PERIOD))[:, :length]


def prompts(batch_size: int, device: str = "cpu") -> torch.Tensor:
    """(B, PROMPT_LENGTH)."""
    return repeating_rows(batch_size, PROMPT_LENGTH, torch.Generator().manual_seed(1)).to(device)


def peaked_model(folder: Path, shape: tuple[int, int], vocabulary: int = VOCABULARY, steps: int = 400):
    """A LLaDA-format model trained to go on with its prompt's pattern, from `folder` if it is there already.

    Diffusion SFT: mask ratio t ~ U(0, 1) per row, cross-entropy at masked positions of the canvas.
    """
    path = folder / f"peaked-{shape[0]}x{shape[1]}-{vocabulary}-{steps}"
    if path.is_dir():
        return LLaDAModelLM.from_pretrained(path, dtype=torch.float32).eval()
    # High rotary frequencies alone: the pattern is about short distances.
    fields = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, "initializer_range": 0.05}
    # The head's rows of tokens that never occur are zero and stay so. One logit stands for all of them, so that the
    # loss is that of the whole vocabulary.
    small = random_model("llada", shape, USED_TOKENS + 1, **fields).train()
    others = math.log(vocabulary - USED_TOKENS)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(small.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)
    warm_up, cool_down = steps / 10, steps / 4
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm_up, (steps - step) / cool_down)
    )
    begin = time.perf_counter()
    for _ in range(steps):
        rows = repeating_rows(6, PROMPT_LENGTH + TRAINED_LENGTH, generator)
        hidden = torch.rand(rows.shape, generator=generator) < torch.rand(len(rows), 1, generator=generator)
        hidden[:, :PROMPT_LENGTH] = False
        logits = small(rows.masked_fill(hidden, small.mask_token_id)).logits[hidden][:, :USED_TOKENS]
        logits = torch.nn.functional.pad(logits, (0, 1), value=others)
        loss = torch.nn.functional.cross_entropy(logits, rows[hidden])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(small.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    print(f"Trained the peaked model: loss {loss.item():.4f}, {time.perf_counter() - begin:.0f} s.", flush=True)

    model = random_model("llada", shape, vocabulary, **fields)
    weights = small.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = torch.zeros(vocabulary, shape[0])
        rows[:USED_TOKENS], rows[model.mask_token_id] = weights[name][:-1], weights[name][-1]
        weights[name] = rows
    model.load_state_dict(weights)
    folder.mkdir(parents=True, exist_ok=True)
    written = Path(tempfile.mkdtemp(dir=folder))
    try:
        model.save_pretrained(written)
        written.replace(path)
    finally:
        shutil.rmtree(written, ignore_errors=True)
    return model


def autoregressive_twin(model):
    """The autoregressive model of transformers that a diffusion model is made of, with the same weights in the same
    memory."""
    parent = next(base for base in type(model).__mro__ if base.__module__.startswith("transformers.models."))
    shared = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    names = {field.name for field in dataclasses.fields(parent.config_class)} - shared
    config = parent.config_class(**{name: getattr(model.config, name) for name in names})
    with torch.device("meta"):
        twin = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    twin.load_state_dict(model.state_dict(), assign=True)
    # What no checkpoint holds, and the meta device left empty.
    twin.model.rotary_emb = model.model.rotary_emb
    twin.generation_config.eos_token_id = None
    return twin.eval()


@torch.no_grad()
def plain_loop(
    model, prompt_ids: torch.Tensor, length: int, block_length: int, num_steps: int
) -> Iterator[torch.Tensor]:
    """LLaDA's sampler (arXiv 2502.09992, section 2.4; low-confidence remasking, semi-autoregressive blocks, greedy) as
    it is published, step by step: the model sees the whole sequence, computes logits of the whole vocabulary at every
    position, and each row's surest tokens of the block are kept.

    Block-causal models, whose later blocks nothing sees, are given the sequence up to the block's end: their sampler
    without a cache. The prompt ends where a block does.

    Two departures: [MASK] is kept out of the arg-max and of the confidence, as in this package, so that tokens can be
    compared; and the softmax has the model's dtype (fp64 in the first release, which is slower still).

    Yields:
        `torch.LongTensor` of shape (B, P + C) after every block; the last one is the result.

    Raises:
        ValueError: blocks or steps do not divide.
    """
    if length % block_length or num_steps % (length // block_length):
        raise ValueError(
            f"length={length}, block_length={block_length}, num_steps={num_steps}: the length must be a multiple of "
            "the block, and the steps a multiple of the number of blocks."
        )
    mask_id, width = model.mask_token_id, prompt_ids.size(1)
    whole = torch.nn.functional.pad(prompt_ids, (0, length), value=mask_id)  # (B, P + C)
    steps = num_steps // (length // block_length)
    for begin in range(width, width + length, block_length):
        end = begin + block_length
        ids = whole if model.attention == "full" else whole[:, :end]
        for step in range(steps):
            # The masks of a block, shared out evenly; the first steps take the remainder.
            quota = block_length // steps + (step < block_length % steps)
            masked = ids == mask_id
            logits = model(ids).logits  # (B, L, V)
            logits[..., mask_id] = float("-inf")
            tokens = logits.argmax(dim=-1)
            probabilities = logits.softmax(dim=-1)
            confidence = probabilities.gather(-1, tokens[..., None]).squeeze(-1)
            confidence[:, end:] = float("-inf")
            confidence = torch.where(masked, confidence, float("-inf"))
            tokens = torch.where(masked, tokens, ids)
            for row in range(len(ids)):
                kept = confidence[row].topk(quota).indices
                ids[row, kept] = tokens[row, kept]
        yield whole


# Tables and measuring


class Report:
    """Tables, printed row by row, and written to a file at the end."""

    def __init__(self):
        self.tables: list[dict] = []

    def table(self, title: str, *columns: str):
        """Begin a table."""
        self.tables.append({"title": title, "columns": list(columns), "rows": []})
        print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)

    def row(self, *cells):
        """Add a row to the last table."""
        assert len(cells) == len(self.tables[-1]["columns"])
        self.tables[-1]["rows"].append([str(cell) for cell in cells])
        print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)

    def write(self, path: Path, machine: str):
        """Write everything, or nothing."""
        content = {"command": shlex.join(sys.argv), "machine": machine, "tables": self.tables}
        written = path.with_name(f"{path.name}.part")
        written.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        written.replace(path)


def spread(values: list[float], digits: int = 2) -> str:
    """Median (least–largest)."""
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}–{high})"


def ratios(slow: list[float], fast: list[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(slow, fast, strict=True)]


def timed(call: Callable, device: torch.device) -> tuple[object, float]:
    """Result and seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - begin


def race(plain: Iterator, num_blocks: int, rivals: dict[str, Callable], rounds: int, device: torch.device):
    """Seconds of a whole plain loop and of its rivals, round by round, and their last results.

    A step of the plain loop costs the same in every block, and it takes minutes: so it runs once, cut into as many
    pieces as there are rounds, and every rival runs whole after each piece.
    """
    rounds = min(rounds, num_blocks)
    results, seconds, done = {}, {name: [] for name in ("plain", *rivals)}, 0
    for index in range(rounds):
        upto = num_blocks * (index + 1) // rounds
        blocks = upto - done
        results["plain"], elapsed = timed(lambda blocks=blocks: [next(plain) for _ in range(blocks)][-1], device)
        seconds["plain"].append(elapsed * num_blocks / blocks)
        done = upto
        for name, call in rivals.items():
            results[name], elapsed = timed(call, device)
            seconds[name].append(elapsed)
    return results, seconds


@contextmanager
def counted_passes(model):
    """A list whose only entry is the number of forward passes so far."""
    count = [0]

    def add(*_):
        count[0] += 1

    handle = model.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        handle.remove()


@contextmanager
def peak_memory(device: torch.device):
    """A list that holds, at the end, by how many bytes memory grew at most: of the device's allocator, or of the
    process as a thread sees it every millisecond."""
    peak = [0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak[0] = torch.cuda.max_memory_allocated(device) - before
        return

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier calls freed would be taken again unseen
    before, finished = resident(), threading.Event()

    def watch():
        while not finished.wait(0.001):
            peak[0] = max(peak[0], resident() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        finished.set()
        thread.join()


class VocabularyWatch(TorchDispatchMode):
    """Remembers the largest tensor that an operator returns with an axis as long as the vocabulary, in bytes.

    A longer axis counts too, so that flattening hides nothing; views of weights do not. What an operator allocates
    inside itself is not seen.
    """

    def __init__(self, model):
        super().__init__()
        self.vocabulary, self.largest = model.config.vocab_size, 0
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and any(size >= self.vocabulary for size in tensor.shape):
                if tensor.untyped_storage().data_ptr() not in self.weights:
                    self.largest = max(self.largest, tensor.numel() * tensor.element_size())
        return result


def step_floor(config, batch: int, tokens: int, context: int, head_tokens: int) -> tuple[float, float]:
    """Milliseconds that a forward pass takes at least on an H200 in bf16: at its peak rates, and at those that good
    programs reach (the "real" of the roofline).

        FLOPs = 2 · tokens · body + 4 · tokens · context · hidden · layers + 2 · head_tokens · hidden · V
        bytes = 2 · (body + V · hidden) + 4 · context · kv_heads · head_dim · layers     (weights once; keys, values)
        time = max(FLOPs / compute, bytes / bandwidth)

    With B rows the FLOPs and the keys and values count B times.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    kv = config.num_key_value_heads * config.head_dim
    head = config.vocab_size * hidden
    body = layers * (2 * hidden * config.num_attention_heads * config.head_dim + 2 * hidden * kv)
    body += layers * 3 * hidden * config.intermediate_size
    flops = batch * (2 * tokens * body + 4 * tokens * context * hidden * layers + 2 * head_tokens * head)
    size = 2 * (body + head) + batch * 4 * context * kv * layers
    ideal = max(flops / COMPUTE, size / BANDWIDTH)
    real = max(flops / COMPUTE / REAL_COMPUTE, size / BANDWIDTH / REAL_BANDWIDTH)
    return 1000 * ideal, 1000 * real
