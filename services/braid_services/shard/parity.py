"""The check at load time that a model run span by span gives its own numbers. Knows no wire and no config."""

from __future__ import annotations

import torch
from torch import Tensor

from braid_rpc.errors import BraidError, UnsupportedModelError
from braid_services.shard.attention import LayerShape, ShapeProbe
from braid_services.shard.cache import CachedAttention, CachedRows, CachePool
from braid_services.shard.spans import SpanModel, SpanRun

# Largest difference allowed, relative to the largest logit: rounding of sums taken in another order. Some models
# normalise in float32 whatever their dtype.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}

_LENGTHS = (7, 4)


def probe(spans: SpanModel) -> list[LayerShape]:
    """The shape of each layer's keys and values, found by a short run.

    Raises: UnsupportedModelError if some layer computes attention in a way of its own, or if the head reads
    states of another width than the layers'.
    """
    attention = ShapeProbe([2])
    ids_T = torch.zeros(2, dtype=torch.long, device=spans.device)
    try:
        with spans.lock, torch.inference_mode():
            head_input_RD, _ = SpanRun(
                spans, ids_T, torch.arange(2, device=spans.device), None, attention
            ).finish(None)
    except BraidError as error:
        raise UnsupportedModelError(f"{spans.family}: {error.message}") from error
    except Exception as error:  # whatever a foreign model's forward raises
        raise UnsupportedModelError(f"{spans.family}: cannot be run on packed rows: {error}") from error
    silent = [layer for layer in range(spans.num_layers) if layer not in attention.shapes]
    if silent or len(attention.shapes) != spans.num_layers:
        raise UnsupportedModelError(
            f"{spans.family}: {len(silent)} of {spans.num_layers} layers do not use transformers' "
            "attention interface, so they cannot be run span by span"
        )
    if head_input_RD.shape[-1] != spans.width:
        raise UnsupportedModelError(
            f"{spans.family}: the output head reads states of width {head_input_RD.shape[-1]}, expected the "
            f"layers' own width {spans.width}"
        )
    return [attention.shapes[layer] for layer in range(spans.num_layers)]


def check(spans: SpanModel, layers: list[LayerShape]) -> float:
    """Run two short sequences packed, cut at every layer, then one token more from the cache, and compare
    with the plain forward of each alone.

    Returns: the largest difference relative to the largest logit. Raises: UnsupportedModelError if it is more
    than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(spans.input_vocab, (length + 1,), generator=generator) for length in _LENGTHS]
    try:
        with spans.lock, torch.inference_mode():
            expected = [_plain_logits(spans, ids) for ids in texts]
            got = _packed_logits(spans, layers, texts)
    except Exception as error:  # whatever a foreign model's forward raises
        raise UnsupportedModelError(f"{spans.family}: cannot be run span by span: {error}") from error
    scale = max(float(logits.abs().max()) for logits in expected)
    errors = [float((a - b).abs().max()) for a, b in zip(got, expected, strict=True)]
    worst = max(errors) / max(scale, 1e-6)
    tolerance = TOLERANCE[spans.dtype]
    if not worst <= tolerance:  # NaN is refused too
        raise UnsupportedModelError(
            f"{spans.family}: logits of a run span by span differ from the plain forward by {worst:.1e} of "
            f"the largest, expected at most {tolerance:.0e} in {spans.dtype}"
        )
    return worst


def _plain_logits(spans: SpanModel, ids: Tensor) -> Tensor:
    with spans.attention("eager"):
        logits: Tensor = spans.model(input_ids=ids[None].to(spans.device), use_cache=False).logits
    return logits[0].float()


def _packed_logits(spans: SpanModel, layers: list[LayerShape], texts: list[Tensor]) -> list[Tensor]:
    pool = CachePool(
        layers,
        dtype=spans.dtype,
        device=spans.device,
        total_bytes=2**62,
        block_tokens=1 + max(_LENGTHS),
        ttl_s=2**31,
    )
    sessions = pool.open([(1 + length, spans.num_layers) for length in _LENGTHS])
    prompt: list[Tensor] = []
    last: list[Tensor] = []
    for first, count, logits in ((True, _LENGTHS, prompt), (False, (1,) * len(_LENGTHS), last)):
        positions = [0 if first else length for length in _LENGTHS]
        rows, ids = [], []
        for session, text, position, num_rows in zip(sessions, texts, positions, count, strict=True):
            rows.append(CachedRows(session, position, num_rows))
            ids.append(text[position : position + num_rows])
        positions_T = torch.cat([torch.arange(r.position, r.position + r.num_rows) for r in rows])
        run = SpanRun(
            spans, torch.cat(ids).to(spans.device), positions_T.to(spans.device), None, CachedAttention(rows)
        )
        hidden_TD = None
        for layer in range(spans.num_layers):
            hidden_TD = run.advance(layer, hidden_TD)
        _, logits_TV = run.finish(hidden_TD)
        logits.extend(torch.split(logits_TV.float(), list(count)))
        for row in rows:
            row.session.length = row.position + row.num_rows
    return [torch.cat(pair) for pair in zip(prompt, last, strict=True)]
