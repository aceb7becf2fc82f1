# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Drawing the masked views of Monte-Carlo likelihoods: the ELBO, and complementary pairs.

The noise is an argument, a function of the rows' seeds alone: the old, the current and the reference policy see the
same masked copies, in any batch, and again after a resume.
"""

import numpy as np
import torch

from .views import MaskedView


NOISE_LEVELS = ("uniform", "stratified")


def view_noise(seeds: torch.Tensor, num_samples: int, length: int) -> torch.Tensor:
    """Uniform numbers that belong to a row.

    Args:
        seeds (`torch.LongTensor` of shape (B,)):
            A seed per row, not negative.
        num_samples (`int`):
            n, masked copies of each row.
        length (`int`):
            C.

    Returns:
        `torch.FloatTensor` of shape (B, n, 2, C), in [0, 1): for the noise levels, and for the positions. On the
        device of `seeds`. The numbers of the first samples, and of the first positions of a sample, do not change with
        n (numpy's Philox generator counts them).
    """
    noise = torch.empty(len(seeds), num_samples, 2, length)
    bits = np.random.Philox(key=0)
    generator, state = np.random.Generator(bits), bits.state
    for row, seed in enumerate(seeds.tolist()):
        for sample in range(num_samples):
            for use in range(2):
                state["state"]["key"][:] = (seed, 1)  # (seed, 0) are the numbers of generation
                state["state"]["counter"][:] = (0, sample, use, 0)
                bits.state = state
                noise[row, sample, use] = torch.from_numpy(generator.random(length, dtype=np.float32))
    return noise.to(seeds.device)


def elbo_views(
    maskable: torch.Tensor,
    noise: torch.Tensor,
    levels: str = "uniform",
    antithetic: bool = False,
    minimum: float = 1e-3,
    group: torch.Tensor | None = None,
    behind: torch.Tensor | None = None,
) -> list[MaskedView]:
    """Masked copies whose weighted log-probabilities estimate the ELBO (LLaDA, arXiv 2502.09992, eq. 3).

        B̂ = (1/n) Σ_j ℓ_j,   ℓ_j = Σ_i w_j 1[i is masked in copy j] log p(y_i | copy j)

    - `"uniform"` (BGPO, arXiv 2510.11683): t_j ~ U[`minimum`, 1], independent; every token is masked with probability
      t_j; w_j = 1/t_j. With t_j ~ U[0, 1] the variance is infinite; the levels below `minimum` are left out.
    - `"stratified"`: of L tokens exactly x_j, at random, are masked; w_j = L/x_j. k ~ U{1 … L},
      x_j = ((k − 1 + ⌊jL/n⌋) mod L) + 1: each x_j is uniform over {1 … L}, and together they are spread evenly. The
      expectation is the integral over all of (0, 1], of which a mask of x tokens has ∫ t^(x−1) (1−t)^(L−x) dt.

    Args:
        maskable (`torch.BoolTensor` of shape (B, C)):
            y: the tokens that may be masked, and are scored where they are.
        noise (`torch.FloatTensor` of shape (B, n, 2, C)):
            Uniform in [0, 1), from [`view_noise`].
        levels (`str`, *optional*, defaults to `"uniform"`):
            `"uniform"` or `"stratified"`.
        antithetic (`bool`, *optional*, defaults to `False`):
            Every second copy mirrors the one before it: its level is 1 + `minimum` − t (L + 1 − x tokens), and it
            masks the positions that are kept there first, so that two copies score (nearly) every token once. n is
            even; each copy alone is distributed as without.
        minimum (`float`, *optional*, defaults to 1e-3):
            Lowest level of `"uniform"`.
        group (`torch.LongTensor` of shape (B, C), *optional*):
            Blocks of a block-causal model, each with levels of its own: the ELBO of the row is the sum of theirs.
            `None`: one level for the row.
        behind (`torch.BoolTensor` of shape (B, C), *optional*):
            Positions that are masked in every copy and never scored, e.g. those behind EOS.

    Returns:
        `list[MaskedView]` of length n.

    Raises:
        ValueError: another name of `levels`, or an odd number of copies with `antithetic`.
    """
    if levels not in NOISE_LEVELS:
        raise ValueError(f"levels={levels!r} must be one of {', '.join(NOISE_LEVELS)}.")
    count = noise.size(1)
    if antithetic and count % 2:
        raise ValueError(f"antithetic=True pairs the copies, and there are {count}. Draw an even number.")
    maskable = maskable.bool()
    group = torch.zeros_like(maskable, dtype=torch.long) if group is None else group
    draw = _uniform if levels == "uniform" else _stratified
    masked, weight = draw(maskable, noise[:, :: 1 + antithetic], group, minimum, antithetic)
    behind = torch.zeros_like(maskable) if behind is None else behind
    return [MaskedView(masked[:, j] | behind, masked[:, j], weight[:, j]) for j in range(count)]


def _uniform(maskable, noise, group, minimum, antithetic) -> tuple[torch.Tensor, torch.Tensor]:
    """Masked positions and weights, (B, n, C) each."""
    level = minimum + (1 - minimum) * noise[:, :, 0]  # (B, n, C), of which a group reads its own
    level = level.gather(2, group[:, None].expand_as(level))
    place = noise[:, :, 1]
    if antithetic:
        level = torch.stack([level, 1 + minimum - level], dim=2).flatten(1, 2)
        place = torch.stack([place, 1 - place], dim=2).flatten(1, 2)
    return (place < level) & maskable[:, None], 1 / level


def _stratified(maskable, noise, group, minimum, antithetic) -> tuple[torch.Tensor, torch.Tensor]:
    """Masked positions and weights, (B, n, C) each."""
    count = noise.size(1)
    rank, size = group_ranks(maskable, noise[:, :, 1], group)  # (B, n, C), (B, C)
    first = noise[:, 0, 0].gather(1, group)  # one number for a group
    start = (first * size).long().clamp(max=size - 1)  # k − 1
    jump = torch.arange(count, device=size.device)[:, None] * size[:, None] // count  # ⌊jL/n⌋
    number = (start[:, None] + jump) % size.clamp(min=1)[:, None] + 1  # x_j, (B, n, C)
    if antithetic:
        number = torch.stack([number, size[:, None] + 1 - number], dim=2).flatten(1, 2)
        rank = torch.stack([rank, size[:, None] - 1 - rank], dim=2).flatten(1, 2)
    # A group without maskable tokens (size 0) has no number to divide by.
    return (rank < number) & maskable[:, None], size[:, None].to(noise.dtype) / number.clamp(min=1)


def group_ranks(chosen: torch.Tensor, noise: torch.Tensor, group: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A random order of the chosen positions of each group.

    Args:
        chosen (`torch.BoolTensor` of shape (B, C)):
            Positions to put into order.
        noise (`torch.FloatTensor` of shape (B, n, C)):
            n orders, each that of its numbers.
        group (`torch.LongTensor` of shape (B, C)):
            Groups, of which each has an order of its own.

    Returns:
        The rank of each position among the chosen ones of its group, `torch.LongTensor` of shape (B, n, C), and how
        many there are, (B, C). What stands at other positions has no meaning.
    """
    num_groups = int(group.max()) + 1 if group.numel() else 1
    sizes = torch.zeros(len(group), num_groups, dtype=torch.long, device=group.device)
    sizes.scatter_add_(1, group, chosen.long())
    before = sizes.cumsum(dim=1) - sizes  # chosen positions of the groups before
    # Sorted by group, then by noise; the positions that are not chosen come last. fp64, in which both parts are exact.
    key = noise.double() + torch.where(chosen, group, num_groups)[:, None]
    order = key.argsort(dim=2, stable=True)
    place = torch.arange(noise.size(2), device=noise.device).expand_as(order)
    place = torch.empty_like(order).scatter_(2, order, place)
    return place - before.gather(1, group)[:, None], sizes.gather(1, group)


def coupled_views(
    scored: torch.Tensor, noise: torch.Tensor, levels: tuple[float, float] = (0.2, 0.8), behind=None
) -> list[MaskedView]:
    """Two complementary copies and a fully masked one (coupled-GRPO of DiffuCoder, arXiv 2506.20639, section 4).

    A token's log-probability is ½ (log p in the fully masked copy + w log p in that of the two copies which masks it),
    w = 1/(2t) or 1/(2(1−t)): every token is scored twice, and the weights add up to one on average. (The released
    code leaves the ½ in w out; there they add up to 3/2.)

    Args:
        scored (`torch.BoolTensor` of shape (B, C)):
            Tokens of the completions.
        noise (`torch.FloatTensor` of shape (B, 1, 2, C)):
            From [`view_noise`].
        levels (`tuple[float, float]`, *optional*, defaults to (0.2, 0.8)):
            t ~ U[·, ·], one per row: the share that the first copy masks.
        behind (`torch.BoolTensor` of shape (B, C), *optional*):
            As in [`elbo_views`].

    Returns:
        `list[MaskedView]` of length 3.
    """
    scored = scored.bool()
    level = levels[0] + (levels[1] - levels[0]) * noise[:, 0, 0, :1]  # (B, 1)
    first = noise[:, 0, 1] < level
    behind = torch.zeros_like(scored) if behind is None else behind
    views = [
        MaskedView(own | behind, own, (0.25 / share).expand(scored.shape))
        for own, share in ((scored & first, level), (scored & ~first, 1 - level))
    ]
    everything = torch.ones_like(scored)
    return [MaskedView(everything, scored, torch.full(scored.shape, 0.5, device=scored.device)), *views]
