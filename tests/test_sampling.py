# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What a generation draws, against the exact distribution: every draw and every order enumerated in fp64."""

import itertools
import math
from collections import Counter

import pytest
import torch
from conftest import FAMILIES

from trl_diffusion.generation.distribution import draw_tokens


MASK = 4
TOKENS = range(4)
DRAWS = 20_000


def toy_model(family: str, dtype: torch.dtype, seed: int = 0):
    """Five tokens, the last of them the mask."""
    config_class, model_class, extra = FAMILIES[family]
    config = config_class(
        vocab_size=5,
        mask_token_id=MASK,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=0.7,
        eos_token_id=None,
        pad_token_id=None,
        **extra,
    )
    torch.manual_seed(seed)
    return model_class(config).to(dtype).eval()


def distribution(logits: torch.Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None):
    """Probabilities of the tokens, from their definition."""
    weights = {token: math.exp(float(logits[token]) / temperature) for token in TOKENS}
    if top_k:
        kept = sorted(weights, key=lambda token: -weights[token])[:top_k]
        weights = {token: weight if token in kept else 0.0 for token, weight in weights.items()}
    total = sum(weights.values())
    probabilities = {token: weight / total for token, weight in weights.items()}
    if top_p is not None:
        kept, mass = [], 0.0
        for token in sorted(probabilities, key=lambda token: -probabilities[token]):
            if mass < top_p:
                kept.append(token)
            mass += probabilities[token]
        total = sum(probabilities[token] for token in kept)
        probabilities = {token: probabilities[token] / total if token in kept else 0.0 for token in TOKENS}
    return probabilities


def exact_outcomes(model, prompt: list[int], length: int, rule: str, temperature: float, **filters) -> dict:
    """Probability of every canvas when one token is committed per step."""

    def after_one_step(canvas: tuple) -> Counter:
        left = [place for place in range(length) if canvas[place] == MASK]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *canvas]])).logits[0].double()
        read = {place: logits[len(prompt) + place - model.logits_shift] for place in left}
        drawn_from = {place: distribution(read[place], temperature, **filters) for place in left}
        at_one = {place: distribution(read[place], 1.0) for place in left}
        following: Counter = Counter()
        # Tokens are drawn for all masks; the rule then keeps one of them.
        for tokens in itertools.product(TOKENS, repeat=len(left)):
            drawn = dict(zip(left, tokens, strict=True))
            chance = math.prod(drawn_from[place][token] for place, token in drawn.items())
            if rule == "random":
                picks = {place: 1 / len(left) for place in left}
            else:
                confidence = drawn_from if rule == "maskgit_plus" else at_one
                picks = {max(left, key=lambda place: (confidence[place][drawn[place]], -place)): 1.0}
            for place, share in picks.items():
                following[(*canvas[:place], drawn[place], *canvas[place + 1 :])] += chance * share
        return following

    states = Counter({(MASK,) * length: 1.0})
    for _ in range(length):
        following: Counter = Counter()
        for canvas, weight in states.items():
            for successor, chance in after_one_step(canvas).items():
                following[successor] += weight * chance
        states = Counter({canvas: weight for canvas, weight in following.items() if weight > 0})
    return states


def chi_square_p(observed: Counter, expected: dict[tuple, float], draws: int) -> float:
    """Probability of a chi-square at least as large; outcomes expected less than five times are put together."""
    assert set(observed) <= {outcome for outcome, chance in expected.items() if chance > 0}
    rare = [outcome for outcome, chance in expected.items() if chance * draws < 5]
    cells = [(observed[outcome], chance * draws) for outcome, chance in expected.items() if outcome not in rare]
    rest = sum(expected[outcome] for outcome in rare) * draws
    if rest >= 5:
        cells.append((sum(observed[outcome] for outcome in rare), rest))
    statistic = sum((count - wanted) ** 2 / wanted for count, wanted in cells)
    freedom = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64)).item()


SETTINGS = [
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 1.0, "top_k": 2},
    {"temperature": 0.5, "top_p": 0.95},
    {"temperature": 1.0, "top_k": 3, "top_p": 0.9},
]


@pytest.mark.parametrize("chosen", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family, rule", [("llada", "low_confidence"), ("llada", "random"), ("sdar", "maskgit_plus")])
def test_generations_follow_the_enumerated_distribution(family, rule, dtype, chosen):
    model = toy_model(family, dtype)
    prompt, length = [0, 2], 3
    if model.attention == "block_causal":
        model.config.block_length = 8  # prompt and canvas in one block
    exact = exact_outcomes(model, prompt, length, rule, **chosen)
    assert sum(exact.values()) == pytest.approx(1.0)
    canvases = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=length,
        unmasking=rule,
        num_return_sequences=DRAWS,
        seed=5,
        **chosen,
    )[:, len(prompt) :]
    p = chi_square_p(Counter(map(tuple, canvases.tolist())), exact, DRAWS)
    print(f"{family} {rule} {dtype} {chosen}: chi-square p = {p:.3f}, {len(exact)} outcomes")
    assert p > 0.001


@pytest.mark.parametrize("alg_temp", [0.05, 0.5])
def test_positions_are_drawn_without_replacement(alg_temp):
    """Two of three positions, from softmax(score / alg_temp), one after the other."""
    model = toy_model("llada", torch.float32)
    prompt, length = [1, 3], 3
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *[MASK] * length]])).logits[0, 2:, :4].double()
    scores = logits.softmax(-1).max(-1).values
    weights = (scores / alg_temp).softmax(0)
    exact: Counter = Counter()
    for first, second in itertools.permutations(range(length), 2):
        exact[frozenset((first, second))] += float(weights[first] * weights[second] / (1 - weights[first]))
    rollout = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=length,
        num_denoising_steps=2,
        unmasking="maskgit_plus",
        alg_temp=alg_temp,
        num_return_sequences=DRAWS,
        seed=3,
        return_dict_in_generate=True,
    ).rollout
    observed = Counter(
        frozenset(place for place in range(3) if row[place] == 1) for row in rollout.unmask_step.tolist()
    )
    p = chi_square_p(observed, exact, DRAWS)
    print(f"alg_temp={alg_temp}: chi-square p = {p:.3f}")
    assert p > 0.001


def test_origin_commits_each_mask_with_the_schedules_probability():
    """Two steps over three masks: each is committed at the first step with probability 1/2, by itself."""
    model = toy_model("llada", torch.float32)
    rollout = model.generate(
        torch.tensor([[0, 1]]),
        max_new_tokens=3,
        num_denoising_steps=2,
        unmasking="origin",
        num_return_sequences=DRAWS,
        seed=4,
        return_dict_in_generate=True,
    ).rollout
    observed = Counter(tuple(row) for row in rollout.unmask_step.tolist())
    exact = dict.fromkeys(itertools.product((1, 2), repeat=3), 1 / 8)
    assert chi_square_p(observed, exact, DRAWS) > 0.001
    assert set(rollout.num_forward_passes[(rollout.unmask_step == 1).all(1)].tolist()) == {1}


@pytest.mark.parametrize("temperature, filters", [(1.0, {}), (0.7, {"top_k": 20}), (1.3, {"top_p": 0.9})])
def test_drawn_log_probabilities_and_statistics_equal_their_definitions(temperature, filters):
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(64, 301, generator=generator)
    logits[:, 7] = float("-inf")
    uniform = torch.rand(64, dtype=torch.float64, generator=generator)
    drawn = draw_tokens(logits.clone(), uniform, temperature, **filters)
    probabilities = (logits.double() / temperature).softmax(-1)
    if "top_k" in filters:
        least = probabilities.topk(20).values[:, -1:]
        probabilities = torch.where(probabilities >= least, probabilities, 0)
    if "top_p" in filters:
        ordered, order = probabilities.sort(descending=True)
        kept = ordered.cumsum(-1) - ordered < 0.9
        probabilities = torch.zeros_like(probabilities).scatter_(1, order, ordered * kept)
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    # Inverted by hand: the first token whose cumulative probability exceeds the number.
    expected = (probabilities.cumsum(-1) <= uniform[:, None]).sum(-1)
    assert torch.equal(drawn.tokens, expected)
    chosen = probabilities.gather(1, expected[:, None]).squeeze(1)
    assert torch.allclose(drawn.logprobs.double(), chosen.log(), atol=1e-5)
    at_one = logits.double().softmax(-1).gather(1, expected[:, None]).squeeze(1)
    assert torch.allclose(drawn.confidence.double(), at_one, atol=1e-5)
    entropies = torch.special.entr(probabilities).sum(-1)
    assert torch.allclose(drawn.entropy().double(), entropies, atol=1e-4)
    two = probabilities.topk(2).values
    assert torch.allclose(drawn.margin().double(), two[:, 0] - two[:, 1], atol=1e-5)


def test_the_tail_of_a_large_vocabulary_is_drawn():
    """Half of the mass on one token, the other half on 120,000: 16-bit noise would never draw most of these."""
    size, count = 120_001, 40_000
    logits = torch.full((1, size), math.log(0.5 / (size - 1)))
    logits[0, 60_000] = math.log(0.5)
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens = torch.cat(
        [draw_tokens(logits.clone(), uniform[place : place + 1], 1.0).tokens for place in range(0, count, 40)]
    )
    tail = tokens[tokens != 60_000]
    assert abs(len(tail) / len(tokens) - 0.5) < 0.002
    assert len(tail.unique()) == len(tail)
