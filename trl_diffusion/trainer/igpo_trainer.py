# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""IGPO: where a whole group fails, rollouts are inpainted around pieces of a solution."""

import textwrap

import torch
from datasets import Dataset

from ..generation import Rollout
from ..likelihood import MaskedView, score_view
from ..models import diffusion_model
from .checks import check_dataset
from .denoising_trainer import add_means
from .diffusion_grpo_trainer import DiffusionGRPOTrainer
from .hint_source import AnswerFinder, HintSource
from .hints import HintMixin
from .igpo_config import IGPOConfig


class IGPOTrainer(HintMixin, DiffusionGRPOTrainer):
    """
    IGPO (arXiv 2509.10396): [`DiffusionGRPOTrainer`] with hints for groups that fail. A group whose completions are
    all wrong has advantages of 0, and nothing is learned from it. A diffusion language model can write around given
    tokens; so, in such a group,

    1. each row gets a rollout more, with a share η ~ U[`hint_ratio_range`] of the chunks of a right trace
       (`trace_column`) given on its canvas, but nothing that it marks as its final answer;
    2. the reward functions check these; min(number of right ones, ⌊λG⌋) take the place of wrong completions, each of
       its own row, and advantages are those of the group as it is then, A_i = r_i − mean(r);
    3. of the tokens that were given, the share τ where the policy's entropy is highest is learned from
       ([`entropy_filter`]); the others are in no ratio, no KL and no loss.

    The loss is that of [`DiffusionGRPOTrainer`], by default the clipped surrogate on the ratio of whole completions
    (the geometric mean over tokens), scored in one step from the fully masked canvas. Where no group fails, it is
    exactly that.

    Which completions are right is said by one reward function, `correctness_reward`: 1 for right, 0 for wrong; other
    rewards decide nothing here. Rewards in the logs are those of the policy's own completions; `hints/*` say what the
    hints did. There are no hints in evaluation. With `difficulty_range` groups are chosen by the policy's own
    completions, and those that hints have brought back are kept.

    Takes [`DiffusionGRPOTrainer`]'s arguments, with an [`IGPOConfig`], and

    Args:
        answer_finder (`Callable[[str], list[tuple[int, int]]]`, *optional*):
            Where a trace gives its final answer: `f(trace)` returns (begin, end) of each place, in characters, and an
            empty list where there is none. Defaults to what the config's `answer_format` says.
    """

    _tag_names = ["trl", "trl-diffusion", "igpo"]
    _name = "IGPO"
    _paper = {
        "title": "Inpainting-Guided Policy Optimization for Diffusion Large Language Models",
        "id": "2509.10396",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{zhao2025igpo,
                title        = {{Inpainting-Guided Policy Optimization for Diffusion Large Language Models}},
                author       = {Siyan Zhao and Mengchen Liu and Jing Huang and Miao Liu and Chenyu Wang and Bo Liu and
                                Yuandong Tian and Guan Pang and Sean Bell and Aditya Grover and Feiyu Chen},
                year         = 2025,
                eprint       = {arXiv:2509.10396},
            }"""),
    }
    _config_class = IGPOConfig
    _ROW_KEYS = (*DiffusionGRPOTrainer._ROW_KEYS, "learned")
    _ROLLOUT_FIELDS = (*DiffusionGRPOTrainer._ROLLOUT_FIELDS, "hint_entropy_quantile")

    def __init__(
        self,
        model,
        reward_funcs,
        args: IGPOConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        *,
        answer_finder: AnswerFinder | None = None,
        **kwargs,
    ):
        column = getattr(args, "trace_column", IGPOConfig.trace_column)
        check_dataset(train_dataset, "train_dataset", column)
        if answer_finder is not None and getattr(args, "answer_format", "auto") != "auto":
            raise ValueError(
                f"answer_format={args.answer_format!r} has no effect with answer_finder. Leave one of them out."
            )
        super().__init__(model, reward_funcs, args, train_dataset, eval_dataset, processing_class, **kwargs)
        ends = {diffusion_model(self.model).mask_token_id, self._tokenizer.pad_token_id, *self.eos_token_ids}
        self._hint_source = HintSource(self.args, self._tokenizer, ends - {None}, answer_finder)
        if isinstance(self.train_dataset, Dataset):
            self._hint_source.check(self.train_dataset, "train_dataset")

    @property
    def _correctness_purpose(self) -> str:
        return "hints go"

    # Tokens

    def _choose_tokens(self, output: dict[str, torch.Tensor], rollout: Rollout):
        """Mark the tokens that were given, `injected`, and those that are learned from, `learned`: (B, C)."""
        self._policy_scores = None
        injected = output["injected"] = rollout.fixed & rollout.completion_mask.bool()
        output["learned"] = torch.ones_like(injected)
        if self.args.likelihood == "trace":
            output["learned"] = ~injected
        if not self._replaced:
            return
        start = self.accelerator.process_index * len(injected)
        replaced = torch.zeros(len(injected), dtype=torch.bool, device=injected.device)
        replaced[[row - start for row in self._replaced if start <= row < start + len(injected)]] = True
        totals: dict[str, torch.Tensor] = {}
        share = injected.sum(dim=1) / rollout.completion_mask.sum(dim=1)
        add_means(totals, {"hints/injected_fraction": share}, replaced)
        if self.args.likelihood != "trace":
            self._policy_scores, entropies = self._over_chunks(self._scores_and_entropies, output).unbind(dim=1)
            candidates = injected & self._scored_tokens(output)
            add_means(totals, {"hints/entropy": entropies}, candidates)
            output["learned"] = ~injected | entropy_filter(entropies, candidates, self.args.hint_entropy_quantile)
        self._log_means("train", totals)

    def _scores_and_entropies(self, chunk: dict[str, torch.Tensor], views: list[MaskedView]) -> torch.Tensor:
        """Of the policy at the tokens of a chunk, (B, 2, C): log-probabilities, and entropies, the mean over the views
        that score a token."""
        settings = {"temperature": self.temperature, **self._block_kwargs(chunk)}
        logprobs = entropies = 0.0
        for view in views:
            scores = score_view(self.model, *self._rows(chunk), view, **settings)
            logprobs = logprobs + scores.logprobs * (1.0 if view.weight is None else view.weight)
            entropies = entropies + scores.entropies
        times = sum(view.target.long() for view in views).clamp(min=1)
        return torch.stack([logprobs, entropies / times], dim=1)

    def _policy_logprobs(self, output: dict[str, torch.Tensor]) -> torch.Tensor:
        # The pass that the entropies came from has them.
        scores, self._policy_scores = self._policy_scores, None
        return super()._policy_logprobs(output) if scores is None else scores

    def draw_views(self, inputs: dict[str, torch.Tensor]) -> list[MaskedView]:
        """The views of the parent, without the targets that are not learned from."""
        views = super().draw_views(inputs)
        for view in views:
            view.target = view.target & inputs["learned"]
        return views

    def _scored_tokens(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return super()._scored_tokens(inputs) & inputs["learned"]

    def _why_not_replayed(self, output: dict[str, torch.Tensor], rollout: Rollout) -> str | None:
        if self._replaced and self.args.likelihood == "autoregressive":
            return "hints were not drawn by the policy"
        return super()._why_not_replayed(output, rollout)

    def _add_token_means(self, totals, metrics, target, inputs):
        super()._add_token_means(totals, metrics, target, inputs)
        if self.model.training:
            clipped = metrics["clip_ratio/region_mean"]
            for name, own in (("injected", inputs["injected"]), ("own", ~inputs["injected"])):
                add_means(totals, {f"clip_ratio/{name}_mean": clipped}, target & own)


def entropy_filter(entropies: torch.Tensor, candidates: torch.Tensor, quantile: float) -> torch.Tensor:
    """The share τ of each row's candidates whose entropy is highest, rounded up (IGPO, arXiv 2509.10396, section 3).

    Args:
        entropies (`torch.FloatTensor` of shape (B, C)):
            Entropy of the policy at each token, in nats.
        candidates (`torch.BoolTensor` of shape (B, C)):
            The injected tokens.
        quantile (`float`):
            τ, in [0, 1]: 1 keeps all, 0 none.

    Returns:
        `torch.BoolTensor` of shape (B, C). Of equal entropies the ones further left are kept.
    """
    order = entropies.masked_fill(~candidates, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)  # the inverse of a permutation
    # Not ⌈0.2 · 15⌉ = ⌈3.0000000000000004⌉ = 4.
    count = torch.ceil(quantile * candidates.sum(dim=1, keepdim=True).double() - 1e-9)
    return candidates & (rank < count)
