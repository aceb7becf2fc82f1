# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What an unmasking policy saw and did in a rollout, for training it."""

from dataclasses import dataclass

import torch

from .policy import PolicyInputs, UnmaskingPolicy
from .unmasking import RULES, UnmaskingState


@dataclass
class PolicyRecord:
    """What the canvases of a rollout do not tell of a policy's decisions; B rows, T steps, C places, F features. What
    was revealed when is the rollout's `unmask_step`, from which the masks of each step follow.

    Args:
        features (`torch.FloatTensor` of shape (B, T, C, F)):
            What the policy was told; see [`CanvasState`]. 0 behind a row's last step.
        rank (`torch.ShortTensor` of shape (B, C)):
            Which pick of its step each place was, 1-based; 1 where a step has no order; 0 for places that the policy
            did not pick.
        decided (`torch.BoolTensor` of shape (B, T)):
            Steps that were the policy's, or the expert's, to decide: not those behind the row's last, nor the last of
            the steps that a policy has for a block, with which everything left is committed.
    """

    features: torch.Tensor
    rank: torch.Tensor
    decided: torch.Tensor


class RecordingPolicy(UnmaskingPolicy):
    """Another policy, or a rule of [`RULES`], that is watched. A policy may wait: a step that reveals nothing is one.

    Args:
        source ([`UnmaskPolicyModel`] or `str`):
            A policy, or the name of a rule.
        inputs ([`PolicyInputs`]):
            What is recorded of each place.
        settings (`dict`):
            Of a policy `temperature` and `beta`; of a rule its fields of the generation config.
    """

    def __init__(self, source, inputs: PolicyInputs, **settings):
        self.source, self.settings = source, settings
        self.may_wait = not isinstance(source, str)
        self._inputs = inputs
        self._steps: list[tuple[torch.Tensor, ...]] = []
        self._picks: list[tuple[torch.Tensor, ...]] = []

    @property
    def inputs(self) -> PolicyInputs:
        """What is recorded of each position."""
        return self._inputs

    def choose(self, state: UnmaskingState, config) -> tuple[torch.Tensor, torch.Tensor]:
        """What the source chooses."""
        if isinstance(self.source, str):
            rank = RULES[self.source](state, _Settings(self.settings))[0].long()
        else:
            rank, _ = self.source.draw(state, **self.settings)
        canvas = state.canvas
        active = state.candidates.any(dim=1)
        # An expert's steps are its own, whatever its blocks allow it.
        decided = active if isinstance(self.source, str) else active & ~canvas.last
        self._steps.append((canvas.rows, state.step - 1, active, decided, canvas.features))
        self._picks.append((canvas.rows, canvas.places, torch.where(state.candidates, rank, 0)))
        return rank > 0, torch.zeros_like(state.candidates)

    def record(self, num_rows: int, num_steps: int) -> PolicyRecord:
        """The record of a batch.

        Args:
            num_rows (`int`), num_steps (`int`):
                B, and T: the most steps of any row.
        """
        features = self._steps[0][4]
        length, size = features.shape[1:]
        # What is not a row's step goes to one behind the last.
        told = features.new_zeros(num_rows, num_steps + 1, length, size)
        decided = torch.zeros(num_rows, num_steps + 1, dtype=torch.bool, device=features.device)
        for rows, steps, active, was_free, seen in self._steps:
            index = torch.where(active, steps, num_steps)
            told[rows, index], decided[rows, index] = seen, was_free
        rank = torch.zeros(num_rows, length, dtype=torch.long, device=features.device)
        for rows, places, picked in self._picks:
            # Places outside the canvas stand for its first one, and picked nothing.
            rank[rows] = rank[rows].scatter_add(1, places, picked)
        return PolicyRecord(told[:, :num_steps], rank.short(), decided[:, :num_steps])


class _Settings:
    """The fields of a generation config that a rule reads."""

    alg_temp = None

    def __init__(self, settings: dict):
        vars(self).update(settings)


def revealed_at(
    unmask_step: torch.Tensor, rank: torch.Tensor, blocks: torch.Tensor, steps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a policy faced at steps of trajectories, and what it did, from when each place was revealed.

    Args:
        unmask_step, rank (`torch.Tensor` of shape (n, C), int):
            Step of each place, 1-based, 0 for never, and [`PolicyRecord.rank`].
        blocks (`torch.LongTensor` of shape (n, C)):
            Block of each place, counted from the left.
        steps (`torch.LongTensor` of shape (n,)):
            Which step is meant, 1-based.

    Returns:
        `masked` and `candidates`, bool (n, C): the masks that stood, and those of them in the block that was being
        filled, the first with a mask; and the rank of what the step revealed, long (n, C), 0 elsewhere.
    """
    masked = (unmask_step == 0) | (unmask_step >= steps[:, None])
    beyond = blocks.amax() + 1
    current = torch.where(masked, blocks, beyond).amin(dim=1, keepdim=True)
    chosen = torch.where(unmask_step == steps[:, None], rank.long(), 0)
    return masked, masked & (blocks == current), chosen
