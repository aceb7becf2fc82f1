# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What a generation leaves behind."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch


@dataclass
class Rollout:
    """The terminal canvas of a batch, and how it came about. All tensors are batch-first.

    Replay invariant: for every step t, mask the positions with `unmask_step` ≥ t (positions never drawn are masked in
    `canvas_ids` already; hints stay), run the model, and each token committed at t has the recorded log-probability.

    Args:
        prompt_ids (`torch.LongTensor` of shape (B, P)):
            Prompts, padded on the left.
        prompt_mask (`torch.LongTensor` of shape (B, P)):
            1 on real tokens.
        canvas_ids (`torch.LongTensor` of shape (B, C)):
            The whole terminal canvas, tail after EOS included; the mask token where nothing was drawn.
        unmask_step (`torch.ShortTensor` of shape (B, C)):
            Step at which the token was committed, 1-based, counted over the whole row; 0 = not drawn by the model.
        logprobs (`torch.FloatTensor` of shape (B, C)):
            Log-probability of the token under the distribution it was drawn from: mask token excluded, divided by
            the temperature, filtered; at temperature 0 the distribution at temperature 1. 0 where nothing was drawn.
        forced (`torch.BoolTensor` of shape (B, C)):
            Committed to fill the step's share although the rule did not ask for it (below the threshold).
        fixed (`torch.BoolTensor` of shape (B, C)):
            Given in advance and never changed: hints, and the text between positions filled in the input.
        completion_mask (`torch.LongTensor` of shape (B, C)):
            1 up to and including the first EOS drawn or hinted behind the input.
        num_forward_passes (`torch.LongTensor` of shape (B,)):
            Denoising steps of the row, each a forward pass (with guidance two).
        block_length (`int`):
            Tokens per block of this generation.
        temperature (`float`):
            Temperature of the recorded log-probabilities (1 for a greedy generation).
        entropies (`torch.FloatTensor` of shape (B, C), *optional*):
            With `output_entropies=True`: entropy, in nats, of the distribution that each token was drawn from (at
            temperature 0 that at temperature 1); 0 where nothing was drawn.
        filtered (`bool`):
            Whether top-k, top-p, guidance or suppressed tokens changed the distribution: the log-probabilities then
            do not equal a scorer's.
        approximate (`bool`):
            Whether an approximate cache computed the logits: the log-probabilities then do not equal a scorer's.

    Where positions of the input were filled, the canvas begins at the first of them, in any row; C is then larger than
    `max_new_tokens`.
    """

    prompt_ids: torch.Tensor
    prompt_mask: torch.Tensor
    canvas_ids: torch.Tensor
    unmask_step: torch.Tensor
    logprobs: torch.Tensor
    forced: torch.Tensor
    fixed: torch.Tensor
    completion_mask: torch.Tensor
    num_forward_passes: torch.Tensor
    block_length: int
    temperature: float = 1.0
    filtered: bool = False
    approximate: bool = False
    entropies: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> "Rollout":
        """The same rollout on another device."""
        return self._with(lambda own: own.to(device))

    def select(self, rows: list[int]) -> "Rollout":
        """Some of the rows, in that order."""
        return self._with(lambda own: own[rows])

    def replaced(self, rows: list[int], other: "Rollout") -> "Rollout":
        """A copy in which the rows of another rollout, of the same widths, stand in the place of these."""
        copy = self._with(torch.clone)
        for field in fields(self):
            own = getattr(copy, field.name)
            if isinstance(own, torch.Tensor):
                own[rows] = getattr(other, field.name)
        return copy

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Rollout":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Rollout(**{k: change(v) if isinstance(v, torch.Tensor) else v for k, v in values.items()})

    @staticmethod
    def interleaved(parts: list[tuple[list[int], "Rollout"]]) -> "Rollout":
        """Rollouts of the same widths as one: each with the rows of the result that are its own. What is no tensor is
        the first one's."""
        rows = [row for own, _ in parts for row in own]
        order = sorted(range(len(rows)), key=rows.__getitem__)
        values = {}
        for field in fields(Rollout):
            found = [getattr(rollout, field.name) for _, rollout in parts]
            values[field.name] = torch.cat(found)[order] if isinstance(found[0], torch.Tensor) else found[0]
        return Rollout(**values)

    def written(self) -> torch.Tensor:
        """(B, C), bool: the tokens of each completion, up to and including the first EOS, hints included; not the
        positions that were never drawn."""
        return self.completion_mask.bool() & ((self.unmask_step > 0) | self.fixed)

    def completions(self) -> list[list[int]]:
        """Token ids of each completion, cut after the first EOS, hints included. Positions never drawn are left
        out."""
        written = self.written().cpu()
        return [ids[keep].tolist() for ids, keep in zip(self.canvas_ids.cpu(), written, strict=True)]


def completion_mask(canvas_ids: torch.Tensor, eos_token_ids: list[int]) -> torch.Tensor:
    """1 up to and including the first EOS of each row, 1 everywhere where there is none.

    Args:
        canvas_ids (`torch.LongTensor` of shape (B, C)):
            Terminal canvases.
        eos_token_ids (`list[int]`):
            Every id that ends a completion.

    Returns:
        `torch.LongTensor` of shape (B, C).
    """
    is_eos = torch.isin(canvas_ids, torch.tensor(eos_token_ids, device=canvas_ids.device, dtype=canvas_ids.dtype))
    # A position belongs to the completion when no EOS stands strictly before it.
    return (is_eos.long().cumsum(dim=1) - is_eos.long() == 0).long()


def trajectory_statistics(rollout: Rollout, block_causal: bool) -> dict[str, torch.Tensor]:
    """How each row of a batch was written, over the tokens of its completion (EOS included) that the model drew.

    Args:
        rollout ([`Rollout`]):
            B rows.
        block_causal (`bool`):
            Whether the model counts blocks from the row's first real token (`model.attention == "block_causal"`), so
            that the prompt may end inside a block, or from the first position of the canvas.

    Returns:
        `dict[str, torch.FloatTensor]`, each of shape (B,), NaN for a row without such a token:

        - `tokens_per_step`: tokens over the distinct steps at which they were committed;
        - `steps_per_block`: distinct steps of a block, mean over the blocks that hold such tokens;
        - `forced`: share of the tokens that a fallback committed;
        - `entropy_at_commit`: mean entropy, in nats, of the distributions they were drawn from; only where the rollout
          has `entropies`.

    With full attention and positions filled in the input, a row's blocks begin at the first position of any row.
    """
    drawn = rollout.completion_mask.bool() & (rollout.unmask_step > 0)  # (B, C)
    steps = rollout.unmask_step.long()
    position = torch.arange(steps.size(1), device=steps.device).expand_as(steps)
    if block_causal:
        # Where positions of the input are filled, the padding of a shorter row may reach into the canvas.
        real = (rollout.unmask_step > 0) | rollout.fixed | rollout.completion_mask.bool()
        padding = (real.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)  # (B, 1)
        position = position - padding + rollout.prompt_mask.sum(dim=1, keepdim=True) % rollout.block_length
    blocks = position // rollout.block_length
    # The same step number in two blocks would be two steps of theirs.
    step_of_block = blocks * (steps.max() + 1 if steps.numel() else 1) + steps
    count = drawn.sum(dim=1).float()
    # 0/0 where nothing was drawn: NaN, in every line.
    statistics = {
        "tokens_per_step": count / _num_distinct(steps, drawn),
        "steps_per_block": _num_distinct(step_of_block, drawn) / _num_distinct(blocks, drawn),
        "forced": (rollout.forced & drawn).sum(dim=1) / count,
    }
    if rollout.entropies is not None:
        statistics["entropy_at_commit"] = (rollout.entropies * drawn).sum(dim=1) / count
    return statistics


def _num_distinct(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Distinct values ≥ 0 among the counted positions of each row: (B, C) → (B,), float."""
    ordered = values.masked_fill(~counted, -1).sort(dim=1).values
    return ordered.diff(dim=1, prepend=torch.full_like(ordered[:, :1], -1)).ne(0).sum(dim=1).float()
