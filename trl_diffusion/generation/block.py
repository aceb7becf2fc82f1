# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Denoising one block."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch

from .distribution import TokenDraw, draw_tokens
from .noise import POSITIONS, ROWS, TOKENS, row_noise
from .policy import CanvasState, UnmaskingPolicy, canvas_features, confidence_features
from .schedule import even_shares, fractions_left
from .unmasking import RULES, UnmaskingState, custom_rule, is_scheduled, needs_noise


if TYPE_CHECKING:
    from .sampler import Generation

# Steps whose random numbers are made at once.
_NOISE_STEPS = 4


def steps_per_look(device: torch.device) -> int:
    """Steps between two looks at which rows are done: rare where looking means waiting for the device."""
    return 1 if device.type == "cpu" else 4


class Block:
    """The rows of a generation while one block of them is filled: R rows, K columns.

    How many masks a step leaves is known on the CPU where the rule keeps to the schedule; a rule that may commit more
    is looked at every few steps (on the CPU at every step). Until then `left`, (R,), is an upper bound. So a step
    waits for the device at no point, and its shapes follow from `left`. What the CPU counts with is numpy's, what the
    device computes with torch's.

    Args:
        generation ([`Generation`]):
            What the block belongs to.
        index (`int`):
            Which block.
        alive (`numpy.ndarray` of shape (R,), bool):
            Rows that still generate; the others stay as they are.
    """

    def __init__(self, generation: "Generation", index: int, alive: np.ndarray):
        self.generation, self.index = generation, index
        self.config, layout = generation.config, generation.layout
        self.start = layout.start + index * layout.block_length
        self.end = min(self.start + layout.block_length, generation.num_columns)
        self.device = generation.ids.device
        self.rows = generation.rows
        self.row_index = self._to_device(self.rows)
        self.ids = generation.ids[self.row_index]  # (R, L)
        in_block = layout.fill[self.row_index, self.start : self.end]
        self.open = in_block & self._to_device(alive)[:, None]  # (R, K)
        self.steps_done = generation.steps_done[self.row_index]
        self.unmask_step = generation.unmask_step[self.row_index, self.start : self.end]
        self.logprobs = generation.logprobs[self.row_index, self.start : self.end]
        self.forced = generation.forced[self.row_index, self.start : self.end]
        self.recorded = ["unmask_step", "logprobs", "forced"]
        if self.config.output_entropies:
            self.recorded.append("entropies")
            self.entropies = generation.entropies[self.row_index, self.start : self.end]
        self.left = np.where(alive, layout.fill_counts[self.rows, index], 0)
        # What the steps commit, (steps, R): the CPU's, and the device's own.
        steps = generation.steps[self.rows, index]
        self.shares = even_shares(self.left, steps)
        self.fractions = fractions_left(steps, self.config.step_schedule)
        self.device_shares = self._to_device(self.shares)
        self.device_fractions = self._to_device(self.fractions)
        self.scheduled = is_scheduled(self.config)
        rule = self.config.unmasking
        self.policy = rule if isinstance(rule, UnmaskingPolicy) else None
        # The steps that a policy has, (R,): the CPU's, and the device's own.
        self.limits = np.maximum(steps, 1)
        self.device_limits = self._to_device(self.limits)
        # Masks of later blocks that a policy sees, side by side.
        self.others, self.num_others = self._later_masks() if self.policy else (None, None)
        self.noise: dict[int, torch.Tensor] = {}

    def denoise(self, on_step=None):
        """Fill the block, and write it into the generation."""
        step = 0
        patience = steps_per_look(self.device)
        while True:
            if not self.scheduled and step % patience == 0:
                self.left = np.minimum(self.left, self.open.sum(dim=1).cpu().numpy())
            if not self.left.any():
                break
            # A cache holds its rows to the end of the block.
            if not self.generation.caches and not self.generation.keeps_rows and not self.left.all():
                self.store()
                self._select(self.left.nonzero()[0])
            self._step(step)
            self.left = np.maximum(self.left - self._least_committed(step), 0)
            step += 1
            if on_step is not None:
                self.store()
                on_step(self.generation)
        self.store()

    def _to_device(self, values: np.ndarray) -> torch.Tensor:
        """A copy that does not wait for what the device is doing."""
        return torch.from_numpy(values).to(self.device, non_blocking=True)

    def store(self):
        """Write the rows back."""
        generation, rows = self.generation, self.row_index
        generation.ids[rows] = self.ids
        generation.steps_done[rows] = self.steps_done
        for name in self.recorded:
            getattr(generation, name)[rows, self.start : self.end] = getattr(self, name)

    def _select(self, places: np.ndarray):
        """Go on with some rows: (R',)."""
        on_device = self._to_device(places)
        names = ("row_index", "ids", "open", "steps_done", "device_limits", *self.recorded)
        for name in names if self.policy is None else (*names, "others", "num_others"):
            setattr(self, name, getattr(self, name)[on_device])
        for name in ("device_shares", "device_fractions"):
            setattr(self, name, getattr(self, name)[:, on_device])
        self.rows, self.left, self.limits = self.rows[places], self.left[places], self.limits[places]
        self.shares, self.fractions = self.shares[:, places], self.fractions[:, places]
        self.noise = {stream: values[:, on_device] for stream, values in self.noise.items()}

    def _least_committed(self, step: int) -> np.ndarray:
        """Positions that a step commits of each row at the least, (R,)."""
        if self.policy is not None:
            return np.where(step + 1 >= self.limits, self.left, 0 if self.policy.may_wait else 1)
        if not isinstance(self.config.unmasking, str):
            return np.ones_like(self.left)
        if self.config.unmasking == "origin":
            return np.where(self.fractions[step] == 1, self.left, 0)
        if self.config.step_schedule == "linear_time":
            # What is left may be less than this, and its share too, but never more than what is left of this.
            return (self.left.astype(np.float32) * self.fractions[step]).astype(np.int64)
        return self.shares[step]

    # A step

    def _step(self, step: int):
        config = self.config
        # Candidates of each row side by side, in `width` places; rows with fewer have idle places.
        width = self.open.size(1) if config.torch_compile else int(self.left.max())
        places, order = side_by_side(self.open, width)  # (R, m): column of the block in each place
        seen = places + self.start if self.policy is None else torch.cat([places + self.start, self.others], dim=1)
        logits, hidden = self._logits(seen, step)  # (R, m or more, V)
        # Before tokens are drawn, which overwrites the logits.
        features = None if self.policy is None else self._policy_features(logits, hidden)
        logits = logits[:, :width]
        uniform = None
        if config.temperature > 0:
            uniform = self._noise(TOKENS, step).gather(1, places).flatten()
        drawn = draw_tokens(logits.flatten(0, 1), uniform, config.temperature, config.top_k, config.top_p)
        del logits
        self.steps_done += self.open.any(dim=1)
        state = self._state(step, drawn, order.clamp(0, width - 1))
        if self.policy is not None:
            state.canvas = self._canvas_state(step, features, seen, width)
        tokens, logprobs = state.tokens, state.logprobs
        entropies = state.entropy if config.output_entropies else None
        if isinstance(config.unmasking, str):
            committed, forced = RULES[config.unmasking](state, config)
        else:
            # It may write into what it is given.
            tokens, logprobs = tokens.clone(), logprobs.clone()
            entropies = entropies.clone() if config.output_entropies else None
            committed, forced = custom_rule(state, config, self.open)
        if self.policy is not None:
            rest = self.open & ~committed & (step + 1 >= self.device_limits)[:, None]
            committed, forced = committed | rest, forced | rest

        window = self.ids[:, self.start : self.end]
        window.copy_(torch.where(committed, tokens, window))
        self.logprobs = torch.where(committed, logprobs.float(), self.logprobs)
        if self.config.output_entropies:
            self.entropies = torch.where(committed, entropies.float(), self.entropies)
        self.unmask_step = torch.where(committed, self.steps_done[:, None], self.unmask_step).to(torch.int16)
        self.forced |= forced
        self.open &= ~committed

    def _state(self, step: int, drawn: TokenDraw, slots: torch.Tensor) -> UnmaskingState:
        row = min(step, len(self.shares) - 1)
        share, fraction = self.device_shares[row], self.device_fractions[row]
        if self.config.step_schedule == "linear_time":
            share = (self.open.sum(dim=1).float() * fraction).long()
        # A rule of the user's may write into what it is given, or keep it.
        copied = torch.Tensor.clone if not isinstance(self.config.unmasking, str) else lambda tensor: tensor
        return UnmaskingState(
            candidates=copied(self.open),
            slots=slots,
            draw=drawn,
            share=copied(share),
            fraction=copied(fraction),
            noise=self._noise(POSITIONS, step) if needs_noise(self.config) else None,
            input_ids=copied(self.ids),
            block=slice(self.start, self.end),
            step=copied(self.steps_done),
        )

    # What a policy sees

    def _later_masks(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns of the masks of later blocks whose logits every step computes, (R, m'), and how many a row has,
        (R,). What is not right of the block in the window is not seen."""
        generation, layout = self.generation, self.generation.layout
        in_window = not generation.block_causal and self.config.cache in ("none", "prefix")
        counts = layout.fill_counts[self.rows, self.index + 1 :].sum(axis=1) * in_window
        most = int(counts.max())
        later = layout.fill[self.row_index, self.end :]
        places = side_by_side(later, most)[0] if most else later.new_zeros(len(later), 0, dtype=torch.long)
        return places + self.end, self._to_device(counts)

    def _policy_features(self, logits: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        """(R, m, F), from logits (R, m, V) and hidden states (R, m, H)."""
        features = confidence_features(logits.flatten(0, 1), self.policy.inputs).view(*logits.shape[:2], -1)
        return features if hidden is None else torch.cat([features, hidden.to(features)], dim=2)

    def _canvas_state(self, step: int, features: torch.Tensor, seen: torch.Tensor, width: int) -> CanvasState:
        """From the features at columns `seen`, (R, m + m'), of which the first m are the block's."""
        generation, layout = self.generation, self.generation.layout
        begins = generation.begins[self.row_index][:, None]  # (R, 1)
        columns = begins + torch.arange(int(layout.lengths.max()), device=self.device)  # (R, C)
        inside = columns < layout.end[self.row_index][:, None]
        still = layout.fill[self.row_index]
        still[:, : self.start] = False
        still[:, self.start : self.end] = self.open
        masked = still.gather(1, columns.clamp(max=still.size(1) - 1)) & inside
        rank = torch.arange(seen.size(1), device=self.device)
        own = self.open.sum(dim=1, keepdim=True)
        real = torch.where(rank < width, rank < own, rank - width < self.num_others[:, None])
        block = torch.arange(self.start, self.end, device=self.device)
        lengths = self._to_device(layout.lengths[self.rows])
        return CanvasState(
            features=canvas_features(features, seen - begins, real, masked, inside),
            masked=masked,
            inside=inside,
            time=(self.steps_done - 1).clamp(min=0) / lengths,
            places=(block - begins).clamp(0, columns.size(1) - 1),
            last=step + 1 >= self.device_limits,
            rows=self.row_index,
            row_noise=self._noise(ROWS, step, 2),
        )

    def _noise(self, stream: int, step: int, width: int | None = None) -> torch.Tensor:
        """(R, K) or (R, width), fp64."""
        if step % _NOISE_STEPS == 0:
            seeds = [self.generation.seeds[row] for row in self.rows.tolist()]
            steps = range(step, step + _NOISE_STEPS)
            width = width or self.open.size(1)
            self.noise[stream] = self._to_device(row_noise(seeds, self.index, steps, width, stream))
        return self.noise[stream][step % _NOISE_STEPS]

    # The forward pass

    def _logits(self, seen: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits that the tokens at these columns are drawn from, before temperature and filters: (R, m, V), fp32;
        and the hidden states they come from, (R, m, H), where a policy wants them."""
        generation, config = self.generation, self.config
        first, last, in_sight, whole = self._window(step)
        columns = seen - first
        wants_hidden = self.policy is not None and self.policy.inputs.hidden_size > 0
        with head_inputs(generation.model) if wants_hidden else nullcontext([None]) as head_states:
            logits = _in_fp32(self._forward(self.ids, columns, first, last, in_sight, whole, 0))
        if config.guides:
            layout = generation.layout
            given = ~layout.fill[self.row_index] & ~layout.canvas[self.row_index]
            hidden = self.ids.masked_fill(given, generation.model.mask_token_id)
            unconditional = _in_fp32(self._forward(hidden, columns, first, last, in_sight, whole, 1))
            logits = unconditional.lerp_(logits, config.guidance_scale)
        if step == 0:
            generation.committed = self.start
        logits.index_fill_(2, generation.suppressed, float("-inf"))
        if generation.begin_suppressed is not None:
            at_begin = seen == generation.begins[self.row_index][:, None]  # (R, m)
            values = logits.index_select(2, generation.begin_suppressed)
            values.masked_fill_(at_begin[..., None], float("-inf"))
            logits.index_copy_(2, generation.begin_suppressed, values)
        return logits, head_states[-1]

    def _window(self, step: int) -> tuple[int, int, int, bool]:
        """Columns that a step computes, [first, last), how many columns it sees, and whether it is one that computes
        more than its block needs, so that others can reuse it."""
        generation, config = self.generation, self.config
        total = generation.num_columns
        # Shifted logits: a token is predicted one column to its left.
        first = max(self.start - generation.model.logits_shift, 0)
        interval = config.cache_refresh_interval
        refresh = step == 0 or (interval is not None and step % interval == 0)
        if config.cache == "none":
            last = self.end if generation.block_causal else total
            return 0, last, last, False
        if config.cache == "block":
            # The commit of finished blocks rides on the next block's first step.
            first = generation.committed if step == 0 else first
            return first, self.end, total if config.torch_compile else self.end, step == 0
        if refresh:
            return 0, total, total, True
        return first, total if config.cache == "prefix" else self.end, total, False

    def _forward(self, ids, columns, first: int, last: int, in_sight: int, whole: bool, cache_index: int):
        generation = self.generation
        cache = generation.caches[cache_index] if generation.caches else None
        window = torch.arange(first, last, device=self.device)
        key_mask, block_length = self._mask(first, in_sight)
        position_ids = None
        # Without padding, blocks or a cache the model counts for itself.
        if cache is not None or key_mask is not None:
            begins = generation.layout.first[self.row_index]
            position_ids = (window - begins[:, None]).clamp(min=0)
        if cache is not None:
            cache.look_at(window, in_sight)
        return generation.model.window_logits(
            ids[:, first:last],
            columns,
            position_ids,
            key_mask,
            window,
            block_length,
            cache,
            compiled=self.config.torch_compile and not whole,
        )

    def _mask(self, first: int, in_sight: int) -> tuple[torch.Tensor | None, int | None]:
        """The real ones of the columns in sight, (R, kv), and the length of the blocks that limit what a window from
        column `first` sees; `None` for what limits nothing."""
        generation, layout = self.generation, self.generation.layout
        padded = layout.first_cpu[self.rows].max() > 0 or layout.end_cpu[self.rows].min() < in_sight
        blocks = generation.block_causal and not (generation.caches and first >= self.start and in_sight == self.end)
        if not padded and not blocks:
            return None, None
        key = torch.arange(in_sight, device=self.device)
        real = (key >= layout.first[self.row_index][:, None]) & (key < layout.end[self.row_index][:, None])
        return real, layout.block_length if blocks else None


def side_by_side(chosen: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the chosen columns of each row are, side by side.

    Args:
        chosen (`torch.BoolTensor` of shape (R, K)):
            At most `width` of a row.
        width (`int`):
            m.

    Returns:
        Column in each place, (R, m), 0 where a row has fewer; and the rank of each column among the chosen ones of its
        row, (R, K), which means nothing for the others.
    """
    order = chosen.cumsum(dim=1) - 1  # (R, K)
    columns = torch.arange(chosen.size(1), device=chosen.device).expand_as(order)
    places = torch.zeros(len(order), width + 1, dtype=torch.long, device=chosen.device)
    places.scatter_(1, torch.where(chosen, order, width), columns)
    return places[:, :width], order


@contextmanager
def head_inputs(model) -> Iterator[list[torch.Tensor]]:
    """Fills up with the hidden states that the model's head is given."""
    kept: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    try:
        yield kept
    finally:
        hook.remove()


def _in_fp32(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
