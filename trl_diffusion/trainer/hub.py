# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What the trainers save beside the weights, and upload."""

import os
import shutil
import tempfile
from concurrent.futures import Future

from peft import PeftModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import PushInProgress, logging
from trl.trainer.utils import get_config_model_id

from ..hub import check_base, check_kind, check_one_kind, hub_files, prepare_repo, push_folder, write_training_args
from ..models import merge_adapter_folder
from .card import DiffusionCardMixin


logger = logging.get_logger(__name__)


class HubMixin(DiffusionCardMixin):
    """The [`~transformers.Trainer`]'s `push_to_hub` and its uploads of checkpoints, of those files alone that belong
    to the model: no optimizers, rollouts, logs, or pickled arguments with tokens in them. A saved folder holds how to
    decode and the arguments of the training as JSON.

    That the repository can be written to is found out when the trainer is built.
    """

    def init_hf_repo(self, token: str | None = None, private: bool | None = None):
        """Create the repository, and make sure that what is trained can be pushed there; see
        [`~transformers.Trainer.init_hf_repo`].

        Raises:
            HubError: no token, no permission, no network, a name that is not valid, or a repository of something else.
            ValueError: what is trained could not be used from the Hub.
        """
        if not self.is_world_process_zero():
            return
        self._check_pushable(self.args.push_merged_adapter)
        token = token or self.args.hub_token
        private = self.args.hub_private_repo if private is None else private
        repo_id = self.args.hub_model_id or os.path.basename(os.path.abspath(self.args.output_dir))
        self.hub_model_id = prepare_repo(repo_id, token, private, self.args.hub_revision)
        check_kind(self.hub_model_id, self._hub_kind(self.args.push_merged_adapter), token, self.args.hub_revision)
        self.push_in_progress = None

    def _hub_kind(self, merge: bool) -> str:
        """What [`folder_kind`] says of the files that are pushed."""
        return "adapter" if isinstance(self.model, PeftModel) and not merge else "model"

    def _check_pushable(self, merge: bool):
        """Raise while nothing is lost yet."""
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(
                f"hub_strategy={self.args.hub_strategy.value!r} is not supported: checkpoints hold optimizers, "
                "rollouts and pickled arguments. Set 'every_save', which pushes the model of each, or 'end'."
            )
        unmasking = getattr(self.args, "unmasking", None)
        if isinstance(unmasking, str) and os.path.isdir(unmasking):
            raise ValueError(
                f"unmasking={unmasking!r} is a folder of this machine, which the pushed model could not load. Push "
                "that policy first, and name its id."
            )
        check_one_kind(self.args.output_dir, self._hub_kind(False))
        if merge:
            self._check_mergeable()
        elif isinstance(self.model, PeftModel):
            base = get_config_model_id(self._card_model.config)
            if not base:
                raise ValueError(
                    "The base model of the adapter was built in memory: nobody could load the adapter. Save the base, "
                    "push it, and train from there."
                )
            check_base(base)

    def _check_mergeable(self):
        if not isinstance(self.model, PeftModel):
            raise ValueError("push_merged_adapter=True has no effect: the model has no adapter. Leave it out.")
        family = self.model.get_base_model()
        if getattr(family, "is_quantized", False):
            raise ValueError(
                "push_merged_adapter=True with a quantized base: merging would round what was learned, and a packed "
                "model has no Hub format. Push the adapter; or, afterwards, merge it into the base at full precision "
                "(`trl-diffusion push --model output_dir --merge_adapter`) and evaluate that."
            )
        if self.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            raise ValueError(
                "push_merged_adapter=True is not supported where the weights are sharded (FSDP, ZeRO-3). Merge "
                "afterwards: `trl-diffusion push --model output_dir --merge_adapter`."
            )
        if not get_config_model_id(family.config):
            raise ValueError(
                "push_merged_adapter=True, and the base was built in memory: it is read again for merging. Save it, "
                "and load it from there."
            )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        revision = (getattr(self.args, "model_init_kwargs", None) or {}).get("revision")
        if isinstance(self.model, PeftModel) and revision:
            for config in self.model.peft_config.values():
                config.revision = config.revision or revision  # of the base, for whoever loads the adapter
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self._write_run_files(self.args.output_dir if output_dir is None else output_dir)

    def _write_run_files(self, folder: str):
        """How to decode, and how it was trained."""
        self._hub_generation_config().save_pretrained(folder)
        quantization = None
        family = self._card_model.get_base_model() if isinstance(self._card_model, PeftModel) else self._card_model
        if getattr(family, "is_quantized", False):
            quantization = str(family.config.quantization_config.quant_method)
        repo_id = self.hub_model_id or self.args.output_dir
        write_training_args(folder, repo_id, type(self).__name__, self.args.to_dict(), quantization)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        merge_adapter: bool | None = None,
        **kwargs,
    ):
        """As [`~transformers.Trainer.push_to_hub`]; what is uploaded loads by its id and decodes as it was trained.

        The model is saved first: where the Hub fails, it and its card are in `output_dir`, for `trl-diffusion push`.

        Args:
            commit_message, blocking, token, revision, private:
                As in [`~transformers.Trainer.push_to_hub`].
            merge_adapter (`bool`, *optional*):
                Push the base with the adapter merged into its weights, instead of the adapter. The base is read again
                for it, on the CPU; the upload is then waited for. Defaults to `push_merged_adapter` of the config.
            kwargs:
                For [`create_model_card`].

        Raises:
            HubError, ValueError: as [`init_hf_repo`].
        """
        merge = self.args.push_merged_adapter if merge_adapter is None else merge_adapter
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token or self.args.hub_token
        tags = kwargs.pop("tags", None) or []
        tags = [*([tags] if isinstance(tags, str) else tags), *(getattr(self.model, "model_tags", None) or [])]
        repo_id = self.hub_model_id or self.args.hub_model_id or os.path.abspath(self.args.output_dir)
        card = {"model_name": kwargs.pop("model_name", None) or os.path.basename(repo_id), "tags": tags, **kwargs}
        # Before the Hub is asked anything: what was trained is not lost where it does not answer.
        self.save_model(_internal_call=True)
        self.create_model_card(**card)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
            if self.is_world_process_zero():  # they name the repository
                self._write_run_files(self.args.output_dir)
                self.create_model_card(**card)
        if not self.is_world_process_zero():
            return None
        revision = revision or self.args.hub_revision
        self._check_pushable(merge)
        if revision != self.args.hub_revision:
            prepare_repo(self.hub_model_id, token, revision=revision)
        check_kind(self.hub_model_id, self._hub_kind(merge), token, revision)
        self._finish_current_push()
        folder = self.args.output_dir
        where = (self.hub_model_id, commit_message, token, revision)
        if not merge:
            return push_folder(folder, *where, blocking)
        with tempfile.TemporaryDirectory() as merged:
            merge_adapter_folder(folder, merged)
            return push_folder(merged, *where)

    def _push_from_checkpoint(self, checkpoint_folder: str):
        """The Trainer's, of the model's files alone. What is pushed merged is pushed at the end."""
        end = self.args.hub_strategy == HubStrategy.END or self.args.push_merged_adapter
        if not self.is_world_process_zero() or end:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # As the Trainer does: a checkpoint may be deleted while its files are on their way.
        for name in hub_files(checkpoint_folder):
            if self._pushes_from_checkpoint(name):
                path = os.path.join(self.args.output_dir, name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                shutil.copy(os.path.join(checkpoint_folder, name), path)
        self._write_run_files(self.args.output_dir)
        at = f"step {self.state.global_step}"
        if self.args.save_strategy != SaveStrategy.STEPS:
            at = f"epoch {int(self.state.epoch)}"
        job = push_folder(
            self.args.output_dir,
            self.hub_model_id,
            f"Training in progress, {at}",
            self.args.hub_token,
            self.args.hub_revision,
            blocking=False,
        )
        job.add_done_callback(_report_failure)
        if busy:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])

    def _pushes_from_checkpoint(self, name: str) -> bool:
        """Whether a file of a checkpoint belongs to what is shared. PEFT's card is none."""
        return name != "README.md"


def _report_failure(job: Future):
    """A checkpoint that is not pushed is no reason to stop a training."""
    error = None if job.cancelled() else job.exception()
    if error is not None:
        logger.warning(f"A checkpoint was not pushed: {error} The training goes on; it is on this machine.")
