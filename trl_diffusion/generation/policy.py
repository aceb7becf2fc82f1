# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Unmasking policies: rules that look at the whole canvas and decide by themselves how much a step commits."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch


if TYPE_CHECKING:
    from .unmasking import UnmaskingState

# Logits whose exponentials are held at once: 128 MiB in fp32.
_CHUNK = 2**25


class PolicyInputs(NamedTuple):
    """What a policy is told of a masked position: F = `num_confidences` + `entropy` + `hidden_size` numbers, in that
    order.

    Args:
        num_confidences (`int`):
            The largest probabilities, descending, of the distribution at temperature 1 without filters.
        entropy (`bool`):
            Its entropy, in nats.
        hidden_size (`int`):
            Size of the hidden state that the position's logits are computed from; 0: none.
    """

    num_confidences: int = 1
    entropy: bool = False
    hidden_size: int = 0

    @property
    def size(self) -> int:
        """F."""
        return self.num_confidences + int(self.entropy) + self.hidden_size


@dataclass
class CanvasState:
    """What a policy sees at a step: R rows, C places of their canvases, which begin at the first place to fill.

    Args:
        features (`torch.FloatTensor` of shape (R, C, F)):
            [`PolicyInputs`] of each place. A place that holds a token has confidence 1 and nothing else. A mask whose
            logits the step does not compute (of later blocks, where attention or the cache leave them out) has 0.
        masked (`torch.BoolTensor` of shape (R, C)):
            Masks, those of later blocks included.
        inside (`torch.BoolTensor` of shape (R, C)):
            False behind the end of a row's canvas.
        time (`torch.FloatTensor` of shape (R,)):
            Steps taken over the length of the row's canvas.
        places (`torch.LongTensor` of shape (R, K)):
            Place of each position of the current block; 0 for positions before the canvas.
        last (`torch.BoolTensor` of shape (R,)):
            Rows for which this is the block's last step: whatever is left is committed with it.
        rows (`torch.LongTensor` of shape (R,)):
            Which rows of the batch these are.
        row_noise (`torch.DoubleTensor` of shape (R, 2)):
            Uniform numbers in [0, 1) of each row's own generator, besides those of its positions.
    """

    features: torch.Tensor
    masked: torch.Tensor
    inside: torch.Tensor
    time: torch.Tensor
    places: torch.Tensor
    last: torch.Tensor
    rows: torch.Tensor
    row_noise: torch.Tensor

    def in_block(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the canvas, (R, C), at the positions of the current block: (R, K)."""
        return values.gather(1, self.places)


class UnmaskingPolicy(ABC):
    """A rule that is shown [`UnmaskingState.canvas`]. The schedule's shares do not bind it; the steps of a block do:
    in its last one everything left is committed."""

    # Whether a step may commit nothing of a row. If so, a step costs a forward pass all the same.
    may_wait = False

    @property
    @abstractmethod
    def inputs(self) -> PolicyInputs:
        """What it is told of each position."""

    @abstractmethod
    def choose(self, state: "UnmaskingState", config) -> tuple[torch.Tensor, torch.Tensor]:
        """The positions to commit, and those of them that only a fallback chose: two bool tensors (R, K)."""


def confidence_features(logits: torch.Tensor, inputs: PolicyInputs) -> torch.Tensor:
    """The inputs of a policy that come from logits, without a softmax over the vocabulary: exp(l − logsumexp).

    Args:
        logits (`torch.FloatTensor` of shape (n, V)):
            fp32 or fp64, −inf for tokens never drawn.
        inputs ([`PolicyInputs`]):
            Which.

    Returns:
        `torch.FloatTensor` of shape (n, `num_confidences` + `entropy`), fp32.
    """
    pieces = []
    for piece in logits.split(max(1, _CHUNK // logits.size(1))):
        log_norm = piece.logsumexp(dim=1, keepdim=True)
        best = piece.amax(dim=1, keepdim=True)
        if inputs.num_confidences > 1:
            best = piece.topk(min(inputs.num_confidences, piece.size(1)), dim=1).values
        features = (best - log_norm).exp()
        missing = inputs.num_confidences - features.size(1)
        features = torch.nn.functional.pad(features, (0, missing))
        if inputs.entropy:
            log_probs = piece - log_norm
            # Tokens of probability 0 add nothing; 0 · −inf would be a NaN.
            terms = log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
            features = torch.cat([features, -terms.sum(dim=1, keepdim=True)], dim=1)
        pieces.append(features.float())
    return torch.cat(pieces)


def canvas_features(
    features: torch.Tensor, places: torch.Tensor, real: torch.Tensor, masked: torch.Tensor, inside: torch.Tensor
) -> torch.Tensor:
    """[`CanvasState.features`] from those of the masks that were looked at.

    Args:
        features (`torch.FloatTensor` of shape (R, m, F)):
            Of m masks of each row.
        places (`torch.LongTensor` of shape (R, m)):
            Their places in the canvas.
        real (`torch.BoolTensor` of shape (R, m)):
            False on those that only fill up a row.
        masked, inside (`torch.BoolTensor` of shape (R, C)):
            As in [`CanvasState`].

    Returns:
        `torch.FloatTensor` of shape (R, C, F).
    """
    length = masked.size(1)
    canvas = features.new_zeros(masked.size(0), length + 1, features.size(2))  # the last place takes what is not real
    canvas[:, :length, 0] = (~masked & inside).to(features.dtype)
    index = torch.where(real, places, length)[..., None].expand_as(features)
    return canvas.scatter_(1, index, features)[:, :length]
