# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What the tests of unmasking policies share: tiny policies, a trainer of one, and a slow second network."""

import math

import torch
from datasets import Dataset
from rl import prompts, rl_config, share_of_ones

from trl_diffusion import UnmaskPolicyModel, UnmaskPolicyModelConfig, UnmaskPolicyTrainer


CANVAS = 6
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "initial_bias": -0.5}


def small_policy(seed=0, spread=0.4, **kwargs):
    """A tiny policy whose weights are all random, those too that begin at zero."""
    torch.manual_seed(seed)
    policy = UnmaskPolicyModel(UnmaskPolicyModelConfig(**{**SMALL, **kwargs})).eval()
    with torch.no_grad():
        policy.block.modulation.weight.normal_(0, spread)
        policy.block.modulation.bias.normal_(0, spread)
        policy.head.weight.mul_(3)
    return policy


def policy_trainer(dllm, tokenizer, tmp_path, policy=None, reward=share_of_ones, dataset=None, **kwargs):
    settings = {
        "temperature": 0.0,
        "num_denoising_steps": None,
        "block_length": None,
        "warmup_steps": 0,
        "eval_strategy": "no",
        "learning_rate": 0.01,
        **kwargs,
    }
    return UnmaskPolicyTrainer(
        small_policy() if policy is None else policy,
        reward,
        rl_config(UnmaskPolicyTrainer, tmp_path, **settings),
        train_dataset=prompts() if dataset is None else dataset,
        eval_dataset=prompts() if settings["eval_strategy"] != "no" else None,
        processing_class=tokenizer,
        dllm=dllm,
    )


def slow_logits(policy, features, masked, time):
    """The network of a policy, in fp64 and by loops over places and heads: (C, F), (C,), a number → (C,).

    Written from the paper's description: a block with adaptive layer norms, rotary attention, gates of 1 + α.
    """
    weights = {name: value.detach().double() for name, value in policy.state_dict().items()}
    config = policy.config
    size, heads, length = config.hidden_size, config.num_attention_heads, len(masked)

    def linear(name, x):
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def silu(x):
        return x / (1 + torch.exp(-x))

    def norm(x):
        return (x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)

    def rotate(x, place):
        turned = x.clone()
        half = len(x) // 2
        for i in range(half):
            angle = place * config.rope_theta ** (-i / half)
            turned[i] = x[i] * math.cos(angle) - x[half + i] * math.sin(angle)
            turned[half + i] = x[i] * math.sin(angle) + x[half + i] * math.cos(angle)
        return turned

    half = size // 2
    angles = torch.tensor([1000.0 * float(time) / 10000 ** (i / half) for i in range(half)], dtype=torch.float64)
    clock = linear("embed_time.second", silu(linear("embed_time.first", torch.cat([angles.cos(), angles.sin()]))))
    plain = features.double()
    if config.dllm_hidden_size:
        k = features.shape[1] - config.dllm_hidden_size
        plain = torch.stack([torch.cat([row[:k], norm(row[k:])]) for row in plain])
    hidden = [linear("embed_features", row) for row in plain]
    parts = []
    for place in range(length):
        condition = weights["embed_mask.weight"][int(masked[place])] + clock
        parts.append(linear("block.modulation", silu(condition)).chunk(6))
    queries, keys, values = [], [], []
    for place in range(length):
        scale, shift = parts[place][0], parts[place][1]
        q, k, v = linear("block.qkv", (1 + scale) * norm(hidden[place]) + shift).chunk(3)
        queries.append([rotate(x, place) for x in q.chunk(heads)])
        keys.append([rotate(x, place) for x in k.chunk(heads)])
        values.append(v.chunk(heads))
    logits = []
    for place in range(length):
        mixed = []
        for head in range(heads):
            scores = torch.stack([queries[place][head] @ key[head] for key in keys]) / math.sqrt(size // heads)
            shares = torch.exp(scores - scores.max())
            shares = shares / shares.sum()
            mixed.append(sum(share * value[head] for share, value in zip(shares, values, strict=True)))
        _, _, gate_1, scale_2, shift_2, gate_2 = parts[place]
        x = hidden[place] + (1 + gate_1) * linear("block.out", torch.cat(mixed))
        inner = linear("block.up", (1 + scale_2) * norm(x) + shift_2)
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = x + (1 + gate_2) * linear("block.down", inner)
        logits.append(linear("head", norm(x) * weights["norm.weight"] + weights["norm.bias"]))
    return torch.cat(logits)


def slow_log_prob(action, logits, order, candidates, temperature):
    """log π of what a step revealed, by the definition.

    Args:
        action: "bernoulli" or "ordered".
        logits: (C,).
        order: places, in the order in which they were picked.
        candidates: places that could be.
    """
    b = logits.double() / temperature
    if action == "bernoulli":
        total = 0.0
        for place in candidates:
            s = 1 / (1 + math.exp(-b[place]))
            total += math.log(s if place in order else 1 - s)
        return total
    left, total = list(candidates), 0.0
    for rank, place in enumerate(order):
        weights = sum(math.exp(b[other]) for other in left) + (1.0 if rank else 0.0)
        total += b[place].item() - math.log(weights)
        left.remove(place)
    return total - math.log(1 + sum(math.exp(b[other]) for other in left))


def two_waves(seed=0, rows=64):
    """Prompts for [`TwoWaves`]."""
    return Dataset.from_dict({"prompt": ["0", "1", "2", "3"] * (rows // 4)})


class TwoWaves:
    """Makes of a model one whose best schedule is known. The odd places of its canvas are predicted right only when
    all even ones stand; before that it is surer of them than of the even ones, and wrong. Right is 1, wrong is 2.

    The best schedule reveals the even places in one step, and the odd ones in another.
    """

    def __init__(self, model, canvas, tokenizer):
        self.model, self.canvas = model, canvas
        self.right, self.wrong = tokenizer.convert_tokens_to_ids(["1", "2"])
        self.mask = model.mask_token_id
        model.window_logits = self

    def __call__(self, input_ids, columns, *args, **kwargs):
        start = input_ids.size(1) - self.canvas
        even = input_ids[:, start::2]
        ready = (even != self.mask).all(dim=1)[:, None]
        odd = (columns - start) % 2 == 1
        logits = torch.zeros(*columns.shape, self.model.config.vocab_size)
        # Sureness: 0.6 of an even place; of an odd one 0.8, and wrong, until it is 0.95.
        sureness = torch.where(odd, torch.where(ready, 0.95, 0.8), torch.tensor(0.6))
        token = torch.where(odd & ~ready, self.wrong, self.right)
        height = torch.log(sureness / (1 - sureness) * (self.model.config.vocab_size - 2))
        return logits.scatter(2, token[..., None], height[..., None])


def all_right(completions, **kwargs):
    return [float(completion == "1" * CANVAS) for completion in completions]
