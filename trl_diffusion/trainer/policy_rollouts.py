# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Rollouts that an unmasking policy, and an expert, decide; and the policy's environment."""

from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl.trainer.utils import get_config_model_id

from ..generation import Rollout
from ..generation.recording import PolicyRecord, RecordingPolicy
from ..models import AutoModelForDiffusionLM, DiffusionModelMixin, UnmaskPolicyModel, UnmaskPolicyModelConfig
from .checks import HUB_KWARGS, check_model_source
from .unmask_policy_config import UnmaskPolicyConfig


class PolicyRolloutMixin:
    """Rollouts of a frozen diffusion language model, `_dllm`, whose steps `_policy` decides. What it saw and did in
    the last one waits in `_record`."""

    _record: PolicyRecord | None = None

    def _expert_rows(self, num_rows: int) -> torch.Tensor:
        """Which rows of this process are the expert's, (B,): the last of each group, in training."""
        start = self.accelerator.process_index * num_rows
        return self._is_expert(torch.arange(start, start + num_rows, device=self.accelerator.device))

    def _is_expert(self, places: torch.Tensor) -> torch.Tensor:
        """The same by the rows' places in the batch of all processes."""
        steers = self.args.expert_steering and self.model.training
        return (places % self.num_generations == self.num_generations - 1) & steers

    def _denoise(self, prompt_ids, prompt_mask, seeds, hint_ids=None) -> Rollout:
        device, args = self.accelerator.device, self.args
        policy = self._policy
        prompt_ids, prompt_mask = prompt_ids.to(device), prompt_mask.to(device)
        if not self.model.training:
            self._record = None
            return self._generate_rows(prompt_ids, prompt_mask, self._rollout_config(seeds, unmasking=policy))
        expert = self._expert_rows(len(seeds)).tolist()
        parts: list[tuple[list[int], Rollout, RecordingPolicy]] = []
        for is_expert in (False, True):
            rows = [row for row, own in enumerate(expert) if own == is_expert]
            if not rows:
                continue
            changes: dict[str, Any] = {}
            if is_expert:
                if self._dllm.attention == "full":
                    changes["block_length"] = min(args.expert_block_length, self.max_completion_length)
                watched = RecordingPolicy("threshold", policy.inputs, threshold=args.expert_threshold)
            else:
                watched = RecordingPolicy(policy, policy.inputs, temperature=args.policy_temperature, beta=1.0)
            config = self._rollout_config([seeds[row] for row in rows], unmasking=watched, **changes)
            parts.append((rows, self._generate_rows(prompt_ids[rows], prompt_mask[rows], config), watched))
        rollout = Rollout.interleaved([(rows, part) for rows, part, _ in parts])
        self._record = self._joined_record(parts, rollout)
        return rollout

    def _generate_rows(self, prompt_ids: torch.Tensor, prompt_mask: torch.Tensor, config) -> Rollout:
        with torch.no_grad(), self.accelerator.autocast():
            return self._dllm.generate(prompt_ids, prompt_mask, generation_config=config).rollout

    @staticmethod
    def _joined_record(parts: list, rollout: Rollout) -> PolicyRecord:
        """The records of all rows, in their order."""
        num_steps = int(rollout.num_forward_passes.max())
        records = [watched.record(len(rows), num_steps) for rows, _, watched in parts]
        rows = [row for own, _, _ in parts for row in own]
        order = sorted(range(len(rows)), key=rows.__getitem__)
        tensors = zip(*[(record.features, record.rank, record.decided) for record in records], strict=True)
        return PolicyRecord(*[torch.cat(pieces)[order] for pieces in tensors])


def load_policy(model: UnmaskPolicyModel | str | None, args: UnmaskPolicyConfig) -> UnmaskPolicyModel:
    if not isinstance(model, str) and args.model_init_kwargs is not None:
        raise ValueError("model_init_kwargs has no effect: the policy is not loaded by name. Leave it out.")
    if model is None:
        return UnmaskPolicyModel(UnmaskPolicyModelConfig())
    if isinstance(model, str):
        return UnmaskPolicyModel.from_pretrained(model, **(args.model_init_kwargs or {}))
    if not isinstance(model, UnmaskPolicyModel):
        raise TypeError(
            f"model is a {type(model).__name__}; it must be an UnmaskPolicyModel, the name of one, or None for a new "
            "one. The diffusion language model is `dllm`."
        )
    return model


def load_dllm(dllm, args: UnmaskPolicyConfig, quantization_config) -> DiffusionModelMixin | PeftModel:
    check_model_source(dllm, args, args.dllm_init_kwargs or {}, "dllm")
    if not isinstance(dllm, str):
        for name, value in (("quantization_config", quantization_config), ("dllm_init_kwargs", args.dllm_init_kwargs)):
            if value is not None:
                raise ValueError(f"{name} has no effect: dllm is loaded already. Pass its name, or leave it out.")
        return dllm
    # What is trained is loaded in fp32, as TRL does.
    kwargs = {"dtype": "auto" if args.dllm_learning_rate is None else "float32", **(args.dllm_init_kwargs or {})}
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
    return AutoModelForDiffusionLM.from_pretrained(dllm, **kwargs)


def load_tokenizer(family: DiffusionModelMixin, args: UnmaskPolicyConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a diffusion language model, from where that came from."""
    source = get_config_model_id(family.config)
    hub_kwargs = {name: value for name, value in (args.dllm_init_kwargs or {}).items() if name in HUB_KWARGS}
    try:
        if not source:
            raise ValueError("it was built in memory")
        return AutoTokenizer.from_pretrained(source, padding_side="left", trust_remote_code=False, **hub_kwargs)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"processing_class is None, and dllm has no tokenizer that can be loaded ({str(error).splitlines()[0]}). "
            "Pass its tokenizer."
        ) from error


@contextmanager
def as_language_model(policy: UnmaskPolicyModel, family: DiffusionModelMixin):
    """Lets TRL find on the policy what it looks for on a language model; the policy is as it was afterwards."""
    config, pad_token_id = policy.config, getattr(policy.config, "pad_token_id", None)
    policy.generation_config = family.generation_config
    try:
        yield
    finally:
        del policy.generation_config
        config.pad_token_id = pad_token_id
