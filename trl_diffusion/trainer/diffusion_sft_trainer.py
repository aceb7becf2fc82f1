# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Supervised fine-tuning of diffusion language models."""

import textwrap

import torch
from accelerate.utils import set_seed
from torch import nn
from trl import SFTTrainer

from ..likelihood import random_view, view_logits
from .card import DiffusionCardMixin
from .checks import check_model_source, check_peft_config, settle_mask_token
from .diffusion_sft_config import DiffusionSFTConfig


class DiffusionSFTTrainer(DiffusionCardMixin, SFTTrainer):
    """
    TRL's [`~trl.SFTTrainer`] for masked diffusion language models. The only change is the loss: a random share t of a
    row's trainable tokens is masked, and the loss is their cross-entropy at their own positions, weighted by 1/t
    (LLaDA, arXiv 2502.09992, eq. 5):

        L = Σ_rows Σ_i 1[i masked] · (1/t_row) · −log p_θ(x_i | masked row) / number of trainable tokens

    Prompt tokens and padding (`labels` of -100) are never masked. Block-causal models are trained in the layout they
    generate in: the noisy copy of a block sees the clean blocks before it.

    Takes [`~trl.SFTTrainer`]'s arguments; `compute_loss_func` and `preprocess_logits_for_metrics` are refused.

    Raises:
        ValueError: an empty dataset, a model without a mask token, a checkpoint of an unsupported family.
    """

    loss_is_scaled_for_ga = False  # a mean per micro-batch: the Trainer divides by the accumulation steps

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
        check_model_source(model, args.model_init_kwargs)
        check_peft_config(kwargs.get("peft_config"))
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            if dataset is not None and hasattr(dataset, "__len__") and len(dataset) == 0:
                raise ValueError(f"{name} is empty (0 rows). Check the split and the filters that made it.")
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        settle_mask_token(self.model, self._tokenizer)
        # Each process draws noise of its own. The global generators are used, since checkpoints save and restore them.
        set_seed(args.seed, device_specific=True)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross-entropy of randomly masked tokens, weighted by 1/t; see the class."""
        if return_outputs:
            raise ValueError("DiffusionSFTTrainer does not return outputs: a masked copy has no logits to evaluate.")
        input_ids, attention_mask = inputs["input_ids"], inputs["attention_mask"]  # (B, L)
        trainable = (inputs["labels"] != -100) & attention_mask.bool()
        # Evaluation must not depend on when it is run.
        generator = None if self.model.training else torch.Generator().manual_seed(self.args.seed)
        view = random_view(trainable, self.args.min_noise_level, generator)
        nothing = input_ids[:, :0]  # the prompt is part of the row, told apart by the labels
        logits = view_logits(model, nothing, nothing, input_ids, view, canvas_mask=attention_mask)  # (n, V)
        losses = nn.functional.cross_entropy(logits.float(), input_ids[view.target], reduction="none")  # (n,)
        # A view may mask nothing at all; the sum of nothing is a zero that still has a graph for DDP.
        loss = (losses * view.weight[view.target]).sum() / trainable.sum().clamp(min=1)
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            self._total_train_tokens += self.accelerator.gather(attention_mask.sum()).sum().item()
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        accuracy = (logits.argmax(dim=-1) == input_ids[view.target]).float().sum()
        correct, total = self.accelerator.reduce(torch.stack([accuracy, view.target.sum().float()])).tolist()
        self._metrics[mode]["masked_token_accuracy"].append(correct / max(total, 1.0))
        return loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys: list[str] | None = None):
        """The evaluation loss alone: there are no logits of a whole row."""
        return super().prediction_step(model, inputs, True, ignore_keys)
