"""Backends of tiny models with random weights, of all families that a shard must serve."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from families import FAMILIES, make_model
from torch import Tensor

from braid_rpc.steps import Segment, SpanResult, SpanStep
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig


def plain_logits(backend: ShardBackend, ids: Tensor) -> Tensor:
    """Logits (T, V) of the model's own forward, with transformers' own eager attention and masks."""
    with torch.inference_mode(), backend.plain_model() as model, backend.spans.attention("eager"):
        return model(input_ids=ids[None], use_cache=False).logits[0]


class Driver:
    """Steps batches through a stream with cuts, as an engine does."""

    def __init__(self, backend: ShardBackend) -> None:
        self.backend = backend
        self.stream = backend.stream()
        self.step_id = 0

    def run(
        self,
        rows: Sequence[tuple[str, int, Tensor]],
        cuts: Sequence[int] = (),
        logit_rows: Sequence[int] | None = None,
        change: Callable[[Tensor], Tensor] = lambda hidden: hidden,
    ) -> SpanResult[Tensor]:
        """One batch over all layers; ``rows`` are (session, position, ids). All rows' logits by default."""
        self.step_id += 1
        ends = [*cuts, self.backend.spans.num_layers]
        token_ids = torch.cat([ids for _, _, ids in rows])
        wanted = tuple(range(len(token_ids))) if logit_rows is None else tuple(logit_rows)
        segments = tuple(Segment(name, position, len(ids)) for name, position, ids in rows)
        result = self.stream.step(
            SpanStep(self.step_id, 0, ends[0], len(ends) == 1, segments, token_ids, wanted)
        )
        for start, end in pairwise(ends):
            step = SpanStep(self.step_id, start, end, end == ends[-1], hidden=change(result.hidden))
            result = self.stream.step(step)
        return result


def make_backend(model: Any, tokenizer: Any = None, **settings: Any) -> ShardBackend:
    config = ShardConfig(**{"name": "test", "model": "in-memory", "block_tokens": 4, **settings})
    return ShardBackend.from_model(model, tokenizer, config)


_backends: dict[str, ShardBackend] = {}


@pytest.fixture(scope="session")
def backend_of() -> Callable[[str], ShardBackend]:
    """A backend per family, made once."""

    def get(family: str) -> ShardBackend:
        if family not in _backends:
            _backends[family] = make_backend(make_model(family))
        return _backends[family]

    return get


@pytest.fixture(params=FAMILIES)
def family_backend(request: pytest.FixtureRequest, backend_of: Any) -> Iterator[ShardBackend]:
    """A backend of each family in turn, which must have all its cache back afterwards."""
    backend = backend_of(request.param)
    yield backend
    assert backend.card.cache_bytes_free == backend.card.cache_bytes_total


@pytest.fixture
def backend(backend_of: Any) -> Iterator[ShardBackend]:
    """A small Llama, which must have all its cache back afterwards."""
    backend = backend_of("llama")
    yield backend
    assert backend.card.cache_bytes_free == backend.card.cache_bytes_total
    assert backend.card.num_sessions == 0
