# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What the steps of a trajectory cost, and how an expert's steps are scored (arXiv 2512.09106)."""

import math

import torch


def speed_rewards(
    rewards: torch.Tensor,
    time: torch.Tensor,
    alpha: float,
    form: str,
    weights: torch.Tensor,
    names: list[str],
) -> torch.Tensor:
    """Rewards of completions, with what their steps cost taken off.

        multiplicative:  r · (1 − T/C)^α        additive:  r − α · T/C

    Args:
        rewards (`torch.FloatTensor` of shape (N, F)):
            Of F functions, NaN where one does not apply.
        time (`torch.FloatTensor` of shape (N,)):
            T/C: steps over the length of the canvas.
        alpha (`float`):
            α ≥ 0.
        form (`str`):
            `"multiplicative"` or `"additive"`.
        weights (`torch.FloatTensor` of shape (F,)):
            Weights that the functions are summed with; of the additive cost each takes its share, so that their
            weighted sum is r − α · T/C.
        names (`list[str]`):
            Names of the functions.

    Returns:
        `torch.FloatTensor` of shape (N, F), NaN where `rewards` is.

    Raises:
        ValueError: a reward below 0 in the multiplicative form, where slowness would make it better; in the additive
            one, weights of a completion that add up to 0.
    """
    if form == "multiplicative":
        if (rewards < 0).any():
            row, column = (rewards < 0).nonzero()[0].tolist()
            raise ValueError(
                f"reward function {names[column]!r} returned {rewards[row, column].item()}: with reward_form="
                "'multiplicative' rewards must not be negative, since steps would make them better. Shift them, or "
                "set reward_form='additive'."
            )
        return rewards * (1 - time).clamp(min=0)[:, None] ** alpha
    present = ~rewards.isnan()
    shares = (present * weights).sum(dim=1)
    if (present.any(dim=1) & (shares == 0)).any():
        raise ValueError("reward_weights add up to 0, so that reward_form='additive' has nothing to take a cost from.")
    return rewards - (alpha * time / shares)[:, None]


def mixture_log_prob(log_probs: torch.Tensor, num_generations: int) -> torch.Tensor:
    """An expert's step under the mixture of G − 1 rollouts of the policy and one of the expert, which does what it did
    for certain: log[((G − 1) π + 1) / G].

    Args:
        log_probs (`torch.FloatTensor` of shape (n,)):
            log π of the steps.
        num_generations (`int`):
            G ≥ 2, the expert counted.

    Returns:
        `torch.FloatTensor` of shape (n,).
    """
    if num_generations < 2:
        return log_probs
    ours = log_probs + math.log(num_generations - 1)
    return torch.logaddexp(ours, torch.zeros_like(ours)) - math.log(num_generations)


class StepRewardsMixin:
    """Rewards of completions less what their steps cost, and which groups of them there is something to learn from."""

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)  # (N, F)
        steps = self.accelerator.gather(self._rollout.num_forward_passes)  # (N,)
        self._rewards_for_steps = speed_rewards(
            rewards,
            steps / self.max_completion_length,
            self.args.alpha,
            self.args.reward_form,
            self.reward_weights.to(rewards.device),
            self.reward_func_names,
        )
        if self._correctness is not None:
            # How hard a problem is goes by the policy's own completions.
            expert = self._is_expert(torch.arange(len(rewards), device=rewards.device))
            self._correctness = self._correctness.masked_fill(expert, torch.nan)
        return self._rewards_for_steps

    def _logged_rows(self, num_rows: int) -> torch.Tensor:
        return ~self._expert_rows(num_rows)

    def _restore_logged_rewards(self, mode: str):
        """In the metrics the functions' own rewards, and as `reward` what the policy is trained on, both of the
        policy's own completions."""
        metrics, trained = self._metrics[mode], self._rewards_for_steps
        expert = self._is_expert(torch.arange(len(trained), device=trained.device))  # (N,)
        self._log_rewards_anew(mode, trained[~expert])
        if expert.any():
            weights = self.reward_weights.to(trained.device)
            metrics["expert/reward"].append(torch.nanmean((trained[expert] * weights).nansum(dim=1)).item())
        values = (metrics["reward"][-1], metrics["reward_std"][-1])
        self._log_rewards_anew(mode, self._all_rewards[~expert])
        metrics["reward"][-1], metrics["reward_std"][-1] = values

    def _totals(self) -> torch.Tensor:
        """What is maximised, of the completions of all processes: (N,), NaN where no function applies."""
        rewards = self._rewards_for_steps
        total = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        return total.masked_fill(rewards.isnan().all(dim=1), torch.nan)

    def _differs(self) -> torch.Tensor:
        """Rows of this process whose group has rewards that differ, (B,)."""
        groups = self._totals().view(-1, self.num_generations)
        nothing = groups.isnan()
        differ = groups.masked_fill(nothing, -torch.inf).amax(1) > groups.masked_fill(nothing, torch.inf).amin(1)
        self._metrics["train"]["skipped_groups"].append(1 - differ.float().mean().item())
        rows = differ.repeat_interleave(self.num_generations)
        local = len(rows) // self.accelerator.num_processes
        start = self.accelerator.process_index * local
        return rows[start : start + local]
