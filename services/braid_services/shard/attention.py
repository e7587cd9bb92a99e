"""Attention over packed rows of several sequences, in place of a model's own. Knows no sessions.

Shapes: B sequences, T packed rows, N rows of one sequence, L keys of one sequence, H query heads,
J key heads, K head width, V value width. A model's attention layers call `packed_attention` while one of
our runs (`spans.SpanRun`) is the current greenlet; what it brought along decides where keys and values live.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from greenlet import getcurrent
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from braid_rpc.errors import UnsupportedModelError

# No mask function is registered under this name on purpose: the models then build no mask at all.
PACKED_ATTENTION = "braid_packed"

# Arguments that models hand to every attention function and that change no number here.
_HARMLESS = frozenset(
    {
        "position_ids",
        "position_embeddings",
        "cache_position",
        "use_cache",
        "past_key_values",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "logits_to_keep",
        "num_items_in_batch",
    }
)


class AttentionRule(NamedTuple):
    """What a layer does with its scores. ``window``: a row sees itself and ``window`` - 1 rows before it."""

    scaling: float | None
    window: int | None
    softcap: float | None
    sinks: Tensor | None  # (H,)


class PackedAttention(Protocol):
    """Where the keys and values of one packed batch live."""

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule
    ) -> Tensor:
        """Attend with query (1, H, T, K), key (1, J, T, K) and value (1, J, T, V); returns (1, T, H, V)."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What the models call. Raises: UnsupportedModelError for whatever would change numbers unnoticed."""
    attention: PackedAttention | None = getattr(getcurrent(), "attention", None)
    if attention is None:
        raise UnsupportedModelError(f"{PACKED_ATTENTION} attention was called outside a span run of a shard")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is not None or dropout or not causal or not kwargs.keys() <= _HARMLESS:
        _refuse(module, attention_mask, dropout, causal, kwargs)
    rule = AttentionRule(scaling, sliding_window, softcap, s_aux)
    return attention.attend(module.layer_idx, query, key, value, rule), None  # type: ignore[arg-type]


AttentionInterface.register(PACKED_ATTENTION, packed_attention)


def _refuse(
    module: nn.Module, mask: Tensor | None, dropout: float, causal: bool, kwargs: dict[str, Any]
) -> None:
    layer = type(module).__name__
    if mask is not None:
        raise UnsupportedModelError(
            f"{layer} passes an attention mask of its own, expected none for packed rows"
        )
    if dropout:
        raise UnsupportedModelError(f"{layer} has attention dropout {dropout}, expected a model in eval mode")
    if not causal:
        raise UnsupportedModelError(f"{layer} is not causal, expected a causal language model")
    unknown = sorted(name for name, value in kwargs.items() if name not in _HARMLESS and value is not None)
    if unknown:
        raise UnsupportedModelError(
            f"{layer} passes {', '.join(unknown)}, which packed attention does not know"
        )


MaskCache = dict[tuple[int, int, int | None], Tensor]


def attend_rows(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule, masks: MaskCache) -> Tensor:
    """Causal attention of the last N of L positions of each of B sequences.

    Args:
        query: (B, H, N, K).
        key: (B, J, L, K) with J dividing H.
        value: (B, J, L, V).
        masks: masks of this batch, made once and used in all layers.

    Returns: (B, N, H, V), a view where the kernel allows.
    """
    num_rows, num_keys = query.shape[2], key.shape[2]
    window = rule.window
    if window is not None:
        seen = num_rows + window - 1
        if num_keys > seen:
            key, value = key.narrow(2, num_keys - seen, seen), value.narrow(2, num_keys - seen, seen)
            num_keys = seen
        if num_keys <= window:
            window = None
    if rule.softcap is not None or rule.sinks is not None:
        return _attend_by_hand(query, key, value, rule, _mask(num_rows, num_keys, window, query, masks))
    batch, num_heads, _, _ = query.shape
    num_groups = num_heads // key.shape[1]
    if num_rows == 1:
        if num_groups == 1:
            return scaled_dot_product_attention(query, key, value, scale=rule.scaling).transpose(1, 2)
        # The query heads of one key head become its rows: no key is copied.
        rows = query.reshape(batch, key.shape[1], num_groups, query.shape[3])
        out = scaled_dot_product_attention(rows, key, value, scale=rule.scaling)
        return out.reshape(batch, 1, num_heads, value.shape[3])
    causal = window is None and num_rows == num_keys
    mask = None if causal else _mask(num_rows, num_keys, window, query, masks)
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=rule.scaling, enable_gqa=num_groups > 1
    )
    return out.transpose(1, 2)


def _attend_by_hand(
    query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule, mask: Tensor | None
) -> Tensor:
    """The same with softcap and sinks, which the fused kernels do not have; the softmax is in float32."""
    batch, num_heads, num_rows, width = query.shape
    num_groups = num_heads // key.shape[1]
    scaling = width**-0.5 if rule.scaling is None else rule.scaling
    query = query.reshape(batch, key.shape[1], num_groups, num_rows, width)
    scores = torch.matmul(query, key[:, :, None].transpose(3, 4)) * scaling  # (B, J, H/J, N, L)
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    if mask is not None:
        scores = scores + mask
    precision = torch.promote_types(scores.dtype, torch.float32)
    if rule.sinks is None:
        weights = torch.softmax(scores, dim=-1, dtype=precision)
    else:
        sinks = rule.sinks.reshape(1, -1, num_groups, 1, 1).expand(batch, -1, -1, num_rows, 1)
        weights = torch.softmax(torch.cat([scores, sinks.to(scores.dtype)], -1), dim=-1, dtype=precision)[
            ..., :-1
        ]
    out = torch.matmul(weights.to(value.dtype), value[:, :, None])
    return out.reshape(batch, num_heads, num_rows, value.shape[3]).transpose(1, 2)


def _mask(num_rows: int, num_keys: int, window: int | None, like: Tensor, masks: MaskCache) -> Tensor | None:
    """What is added to the scores (N, L) of the last N of L positions; None where all see all."""
    if num_rows == 1 and window is None:
        return None
    mask = masks.get((num_rows, num_keys, window))
    if mask is None:
        keys = torch.arange(num_keys, device=like.device)
        rows = keys[num_keys - num_rows :, None]
        hidden = keys > rows
        if window is not None:
            hidden |= keys <= rows - window
        mask = torch.zeros(num_rows, num_keys, dtype=like.dtype, device=like.device).masked_fill_(
            hidden, -torch.inf
        )
        masks[(num_rows, num_keys, window)] = mask
    return mask


def _stacked(packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """(1, H, T, K), T being B sequences of N rows, as (B, H, N, K)."""
    num_heads, width = packed.shape[1], packed.shape[3]
    return packed.reshape(num_heads, *shape, width).transpose(0, 1)


class WholeSequences:
    """Sequences of the given lengths, packed, each from position 0 and without a cache; differentiable."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = lengths
        self._masks: MaskCache = {}
        self._same = len(lengths) > 0 and all(length == lengths[0] for length in lengths)

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule
    ) -> Tensor:
        """As `PackedAttention.attend`."""
        if self._same:
            shape = (len(self.lengths), self.lengths[0])
            query, key, value = (_stacked(packed, shape) for packed in (query, key, value))
            return attend_rows(query, key, value, rule, self._masks).flatten(0, 1)[None]
        parts = zip(*(torch.split(t, list(self.lengths), dim=2) for t in (query, key, value)), strict=True)
        return torch.cat([attend_rows(q, k, v, rule, self._masks) for q, k, v in parts], dim=1)


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The keys and values of one layer: heads and their widths; and the window that it asked for, if any."""

    num_heads: int
    key_width: int
    value_width: int
    window: int | None = None


class ShapeProbe(WholeSequences):
    """Runs whole sequences and notes which layers asked for attention, with keys of which shape."""

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__(lengths)
        self.shapes: dict[int, LayerShape] = {}

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule
    ) -> Tensor:
        """As `PackedAttention.attend`."""
        self.shapes[layer_idx] = LayerShape(key.shape[1], key.shape[3], value.shape[3], rule.window)
        return super().attend(layer_idx, query, key, value, rule)
