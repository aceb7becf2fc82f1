# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""An algorithm that the package does not have, in 60 lines: SPG (arXiv 2510.09541)."""

from dataclasses import dataclass

import torch

from trl_diffusion import DiffusionGRPOConfig, DiffusionGRPOTrainer
from trl_diffusion.checkpoints import tiny_checkpoint
from trl_diffusion.likelihood import backward_by_sum, score_view
from trl_diffusion.tasks import sudoku_dataset, sudoku_reward


@dataclass
class SPGConfig(DiffusionGRPOConfig):
    likelihood: str = "elbo"
    num_mc_samples: int = 4  # n masked copies of each completion
    upper_bound_beta: float = 1.5  # β ≥ 1 of the upper bound
    _likelihoods = ("elbo",)  # what `likelihood` may be


class SPGTrainer(DiffusionGRPOTrainer):
    _config_class, _name, _tag_names = SPGConfig, "SPG", ["trl", "trl-diffusion", "spg"]
    _paper = {"title": "SPG: Sandwiched Policy Gradient for Masked Diffusion Language Models", "id": "2510.09541"}
    _paper["citation"] = f"@article{{wang2025spg, title = {{{_paper['title']}}}, eprint = {{arXiv:2510.09541}}}}"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self._is_off_policy or self.args.beta != 0.0:
            raise ValueError("no ratio, no KL: set num_iterations=1 and beta=0, and leave out steps_per_generation.")

    def draw_views(self, inputs):
        return self._elbo_views(inputs, self.args.num_mc_samples)

    def _compute_loss(self, model, inputs):
        views, beta = self._views_of(inputs), self.args.upper_bound_beta
        advantages, kept = inputs["advantages"][:, None].double(), inputs["completion_mask"]  # (B, 1), (B, C)

        def score(view):  # s_j: a term of the lower bound where A ≥ 0, of the upper one where A < 0
            scores = score_view(model, *self._rows(inputs), view, exclude_mask=False, **self._block_kwargs(inputs))
            term = torch.where(advantages >= 0, scores.logprobs, (beta * scores.logprobs.double()).exp())
            return term * view.weight * view.target / len(views)  # (B, C)

        def objective(total):  # Σ_j s_j (B, C) → −mean of A · bound / |y|
            upper = total.where(total > 0, 1.0).log() / beta  # 0 where no copy masks the token
            bound = torch.where(advantages >= 0, total, upper).sum(dim=1, keepdim=True)
            loss = -(advantages * bound / kept.sum(dim=1, keepdim=True).clamp(min=1)).sum()
            return (loss / self._normalizer("grpo", inputs, "train" if self.model.training else "eval")).float()

        return backward_by_sum([lambda view=view: score(view) for view in views], objective, model, self.accelerator)


if __name__ == "__main__":
    settings = {"max_completion_length": 17, "num_denoising_steps": 8, "per_device_train_batch_size": 32}
    args = SPGConfig("sudoku-spg", learning_rate=3e-4, max_steps=20, logging_steps=5, bf16=False, **settings)
    model, puzzles = str(tiny_checkpoint("sudoku-llada-tiny")), sudoku_dataset("train", num_puzzles=1000)
    SPGTrainer(model, sudoku_reward, args, train_dataset=puzzles).train()
