# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Resuming a run of reinforcement learning exactly where it stopped."""

import json
import os
from contextlib import suppress

import torch
from accelerate.utils import send_to_device
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging
from trl.trainer.utils import RepeatSampler

from .block_schedule import BlockLengths


logger = logging.get_logger(__name__)


class EpochRepeatSampler(RepeatSampler):
    """TRL's sampler with an order that depends on the epoch, not on how often it was iterated in this process."""

    def set_epoch(self, epoch: int):
        if self.shuffle:
            self.generator.manual_seed(self.seed + epoch)


class ResumableRolloutsMixin:
    """Saves what TRL's GRPOTrainer forgets in a checkpoint: its step counter and the rollouts still to be trained on.

    TRL starts again with an empty buffer and a counter of 0, so that a checkpoint between two generations goes on
    with other rollouts, and its sampler starts again with the first epoch's order.
    """

    _epoch_sampler: EpochRepeatSampler | None = None

    # Fields of the config that what is kept of a rollout depends on: its views and old scores.
    _ROLLOUT_FIELDS = ("likelihood", "prompt_mask_probability", "temperature")

    def _rollout_settings(self) -> dict:
        settings = {name: getattr(self.args, name) for name in self._ROLLOUT_FIELDS}
        return settings | {"beta is not 0": self.args.beta != 0}

    def _get_train_sampler(self, dataset=None):
        dataset = self.train_dataset if dataset is None else dataset
        self._epoch_sampler = EpochRepeatSampler(
            data_source=dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )
        return self._epoch_sampler

    def _rollout_state_path(self, folder: str) -> str:
        return os.path.join(folder, f"rollouts_{self.accelerator.process_index}.pt")

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """TRL's. With `resume_from_checkpoint=True` it goes on from the last checkpoint that was written whole."""
        if isinstance(resume_from_checkpoint, bool) and resume_from_checkpoint:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model, trial):
        # Before the parent, which ends with what makes a checkpoint whole, and then deletes older ones.
        folder = os.path.join(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        os.makedirs(folder, exist_ok=True)
        if self.args.should_save:
            # A checkpoint of this step that an earlier run left is overwritten file by file: no longer whole.
            with suppress(FileNotFoundError):
                os.remove(os.path.join(folder, TRAINER_STATE_NAME))
        self.accelerator.wait_for_everyone()
        if not self.args.save_only_model:
            self._save_training_state(folder)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        # The main process now writes what makes the checkpoint whole, and deletes older ones: not before the others
        # have written their files.
        self.accelerator.wait_for_everyone()

    def _save_training_state(self, folder: str):
        """Write what a checkpoint needs that TRL leaves out."""
        path = self._rollout_state_path(folder)
        state = {
            "step": self._step,
            "rollouts": self._buffered_inputs,
            "block_lengths": tuple(self._current_block_lengths),
            "num_processes": self.accelerator.num_processes,
            "settings": self._rollout_settings(),
        }
        torch.save(state, f"{path}.tmp")
        os.replace(f"{path}.tmp", path)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = self._rollout_state_path(checkpoint)
        if not os.path.exists(path):
            raise ValueError(
                f"resume_from_checkpoint={checkpoint!r} has no {os.path.basename(path)}: it was not written by "
                f"{type(self).__name__} with {self.accelerator.num_processes} process(es), or with "
                "save_only_model=True. Start from its weights instead (model=…)."
            )
        # Not `map_location`, which does not know the device of one of several processes on a CPU ("cpu:0").
        state = send_to_device(torch.load(path, weights_only=True, map_location="cpu"), self.accelerator.device)
        found = (state["num_processes"], len(state["rollouts"]))
        wanted = (self.accelerator.num_processes, self.args.steps_per_generation)
        if found != wanted:
            raise ValueError(
                f"resume_from_checkpoint={checkpoint!r} is in the middle of rollouts of {found[0]} process(es) with "
                f"steps_per_generation={found[1]}; this run has {wanted[0]} with {wanted[1]}. Run it as it was, or "
                "start from its weights instead (model=…)."
            )
        was = state.get("settings", {})
        in_the_middle = state["step"] % (self.args.steps_per_generation * self.num_iterations) != 0
        for name, value in self._rollout_settings().items():
            if in_the_middle and was.get(name) != value:
                raise ValueError(
                    f"resume_from_checkpoint={checkpoint!r} is in the middle of rollouts with {name}="
                    f"{was.get(name, 'unknown')!r}; this run has {value!r}. Run it as it was, or start from its "
                    "weights instead (model=…)."
                )
        self._step, self._buffered_inputs = state["step"], state["rollouts"]
        # A schedule may be further already than the rollouts are.
        self._remember_block_lengths(BlockLengths(*state["block_lengths"]))
        # The Trainer tells the sampler the epoch, but not where several processes skip the batches of before.
        if self._epoch_sampler is not None:
            self._epoch_sampler.set_epoch(int(self.state.epoch))


def last_whole_checkpoint(output_dir: str) -> str:
    """The newest checkpoint of a folder whose writing was not interrupted.

    Raises:
        ValueError: there is none.
    """
    found = []
    for name in os.listdir(output_dir) if os.path.isdir(output_dir) else []:
        step = name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if name != step and step.isdecimal():
            found.append((int(step), os.path.join(output_dir, name)))
    for _, folder in sorted(found, reverse=True):
        # The Trainer writes its state last.
        try:
            with open(os.path.join(folder, TRAINER_STATE_NAME), encoding="utf-8") as file:
                json.load(file)
        except (OSError, ValueError):
            logger.warning(f"{folder} was not written to its end; an older checkpoint is resumed.")
            continue
        return folder
    raise ValueError(
        f"resume_from_checkpoint=True, but output_dir={output_dir!r} holds no whole checkpoint. Start without it."
    )
