# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Supervised fine-tuning of diffusion language models."""

import copy
import textwrap
import zlib

import torch
from accelerate.utils import set_seed
from torch import nn
from transformers.utils import logging
from trl import SFTTrainer

from ..generation import DiffusionGenerationConfig
from ..likelihood import (
    MaskedView,
    backward_by_view,
    canvas_views,
    even_views,
    noisy_views,
    stack_views,
    trace_views,
    view_logits,
)
from ..models import diffusion_model
from .canvas_fill import CanvasFillCollator
from .checks import (
    check_dataset,
    check_model_source,
    check_peft_config,
    map_style_datasets,
    settle_mask_token,
    switch_router_loss_off,
)
from .diffusion_sft_config import DiffusionSFTConfig
from .hub import HubMixin
from .step_maps import StepMapCollator, align_step_maps, check_step_map, cut_rows, join_recorded_ids


logger = logging.get_logger(__name__)


class DiffusionSFTTrainer(HubMixin, SFTTrainer):
    """
    TRL's [`~trl.SFTTrainer`] for masked diffusion language models. The changes are the masked views that a row is
    trained in, and the loss: the cross-entropy of the targets at their own positions,

        L = Σ_rows Σ_views Σ_{i target} w_i · −log p_θ(x_i | masked row) / normalizer

    `masking="random"` (LLaDA, arXiv 2502.09992, eq. 5): a random share t of a row's trainable tokens is masked and
    scored, w = 1/t. `"block"`: one block at a time, in the state in which generation fills it (under full attention
    semi-autoregressive training; in block-causal models block diffusion, arXiv 2503.09573). `"trace"`: the steps of a
    recorded trajectory, w = 1 (TraceRL, arXiv 2509.06949, section 5). The views are back-propagated one by one, at
    the memory of one.

    Prompt tokens and padding (`labels` of -100) are no targets. Block-causal models are trained in the layout they
    generate in: the noisy copy of a block sees the clean blocks before it. The loss of an evaluation is that of all
    its rows together, with masks that follow from the seed and each row's tokens: it does not depend on the batch
    size, on the order or on the number of processes.

    Takes [`~trl.SFTTrainer`]'s arguments; `compute_loss_func` and `preprocess_logits_for_metrics` are refused.

    Raises:
        ValueError: an empty dataset, a model without a mask token, a checkpoint of an unsupported family, a step map
            that does not fit its row, a field without an effect under the model's attention.
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
        for name in ("compute_loss_func", "preprocess_logits_for_metrics", "compute_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{name} is not supported by DiffusionSFTTrainer, which has no logits of whole rows. Override "
                    "`compute_loss`, or measure with `generate`."
                )
        if args is None:
            args = DiffusionSFTConfig("diffusion-sft")
        elif not isinstance(args, DiffusionSFTConfig):
            raise TypeError(f"args is a {type(args).__name__}; DiffusionSFTTrainer takes a DiffusionSFTConfig.")
        check_model_source(model, args)
        check_peft_config(kwargs.get("peft_config"))
        check_dataset(train_dataset, "train_dataset", None)
        check_dataset(eval_dataset, "eval_dataset", None)
        if args.data_seed is None:
            # Otherwise accelerate takes the global generator's seed, and each process, whose noise is its own, would
            # draw its share of the rows from an order of its own.
            args.data_seed = args.seed
        self._first_row = None if train_dataset is None else next(iter(train_dataset))
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        family = settle_mask_token(self.model, self._tokenizer)
        args.check_attention(family.attention)
        # Block of the model's attention, `None` for full attention.
        self._attention_block = None if family.attention == "full" else args.block_length or family.block_length
        switch_router_loss_off(self)
        self._check_rows()
        if self._attention_block is not None:
            family.config.block_length = self._attention_block  # checkpoints name the block they are trained for
        if args.masking == "trace":
            self._check_recorded_blocks()
            self.data_collator = StepMapCollator(self.data_collator, args.step_map_column)
        elif args.fill_canvas and self._tokenizer.eos_token_id is not None:
            self._fill_canvases()
        self._loss_shifts_labels = False  # the Trainer counts the tokens of a step, the first one included
        self.model_accepts_loss_kwargs = True  # it counts them for every model
        # Of one evaluation: loss and what it is divided by; right predictions and targets.
        self._eval_sums = torch.zeros(4, dtype=torch.float64)
        # Each process draws noise of its own. The global generators are used, since checkpoints save and restore them.
        set_seed(args.seed, device_specific=True)

    # Data

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        arguments = (packing, formatting_func, dataset_name)
        if args.masking != "trace":
            return super()._prepare_dataset(dataset, processing_class, args, *arguments)
        name = f"{dataset_name}_dataset" if dataset_name in ("train", "eval") else f"eval_dataset[{dataset_name!r}]"
        check_step_map(dataset, args.step_map_column, name)
        # A step map is checked against whole completions, and its row named as the user knows it.
        uncut = copy.copy(args)
        uncut.max_length, uncut.shuffle_dataset = None, False
        dataset = super()._prepare_dataset(
            join_recorded_ids(dataset, args.step_map_column), processing_class, uncut, *arguments
        )
        dataset = align_step_maps(dataset, args.step_map_column, name)
        dataset = cut_rows(dataset, args.step_map_column, name, args.max_length, args.truncation_mode)
        return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if self.args.masking == "trace" and self.args.step_map_column not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, self.args.step_map_column]

    def _get_num_items_in_batch(self, batch_samples, device):
        """What the loss of an optimizer step is divided by: its trainable tokens, or its rows that have any."""
        if self.args.loss_normalization != "token":  # one label per row
            rows = [(batch["labels"] != -100).any(dim=1) for batch in batch_samples]
            batch_samples = [{"labels": torch.where(row, 0, -100)} for row in rows]
        return super()._get_num_items_in_batch(batch_samples, device)

    # Views

    def draw_views(
        self,
        trainable: torch.Tensor,
        real: torch.Tensor,
        unmask_step: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> list[MaskedView]:
        """The masked views that a batch of rows is trained in.

        Args:
            trainable, real (`torch.BoolTensor` of shape (B, L)):
                Tokens that may be learned; tokens that are no padding.
            unmask_step (`torch.LongTensor` of shape (B, L), *optional*):
                The step maps of `masking="trace"`, 0 = not drawn.
            generator (`torch.Generator`, *optional*):
                Source of the noise, on the CPU. `None`: the global one.

        Returns:
            `list[MaskedView]`, at least one, with the weights of the loss.
        """
        args, block_length = self.args, self._attention_block
        if args.masking == "trace":
            return trace_views(unmask_step, trainable, real, block_length, args.shrinkage)
        noise = {
            "noise_levels": (args.min_noise_level, args.max_noise_level),
            "uniform": not args.weighs_by_noise,
            "num_masks": args.num_masks,
            "generator": generator,
        }
        if args.masking == "random" and args.canvas_length is None:
            return noisy_views(trainable, real, **noise)
        if block_length is not None:
            return noisy_views(trainable, real, block_length, **noise)
        return canvas_views(trainable, real, args.block_length, args.canvas_length, args.num_blocks, **noise)

    def _fixed_views(self, input_ids, trainable, real, unmask_step) -> list[MaskedView]:
        """Views whose noise depends on the seed and on each row's tokens alone, so that they are the same whenever the
        loss is measured, at any batch size and in any number of processes."""
        drawn = []
        for row, kept in enumerate(real):
            key = zlib.crc32(input_ids[row, kept].cpu().numpy().tobytes(), self.args.seed & 0xFFFFFFFF)
            generator = torch.Generator().manual_seed(key)
            alone = trainable[row, kept][None]
            steps = None if unmask_step is None else unmask_step[row, kept][None]
            drawn.append(self.draw_views(alone, torch.ones_like(alone), steps, generator))
        return stack_views(drawn, real)

    # Loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Weighted cross-entropy of masked tokens, summed over views; see the class."""
        if return_outputs:
            raise ValueError("DiffusionSFTTrainer does not return outputs: a masked copy has no logits to evaluate.")
        input_ids, real = inputs["input_ids"], inputs["attention_mask"].bool()  # (B, L)
        limit = diffusion_model(model).config.max_position_embeddings
        if input_ids.size(1) > limit:  # streaming datasets are not looked through beforehand
            raise ValueError(
                f"A row has {input_ids.size(1)} tokens and the model {limit} positions. Set max_length={limit}."
            )
        trainable = (inputs["labels"] != -100) & real
        unmask_step = inputs[self.args.step_map_column] if self.args.masking == "trace" else None
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            views = self.draw_views(trainable, real, unmask_step)
        else:
            views = self._fixed_views(input_ids, trainable, real, unmask_step)
        views = even_views(views, self.accelerator)

        length = trainable.sum(dim=1)  # (B,)
        items = length if self.args.loss_normalization == "token" else (length > 0).long()
        share = 1 / length.clamp(min=1) if self.args.loss_normalization == "sequence" else torch.ones_like(length)
        if num_items_in_batch is None:
            scale = share / items.sum().clamp(min=1)
        else:
            # Items of all micro-batches of the step, and of all processes, which DDP averages over.
            across = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            scale = share * across / num_items_in_batch
        row_sums = torch.zeros(len(input_ids), device=input_ids.device)  # (B,)
        hits = torch.zeros(len(input_ids), 2, device=input_ids.device)  # right predictions, targets

        def view_loss(view: MaskedView) -> torch.Tensor:
            losses, right = self._row_losses(model, input_ids, real, view)
            row_sums.add_(losses.detach())
            hits.add_(torch.stack([right, view.target.sum(dim=1)], dim=1))
            return (losses * scale).sum()

        loss = backward_by_view([lambda view=view: view_loss(view) for view in views], model, self.accelerator)
        if mode == "train":
            self._total_train_tokens += self.accelerator.gather(real.sum()).sum().item()
        else:
            measured = torch.cat([torch.stack([row_sums * share, items.float()], dim=1), hits], dim=1)  # (B, 4)
            self._eval_sums += self.accelerator.gather_for_metrics(measured).cpu().double().sum(dim=0)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        self._metrics[mode]["views"].append(float(len(views)))
        if mode == "train":
            correct, total = self.accelerator.reduce(hits.sum(dim=0)).tolist()
            self._metrics[mode]["masked_token_accuracy"].append(correct / max(total, 1.0))
        else:  # of all rows so far
            correct, total = self._eval_sums[2:].tolist()
            self._metrics[mode]["masked_token_accuracy"] = [correct / max(total, 1.0)]
        return loss

    def _row_losses(self, model, input_ids, real, view: MaskedView) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted cross-entropy of a view's targets, and how many are predicted right, summed over each row: (B,)."""
        if view.visible is not None:  # what no row of the batch can see costs no time
            width = int((view.visible & real).any(dim=0).nonzero().max()) + 1
            names = ("masked", "target", "weight", "visible")
            view = MaskedView(**{name: getattr(view, name)[:, :width] for name in names})
            input_ids, real = input_ids[:, :width], real[:, :width]
        nothing = input_ids[:, :0]  # the prompt is part of the row, told apart by the labels
        logits = view_logits(
            model, nothing, nothing, input_ids, view, canvas_mask=real, block_length=self._attention_block
        )  # (n, V)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        tokens = input_ids[view.target]  # (n,)
        losses = nn.functional.cross_entropy(logits, tokens, reduction="none")
        if view.weight is not None:
            losses = losses * view.weight[view.target]
        rows = torch.arange(len(input_ids), device=tokens.device)[:, None].expand_as(view.target)[view.target]
        # A view may mask nothing at all; the sum of nothing is a zero that still has a graph for DDP.
        blank = torch.zeros(len(input_ids), dtype=losses.dtype, device=tokens.device)
        right = (logits.argmax(dim=-1) == tokens).to(losses.dtype)
        return blank.index_add(0, rows, losses), blank.index_add(0, rows, right)

    # Evaluation

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """TRL's; its mean over batches gives way to the loss of all rows together, whatever their batches."""
        self._eval_sums.zero_()
        with torch.random.fork_rng(devices=[]):  # the data loader draws a seed: training goes on as if nothing were
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        loss, items = self._eval_sums[:2].tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = loss / max(items, 1.0)
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys: list[str] | None = None):
        """The evaluation loss alone: there are no logits of a whole row."""
        return super().prediction_step(model, inputs, True, ignore_keys)

    # Checks and the card

    @property
    def _card_settings(self) -> tuple[str, ...]:
        noise = ("min_noise_level", "max_noise_level", "num_masks")
        unused = noise if self.args.masking == "trace" else ("shrinkage",)
        own = ("masking", "num_masks", "num_blocks", "canvas_length", "max_noise_level")
        own += ("loss_weighting", "loss_normalization")
        return tuple(name for name in (*HubMixin._card_settings, *own) if name not in unused)

    def _card_prompt(self):
        """The prompt of the first row; of text without one its first half."""
        row = self._first_row
        if row.get("prompt"):
            return row["prompt"]
        if row.get("messages"):
            last = max(i for i, message in enumerate(row["messages"]) if message["role"] == "assistant")
            return row["messages"][:last]
        row = next(iter(self.train_dataset))
        ids = row["input_ids"]
        given = next((i for i, label in enumerate(row.get("labels") or []) if label != -100), 0)
        return self._tokenizer.decode(ids[: given or max(len(ids) // 2, 1)])

    def _hub_generation_config(self) -> DiffusionGenerationConfig:
        """The model's own, on the canvas and in the blocks that it was trained on."""
        args, family = self.args, diffusion_model(self.model)
        settings = family.generation_config.to_dict()
        if not isinstance(family.generation_config, DiffusionGenerationConfig):
            settings = {name: settings.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = DiffusionGenerationConfig.from_dict(settings)
        changes = {}
        if args.canvas_length is not None:
            changes["max_new_tokens"] = args.canvas_length
        if self._attention_block is None and args.block_length is not None:
            changes["block_length"] = args.block_length
        if changes:
            canvas = changes.get("max_new_tokens", config.max_new_tokens)
            block = changes.get("block_length", config.block_length)
            steps = config.num_denoising_steps
            # What was meant for another canvas than that of training: so many steps, and blocks that do not fit.
            changes["block_length"] = block if block is None or block <= canvas else None
            changes["num_denoising_steps"] = steps if canvas == config.max_new_tokens else None
            config.update(**changes)
        for name in ("eos_token_id", "pad_token_id"):
            if getattr(config, name) is None:
                setattr(config, name, getattr(self._tokenizer, name))
        return config

    def _fill_canvases(self):
        """Fill rows behind their EOS; warn where that would be needed and cannot be done."""
        args, family = self.args, diffusion_model(self.model)
        known = self._attention_block is not None or args.canvas_length is not None
        ends = family.generation_config.eos_token_id
        ends = {self._tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        collator = CanvasFillCollator(
            self.data_collator,
            self._tokenizer,
            ends,
            self._attention_block,
            args.canvas_length,
            family.config.max_position_embeddings,
            args.pad_to_multiple_of,
        )
        for name, dataset in map_style_datasets(self):
            if not {"input_ids", "labels"} <= set(dataset.column_names):
                continue
            lengths = [sum(label != -100 for label in labels) for labels in dataset["labels"]]
            if not known and min(lengths) != max(lengths):
                logger.warning(
                    f"{name} has completions of {min(lengths)} to {max(lengths)} tokens, and each is trained on a "
                    "canvas of just its length: the model learns that an answer ends where its canvas does. Set "
                    "canvas_length to the max_new_tokens of generation."
                )
            rows = zip(dataset["input_ids"], dataset["labels"], strict=True)
            if known and all(collator.end_of_answer(*row) is None for row in rows):
                logger.warning(
                    f"No row of {name} ends in an EOS that is trained on (ids {sorted(ends)}), so that fill_canvas "
                    "has nothing to fill: the model will not learn where answers end."
                )
        if known:
            self.data_collator = collator

    def _check_recorded_blocks(self):
        """Raise where traces were recorded with other blocks than those they would be replayed in."""
        for name, dataset in map_style_datasets(self):
            if self._attention_block is not None and "block_length" in dataset.column_names:
                found = set(dataset["block_length"]) - {self._attention_block}
                if found:
                    raise ValueError(
                        f"{name} was recorded with block_length={min(found)} and the model is trained in blocks of "
                        f"{self._attention_block}: its states would not be those of the sampler. Set "
                        f"block_length={min(found)}."
                    )

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
