# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""How much of a gradient is Monte-Carlo noise."""

from collections.abc import Callable, Iterable, Sequence

import torch


def gradient_variance(
    terms: Iterable[Callable[[], torch.Tensor]], parameters: Sequence[torch.nn.Parameter], pairs: bool = False
) -> tuple[float, list[torch.Tensor]]:
    """Variance of a gradient that is a sum over independent samples, estimated from the samples' own gradients.

        Var(Σ_j g_j) ≈ n/(n − 1) · (Σ_j |g_j|² − |Σ_j g_j|² / n)

    the sum over all parameters. Nothing is accumulated into `.grad`.

    Args:
        terms (`Iterable[Callable[[], torch.Tensor]]`):
            Functions that compute the loss of one sample each; at least two (two pairs).
        parameters (`Sequence[torch.nn.Parameter]`):
            What the gradient is of. Two tensors of the size of each are held.
        pairs (`bool`, *optional*, defaults to `False`):
            Samples 2j and 2j + 1 depend on each other: the pairs are taken for the independent ones.

    Returns:
        Var, and Σ_j g_j, a tensor for each parameter.
    """
    terms = list(terms)
    size = 2 if pairs else 1
    count, squares = len(terms) // size, 0.0
    whole = [torch.zeros_like(parameter) for parameter in parameters]
    for start in range(0, len(terms), size):
        own = [torch.zeros_like(parameter) for parameter in parameters]
        for term in terms[start : start + size]:
            with torch.enable_grad():
                gradients = torch.autograd.grad(term(), parameters, allow_unused=True)
            for mine, gradient in zip(own, gradients, strict=True):
                if gradient is not None:
                    mine += gradient
        squares += squared_norm(own)
        for total, mine in zip(whole, own, strict=True):
            total += mine
    return count / (count - 1) * max(squares - squared_norm(whole) / count, 0.0), whole


def squared_norm(tensors: Iterable[torch.Tensor]) -> float:
    """Of all tensors together."""
    return sum(tensor.double().square().sum() for tensor in tensors).item()
