# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Speed and memory of generation, as the tables of docs/results.md.

    python benchmarks/generation.py targets                       # against a plain loop; vocabulary-sized tensors
    python benchmarks/generation.py grid --batches 1 8            # rule × cache × length × batch
    python benchmarks/generation.py roofline --lengths 256 512    # LLaDA-8B's shape on a CUDA device

Both sides of a ratio run in turns in one process. Run nothing else on the machine meanwhile.
"""

import argparse
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from generation_tools import (
    FAMILIES,
    MEGABYTE,
    PROMPT_LENGTH,
    VOCABULARY,
    Report,
    VocabularyWatch,
    autoregressive_twin,
    body_and_head,
    counted_passes,
    parse_shape,
    peak_memory,
    peaked_model,
    plain_loop,
    prompts,
    race,
    random_model,
    ratios,
    spread,
    step_floor,
    timed,
)

from trl_diffusion import AutoModelForDiffusionLM


BLOCK = 32
# Rules that commit as many tokens as the model is sure of, and one at least.
ADAPTIVE_RULES = {
    "threshold": {"threshold": 0.9},
    "factor": {"factor": 1.0},
    "entropy_bounded": {"entropy_bound": 0.1},
}
LLADA_8B = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32}
LLADA_8B |= {"head_dim": 128, "intermediate_size": 12288, "mask_token_id": 126336}


# targets


def generate(model, prompt_ids: torch.Tensor, length: int, **settings) -> torch.Tensor:
    """Ours: all of the canvas, EOS or not."""
    block = min(settings.pop("block_length", BLOCK), length)
    return model.generate(prompt_ids, max_new_tokens=length, block_length=block, eos_token_id=None, **settings)


def warm_up(model, prompt_ids: torch.Tensor, **settings):
    """One block, so that nothing is done for the first time when it is timed."""
    settings["num_denoising_steps"] = 2
    generate(model, prompt_ids, settings.get("block_length", BLOCK), **settings)


def same(first: torch.Tensor, second: torch.Tensor) -> str:
    """Whether two results have the same tokens."""
    different = int((first != second).sum())
    return "yes" if not different else f"no: {different} of {first.numel()} differ"


def compare_uncached(report: Report, model, name: str, prompt_ids, length: int, num_steps: int, rounds: int):
    """A row: the same steps, the same tokens, no cache."""
    whole = torch.nn.functional.pad(prompt_ids, (0, length), value=model.mask_token_id)
    warm_up(model, prompt_ids)
    with torch.no_grad():
        model(whole)
    rivals = {
        "ours": partial(generate, model, prompt_ids, length, num_denoising_steps=num_steps),
        # What no sampler without a cache gets below: the layers alone, without the head, for every token.
        "body": torch.no_grad()(lambda: model.model(whole)),
    }
    plain = plain_loop(model, prompt_ids, length, min(BLOCK, length), num_steps)
    results, seconds = race(plain, max(1, length // BLOCK), rivals, rounds, prompt_ids.device)
    per_step = {key: [1000 * value / num_steps for value in seconds[key]] for key in ("plain", "ours")}
    body = [1000 * value for value in seconds["body"]]
    sizes = body_and_head(model)
    report.row(
        name,
        f"{sizes[0]:.1f} / {sizes[1]:.1f}",
        num_steps,
        *(spread(values, 0) for values in (per_step["plain"], per_step["ours"], body)),
        spread(ratios(seconds["plain"], seconds["ours"])),
        spread(ratios(per_step["plain"], body)),
        same(results["plain"], results["ours"]),
    )


def compare_peaked(report: Report, model, prompt_ids, length: int, num_steps: int, rounds: int):
    """Rows: a model that is sure of its tokens."""
    sure = {"unmasking": "threshold", "threshold": 0.9}
    cases = {
        "threshold 0.9, no cache": sure,
        "threshold 0.9, dual cache": {**sure, "cache": "dual"},
        # Where the model is sure of whole blocks, no step reuses anything: what the cache gives shows here.
        "4 tokens per step, dual cache": {"num_denoising_steps": length // 4, "cache": "dual"},
    }
    rivals = {}
    for name, settings in cases.items():
        warm_up(model, prompt_ids, **settings)
        rivals[name] = partial(generate, model, prompt_ids, length, **settings)
    passes = {}
    for name, call in rivals.items():
        with counted_passes(model) as count:
            call()
        passes[name] = count[0]
    plain = plain_loop(model, prompt_ids, length, min(BLOCK, length), num_steps)
    results, seconds = race(plain, max(1, length // BLOCK), rivals, rounds, prompt_ids.device)
    for name in rivals:
        report.row(
            num_steps,
            spread(seconds["plain"]),
            name,
            passes[name],
            spread(seconds[name], 3),
            spread(ratios(seconds["plain"], seconds[name]), 1),
            same(results["plain"], results[name]),
        )


def compare_block_cache(report: Report, model, prompt_ids, length: int, num_steps: int, rounds: int):
    """A row: block-causal attention with and without its cache; the plain loop, which takes longest, once."""
    block, device = model.block_length, prompt_ids.device
    settings = {"block_length": block, "num_denoising_steps": num_steps}
    results, seconds = {}, {"none": [], "block": []}
    for cache in seconds:
        warm_up(model, prompt_ids, cache=cache, block_length=block)
    plain = plain_loop(model, prompt_ids, length, block, num_steps)
    results["plain"], plain_seconds = timed(lambda: list(plain)[-1], device)
    for _ in range(rounds):
        for cache, values in seconds.items():
            call = partial(generate, model, prompt_ids, length, cache=cache, **settings)
            results[cache], elapsed = timed(call, device)
            values.append(elapsed)
    agree = {same(results["plain"], results[cache]) for cache in seconds}
    report.row(
        block,
        num_steps,
        f"{plain_seconds:.1f}",
        spread(seconds["none"]),
        spread(seconds["block"]),
        spread(ratios(seconds["none"], seconds["block"])),
        spread([plain_seconds / value for value in seconds["block"]], 1),
        "; ".join(sorted(agree)),
    )


VOCABULARY_CASES = {
    "greedy": {},
    "temperature 1": {"temperature": 1.0},
    "temperature 0.7, top-k 50": {"temperature": 0.7, "top_k": 50},
    "temperature 0.7, top-p 0.9": {"temperature": 0.7, "top_p": 0.9},
    "entropy": {"unmasking": "entropy"},
    "topk_margin": {"unmasking": "topk_margin"},
    "threshold 0.9, dual cache": {"unmasking": "threshold", "threshold": 0.9, "cache": "dual"},
    "guidance 1.5": {"guidance_scale": 1.5},
}


def check_vocabulary_axis(report: Report, model, prompt_ids, length: int):
    """Rows: the largest tensor with a vocabulary axis."""
    bound = len(prompt_ids) * min(BLOCK, length) * model.config.vocab_size * 4
    for name, settings in VOCABULARY_CASES.items():
        with VocabularyWatch(model) as watch:
            generate(model, prompt_ids, length, num_denoising_steps=max(4, length // 8), seed=0, **settings)
        fits = "yes" if 0 < watch.largest <= bound else "no"
        report.row(name, f"{watch.largest / MEGABYTE:.2f}", f"{bound / MEGABYTE:.2f}", fits)


def run_targets(args, report: Report):
    """The targets of the issue on generation, on a CPU."""
    prompt_ids, length = prompts(args.batch), args.length
    report.table(
        f"Without a cache: vocabulary {VOCABULARY}, L = {length}, block {BLOCK}, batch {args.batch}",
        *("model", "parameters of body / head, M", "steps", "plain, ms/step", "ours, ms/step", "body alone, ms"),
        *("ratio", "plain / body alone (the most there is)", "same tokens"),
    )
    for shape in args.shapes:
        model = random_model("llada", parse_shape(shape))
        compare_uncached(report, model, shape, prompt_ids, length, args.steps, args.repetitions)
    model = peaked_model(args.cache_dir, parse_shape(args.peaked_shape))
    sizes = "{:.1f} M in the body, {:.1f} M in the head".format(*body_and_head(model))
    report.table(
        f"A model with peaked confidences ({args.peaked_shape}, {sizes}), same L, block and batch",
        *("steps of the plain loop", "plain, s", "ours", "forward passes", "s", "ratio", "same tokens"),
    )
    for num_steps in (length, length // 2):
        compare_peaked(report, model, prompt_ids, length, num_steps, args.repetitions)
    report.table(
        f"Block-causal attention (SDAR format, {args.shapes[0]}), vocabulary {VOCABULARY}, L = {length}, batch "
        f"{args.batch}",
        *("block", "steps", "plain, s (once)", "ours without cache, s", "ours with block cache, s", "cache gains"),
        *("plain / block cache", "same tokens"),
    )
    for block, num_steps in ((4, length // 2), (BLOCK, length // 4)):
        model = random_model("sdar", parse_shape(args.shapes[0]), block_length=block)
        compare_block_cache(report, model, prompt_ids, length, num_steps, args.repetitions)
    report.table(
        f"Largest tensor with a vocabulary axis: batch {args.batch}, block {BLOCK}, vocabulary {VOCABULARY}",
        *("settings", "largest, MB", "batch × block × vocabulary × 4, MB", "within"),
    )
    check_vocabulary_axis(report, random_model("llada", (64, 1)), prompt_ids, 2 * BLOCK)


# grid


def load(args, device: torch.device, dtype: torch.dtype):
    """The model that the grid runs."""
    if args.model == "peaked":
        model = peaked_model(args.cache_dir, parse_shape(args.shape), args.vocabulary)
        return model.to(device, dtype)
    if args.model in FAMILIES:
        return random_model(args.model, parse_shape(args.shape), args.vocabulary, device.type, dtype)
    return AutoModelForDiffusionLM.from_pretrained(args.model, dtype=dtype).to(device).eval()


def grid_cases(args, model, twin, prompt_ids, length: int) -> dict[tuple[str, str], tuple]:
    """(rule, cache) → the model whose forward passes count, and the call."""
    steps = max(1, length // args.tokens_per_step)
    possible = ("none", "prefix", "dual") if model.attention == "full" else ("none", "block")
    block = min(BLOCK, length) if model.attention == "full" else model.block_length
    cases = {}
    for rule in args.rules:
        for cache in [name for name in args.caches or possible if name in possible]:
            settings = {"unmasking": rule, "cache": cache, "block_length": block}
            settings |= ADAPTIVE_RULES.get(rule, {"num_denoising_steps": steps})
            cases[rule, cache] = model, partial(generate, model, prompt_ids, length, seed=0, **settings)
    # LLaDA's loop knows nothing of shifted logits, and shares blocks and steps out without a remainder.
    if not model.logits_shift and length % block == 0 and steps % (length // block) == 0:
        cases["plain loop", "none"] = model, lambda: list(plain_loop(model, prompt_ids, length, block, steps))
    settings = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False, "use_cache": True}
    settings |= {"attention_mask": torch.ones_like(prompt_ids), "pad_token_id": 0}
    cases["autoregressive", "its own"] = twin, partial(twin.generate, prompt_ids, **settings)
    return cases


def run_grid(args, report: Report):
    """Rule × cache × length × batch."""
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = load(args, device, dtype)
    twin = autoregressive_twin(model)
    sizes = "{:.1f} M in the body, {:.1f} M in the head".format(*body_and_head(model))
    report.table(
        f"{args.model} ({type(model).__name__}, {sizes}, {str(dtype)[6:]}, {args.device}), prompt {PROMPT_LENGTH}, "
        f"{args.tokens_per_step} tokens per step and row where the schedule decides",
        *("length", "batch", "rule", "cache", "tokens/s", "forward passes", "ms per pass", "peak memory, MB"),
    )
    for length in args.lengths:
        for batch in args.batches:
            prompt_ids = prompts(batch, args.device)
            warm_up(model, prompt_ids, block_length=model.block_length or min(BLOCK, length))
            cases = grid_cases(args, model, twin, prompt_ids, length)
            seconds, passes, memory = ({name: [] for name in cases} for _ in range(3))
            # A round more than is reported: what is done for the first time is done there, and memory is measured.
            for index in range(args.repetitions + 1):
                for name, (runner, call) in cases.items():
                    if index == 0:
                        with counted_passes(runner) as count, peak_memory(device) as peak:
                            call()
                        passes[name], memory[name] = count[0], peak[0]
                    else:
                        seconds[name].append(timed(call, device)[1])
            for name, values in seconds.items():
                report.row(
                    *(length, batch, *name),
                    spread([batch * length / value for value in values], 0),
                    passes[name],
                    spread([1000 * value / passes[name] for value in values], 1),
                    f"{memory[name] / MEGABYTE:.0f}",
                )


# roofline


def step_times(model, batch: int, context: int, canvas: int, rounds: int, cache: str, **settings) -> tuple[list, list]:
    """Milliseconds of a step inside a block and of a block's first step, round by round.

    With a cache two calls with as many blocks and a different number of steps: what they differ by are steps inside
    blocks. Without one, all steps are alike.
    """
    prompt_ids = torch.randint(0, model.mask_token_id, (batch, context - canvas), device=model.device)
    num_blocks = max(1, canvas // BLOCK)
    inside, first = [], []
    for index in range(rounds + 1):
        many, few = (
            1000
            * timed(
                partial(generate, model, prompt_ids, canvas, num_denoising_steps=num_steps, cache=cache, **settings),
                model.device,
            )[1]
            for num_steps in (canvas, canvas // 4)
        )
        if index == 0:
            continue  # compiles, and picks kernels
        inside.append(many / canvas if cache == "none" else (many - few) / (canvas - canvas // 4))
        first.append(inside[-1] if cache == "none" else (many - (canvas - num_blocks) * inside[-1]) / num_blocks)
    return inside, first


def run_roofline(args, report: Report):
    """LLaDA-8B's shape, random weights in bf16, against the H200's limits; `--tiny` runs the same on the CPU.

    L is everything a step sees: the prompt and a canvas of 64 tokens. Cached steps: a canvas of 256 at the end of the
    context.
    """
    if args.tiny:
        model = random_model("llada", (32, 1), 128)
        cached, short, long = 96, 32, 64
    elif not torch.cuda.is_available():
        sys.exit("roofline needs a CUDA device: its figures are those of an H200.")
    else:
        model = random_model("llada", (4096, 32), 126464, "cuda", torch.bfloat16, initializer_range=0.02, **LLADA_8B)
        cached, short, long = 1024, 64, 256
    cases = [(1, length, short, "none") for length in args.lengths]
    cases += [(batch, cached, long, "dual") for batch in (1, 8)]
    report.table(
        f"LLaDA-8B shape, block {BLOCK}, {torch.cuda.get_device_name() if not args.tiny else 'CPU'}",
        *("cache", "batch", "context", "compiled", "ms per step", "a block's first step, ms", "limit, ms"),
        *("limit at 65 % / 80 %, ms", "with the head at every position, ms", "step / limit at 65 % / 80 %"),
    )
    for batch, context, canvas, cache in cases:
        tokens = context if cache == "none" else BLOCK
        ideal, real = step_floor(model.config, batch, tokens, context, BLOCK)
        everywhere = step_floor(model.config, batch, tokens, context, tokens)[1]
        for compiled in (False, True) if args.torch_compile else (False,):
            inside, first = step_times(
                model, batch, context, canvas, args.repetitions, cache=cache, torch_compile=compiled
            )
            report.row(
                *(cache, batch, context, "yes" if compiled else "no", spread(inside), spread(first)),
                *(f"{ideal:.2f}", f"{real:.2f}", f"{everywhere:.2f}", f"{statistics.median(inside) / real:.2f}"),
            )


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    targets = commands.add_parser("targets", help="speed against a plain loop, and vocabulary-sized tensors, on a CPU")
    grid = commands.add_parser("grid", help="rule × cache × length × batch")
    roofline = commands.add_parser("roofline", help="LLaDA-8B's shape on a CUDA device")

    targets.add_argument("--shapes", nargs="+", default=["256x4", "384x6"], help="hidden size x layers")
    targets.add_argument("--peaked_shape", default="128x2")
    targets.add_argument("--length", type=int, default=256)
    targets.add_argument("--batch", type=int, default=8)
    targets.add_argument("--steps", type=int, default=64, help="of the comparison without a cache")

    grid.add_argument("--model", default="peaked", help=f"peaked, {', '.join(FAMILIES)} (random), or a checkpoint")
    grid.add_argument("--shape", default="128x2", help="hidden size x layers, where it is no checkpoint")
    grid.add_argument("--vocabulary", type=int, default=VOCABULARY)
    grid.add_argument("--rules", nargs="+", default=["low_confidence", "threshold", "factor", "entropy", "random"])
    grid.add_argument("--caches", nargs="+", default=None, help="those that the model can have, by default")
    grid.add_argument("--lengths", type=int, nargs="+", default=[64, 256])
    grid.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    grid.add_argument("--tokens_per_step", type=int, default=2)
    grid.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")

    roofline.add_argument("--lengths", type=int, nargs="+", default=[256, 512], help="contexts without a cache")
    roofline.add_argument("--torch_compile", action="store_true", help="compiled steps too")
    roofline.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    for command, run in ((targets, run_targets), (grid, run_grid), (roofline, run_roofline)):
        command.set_defaults(run=run)
        command.add_argument("--threads", type=int, default=2)
        command.add_argument("--repetitions", type=int, default=3)
        command.add_argument("--output", type=Path, help="JSON file for the tables")
    for command in (targets, grid):
        folder = Path(tempfile.gettempdir()) / "trl_diffusion_benchmarks"
        command.add_argument("--cache_dir", type=Path, default=folder, help="folder of trained weights")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    report = Report()
    args.run(args, report)
    if args.output is not None:
        report.write(args.output, f"torch {torch.__version__}, {args.threads} threads")


if __name__ == "__main__":
    main()
