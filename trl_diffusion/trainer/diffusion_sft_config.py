# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Config of [`DiffusionSFTTrainer`]."""

from dataclasses import dataclass, field

from trl import SFTConfig

from .checks import reject


@dataclass
class DiffusionSFTConfig(SFTConfig):
    r"""
    Configuration of the [`DiffusionSFTTrainer`]: all of [`~trl.SFTConfig`], and the fields below.

    Parameters:
        > Parameters that control the noise

        min_noise_level (`float`, *optional*, defaults to `1e-3`):
            Noise levels are drawn as t ~ U[min_noise_level, 1]. With 0 the variance of the loss is infinite.

    > [!NOTE]
    > `packing`, `padding_free`, `loss_type="dft"` and `label_smoothing_factor` are refused: documents packed together
    > would see each other, and the others belong to next-token prediction.
    """

    min_noise_level: float = field(
        default=1e-3, metadata={"help": "Noise levels are drawn as t ~ U[min_noise_level, 1]."}
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.min_noise_level <= 1:
            raise ValueError(f"min_noise_level={self.min_noise_level} must lie in (0, 1].")
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
