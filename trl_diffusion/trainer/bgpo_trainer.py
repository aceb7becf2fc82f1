# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""BGPO: policy optimisation on the ELBO of whole completions, at the memory of one Monte-Carlo sample."""

import textwrap
from collections.abc import Callable

import torch
from accelerate.utils import DistributedType
from torch import nn
from transformers.utils import logging

from ..generation import Rollout
from ..likelihood import MaskedView, backward_by_view, same_random_numbers, score_view, terms_of_sum
from .bgpo_config import BGPOConfig
from .denoising_trainer import add_means
from .diffusion_grpo_trainer import DiffusionGRPOTrainer
from .gradient_variance import gradient_variance, squared_norm
from .objectives import KL_ESTIMATORS, bound_ratio, bounded_exp, clipped_gain


logger = logging.get_logger(__name__)

# Standard deviation σ of d_j, in nats, above which a warning is due. Of weights e^d with normally distributed d the
# effective share is e^(−σ²): 2 %.
_LARGE_SPREAD = 2.0

Totals = dict[str, torch.Tensor]


class BGPOTrainer(DiffusionGRPOTrainer):
    """
    BGPO (arXiv 2510.11683): [`DiffusionGRPOTrainer`] with the ELBO of a whole completion in the place of its tokens'
    log-probabilities, estimated from n masked copies of it.

        ℓ_j = w_j Σ_i 1[i is masked in copy j] log p_θ(y_i | copy j, x),   B̂_θ = (1/n) Σ_j ℓ_j,   d_j = ℓ_j − ℓ_j,old

    The only changes are the views ([`~trl_diffusion.likelihood.elbo_views`]) and the objective, to be maximised, a
    mean over completions of

    - `objective="bgpo"`: (1/n) Σ_j (1 + d_j) A where A ≥ 0, (1/n) Σ_j exp(d_j) A where A < 0: a lower bound of the
      next one, linear in the samples, so that each is back-propagated alone;
    - `objective="elbo"`: exp(B̂_θ − B̂_old) A (VRPO, the objective that BGPO bounds), exactly: its gradient is
      exp(B̂_θ − B̂_old) A · ∇B̂_θ, of which a pass without graph gives the first factor;
    - `objective="sequence"`: the same of (B̂_θ − B̂_old)/|y|, clipped (ESPO, arXiv 2512.03759).

    In all three one sample's graph is alive at a time: memory does not depend on n. With one update per rollout
    (on-policy) d_j = 0, the three have the same gradient (up to the length), and no pass is made without graph.

    The old, the current and the reference policy see the same masked copies, drawn from a seed of each row. Tokens
    behind EOS are masked in all of them. Block-causal models have noise levels for each block, whose ELBOs add up. The
    ELBO is taken at temperature 1, over the whole vocabulary.

    Takes [`DiffusionGRPOTrainer`]'s arguments, with a [`BGPOConfig`].
    """

    _tag_names = ["trl", "trl-diffusion", "bgpo"]
    _name = "BGPO"
    _paper = {
        "title": "Boundary-Guided Policy Optimization for Memory-efficient RL of Diffusion Large Language Models",
        "id": "2510.11683",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{lin2025bgpo,
                title        = {{Boundary-Guided Policy Optimization for Memory-efficient RL of Diffusion
                                 Large Language Models}},
                author       = {Nianyi Lin and Jiajie Zhang and Lei Hou and Juanzi Li},
                year         = 2025,
                eprint       = {arXiv:2510.11683},
            }"""),
    }
    _config_class = BGPOConfig
    _ROLLOUT_FIELDS = (
        *DiffusionGRPOTrainer._ROLLOUT_FIELDS,
        "num_mc_samples",
        "noise_levels",
        "antithetic",
        "min_noise_level",
        "normalize_length",
    )

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._warned_of_spread = False
        self._check_whole_gradients()
        if (self._is_off_policy or self.beta != 0.0) and self._largest_dropout() > 0:
            logger.warning(
                f"Dropout is on (up to {self._largest_dropout()}), with other draws for the old, the current and the "
                "reference policy: the differences of their ELBOs, with weights of up to 1/min_noise_level, then hold "
                "its noise. Set lora_dropout=0 (disable_dropout=True for the model's own)."
            )

    def _check_whole_gradients(self):
        steps, kind = self.args.gradient_variance_steps, self.accelerator.distributed_type
        if steps is not None and kind in (DistributedType.DEEPSPEED, DistributedType.FSDP):
            raise ValueError(
                f"gradient_variance_steps={steps} needs whole gradients on every process, and {kind.value} shards "
                "them. Leave it out, or measure with DDP."
            )

    # Likelihood

    def draw_views(self, inputs: dict[str, torch.Tensor]) -> list[MaskedView]:
        """n masked copies of each completion; see the parent."""
        args = self.args
        return self._elbo_views(
            inputs,
            args.num_mc_samples,
            levels=args.noise_levels,
            antithetic=args.antithetic,
            minimum=args.min_noise_level,
        )

    def _token_logprobs(self, model: nn.Module, inputs: dict[str, torch.Tensor], view: MaskedView):
        return score_view(model, *self._rows(inputs), view, exclude_mask=False, **self._block_kwargs(inputs))

    def _lengths(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the ELBO of each row is divided by, (B,)."""
        lengths = inputs["completion_mask"].sum(dim=1).clamp(min=1)
        return lengths if self.args.normalize_length else torch.ones_like(lengths)

    def _weighted_sum(self, tokens: torch.Tensor, view: MaskedView, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """ℓ_j from the log-probabilities of a copy's tokens, (B, C) → (B,), fp64: weights reach 1/t = 1000, and what
        counts are the differences."""
        return (tokens.double() * view.weight * view.target).sum(dim=1) / self._lengths(inputs)

    def _add_old_scores(self, output: dict[str, torch.Tensor], rollout: Rollout):
        self._report_old_source("the ELBO is not what tokens were drawn with")

        def elbos(chunk, views):
            scores = [
                self._weighted_sum(self._token_logprobs(self.model, chunk, view).logprobs, view, chunk)
                for view in views
            ]
            return torch.stack(scores, dim=1)

        output["old_elbos"] = self._over_chunks(elbos, output)  # (B, n)

    def _add_reference_scores(self, model: nn.Module, output: dict[str, torch.Tensor]):
        def logprobs(chunk, views):
            return torch.stack([self._token_logprobs(model, chunk, view).logprobs for view in views], dim=1)

        output["ref_view_logps"] = self._over_chunks(logprobs, output)  # (B, n, C)

    # Loss

    def _compute_loss(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        mode = "train" if self.model.training else "eval"
        totals: Totals = {}
        if mode == "train" and self._measures_variance():
            self._log_gradient_variance(inputs)
        terms, value = self._loss_terms(model, inputs, mode, totals)
        loss = value + (backward_by_view(terms, model, self.accelerator) if terms else 0.0)
        self._log_samples(mode, totals)
        return loss.to(inputs["advantages"].dtype)

    def _loss_terms(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], mode: str, totals: Totals
    ) -> tuple[list[Callable[[], torch.Tensor]], torch.Tensor | float]:
        """The loss as terms to back-propagate one at a time, a masked copy each, and a number to add."""
        views = self._views_of(inputs)
        indices = range(len(views))
        samples = [lambda index=index: self._sample(model, inputs, views, index, totals) for index in indices]
        old = inputs.get("old_elbos")  # (B, n)
        normalizer = self._normalizer("grpo", inputs, mode)  # completions

        def loss(ratio: torch.Tensor, kl: torch.Tensor) -> torch.Tensor:
            """The mean over completions, of their ratios and KLs, (B,)."""
            clip = (self.epsilon_low, self.epsilon_high, self.args.delta)
            gain, metrics = clipped_gain(ratio, inputs["advantages"].double(), *clip)
            kept = inputs["completion_mask"].any(dim=1)
            add_means(totals, metrics, kept)
            return ((self.args.beta * kl - gain) * kept).sum() / normalizer

        if self.args.objective == "bgpo":

            def bound(index: int) -> torch.Tensor:
                elbo, kl = samples[index]()
                difference = elbo - (elbo.detach() if old is None else old[:, index])
                return loss(self._bound_ratio(self._clamped(difference), inputs["advantages"]), kl) / len(views)

            return [lambda index=index: bound(index) for index in indices], 0.0

        def objective(total: torch.Tensor) -> torch.Tensor:
            elbo, kl = total
            difference = elbo - (elbo.detach() if old is None else old.mean(dim=1))
            return loss(bounded_exp(self._clamped(difference)), kl)

        scores = [lambda sample=sample: sample() / len(views) for sample in samples]
        # On-policy the ratio is 1, whatever the sums are.
        known = old is None and self.args.beta == 0.0 and torch.is_grad_enabled()
        total = torch.zeros(2, len(inputs["advantages"]), dtype=torch.float64, device=self.accelerator.device)
        return terms_of_sum(scores, objective, self.accelerator, total if known else None)

    # Benchmarks put other bounds in its place.
    _bound_ratio = staticmethod(bound_ratio)

    def _clamped(self, difference: torch.Tensor) -> torch.Tensor:
        bound = self.args.log_ratio_clamp
        return difference if bound is None else difference.clamp(-bound, bound)

    def _sample(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], views: list[MaskedView], index: int, totals: Totals
    ) -> torch.Tensor:
        """ℓ_j of each completion, and the KL of the tokens in the same copy: (2, B), fp64."""
        view = views[index]
        scores = self._token_logprobs(model, inputs, view)
        elbo = self._weighted_sum(scores.logprobs, view, inputs)
        kept = inputs["completion_mask"].any(dim=1)
        add_means(totals, {"entropy": scores.entropies}, view.target)
        tokens = inputs["completion_mask"].sum(dim=1).clamp(min=1)
        add_means(totals, {"elbo/sum": elbo * self._lengths(inputs), "elbo/tokens": tokens}, kept)
        kl = torch.zeros_like(elbo)
        if self.args.beta != 0.0:
            reference = inputs["ref_view_logps"][:, index]
            token_kl = KL_ESTIMATORS[self.args.kl_estimator](self._clamped(scores.logprobs - reference))
            kl = self._weighted_sum(token_kl, view, inputs)
            add_means(totals, {"kl": kl}, kept)
        if "old_elbos" in inputs:
            difference = elbo.detach() - inputs["old_elbos"][:, index]
            moments = {"mean": difference, "square": difference.square(), "above_one": (difference.abs() > 1).float()}
            add_means(totals, {f"elbo/difference_{name}": value for name, value in moments.items()}, kept)
        return torch.stack([elbo, kl])

    # Diagnostics

    def _log_samples(self, mode: str, totals: Totals):
        means, metrics = self._means(totals), self._metrics[mode]
        means["elbo/per_token"] = means.pop("elbo/sum") / max(means.pop("elbo/tokens"), 1.0)
        if "elbo/difference_square" in means:
            variance = means.pop("elbo/difference_square") - means["elbo/difference_mean"] ** 2
            spread = means["elbo/difference_std"] = max(variance, 0.0) ** 0.5
            if not spread <= _LARGE_SPREAD and not self._warned_of_spread:
                self._warned_of_spread = True
                logger.warning(
                    f"The differences d_j of the ELBO's samples to those before the updates spread by {spread:.1f} "
                    f"nats (step {self.state.global_step}): a few samples with large exp(d_j) make up the gradient. "
                    "Update less often on a rollout (num_iterations, steps_per_generation), lower learning_rate, "
                    "raise num_mc_samples, switch dropout off, or set noise_levels='stratified', epsilon or "
                    "normalize_length=True. The metrics elbo/difference_* follow it; this warning is not repeated."
                )
        for name, mean in means.items():
            metrics[name].append(mean)
        metrics["views"].append(float(self.args.num_mc_samples))

    def _measures_variance(self) -> bool:
        steps = self.args.gradient_variance_steps
        return steps is not None and self.state.global_step % steps == 0 and torch.is_grad_enabled()

    def _log_gradient_variance(self, inputs: dict[str, torch.Tensor]):
        """The Monte-Carlo variance of the gradient of a micro-batch of all processes."""
        model = self.accelerator.unwrap_model(self.model)  # whose hooks of DDP would wait for a backward pass
        with same_random_numbers(self.accelerator):
            terms, _ = self._loss_terms(model, inputs, "train", {})
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            own, gradient = gradient_variance(terms, trained, self.args.antithetic)
        # The gradient is the mean of the processes' ones, whose samples are independent.
        own = torch.tensor(own, device=self.accelerator.device)
        variance = self.accelerator.reduce(own, reduction="mean").item() / self.accelerator.num_processes
        square = squared_norm(self.accelerator.reduce(tensor, reduction="mean") for tensor in gradient)
        self._metrics["train"]["gradient/mc_variance"].append(variance)
        self._metrics["train"]["gradient/mc_variance_share"].append(variance / square if square > 0 else float("nan"))
