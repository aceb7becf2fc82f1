# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Returns and advantages along a trajectory of denoising steps, as pure functions."""

import torch

from .views import step_rank


def stepwise_gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    unmask_step: torch.Tensor,
    mask: torch.Tensor,
    gamma: float = 1.0,
    lam: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns and generalised advantage estimates over denoising steps (TraceRL, arXiv 2509.06949, section 4.3).

    Starred quantities are means over the tokens of a step; after the last step all are 0:

        R*_t = r*_t + γ R*_{t+1},   δ*_t = r*_t − V*_t + γ V*_{t+1},   A*_t = δ*_t + γλ A*_{t+1}
        R_j  = r_j + γ R*_{t_j+1},  A_j  = r_j − V_j + γ V*_{t_j+1} + γλ A*_{t_j+1}

    Args:
        rewards, values (`torch.FloatTensor` of shape (B, C)):
            r_j and V_j of each token.
        unmask_step (`torch.Tensor` of shape (B, C)):
            Step t_j of each token, 1-based and counted over the whole row; 0 = not drawn by the model. With shrinkage,
            that of [`merge_steps`].
        mask (`torch.Tensor` of shape (B, C)):
            Tokens that count. Steps without any are left out, so that the next step is the next one with some.
        gamma, lam (`float`):
            γ and λ.

    Returns:
        Returns and advantages, `torch.FloatTensor` of shape (B, C) in the dtype of `values`; 0 where `mask` is 0 or
        nothing was drawn. Computed in fp64.
    """
    counted = mask.bool() & (unmask_step > 0)
    rank = step_rank(torch.where(counted, unmask_step, 0))  # (B, C)
    num_steps = int(rank.max()) + 1 if rank.numel() else 0
    index = rank.clamp(min=0)
    r, v = (torch.where(counted, tensor.double(), 0.0) for tensor in (rewards, values))

    def mean_by_step(tokens):  # (B, C) → (B, T + 1); the last column stands for "after the last step"
        total = tokens.new_zeros(len(tokens), num_steps + 1).scatter_add_(1, index, tokens)
        return total / sizes.clamp(min=1)

    sizes = r.new_zeros(len(r), num_steps + 1).scatter_add_(1, index, counted.double())
    r_step, v_step = mean_by_step(r), mean_by_step(v)
    returns, advantages = torch.zeros_like(r_step), torch.zeros_like(r_step)
    for t in range(num_steps - 1, -1, -1):
        # Steps a shorter row does not have hold zeros, and so does what follows them.
        delta = r_step[:, t] - v_step[:, t] + gamma * v_step[:, t + 1]
        returns[:, t] = r_step[:, t] + gamma * returns[:, t + 1]
        advantages[:, t] = delta + gamma * lam * advantages[:, t + 1]

    def next_step(steps):  # (B, T + 1) → (B, C)
        return steps.gather(1, (index + 1).clamp(max=num_steps))

    token_returns = r + gamma * next_step(returns)
    token_advantages = r - v + gamma * next_step(v_step) + gamma * lam * next_step(advantages)
    return tuple(torch.where(counted, tensor, 0.0).to(values.dtype) for tensor in (token_returns, token_advantages))


def on_last_step(rewards: torch.Tensor, unmask_step: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A reward for the whole completion as a reward of each token: those of the last step carry it, the others 0.

    Args:
        rewards (`torch.FloatTensor` of shape (B,)):
            One per completion.
        unmask_step, mask (`torch.Tensor` of shape (B, C)):
            As in [`stepwise_gae`].

    Returns:
        `torch.FloatTensor` of shape (B, C).
    """
    steps = torch.where(mask.bool(), unmask_step, 0)
    if not steps.numel():
        return rewards.new_zeros(steps.shape)
    last = steps.amax(dim=1, keepdim=True)
    return torch.where((steps == last) & (steps > 0), rewards[:, None], 0.0)
