# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""TraceRL: reinforcement learning on the sampler's own trajectory."""

import textwrap

import torch

from ..likelihood import MaskedView, block_trace_masks, canvas_blocks, trace_masks
from .diffusion_grpo_trainer import DiffusionGRPOTrainer
from .tracerl_config import TraceRLConfig


class TraceRLTrainer(DiffusionGRPOTrainer):
    """
    TraceRL (arXiv 2509.06949). The only change to [`DiffusionGRPOTrainer`] is the likelihood: tokens are scored in the
    states in which the sampler drew them, instead of in states that it never visits.

        maximise  E Σ_i Σ_k (1/|τˢ_i(k)|) Σ_{o ∈ τˢ_i(k)} min(ρ_o A_i, clip(ρ_o, 1−ε, 1+ε) A_i) − β KL

    τˢ_i(k) are the positions that completion i commits in its k-th step, every s steps merged into one (block-causal
    models: inside each block). Full attention: one forward pass per step. Block-causal attention: one pass scores the
    k-th step of all blocks, each block's step being a term of its own.

    Takes [`DiffusionGRPOTrainer`]'s arguments, with a [`TraceRLConfig`].
    """

    _tag_names = ["trl", "trl-diffusion", "tracerl"]
    _name = "TraceRL"
    _paper = {
        "title": "Revolutionizing Reinforcement Learning Framework for Diffusion Large Language Models",
        "id": "2509.06949",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{wang2025tracerl,
                title        = {{Revolutionizing Reinforcement Learning Framework for Diffusion
                                 Large Language Models}},
                author       = {Yinjie Wang and Ling Yang and Bowen Li and Ye Tian and Ke Shen and Mengdi Wang},
                year         = 2025,
                eprint       = {arXiv:2509.06949},
            }"""),
    }
    _config_class = TraceRLConfig

    def draw_views(self, inputs: dict[str, torch.Tensor]) -> list[MaskedView]:
        """The views that replay the recorded trajectories; see the parent."""
        steps, mask = inputs["unmask_step"], inputs["completion_mask"].bool()
        block_length = self._attention_block_length()
        if block_length is None:
            masked, target = trace_masks(steps, self.args.shrinkage, mask)
            blocks = None
        else:
            offset = inputs["prompt_mask"].sum(dim=1) % block_length
            masked, target = block_trace_masks(steps, block_length, self.args.shrinkage, mask, offset)
            blocks = canvas_blocks(steps.shape, block_length, offset, steps.device)
        return [MaskedView(*view, group=blocks) for view in zip(masked, target, strict=True)]
