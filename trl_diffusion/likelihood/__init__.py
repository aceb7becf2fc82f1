# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Likelihoods as sets of masked views: draw, score, combine."""

from .scoring import ViewScores, backward_by_view, even_views, score_view, score_views, view_logits
from .sft_views import canvas_views, noisy_views, stack_views, trace_views
from .views import MaskedView, block_trace_masks, canvas_blocks, fully_masked_view, random_view, trace_masks


__all__ = [
    "MaskedView",
    "ViewScores",
    "backward_by_view",
    "block_trace_masks",
    "canvas_blocks",
    "canvas_views",
    "even_views",
    "fully_masked_view",
    "noisy_views",
    "random_view",
    "score_view",
    "score_views",
    "stack_views",
    "trace_masks",
    "trace_views",
    "view_logits",
]
