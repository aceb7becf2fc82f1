# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Keys and values that denoising steps reuse."""

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class CanvasCacheLayer(CacheLayerMixin):
    """Keys and values of all columns of one layer, allocated once and written by index.

    It does not know its cache: keys and values are to be freed with the last reference to it, and not when Python
    happens to look for cycles.
    """

    def __init__(self, num_columns: int):
        super().__init__()
        self.num_columns = num_columns
        self.window: torch.Tensor | None = None
        self.in_sight = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor):
        for name, states in (("keys", key_states), ("values", value_states)):
            batch_size, heads, _, size = states.shape
            setattr(self, name, states.new_zeros(batch_size, heads, self.num_columns, size))
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the window's keys and values, (R, H, q, D); return those of all columns in sight, (R, H, kv, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys.index_copy_(2, self.window, key_states)
        self.values.index_copy_(2, self.window, value_states)
        return self.keys[:, :, : self.in_sight], self.values[:, :, : self.in_sight]

    def select(self, rows: torch.Tensor):
        """Keep some rows."""
        self.keys, self.values = self.keys[rows], self.values[rows]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys in sight."""
        return self.in_sight, 0

    def get_seq_length(self) -> int:
        """Columns in sight; never 0 in a forward pass, so that no mask is made for an empty cache."""
        return self.in_sight

    def get_max_length(self) -> int:
        """Columns in all."""
        return self.num_columns


class CanvasCache(Cache):
    """A cache over the columns of a [`CanvasLayout`]. A forward pass takes a window of columns, replaces their keys
    and values, and sees those of all columns up to `in_sight`: 2 · layers · R · kv heads · L · head size numbers.

    Args:
        num_layers (`int`):
            Layers of the model.
        num_columns (`int`):
            Columns of the layout.
    """

    def __init__(self, num_layers: int, num_columns: int):
        super().__init__(layers=[CanvasCacheLayer(num_columns) for _ in range(num_layers)])

    def look_at(self, window: torch.Tensor, in_sight: int):
        """Say which columns the next forward pass computes, (q,), and how many it sees."""
        for layer in self.layers:
            layer.window, layer.in_sight = window, in_sight

    def select(self, rows: torch.Tensor):
        """Keep some rows: (R',), long."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.select(rows)
