# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Scoring masked views, and back-propagating a sum over views one view at a time."""

import functools
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from ..generation import token_distribution
from ..models import diffusion_model, layout_mask, token_logits, token_positions
from .views import MaskedView


class ViewScores(NamedTuple):
    """Scores of one view; zero where nothing is scored.

    Attributes:
        logprobs (`torch.FloatTensor` of shape (B, C)): log-probability of the canvas' token, fp32.
        entropies (`torch.FloatTensor` of shape (B, C)): entropy of the distribution it belongs to, without gradient.
    """

    logprobs: torch.Tensor
    entropies: torch.Tensor


def view_logits(
    model: nn.Module,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    canvas_ids: torch.Tensor,
    view: MaskedView,
    canvas_mask: torch.Tensor | None = None,
    block_length: int | None = None,
) -> torch.Tensor:
    """Logits at a view's targets, in one forward pass.

    Full attention: the row is [prompt | masked canvas]. Block-causal attention: it is [prompt | clean canvas | noisy
    copy], where the noisy copy of a block sees itself and the clean blocks before it, and copies share position ids.
    Blocks are counted from the first real token, as in generation; where a prompt ends inside a block, its last
    tokens stand in the noisy copy too, because generation lets that block see both.

    Args:
        model (`torch.nn.Module`):
            A diffusion language model, wrapped or not.
        prompt_ids, prompt_mask (`torch.LongTensor` of shape (B, P)):
            Prompts, padded on the left; P may be 0.
        canvas_ids (`torch.LongTensor` of shape (B, C)):
            Canvases.
        view ([`MaskedView`]):
            What to mask and what to score.
        canvas_mask (`torch.Tensor` of shape (B, C), *optional*):
            0 on padding of the canvas (on the right). `None`: none.
        block_length (`int`, *optional*):
            Block of a block-causal model; defaults to the model's.

    Returns:
        `torch.Tensor` of shape (n, V), n the number of targets, row by row.
    """
    family = diffusion_model(model)
    width = prompt_ids.size(1)
    canvas_mask = torch.ones_like(canvas_ids) if canvas_mask is None else canvas_mask.long()
    if view.visible is not None:
        canvas_mask = canvas_mask * view.visible
    valid = torch.cat([prompt_mask.long(), canvas_mask], dim=1)  # (B, P + C)
    masked_canvas = canvas_ids.masked_fill(view.masked, family.mask_token_id)
    if view.prompt_masked is not None:
        prompt_ids = prompt_ids.masked_fill(view.prompt_masked, family.mask_token_id)
    if family.attention == "full":
        ids = torch.cat([prompt_ids, masked_canvas], dim=1)
        kwargs = {"attention_mask": valid.bool()}
    else:
        block_length = block_length or family.block_length
        # The noisy copy reaches back over the longest piece of a prompt that can share a block with the canvas.
        tail = min(width, block_length - 1)
        position_ids = token_positions(valid)
        blocks = position_ids // block_length
        copied = slice(width - tail, None)
        first_block = blocks[:, width : width + 1]  # block of the first canvas position
        ids = torch.cat([prompt_ids, canvas_ids, prompt_ids[:, width - tail :], masked_canvas], dim=1)
        noisy_valid = valid[:, copied] * (blocks[:, copied] >= first_block)
        valid = torch.cat([valid, noisy_valid], dim=1)
        position_ids = torch.cat([position_ids, position_ids[:, copied]], dim=1)
        blocks = torch.cat([blocks, blocks[:, copied]], dim=1)
        noisy = torch.arange(ids.size(1), device=ids.device).expand_as(ids) >= width + canvas_ids.size(1)
        mask = layout_mask(family.config, blocks, valid, noisy, dtype=family.dtype)
        kwargs = {"attention_mask": mask, "position_ids": position_ids}
    positions = torch.zeros_like(ids, dtype=torch.bool)
    positions[:, -canvas_ids.size(1) :] = view.target
    return token_logits(model, ids, positions, **kwargs)


def score_view(
    model: nn.Module,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    canvas_ids: torch.Tensor,
    view: MaskedView,
    temperature: float = 1.0,
    block_length: int | None = None,
    exclude_mask: bool = True,
) -> ViewScores:
    """Log-probabilities of a view's targets under the distribution that generation draws from.

    Arguments as in [`view_logits`]; `temperature` divides the logits, and the mask token is excluded, unless
    `exclude_mask=False` (the ELBO is that of the model, over its whole vocabulary).

    Returns:
        [`ViewScores`].
    """
    logits = view_logits(model, prompt_ids, prompt_mask, canvas_ids, view, block_length=block_length)
    excluded = diffusion_model(model).mask_token_id if exclude_mask else -1
    log_probs = token_distribution(logits, excluded, temperature)  # (n, V)
    chosen = log_probs.gather(1, canvas_ids[view.target][:, None]).squeeze(1)
    with torch.no_grad():
        # The excluded mask token has p = 0 and log p = −inf; its term is 0.
        entropy = -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(dim=-1)
    blank = torch.zeros(canvas_ids.shape, dtype=log_probs.dtype, device=canvas_ids.device)
    return ViewScores(
        logprobs=blank.masked_scatter(view.target, chosen), entropies=blank.masked_scatter(view.target, entropy)
    )


@torch.no_grad()
def score_views(model: nn.Module, prompt_ids, prompt_mask, canvas_ids, views: Iterable[MaskedView], **kwargs):
    """Sum of the log-probabilities over views, weighted where the views have weights, without gradient: (B, C).

    For views whose targets are disjoint (a replayed trace) that is each token's log-probability. There must be a view
    at least. Arguments as in [`score_view`].
    """
    scored = ((score_view(model, prompt_ids, prompt_mask, canvas_ids, view, **kwargs), view) for view in views)
    return _sum(scores.logprobs if view.weight is None else scores.logprobs * view.weight for scores, view in scored)


def value_view(
    model: nn.Module,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    canvas_ids: torch.Tensor,
    view: MaskedView,
    block_length: int | None = None,
) -> torch.Tensor:
    """Values of a view's targets: what a [`DiffusionValueModel`] reads where the policy reads their logits.

    Arguments as in [`view_logits`].

    Returns:
        `torch.FloatTensor` of shape (B, C), fp32 (fp64 of an fp64 model); 0 off target.
    """
    values = view_logits(model, prompt_ids, prompt_mask, canvas_ids, view, block_length=block_length)  # (n, 1)
    blank = torch.zeros(canvas_ids.shape, dtype=values.dtype, device=canvas_ids.device)
    return blank.masked_scatter(view.target, values.squeeze(1))


@torch.no_grad()
def value_views(model: nn.Module, prompt_ids, prompt_mask, canvas_ids, views: Iterable[MaskedView], **kwargs):
    """Sum of the values over views with disjoint targets, without gradient: (B, C). Arguments as in [`value_view`]."""
    return _sum(value_view(model, prompt_ids, prompt_mask, canvas_ids, view, **kwargs) for view in views)


def _sum(scores: Iterable[torch.Tensor]) -> torch.Tensor:
    return functools.reduce(torch.add, scores)


def even_views(views: list[MaskedView], accelerator: Accelerator) -> list[MaskedView]:
    """Append empty views until every process has as many, since forward passes of sharded models are collective.

    Args:
        views (`list[MaskedView]`):
            The views of this process; at least one, which may be empty.
        accelerator ([`~accelerate.Accelerator`]):
            Knows the other processes.

    Returns:
        `list[MaskedView]`.
    """
    if accelerator.num_processes == 1:
        return views
    count = accelerator.gather(torch.tensor(len(views), device=accelerator.device)).max()
    nothing = torch.zeros_like(views[0].target)
    return views + [MaskedView(nothing, nothing)] * (int(count) - len(views))


def backward_by_view(
    view_losses: Iterable[Callable[[], torch.Tensor]], model: nn.Module, accelerator: Accelerator
) -> torch.Tensor:
    """Back-propagate a sum of losses term by term, at the memory of one term.

    All terms but the last are back-propagated here, without synchronising gradients between processes; the last one
    is returned with its graph, shifted by the detached sum of the others, so that the caller's backward completes the
    gradient and the value is the whole loss. The gradient equals that of the summed loss.

    Args:
        view_losses (`Iterable[Callable[[], torch.Tensor]]`):
            Functions that compute one term each. Every process must have the same number of terms where forward
            passes are collective (FSDP, ZeRO-3).
        model (`torch.nn.Module`):
            The model as the trainer prepared it.
        accelerator ([`~accelerate.Accelerator`]):
            Runs the backward passes.

    Returns:
        `torch.Tensor`, a scalar.

    Raises:
        ValueError: there is no term.
    """
    view_losses = list(view_losses)
    if not view_losses:
        raise ValueError("view_losses is empty: there is no view to score.")
    total = 0.0
    if not torch.is_grad_enabled():
        return torch.stack([view_loss().detach() for view_loss in view_losses]).sum()
    synchronising = accelerator.gradient_state.sync_gradients
    # DeepSpeed divides by the accumulation steps on its own unless told not to; the losses are scaled already.
    kwargs = {"scale_wrt_gas": False} if accelerator.distributed_type == "DEEPSPEED" else {}
    for view_loss in view_losses[:-1]:
        with accelerator.no_sync(model) if synchronising else nullcontext():
            accelerator.gradient_state._set_sync_gradients(False)
            try:
                loss = view_loss()
                accelerator.backward(loss, **kwargs)
            finally:
                accelerator.gradient_state._set_sync_gradients(synchronising)
        total = total + loss.detach()
    return view_losses[-1]() + total


def terms_of_sum(
    view_scores: Iterable[Callable[[], torch.Tensor]],
    objective: Callable[[torch.Tensor], torch.Tensor],
    accelerator: Accelerator,
    total: torch.Tensor | None = None,
) -> tuple[list[Callable[[], torch.Tensor]], torch.Tensor]:
    """Any function of a sum over views, f(Σ_k s_k), in terms that can be back-propagated one at a time.

    f(Σ_k s_k) does not come apart, but its gradient does: ∇f = f′(Σ_k s_k) · Σ_k ∇s_k. A first pass without graph
    gives the sum, and f′ at it; term k then is f′ · s_k with its value taken off, for [`backward_by_view`]. The price
    is a forward pass per view without gradient. The first pass leaves the random numbers as they were, so that
    dropout drops the same in the second.

    Args:
        view_scores (`Iterable[Callable[[], torch.Tensor]]`):
            Functions that compute one s_k each, of any one shape.
        objective (`Callable[[torch.Tensor], torch.Tensor]`):
            f, a scalar.
        accelerator ([`~accelerate.Accelerator`]):
            Knows the device.
        total (`torch.Tensor`, *optional*):
            The sum where it is known, or where f′ does not depend on it: the first pass is then left out.

    Returns:
        The terms, whose values are 0 (none where gradients are off), and f, a scalar without graph.
    """
    view_scores = list(view_scores)
    if total is None:
        with torch.no_grad(), same_random_numbers(accelerator):
            total = _sum(score() for score in view_scores)
    total = total.detach().requires_grad_()
    with torch.enable_grad():
        value = objective(total)
        (derivative,) = torch.autograd.grad(value, total)

    def term(score: Callable[[], torch.Tensor]) -> torch.Tensor:
        part = score()
        return (derivative * (part - part.detach())).sum()

    if not torch.is_grad_enabled():
        return [], value.detach()
    return [lambda score=score: term(score) for score in view_scores], value.detach()


def same_random_numbers(accelerator: Accelerator):
    """A context behind which random numbers (dropout) go on as if nothing had been drawn inside."""
    device = accelerator.device
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


def backward_by_sum(view_scores, objective, model: nn.Module, accelerator: Accelerator, total=None) -> torch.Tensor:
    """Back-propagate f(Σ_k s_k) at the memory of one view: [`terms_of_sum`], and [`backward_by_view`] of them.

    Returns:
        `torch.Tensor`, a scalar: f, with the graph of the last view.
    """
    terms, value = terms_of_sum(view_scores, objective, accelerator, total)
    return backward_by_view(terms, model, accelerator) + value if terms else value
