# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Supervised fine-tuning of diffusion language models."""

import textwrap
import zlib

import torch
from accelerate.utils import set_seed
from torch import nn
from trl import SFTTrainer

from ..likelihood import MaskedView, random_view, view_logits
from ..models import diffusion_model
from .card import DiffusionCardMixin
from .checks import (
    check_dataset,
    check_model_source,
    check_peft_config,
    map_style_datasets,
    settle_mask_token,
    switch_router_loss_off,
)
from .diffusion_sft_config import DiffusionSFTConfig


class DiffusionSFTTrainer(DiffusionCardMixin, SFTTrainer):
    """
    TRL's [`~trl.SFTTrainer`] for masked diffusion language models. The only change is the loss: a random share t of a
    row's trainable tokens is masked, and the loss is their cross-entropy at their own positions, weighted by 1/t
    (LLaDA, arXiv 2502.09992, eq. 5):

        L = Σ_rows Σ_i 1[i masked] · (1/t_row) · −log p_θ(x_i | masked row) / number of trainable tokens of the step

    Prompt tokens and padding (`labels` of -100) are never masked. Block-causal models are trained in the layout they
    generate in: the noisy copy of a block sees the clean blocks before it.

    Takes [`~trl.SFTTrainer`]'s arguments; `compute_loss_func` and `preprocess_logits_for_metrics` are refused.

    Raises:
        ValueError: an empty dataset, a model without a mask token, a checkpoint of an unsupported family.
    """

    _tag_names = ["trl", "trl-diffusion", "sft"]
    _name = "Diffusion SFT"
    _paper = {
        "title": "Large Language Diffusion Models",
        "id": "2502.09992",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{nie2025llada,
                title        = {{Large Language Diffusion Models}},
                author       = {Shen Nie and Fengqi Zhu and Zebin You and Xiaolu Zhang and Jingyang Ou and
                                Jun Hu and Jun Zhou and Yankai Lin and Ji-Rong Wen and Chongxuan Li},
                year         = 2025,
                eprint       = {arXiv:2502.09992},
            }"""),
    }

    def __init__(self, model, args: DiffusionSFTConfig | None = None, train_dataset=None, eval_dataset=None, **kwargs):
        for name in ("compute_loss_func", "preprocess_logits_for_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} is not supported by DiffusionSFTTrainer. Override `compute_loss` instead.")
        if args is None:
            args = DiffusionSFTConfig("diffusion-sft")
        elif not isinstance(args, DiffusionSFTConfig):
            raise TypeError(f"args is a {type(args).__name__}; DiffusionSFTTrainer takes a DiffusionSFTConfig.")
        check_model_source(model, args)
        check_peft_config(kwargs.get("peft_config"))
        check_dataset(train_dataset, "train_dataset", None)
        check_dataset(eval_dataset, "eval_dataset", None)
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        settle_mask_token(self.model, self._tokenizer)
        switch_router_loss_off(self)
        self._check_rows()
        self._loss_shifts_labels = False  # the Trainer counts the tokens of a step, the first one included
        # Each process draws noise of its own. The global generators are used, since checkpoints save and restore them.
        set_seed(args.seed, device_specific=True)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross-entropy of randomly masked tokens, weighted by 1/t; see the class."""
        if return_outputs:
            raise ValueError("DiffusionSFTTrainer does not return outputs: a masked copy has no logits to evaluate.")
        input_ids, attention_mask = inputs["input_ids"], inputs["attention_mask"]  # (B, L)
        limit = diffusion_model(model).config.max_position_embeddings
        if input_ids.size(1) > limit:  # streaming datasets are not looked through beforehand
            raise ValueError(
                f"A row has {input_ids.size(1)} tokens and the model {limit} positions. Set max_length={limit}."
            )
        trainable = (inputs["labels"] != -100) & attention_mask.bool()
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            view = random_view(trainable, self.args.min_noise_level)
        else:
            view = self._fixed_view(input_ids, attention_mask, trainable)
        nothing = input_ids[:, :0]  # the prompt is part of the row, told apart by the labels
        logits = view_logits(model, nothing, nothing, input_ids, view, canvas_mask=attention_mask)  # (n, V)
        losses = nn.functional.cross_entropy(logits.float(), input_ids[view.target], reduction="none")  # (n,)
        # A view may mask nothing at all; the sum of nothing is a zero that still has a graph for DDP.
        loss = (losses * view.weight[view.target]).sum()
        if num_items_in_batch is None:
            loss = loss / trainable.sum().clamp(min=1)
        else:
            # Trainable tokens of all micro-batches of the step, and of all processes, which DDP averages over.
            across = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss = loss * across / num_items_in_batch
        if mode == "train":
            self._total_train_tokens += self.accelerator.gather(attention_mask.sum()).sum().item()
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        accuracy = (logits.argmax(dim=-1) == input_ids[view.target]).float().sum()
        correct, total = self.accelerator.reduce(torch.stack([accuracy, view.target.sum().float()])).tolist()
        self._metrics[mode]["masked_token_accuracy"].append(correct / max(total, 1.0))
        return loss

    def _fixed_view(self, input_ids, attention_mask, trainable) -> MaskedView:
        """A view whose noise depends on the seed and on each row's tokens alone, so that it is the same whenever the
        loss is measured, at any batch size and in any number of processes."""
        masked, weight = torch.zeros_like(trainable), torch.ones(trainable.shape, device=trainable.device)
        for row, real in enumerate(attention_mask.bool()):
            key = zlib.crc32(input_ids[row, real].cpu().numpy().tobytes(), self.args.seed & 0xFFFFFFFF)
            generator = torch.Generator().manual_seed(key)
            view = random_view(trainable[row, real][None], self.args.min_noise_level, generator)
            masked[row, real], weight[row, real] = view.masked[0], view.weight[0]
        return MaskedView(masked, masked, weight)

    def _check_rows(self):
        """Raise where no row is left after preparation, or one is longer than the model."""
        limit = diffusion_model(self.model).config.max_position_embeddings
        for name, dataset in map_style_datasets(self):
            packed = {"seq_lengths", "position_ids", "document_ids"} & set(dataset.column_names)
            if packed:
                raise ValueError(
                    f"{name} has the column {sorted(packed)[0]!r}: its rows hold several documents, which would see "
                    "each other. Pass one document per row."
                )
            if "input_ids" not in dataset.column_names:
                continue
            if len(dataset) == 0:
                raise ValueError(
                    f"{name} is empty once its rows are cut to max_length={self.args.max_length}: no completion token "
                    "is left in any of them. Raise max_length, or shorten the prompts."
                )
            for start in range(0, len(dataset), 1000):
                for row, ids in enumerate(dataset[start : start + 1000]["input_ids"]):
                    if len(ids) > limit:
                        raise ValueError(
                            f"{name}[{start + row}] has {len(ids)} tokens and the model {limit} positions. Set "
                            f"max_length={limit} (it is {self.args.max_length}), or shorten the row."
                        )

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys: list[str] | None = None):
        """The evaluation loss alone: there are no logits of a whole row."""
        return super().prediction_step(model, inputs, True, ignore_keys)
