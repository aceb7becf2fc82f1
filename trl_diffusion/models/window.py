# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The forward pass of a denoising step: some columns of a canvas, with or without a cache."""

import torch
from transformers import Cache, CompileConfig

from .attention import window_mask
from .positions import document_positions


class WindowForwardMixin:
    """Gives a diffusion language model [`~WindowForwardMixin.window_logits`]."""

    def window_logits(
        self,
        input_ids: torch.Tensor,
        columns: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        key_mask: torch.Tensor | None = None,
        query_columns: torch.Tensor | None = None,
        block_length: int | None = None,
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
            key_mask (`torch.BoolTensor` of shape (B, kv), *optional*):
                True on the real tokens among the keys. `None`: the window sees every key.
            query_columns (`torch.LongTensor` of shape (q,), *optional*):
                With `key_mask`: where the window stands among the keys.
            block_length (`int`, *optional*):
                With `key_mask`: blocks begin at its multiples among the keys, and tokens see their own block and those
                before it. `None`: tokens see every real key.
            cache ([`~transformers.Cache`], *optional*):
                Holds the keys of other columns; the window's are written to it.
            compiled (`bool`, *optional*, defaults to `False`):
                Run the forward pass through `torch.compile`, one graph for each shape.

        Returns:
            `torch.Tensor` of shape (B, m, V), in the model's dtype.
        """
        places = document_positions(input_ids, None, position_ids, cached=True)
        read_at = columns - (places.gather(1, columns).clamp(max=self.logits_shift) if self.logits_shift else 0)
        mask, kwargs = key_mask, {}
        implementation = self.config._attn_implementation
        if key_mask is not None and cache is None and implementation not in ("sdpa", "eager"):
            # The model's own: of flex attention because Inductor compiles it on a CPU too, of flash attention because
            # it takes masks of padding only.
            position_ids = None
            if block_length is not None:
                kwargs["block_length"] = block_length
        elif key_mask is not None and (block_length or "flash" not in implementation):
            mask = window_mask(self.config, key_mask, query_columns, block_length, self.dtype)
        forward = self.get_compiled_call(CompileConfig(dynamic=False)) if compiled else self
        output = forward(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            logits_to_keep=read_at,
            use_cache=False,
            **kwargs,
        )
        return output.logits
