# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The denoising loop."""

from dataclasses import dataclass

import numpy as np
import torch

from .configuration import DiffusionGenerationConfig
from .rollout import Rollout, completion_mask
from .unmasking import commit, draw, even_share, token_distribution


@dataclass
class BlockPlan:
    """How the canvas of each row is cut into blocks.

    Args:
        block (`torch.LongTensor` of shape (B, C)):
            Block of each canvas position, 0 for the block of the first one.
        slot (`torch.LongTensor` of shape (B, C)):
            Position inside its block.
        steps (`torch.LongTensor` of shape (B, N)):
            Denoising steps of each block; 0 for blocks that a row does not have.
        max_steps (`int`):
            Most steps that any block can have, whatever the batch.
    """

    block: torch.Tensor
    slot: torch.Tensor
    steps: torch.Tensor
    max_steps: int


def plan_blocks(
    prompt_lengths: torch.Tensor, canvas_length: int, block_length: int, num_steps: int, anchored_at_prompt: bool
) -> BlockPlan:
    """Cut the canvases into blocks and share out the steps.

    A full block gets k = ⌊S·B/C⌋ steps (at least 1), the first blocks one more until S·B/C is used up on average; a
    block of m positions at most m.

    Args:
        prompt_lengths (`torch.LongTensor` of shape (B,)):
            Real tokens of each prompt.
        canvas_length (`int`):
            C.
        block_length (`int`):
            Tokens per full block.
        num_steps (`int`):
            S, over the whole canvas.
        anchored_at_prompt (`bool`):
            Block-causal models count blocks from the first real token, so that a prompt that ends inside a block
            shares it with the first generated tokens. Otherwise blocks are counted from the first generated position.

    Returns:
        [`BlockPlan`].
    """
    device = prompt_lengths.device
    offset = prompt_lengths % block_length if anchored_at_prompt else torch.zeros_like(prompt_lengths)
    position = offset[:, None] + torch.arange(canvas_length, device=device)  # (B, C)
    block, slot = position // block_length, position % block_length
    # Never the number of blocks of this batch: a row's plan must not depend on its neighbours.
    num_blocks = -(-(canvas_length + block_length - 1) // block_length)
    sizes = torch.zeros(len(offset), num_blocks, dtype=torch.long, device=device)
    sizes.scatter_add_(1, block, torch.ones_like(block))
    base = max(1, num_steps * block_length // canvas_length)
    extra = max(0, (num_steps * block_length - base * canvas_length) // block_length)
    wanted = base + (torch.arange(num_blocks, device=device) < extra).long()
    return BlockPlan(block, slot, torch.minimum(wanted.expand_as(sizes), sizes), min(base + (extra > 0), block_length))


def row_generators(seed: int | list[int] | None, batch_size: int) -> list[torch.Generator]:
    """One generator per row, on the CPU, so that every device draws the same numbers.

    Raises:
        ValueError: a list of seeds has another length than the batch.
    """
    if seed is None:
        seeds = torch.randint(2**62, (batch_size,)).tolist()
    elif isinstance(seed, int):
        seeds = [int(np.random.SeedSequence((seed, row)).generate_state(1, np.uint64)[0]) for row in range(batch_size)]
    elif len(seed) == batch_size:
        seeds = [int(row_seed) for row_seed in seed]
    else:
        raise ValueError(f"seed has {len(seed)} entries for {batch_size} rows; give one per row, or a single int.")
    return [torch.Generator().manual_seed(row_seed) for row_seed in seeds]


class _Noise:
    """Uniform numbers of one step, drawn row by row in a shape that depends on the settings alone."""

    def __init__(self, generators: list[torch.Generator], plan: BlockPlan, block_length: int):
        self.generators, self.slot, self.block_length = generators, plan.slot, block_length

    def draw(self, rows: torch.Tensor) -> torch.Tensor:
        """(R, C), fp64: for each of the R rows the numbers of a block, at each canvas position's slot."""
        values = [
            torch.rand(self.block_length, dtype=torch.float64, generator=self.generators[row]) for row in rows.tolist()
        ]
        return torch.stack(values).to(self.slot.device).gather(1, self.slot[rows])


@torch.no_grad()
def denoise(model, prompt_ids: torch.Tensor, prompt_mask: torch.Tensor, config: DiffusionGenerationConfig) -> Rollout:
    """Fill a canvas of masks, block by block and step by step.

    Each step runs the model on the rows that still have masks in the current block, draws a token for every masked
    position of the block, and commits those that the rule chooses. The head runs on the masked positions of the block
    alone. Blocks to the right of the current one are left out of the forward pass where attention cannot see them.
    A row ends after the block in which an EOS stands with no mask before it.

    Args:
        model:
            A diffusion language model ([`~trl_diffusion.models.DiffusionModelMixin`]), in eval mode.
        prompt_ids (`torch.LongTensor` of shape (B, P)):
            Prompts, padded on the left.
        prompt_mask (`torch.LongTensor` of shape (B, P)):
            1 on real tokens.
        config ([`DiffusionGenerationConfig`]):
            Settings.

    Returns:
        [`Rollout`].
    """
    device = prompt_ids.device
    batch_size, prompt_width = prompt_ids.shape
    length, mask_id = config.max_new_tokens, model.mask_token_id
    block_causal = model.attention == "block_causal"
    block_length = config.block_length or (model.block_length if block_causal else length)
    plan = plan_blocks(
        prompt_mask.sum(dim=1), length, block_length, config.num_denoising_steps or length, block_causal
    )
    forward_kwargs = {"block_length": block_length} if block_causal else {}
    eos_ids = config.eos_token_ids
    greedy = config.temperature == 0
    noise = _Noise(row_generators(config.seed, batch_size), plan, block_length)

    canvas = torch.full((batch_size, length), mask_id, dtype=torch.long, device=device)
    unmask_step = torch.zeros(batch_size, length, dtype=torch.int16, device=device)
    logprobs = torch.zeros(batch_size, length, dtype=torch.float32, device=device)
    forced = torch.zeros(batch_size, length, dtype=torch.bool, device=device)
    steps_done = torch.zeros(batch_size, dtype=torch.long, device=device)
    ended = torch.zeros(batch_size, dtype=torch.bool, device=device)

    for block in range(plan.steps.size(1)):
        in_block = (plan.block == block) & ~ended[:, None]  # (B, C)
        block_rows = in_block.any(dim=1).nonzero().squeeze(1)
        if not len(block_rows):
            continue
        masked_at_start = in_block.sum(dim=1)
        # A block-causal forward does not need what lies right of the block.
        end = int(in_block.any(dim=0).nonzero().max()) + 1 if block_causal else length
        for step in range(plan.max_steps):
            open_positions = in_block & (unmask_step == 0)
            rows = open_positions.any(dim=1).nonzero().squeeze(1)
            if not len(rows):
                break
            candidates = open_positions[rows]  # (R, C)
            ids = torch.cat([prompt_ids[rows], canvas[rows, :end]], dim=1)
            attention_mask = torch.cat([prompt_mask[rows], torch.ones_like(canvas[rows, :end])], dim=1).bool()
            positions = torch.cat([torch.zeros_like(ids[:, :prompt_width], dtype=torch.bool), candidates[:, :end]], 1)
            logits = model.token_logits(ids, positions, attention_mask=attention_mask, **forward_kwargs)  # (n, V)
            steps_done[rows] += 1

            # LLaDA orders by the chosen token's probability at temperature 1, whatever it was drawn with.
            at_one = token_distribution(logits, mask_id)
            if greedy:
                tokens, drawn_from = at_one.argmax(dim=-1), at_one
            else:
                drawn_from = at_one
                if config.temperature != 1 or config.filters_tokens:
                    drawn_from = token_distribution(logits, mask_id, config.temperature, config.top_k, config.top_p)
                tokens = draw(drawn_from, noise.draw(rows)[candidates])
            confidence = torch.zeros(candidates.shape, dtype=torch.float32, device=device)
            confidence[candidates] = at_one.gather(1, tokens[:, None]).squeeze(1).exp().float()
            scores = noise.draw(rows) if config.unmasking == "random" else confidence
            share = even_share(masked_at_start[rows], step, plan.steps[rows, block])
            committed, below = commit(scores, candidates, share, config.threshold)

            chosen = committed[candidates]  # (n,)
            row, column = committed.nonzero(as_tuple=True)
            where = (rows[row], column)
            canvas[where] = tokens[chosen]
            logprobs[where] = drawn_from.gather(1, tokens[:, None]).squeeze(1)[chosen].float()
            unmask_step[where] = steps_done[rows[row]].to(torch.int16)
            forced[where] = below[row, column]
        if eos_ids:
            # Blocks before this one are full, so an EOS drawn up to here has no mask before it.
            ended |= torch.isin(canvas, torch.tensor(eos_ids, device=device)).any(dim=1)

    return Rollout(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        canvas_ids=canvas,
        unmask_step=unmask_step,
        logprobs=logprobs,
        forced=forced,
        completion_mask=completion_mask(canvas, eos_ids),
        num_forward_passes=steps_done,
        block_length=block_length,
        temperature=config.temperature or 1.0,
        filtered=config.filters_tokens and not greedy,
    )
