# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Config of [`DiffusionSFTTrainer`]."""

from dataclasses import dataclass, field

from trl import SFTConfig

from .checks import reject


_CHOICES = {
    "masking": ("random", "block", "trace"),
    "loss_weighting": (None, "inverse", "uniform"),
    "loss_normalization": ("token", "sequence", "batch"),
}
# Masking -> fields that have no effect with it: their defaults, and what to do instead.
_WITHOUT_EFFECT = {
    "random": {
        "num_blocks": (None, "only masking='block' trains block by block. Leave it out."),
        "step_map_column": ("unmask_step", "only masking='trace' reads step maps. Leave it out."),
        "shrinkage": (1, "only masking='trace' has steps to merge. Leave it at 1."),
    },
    "block": {
        "step_map_column": ("unmask_step", "only masking='trace' reads step maps. Leave it out."),
        "shrinkage": (1, "only masking='trace' has steps to merge. Leave it at 1."),
    },
    "trace": {
        "num_masks": (1, "masking='trace' draws no masks, the step map says them all. Leave it at 1."),
        "min_noise_level": (1e-3, "masking='trace' draws no noise. Leave it out."),
        "max_noise_level": (1.0, "masking='trace' draws no noise. Leave it out."),
        "num_blocks": (None, "masking='trace' replays whole trajectories. Leave it out."),
        "canvas_length": (None, "masking='trace' replays the canvas that was recorded. Leave it out."),
        "fill_canvas": (True, "masking='trace' replays the canvas that was recorded. Leave it out."),
    },
}


@dataclass
class DiffusionSFTConfig(SFTConfig):
    r"""
    Configuration of the [`DiffusionSFTTrainer`]: all of [`~trl.SFTConfig`], and the fields below.

    Parameters:
        > Parameters that control what is masked

        masking (`str`, *optional*, defaults to `"random"`):
            `"random"`: a random share of the whole completion. `"block"`: block by block; full attention sees clean
            tokens before the block and masks behind it (semi-autoregressive), block-causal attention trains all
            blocks in one pass, each at its own noise level. `"trace"`: the states of a recorded trajectory.
        num_masks (`int`, *optional*, defaults to `1`):
            m, masked copies of each row and step; the loss is the mean over them. Not for `"trace"`.
        block_length (`int`, *optional*):
            Full attention: tokens per block of `masking="block"`, which needs it, counted from the first trainable
            token. Block-causal attention: replaces the model's own block, which is the default.
        num_blocks (`int`, *optional*):
            Full attention, `masking="block"`: draw so many blocks of each row and mask, and scale their weights so
            that the expectation is that of all blocks, which is the default.
        canvas_length (`int`, *optional*):
            Full attention: the canvas of generation. A completion longer than this is trained canvas by canvas, with
            the tokens before a canvas as clean context and those behind it out of sight. By default the completion is
            one canvas, whatever its length, and the model learns that an answer ends where its canvas does.
        fill_canvas (`bool`, *optional*, defaults to `True`):
            Fill the last canvas (full attention, with `canvas_length`) or block (block-causal attention) of rows that
            end in EOS with EOS tokens, and train on them: at generation masks stand behind the answer. Rows may then
            be longer than `max_length`, up to the model's positions. Not for `"trace"`, whose tails are recorded.
        step_map_column (`str`, *optional*, defaults to `"unmask_step"`):
            `masking="trace"`: column with the step at which each completion token was committed, counted from 1; 0 =
            not drawn, never masked and never trained. With the columns `prompt_ids` and `completion_ids`, as
            `collect_traces` returns them, nothing is tokenised again.
        shrinkage (`int`, *optional*, defaults to `1`):
            s, consecutive steps that `masking="trace"` merges into one view; block-causal models: inside each block.

        > Parameters that control the noise

        min_noise_level (`float`, *optional*, defaults to `1e-3`):
            Noise levels are drawn as t ~ U[min_noise_level, max_noise_level]. With 0 the variance of the loss is
            infinite.
        max_noise_level (`float`, *optional*, defaults to `1.0`):
            The upper end.

        > Parameters that control the loss

        loss_weighting (`str`, *optional*):
            Weight of a masked token: `"inverse"`, 1/t, or `"uniform"`, 1. Defaults to `"inverse"`, and for
            `masking="trace"`, which has no t, to `"uniform"`.
        loss_normalization (`str`, *optional*, defaults to `"token"`):
            What the weighted sum is divided by, over all processes and accumulation steps: `"token"`, the trainable
            tokens; `"sequence"`, each row's sum by its trainable tokens, then the number of rows; `"batch"`, the
            number of rows.

        > Parameters that control the Hub

        push_merged_adapter (`bool`, *optional*, defaults to `False`):
            Push the base with the adapter merged into its weights, instead of the adapter; at the end only. Not for
            quantized bases.

    > [!NOTE]
    > `packing`, `padding_free`, `loss_type="dft"` and `label_smoothing_factor` are refused: documents packed together
    > would see each other, and the others belong to next-token prediction. So are fields without an effect on the
    > chosen masking or the model's attention.
    """

    masking: str = field(
        default="random",
        metadata={"help": "What is masked: 'random', 'block' (block by block) or 'trace' (a recorded trajectory)."},
    )
    num_masks: int = field(default=1, metadata={"help": "Masked copies of each row and step."})
    block_length: int | None = field(
        default=None,
        metadata={"help": "Tokens per block of masking='block', or the attention block of block-causal models."},
    )
    num_blocks: int | None = field(
        default=None,
        metadata={"help": "Blocks drawn per row and mask by masking='block' under full attention; None: all."},
    )
    canvas_length: int | None = field(
        default=None,
        metadata={"help": "Full attention: longer completions are trained canvas by canvas. None: one canvas."},
    )
    fill_canvas: bool = field(
        default=True, metadata={"help": "Fill the last canvas or block of a row with EOS tokens that are trained on."}
    )
    step_map_column: str = field(
        default="unmask_step", metadata={"help": "Column with the step map of masking='trace'."}
    )
    shrinkage: int = field(
        default=1, metadata={"help": "Consecutive steps that masking='trace' merges into one view."}
    )
    min_noise_level: float = field(
        default=1e-3, metadata={"help": "Noise levels are drawn as t ~ U[min_noise_level, max_noise_level]."}
    )
    max_noise_level: float = field(default=1.0, metadata={"help": "Upper end of the noise levels."})
    loss_weighting: str | None = field(
        default=None,
        metadata={"help": "Weight of a masked token: 'inverse' (1/t) or 'uniform'. None: what the masking needs."},
    )
    loss_normalization: str = field(
        default="token", metadata={"help": "The loss is divided by 'token', 'sequence' or 'batch' counts of the step."}
    )
    push_merged_adapter: bool = field(
        default=False,
        metadata={"help": "Push the base with the adapter merged into it, at the end, instead of the adapter."},
    )

    def __post_init__(self):
        super().__post_init__()
        reject(
            self,
            {
                "packing": (False, "documents packed into one row would see each other. Set packing=False."),
                "eval_packing": (None, "leave it out, as packing."),
                "padding_free": (False, "rows joined into one would see each other. Set padding_free=False."),
                "loss_type": ("nll", "the loss is the weighted cross-entropy of masked tokens. Leave it out."),
                "label_smoothing_factor": (0.0, "set it to 0."),
                "router_aux_loss_coef": (None, "the load-balancing loss of experts is not added. Leave it out."),
            },
        )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(map(str, choices))}.")
        reject(self, _WITHOUT_EFFECT[self.masking])
        if self.masking == "trace" and self.loss_weighting == "inverse":
            raise ValueError(
                "loss_weighting='inverse' is 1/t, and masking='trace' has no noise level t. Set it to 'uniform'."
            )
        if self.masking == "trace" and self.completion_only_loss is False:
            raise ValueError(
                "completion_only_loss=False has no effect with masking='trace', which trains the tokens that have a "
                "step. Leave it out."
            )
        for name in ("num_masks", "block_length", "num_blocks", "canvas_length", "shrinkage"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if not 0 < self.min_noise_level <= 1:
            raise ValueError(f"min_noise_level={self.min_noise_level} must lie in (0, 1].")
        if not self.min_noise_level <= self.max_noise_level <= 1:
            raise ValueError(
                f"max_noise_level={self.max_noise_level} must lie in [min_noise_level, 1] = "
                f"[{self.min_noise_level}, 1]."
            )

    @property
    def weighs_by_noise(self) -> bool:
        """Whether masked tokens weigh 1/t."""
        return self.masking != "trace" and self.loss_weighting != "uniform"

    def check_attention(self, attention: str):
        """Refuse fields that have no effect under the attention of the model that is trained.

        Args:
            attention (`str`):
                `"full"` or `"block_causal"`.

        Raises:
            ValueError: such a field is set, or `masking="block"` lacks its `block_length`.
        """
        if attention == "block_causal":
            reject(
                self,
                {
                    "num_blocks": (None, "a block-causal model trains all blocks in one pass. Leave it out."),
                    "canvas_length": (None, "a block-causal model never sees behind a block. Leave it out."),
                },
            )
        elif self.masking != "block":
            remedy = (
                f"under full attention masking={self.masking!r} has no blocks. Leave it out, or set masking='block'."
            )
            reject(self, {"block_length": (None, remedy)})
        elif self.block_length is None:
            raise ValueError(
                "block_length=None: masking='block' under full attention needs the tokens per block. Set it to the "
                "block_length of generation, e.g. 32."
            )
        elif self.canvas_length is not None and self.block_length > self.canvas_length:
            raise ValueError(
                f"block_length={self.block_length} is longer than canvas_length={self.canvas_length}. Make the blocks "
                "shorter, or the canvas longer."
            )
