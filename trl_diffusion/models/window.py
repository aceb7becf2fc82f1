# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The forward pass of a denoising step: some columns of a canvas, with or without a cache."""

import torch
from transformers import Cache, CompileConfig

from .attention import dense_mask
from .positions import document_positions


class WindowForwardMixin:
    """Gives a diffusion language model [`~WindowForwardMixin.window_logits`]."""

    def window_logits(
        self,
        input_ids: torch.Tensor,
        columns: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        visible: torch.Tensor | None = None,
        cache: Cache | None = None,
        compiled: bool = False,
    ) -> torch.Tensor:
        """Logits of the tokens at chosen columns of a window, the same number in every row.

        Args:
            input_ids (`torch.LongTensor` of shape (B, q)):
                Tokens of the window. With shifted logits it reaches one column further to the left than the columns
                asked for, unless a row begins there.
            columns (`torch.LongTensor` of shape (B, m)):
                Columns of the window whose tokens are to be predicted.
            position_ids (`torch.LongTensor` of shape (B, q), *optional*):
                Positions of the tokens in their rows. Defaults to the window's columns.
            visible (`torch.BoolTensor` of shape (B, q, kv) or (B, kv), *optional*):
                Which keys each query, or all queries, see. `None`: everything.
            cache ([`~transformers.Cache`], *optional*):
                Holds the keys of other columns; the window's are written to it.
            compiled (`bool`, *optional*, defaults to `False`):
                Run the forward pass through `torch.compile`, one graph for each shape.

        Returns:
            `torch.Tensor` of shape (B, m, V), in the model's dtype.
        """
        places = document_positions(input_ids, None, position_ids, cached=True)
        read_at = columns - (places.gather(1, columns).clamp(max=self.logits_shift) if self.logits_shift else 0)
        mask = visible
        if visible is not None and (visible.ndim == 3 or "flash" not in self.config._attn_implementation):
            if visible.ndim == 2:
                visible = visible[:, None, :].expand(-1, input_ids.size(1), -1)
            mask = dense_mask(self.config, visible, self.dtype)
        forward = self.get_compiled_call(CompileConfig(dynamic=False)) if compiled else self
        output = forward(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            logits_to_keep=read_at,
            use_cache=False,
        )
        return output.logits
