# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What all RL trainers share: TRL's GRPOTrainer with rollouts by denoising."""

import math
from typing import Any

import torch
from transformers.utils import logging
from trl import GRPOTrainer

from ..generation import DiffusionGenerationConfig, Rollout
from ..generation.checks import check_settings
from ..generation.configuration import rule_path
from ..models import DiffusionModelMixin, diffusion_model
from .checks import check_dataset, settle_mask_token
from .denoising_config import DenoisingGRPOConfig
from .group_rewards import GroupRewardsMixin
from .hub import HubMixin
from .resume import ResumableRolloutsMixin
from .rollouts import RolloutMixin


logger = logging.get_logger(__name__)


class DenoisingGRPOTrainer(HubMixin, ResumableRolloutsMixin, RolloutMixin, GroupRewardsMixin, GRPOTrainer):
    """TRL's [`~trl.GRPOTrainer`] with completions made by denoising: prompts, rewards, groups, advantages, logging and
    the Hub are TRL's. What is trained, and on which likelihood, is left to those that inherit it.

    Args:
        As [`~trl.GRPOTrainer`].

    Raises:
        ValueError: an empty dataset, a prompt too long for the model, no mask token, or an argument of
            [`~trl.GRPOTrainer`] that has no meaning here (`tools`, `rollout_func`, `environment_factory`).
        TypeError: `args` is no config of this trainer.
    """

    _config_class = DenoisingGRPOConfig

    def __init__(
        self,
        model,
        reward_funcs,
        args: DenoisingGRPOConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        *,
        tools=None,
        rollout_func=None,
        environment_factory=None,
        **kwargs,
    ):
        for name, value in (
            ("tools", tools),
            ("rollout_func", rollout_func),
            ("environment_factory", environment_factory),
        ):
            if value is not None:
                raise ValueError(
                    f"{name} is not supported by {type(self).__name__}: a canvas is one turn, written by the model."
                )
        check_dataset(train_dataset, "train_dataset", "prompt")
        check_dataset(eval_dataset, "eval_dataset", "prompt")
        if not reward_funcs:
            raise ValueError(f"reward_funcs={reward_funcs!r} is empty: give at least one reward function.")
        reward_funcs = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        super().__init__(
            model,
            self._wrap_rewards(reward_funcs),
            self._settled_args(args),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        family = self._dllm
        settle_mask_token(family, self._tokenizer)
        # A checkpoint names the block it was trained for, so that the config of a model in training may change.
        self._own_block_length = family.block_length
        self._check_block_lengths(family)
        self._check_prompt_lengths()
        self._check_correctness_reward()

    def _settled_args(self, args: DenoisingGRPOConfig | None) -> DenoisingGRPOConfig:
        """The config, or that of the defaults."""
        if args is None:
            return self._config_class(f"{self._name.lower().replace(' ', '-')}-output")
        if not isinstance(args, self._config_class):
            raise TypeError(
                f"args is a {type(args).__name__}; {type(self).__name__} takes a {self._config_class.__name__}."
            )
        return args

    @property
    def _dllm(self) -> DiffusionModelMixin:
        """The diffusion language model that makes the rollouts."""
        return diffusion_model(self.model)

    def _check_block_lengths(self, family: DiffusionModelMixin):
        """Raise for rollouts that the model cannot make, while nothing is lost yet."""
        check_settings(family, self.args.diffusion_generation_config())

    # Rollouts

    @property
    def _is_off_policy(self) -> bool:
        """Whether updates go past the policy that generated, whose log-probabilities are then needed."""
        generate_every = self.args.steps_per_generation * self.num_iterations
        return self.args.gradient_accumulation_steps % generate_every != 0

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        mode = "train" if self.model.training else "eval"
        lengths = self._block_lengths()
        if mode == "train":
            self._remember_block_lengths(lengths)
        output = super()._generate_and_score_completions(inputs)
        rollout = self._rollout
        self._rollout = None
        self._restore_logged_rewards(mode)
        # TRL knows the completions cut after EOS. The views need the whole canvas, and when each token was committed.
        output["completion_ids"] = rollout.canvas_ids
        output["completion_mask"] = rollout.completion_mask
        if self.mask_truncated_completions:
            output["completion_mask"] = rollout.completion_mask * ~self._truncated(rollout.completions())[:, None]
        output["unmask_step"] = rollout.unmask_step
        output["view_seed"] = self._view_seeds(output["completion_ids"].device)
        if lengths.training is not None:
            output["block_length"] = torch.tensor(lengths.training)
        for placeholder in ("old_per_token_logps", "ref_per_token_logps"):
            output.pop(placeholder, None)
        if mode == "train":
            self._choose_rows(output)
        self._complete_batch(output, rollout, mode)
        return output

    def _complete_batch(self, output: dict[str, torch.Tensor], rollout: Rollout, mode: str):
        """Put into a generation batch what the loss needs beyond the rollout and the advantages."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its loss needs.")

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        # TRL asks for causal log-probabilities here. They are replaced after the rollout's canvas is known.
        return torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device), None, None

    # Files

    def _hub_generation_config(self, **changes) -> DiffusionGenerationConfig:
        """The rollouts' settings, greedy: as a run evaluates. `changes` replace fields."""
        eos = [token for token in self.eos_token_ids if token is not None]
        greedy = {"temperature": 0.0, "top_k": None, "top_p": None}
        tokens = {"eos_token_id": eos[0] if len(eos) == 1 else eos}
        tokens["bos_token_id"] = self._dllm.generation_config.bos_token_id
        output = {"return_dict_in_generate": False, "output_entropies": False}
        config = self._rollout_config(None, **{**greedy, **tokens, **output, **changes})
        rule = config.unmasking
        if not isinstance(rule, str) and rule_path(rule) is None:
            # Of a subclass. The end of a training is no time to fail for it.
            logger.warning_once(
                f"unmasking={rule!r} cannot be named in generation_config.json, where unmasking="
                f"{self.args.unmasking!r} stands for it: give the rule to `generate`, or define the function at the "
                "top level of a module that can be imported."
            )
            config.unmasking = self.args.unmasking
        return config

    # Metrics

    def _means(self, totals: dict[str, torch.Tensor], of_nothing: float = 0.0) -> dict[str, float]:
        """The means of [`add_means`] over all processes."""
        names = sorted(totals)
        sums = self.accelerator.reduce(torch.stack([totals[name] for name in names]), reduction="sum").tolist()
        return {n: total / count if count else of_nothing for n, (total, count) in zip(names, sums, strict=True)}

    def _log_means(self, mode: str, totals: dict[str, torch.Tensor]):
        for name, mean in self._means(totals, of_nothing=math.nan).items():
            if not math.isnan(mean):  # a micro-batch without such tokens says nothing about them
                self._metrics[mode][name].append(mean)


def add_means(totals: dict[str, torch.Tensor], values: dict[str, torch.Tensor], chosen: torch.Tensor):
    """Collect means over chosen entries: adds their sum and number to `totals`, (2,) for each name.

    Args:
        totals (`dict[str, torch.FloatTensor]`):
            Changed in place.
        values (`dict[str, torch.Tensor]`), chosen (`torch.BoolTensor`):
            Of the same shape.
    """
    for name, value in values.items():
        # Not a product, of which a NaN outside would be left.
        kept = value.detach().float().masked_fill(~chosen, 0.0)
        totals[name] = totals.get(name, 0.0) + torch.stack([kept.sum(), chosen.sum().float()])
