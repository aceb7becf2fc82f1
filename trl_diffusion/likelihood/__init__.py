# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Likelihoods as sets of masked views: draw, score, combine. And returns along a trajectory."""

from .advantages import on_last_step, stepwise_gae
from .monte_carlo import coupled_views, elbo_views, view_noise
from .scoring import (
    ViewScores,
    backward_by_sum,
    backward_by_view,
    even_views,
    same_random_numbers,
    score_view,
    score_views,
    terms_of_sum,
    value_view,
    value_views,
    view_logits,
)
from .sft_views import canvas_views, noisy_views, stack_views, trace_views
from .views import (
    MaskedView,
    block_trace_masks,
    canvas_blocks,
    fully_masked_view,
    merge_steps,
    random_view,
    step_rank,
    trace_masks,
)


__all__ = [
    "MaskedView",
    "ViewScores",
    "backward_by_sum",
    "backward_by_view",
    "block_trace_masks",
    "canvas_blocks",
    "canvas_views",
    "coupled_views",
    "elbo_views",
    "even_views",
    "fully_masked_view",
    "merge_steps",
    "noisy_views",
    "on_last_step",
    "random_view",
    "same_random_numbers",
    "score_view",
    "score_views",
    "stack_views",
    "step_rank",
    "stepwise_gae",
    "terms_of_sum",
    "trace_masks",
    "trace_views",
    "value_view",
    "value_views",
    "view_logits",
    "view_noise",
]
