"""Putting a model's cache back to where a call began, when the call is given up. Knows no grafted layer."""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from braid_fusion.grafting.cache import GraftRows


class CacheMark:
    """Where each layer of a cache stood before a call. Costs nothing but references to windows."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        # A window forgets as it goes on. Its tensors are replaced, never written to, so these stay as they are.
        self._windows = {
            id(layer): (layer.keys, layer.values, layer.cumulative_length)
            for layer in cache.layers
            if isinstance(layer, DynamicSlidingWindowLayer) and layer.is_initialized
        }

    def rewind(self, num_positions: int) -> bool:
        """Take back a call of so many positions that ran through all layers.

        Returns: whether that was possible; caches of fixed size and recurrent states can't be put back.
        """
        return all([self._rewind_layer(layer, num_positions) for layer in self._cache.layers])

    def _rewind_layer(self, layer: Any, num_positions: int) -> bool:
        if isinstance(layer, GraftRows):
            return True
        if isinstance(layer, DynamicSlidingWindowLayer):
            if id(layer) in self._windows:
                layer.keys, layer.values, layer.cumulative_length = self._windows[id(layer)]
            else:
                layer.reset()
            return True
        if type(layer) is not DynamicLayer:
            return False
        layer.crop(-num_positions)
        return True
