# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The denoising loop."""

import numpy as np
import torch

from .block import Block
from .cache import CanvasCache
from .configuration import DiffusionGenerationConfig
from .layout import CanvasLayout, lay_out
from .noise import row_seeds
from .rollout import Rollout, completion_mask
from .schedule import steps_per_block
from .streamers import make_stream


class Generation:
    """The state of a generation: the rows of a layout, and what has been written into them.

    Args:
        model:
            A diffusion language model ([`DiffusionModelMixin`]).
        config ([`DiffusionGenerationConfig`]):
            Settings.
        layout ([`CanvasLayout`]):
            The rows.
    """

    def __init__(self, model, config: DiffusionGenerationConfig, layout: CanvasLayout):
        self.model, self.config, self.layout = model, config, layout
        batch_size, self.num_columns = layout.ids.shape
        device = layout.ids.device
        self.block_causal = model.attention == "block_causal"
        self.seeds = row_seeds(config.seed, batch_size)
        # What rows hold; blocks write into these. (B, L), and (B,)
        self.ids = layout.ids.clone()
        self.unmask_step = torch.zeros_like(self.ids, dtype=torch.int16)
        self.logprobs = torch.zeros_like(self.ids, dtype=torch.float32)
        self.forced = torch.zeros_like(self.ids, dtype=torch.bool)
        self.entropies = torch.zeros_like(self.logprobs) if config.output_entropies else None
        self.steps_done = torch.zeros(batch_size, dtype=torch.long, device=device)
        # Rows whose keys are in the caches.
        self.rows = np.arange(batch_size)
        self.steps = steps_per_block(
            layout.fill_counts, layout.lengths, layout.block_length, config.num_denoising_steps
        )  # (B, N)
        num_caches = 0 if config.cache == "none" else 2 if config.guides else 1
        num_layers = model.config.num_hidden_layers
        self.caches = [CanvasCache(num_layers, self.num_columns) for _ in range(num_caches)]
        # A compiled step has one shape; and torch's compiler fails on flex attention's where a batch shrinks on a CPU.
        flex = model.config._attn_implementation == "flex_attention" and device.type == "cpu"
        self.keeps_rows = config.torch_compile or flex
        # Columns whose keys are final, which the exact cache need not compute again.
        self.committed = 0
        eos, suppressed = config.eos_token_ids, [model.mask_token_id, *(config.suppress_tokens or [])]
        self.eos = torch.tensor(eos, device=device) if eos else None
        self.suppressed = torch.tensor(suppressed, device=device)
        self.begin_suppressed = None
        if config.begin_suppress_tokens:
            self.begin_suppressed = torch.tensor(list(config.begin_suppress_tokens), device=device)
        place = torch.arange(self.num_columns, device=device)
        self.begins = torch.where(layout.fill, place, self.num_columns).amin(dim=1)  # (B,)

    def run(self, on_step=None):
        """Fill all blocks.

        Args:
            on_step (callable, *optional*):
                Called with the generation after every step.
        """
        counts = self.layout.fill_counts
        ended = np.zeros(len(counts), dtype=bool)
        for block in range(counts.shape[1]):
            alive = (counts[:, block:].sum(axis=1) > 0) & ~ended
            if not alive.any():
                break
            if counts[alive, block].any():
                if not self.keeps_rows:
                    self._keep(alive.nonzero()[0])
                Block(self, block, alive[self.rows]).denoise(on_step)
            if torch.isnan(self.logprobs).any():
                raise ValueError(
                    "The model's logits are not numbers (NaN), so that no token can be drawn. Check its weights and "
                    "its dtype; with guidance_scale, that no logit is infinite."
                )
            if self.eos is not None:
                # Blocks up to this one are full, so that an EOS in them has no mask before it.
                end = self.layout.start + (block + 1) * self.layout.block_length
                is_eos = torch.isin(self.ids[:, :end], self.eos) & self.layout.canvas[:, :end]
                ended |= is_eos.any(dim=1).cpu().numpy()

    def _keep(self, rows: np.ndarray):
        """Go on with these rows alone."""
        if len(rows) == len(self.rows):
            return
        place = torch.from_numpy(np.searchsorted(self.rows, rows)).to(self.ids.device)
        for cache in self.caches:
            cache.select(place)
        self.rows = rows


@torch.no_grad()
def denoise(
    model,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    config: DiffusionGenerationConfig,
    infill_mask: torch.Tensor | None = None,
    hint_ids: torch.Tensor | None = None,
    streamer=None,
) -> Rollout:
    """Fill a canvas of masks, and masks inside the input, block by block and step by step.

    Each step runs the model, reads logits at the masks of the current block alone, draws a token for each, and commits
    those that the unmasking rule picks. A row ends with the first block in which an EOS of the canvas stands. Rows
    with nothing left to fill leave the batch: at the end of a block where there is a cache, else at once; compiled
    steps keep them.

    Args:
        model:
            A diffusion language model ([`DiffusionModelMixin`]).
        prompt_ids (`torch.LongTensor` of shape (B, P)):
            Inputs, padded on the left.
        prompt_mask (`torch.LongTensor` of shape (B, P)):
            1 on real tokens.
        config ([`DiffusionGenerationConfig`]):
            Settings.
        infill_mask (`torch.BoolTensor` of shape (B, P), *optional*):
            Positions of the input to fill.
        hint_ids (`torch.LongTensor` of shape (B, C), *optional*):
            Tokens of the canvas that are given, −100 elsewhere.
        streamer ([`~transformers.generation.streamers.BaseStreamer`], *optional*):
            A [`CanvasStreamer`], or one of transformers'.

    Returns:
        [`Rollout`].
    """
    batch_size, prompt_width = prompt_ids.shape
    length = config.max_new_tokens
    block_causal = model.attention == "block_causal"
    block_length = config.block_length or (model.block_length if block_causal else None)
    canvas = prompt_ids.new_full((batch_size, length), -100) if hint_ids is None else hint_ids
    in_prompt = torch.zeros_like(prompt_ids, dtype=torch.bool) if infill_mask is None else infill_mask
    ids = torch.cat([prompt_ids, canvas], dim=1)
    valid = torch.cat([prompt_mask.bool(), torch.ones_like(canvas, dtype=torch.bool)], dim=1)
    fill = torch.cat([in_prompt, canvas == -100], dim=1)
    layout = lay_out(ids, valid, fill, length, block_length, block_causal, model.mask_token_id)
    generation = Generation(model, config, layout)
    if streamer is None:
        generation.run()
    else:
        stream = make_stream(streamer, prompt_width)
        try:
            stream(generation)
            generation.run(on_step=stream)
        finally:
            streamer.end()

    # With positions filled in the input, the canvas reaches back to the first of them.
    begin = layout.begin
    tokens = layout.tokens(generation.ids)
    finished = completion_mask(tokens[:, prompt_width:], config.eos_token_ids)
    return Rollout(
        prompt_ids=prompt_ids[:, :begin],
        prompt_mask=prompt_mask[:, :begin],
        canvas_ids=tokens[:, begin:],
        unmask_step=layout.gather_back(generation.unmask_step)[:, begin:],
        logprobs=layout.gather_back(generation.logprobs)[:, begin:],
        forced=layout.gather_back(generation.forced)[:, begin:],
        entropies=layout.gather_back(generation.entropies)[:, begin:] if config.output_entropies else None,
        fixed=(valid & ~fill)[:, begin:],
        completion_mask=torch.cat([prompt_mask[:, begin:], finished], dim=1),
        num_forward_passes=generation.steps_done,
        block_length=layout.block_length,
        temperature=config.temperature or 1.0,
        filtered=config.changes_distribution,
        approximate=config.cache in ("prefix", "dual") and config.cache_refresh_interval != 1,
    )
