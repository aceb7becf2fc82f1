# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Rollouts of the RL trainers."""

import numpy as np
import torch
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import pad

from ..generation import DiffusionGenerationConfig, Rollout, trajectory_statistics
from ..models import diffusion_model
from .block_schedule import BlockLengths
from .checks import map_style_datasets
from .sharding import gathered_weights


class RolloutMixin:
    """Generates by denoising where TRL's GRPOTrainer generates from left to right, with a seed of its own for every
    row. The last [`Rollout`] waits in `_rollout` until TRL has scored its completions."""

    _rollout: Rollout | None = None
    _rollout_seeds: list[int] | None = None
    _num_eval_batches = 0
    # Of the rollouts that are trained on.
    _current_block_lengths: BlockLengths | None = None

    def evaluation_loop(self, *args, **kwargs):
        """TRL's, with the same seeds at every evaluation."""
        self._num_eval_batches = 0
        with torch.random.fork_rng(devices=[]):  # the data loader draws a seed: training goes on as if nothing were
            return super().evaluation_loop(*args, **kwargs)

    def _block_lengths(self) -> BlockLengths:
        """Block lengths of the rollouts to come."""
        block_length = self.args.block_length or self._own_block_length
        return BlockLengths(block_length, block_length)

    def _remember_block_lengths(self, lengths: BlockLengths):
        """Let the model, and the checkpoints to come, say which blocks it is trained for."""
        self._current_block_lengths = lengths
        family = self._dllm
        generation_config = family.generation_config
        if lengths.training is not None and family.attention == "block_causal":
            family.config.block_length = lengths.training
            # Where the generation config names no block, the model's own is meant.
            if generation_config.block_length is not None:
                self._set_generation_block(lengths.rollout)

    def _set_generation_block(self, block_length: int):
        generation_config = self._dllm.generation_config
        if (generation_config.max_new_tokens or 0) < block_length:
            generation_config.max_new_tokens = max(self.max_completion_length, block_length)
        generation_config.block_length = block_length

    def _check_prompt_lengths(self):
        """Raise for the first prompt that does not fit in front of the canvas, while nothing is lost yet."""
        limit = self._dllm.config.max_position_embeddings - self.max_completion_length
        for name, dataset in map_style_datasets(self):
            for start in range(0, len(dataset), 1000):
                prompts = dataset[start : start + 1000]["prompt"]
                for row, ids in enumerate(self._tokenize_prompts(prompts)[0]):
                    if not ids:
                        raise ValueError(f"{name}[{start + row}]['prompt'] has no tokens. Drop such rows.")
                    if len(ids) > limit:
                        raise ValueError(
                            f"{name}[{start + row}]['prompt'] has {len(ids)} tokens; with max_completion_length="
                            f"{self.max_completion_length} the model leaves room for {limit}. Filter such prompts, or "
                            "make the canvas shorter."
                        )

    def _row_seeds(self, num_rows: int) -> list[int]:
        """One seed per row, from (seed, generation, global row): the same for any number of processes."""
        start = self.accelerator.process_index * num_rows
        if self.model.training:
            generation = (self.state.global_step, self._step, 0)
        else:
            generation = (0, self._num_eval_batches, 1)  # the same noise at every evaluation of a run
            self._num_eval_batches += 1
        return [
            int(np.random.SeedSequence((self.args.seed, *generation, start + row)).generate_state(1, np.uint64)[0])
            for row in range(num_rows)
        ]

    def _view_seeds(self, device: torch.device) -> torch.Tensor:
        """The seeds of the last rollout's rows, from which whatever its views draw comes: (B,), int64, 63 bits."""
        return torch.tensor([seed >> 1 for seed in self._rollout_seeds], device=device)

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        """Denoise one completion per prompt; keeps the [`Rollout`] on `self` and returns the ids cut after EOS."""
        if not all(prompt_ids):
            raise ValueError(
                "A prompt has no tokens. Drop empty prompts from the dataset, or give them a first token such as BOS."
            )
        tensors = [torch.tensor(ids) for ids in prompt_ids]
        padded = pad(tensors, padding_value=self._tokenizer.pad_token_id, padding_side="left")
        mask = pad([torch.ones_like(ids) for ids in tensors], padding_value=0, padding_side="left")
        self._rollout_seeds = self._row_seeds(len(prompt_ids))
        self._rollout = self._denoise(padded, mask, self._rollout_seeds)
        self._log_trajectories("train" if self.model.training else "eval", self._rollout)
        return self._rollout.completions(), None

    def _rollout_config(self, seeds: list[int] | None, **changes) -> DiffusionGenerationConfig:
        """The settings of rollouts with these seeds; `changes` replace fields."""
        block_length = self._block_lengths().rollout
        if block_length == self._dllm.block_length:
            block_length = None  # the model's own, which may be longer than the canvas
        settings = {
            "block_length": block_length,
            "eos_token_id": [token for token in self.eos_token_ids if token is not None],
            "pad_token_id": self._tokenizer.pad_token_id,
            "seed": seeds,
            "return_dict_in_generate": True,
            "output_entropies": True,
        }
        return self.args.diffusion_generation_config(**{**settings, **changes})

    def _denoise(
        self,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        seeds: list[int],
        hint_ids: torch.Tensor | None = None,
    ) -> Rollout:
        """A rollout of each prompt, (B, P), padded on the left, around hints, (B, C), −100 where the model fills."""
        config = self._rollout_config(seeds)
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as unwrapped_model,
            self._dist.summon_full_params(self.model_wrapped, recurse=False),  # FSDP1
            gathered_weights(self.model_wrapped),
            # What is wrapped in autocast is PEFT's forward, which generation does not call.
            self.accelerator.autocast(),
        ):
            output = diffusion_model(unwrapped_model).generate(
                prompt_ids.to(self.accelerator.device),
                prompt_mask.to(self.accelerator.device),
                generation_config=config,
                hint_ids=None if hint_ids is None else hint_ids.to(self.accelerator.device),
            )
        return output.rollout

    def _logged_rows(self, num_rows: int) -> torch.Tensor:
        """Rows of this process' last rollout that metrics are of, (B,)."""
        return torch.ones(num_rows, dtype=torch.bool, device=self.accelerator.device)

    def _log_trajectories(self, mode: str, rollout: Rollout):
        """Means over the completions of all processes."""
        block_causal = self._dllm.attention == "block_causal"
        statistics = trajectory_statistics(rollout, block_causal=block_causal)
        named = {"generation/forward_passes": rollout.num_forward_passes.float()}
        named |= {f"trajectory/{name}": values for name, values in statistics.items()}
        own = torch.stack([values.float() for values in named.values()], dim=1)  # (B, n)
        gathered = self.accelerator.gather(own.masked_fill(~self._logged_rows(len(own))[:, None], torch.nan))
        for name, values in zip(named, gathered.unbind(dim=1), strict=True):
            self._metrics[mode][name].append(torch.nanmean(values).item())
