"""Any sequence of opens, steps, crops and closes, sensible or not, against a model that keeps whole texts."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from families import VOCAB, make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from braid_rpc.errors import BraidError
from braid_rpc.steps import OpenSession, Segment, SpanResult, SpanStep
from braid_services.shard.backend import ShardBackend
from braid_services.shard.stream import ShardStream

from .conftest import make_backend, plain_logits

# float32, relative to logits of order one: sums taken in another order.
TOLERANCE = 2e-5
NAMES = ("a", "b", "c")

names = st.sampled_from(NAMES)
small = st.integers(0, 9)
rows = st.lists(st.tuples(names, st.integers(1, 7)), min_size=1, max_size=3, unique_by=lambda row: row[0])
actions = st.one_of(
    st.tuples(st.just("open"), names, small),
    st.tuples(st.just("crop"), names, small),
    st.tuples(st.just("close"), names, small),
    st.tuples(st.just("step"), rows, small),
    st.tuples(st.just("step"), rows, small),
    st.tuples(st.just("stop half way"), rows, small),
    st.tuples(st.just("go on"), st.just(None), small),
    st.tuples(st.just("nonsense"), names, small),
)

_shared: list[ShardBackend] = []


def small_backend() -> ShardBackend:
    if not _shared:
        model = make_model("mistral", max_position_embeddings=24)
        row = 2 * 2 * 8 * 4 * 3  # keys and values, heads, width, bytes, layers
        _shared.append(make_backend(model, cache_bytes=12 * 4 * row))
    return _shared[0]


@dataclass
class Twin:
    """What the shard must hold: the text of each session, and the batch under way."""

    backend: ShardBackend
    texts: dict[str, list[int]] = field(default_factory=dict)
    step_id: int = 0
    seed: int = 0
    suspended: tuple[SpanResult[Tensor], dict[str, list[int]]] | None = None

    def rows(self, wanted: list[tuple[str, int]]) -> tuple[tuple[Segment, ...], Tensor, dict[str, list[int]]]:
        segments, ids, after = [], [], {}
        for name, count in wanted:
            self.seed += 1
            new = torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(self.seed)).tolist()
            segments.append(Segment(name, len(self.texts.get(name, [])), count))
            ids += new
            after[name] = self.texts.get(name, []) + new
        return tuple(segments), torch.tensor(ids), after

    def check(self, result: SpanResult[Tensor], after: dict[str, list[int]]) -> None:
        assert result.logits is not None
        for got, text in zip(result.logits, after.values(), strict=True):
            expected = plain_logits(self.backend, torch.tensor(text))[-1]
            assert float((got - expected).abs().max()) <= TOLERANCE * max(1.0, float(expected.abs().max()))
        self.texts.update(after)


@settings(max_examples=100, deadline=None)
@given(st.lists(actions, min_size=10, max_size=40))
def test_any_sequence_of_requests_keeps_texts_and_books_right(
    requests: list[tuple[str, object, int]],
) -> None:
    backend = small_backend()
    stream, twin = backend.stream(), Twin(backend)
    try:
        play(stream, twin, requests)
    finally:
        stream.end()
    assert backend.card.cache_bytes_free == backend.card.cache_bytes_total


def play(stream: ShardStream, twin: Twin, requests: list[tuple[str, object, int]]) -> None:
    backend = twin.backend
    stream.open([OpenSession(name, 2) for name in NAMES])
    twin.texts = {name: [] for name in NAMES}
    for kind, what, number in requests:
        before = backend.card
        try:
            if kind == "open":
                stream.open([OpenSession(str(what), number)])
                twin.texts[str(what)] = []
            elif kind == "crop":
                stream.crop(str(what), number)
                twin.texts[str(what)] = twin.texts[str(what)][:number]
                if twin.suspended and what in twin.suspended[1]:
                    twin.suspended = None
            elif kind == "close":
                stream.close([str(what)])
                twin.texts.pop(str(what), None)
                if twin.suspended and what in twin.suspended[1]:
                    twin.suspended = None
            elif kind in ("step", "stop half way"):
                assert isinstance(what, list)
                segments, token_ids, after = twin.rows(what)
                ends = [sum(s.num_rows for s in segments[: i + 1]) - 1 for i in range(len(segments))]
                middle = number % 3
                step = SpanStep(twin.step_id + 1, 0, middle, False, segments, token_ids, tuple(ends))
                result = stream.step(step)
                twin.step_id, twin.suspended = twin.step_id + 1, (result, after)
                if kind == "step":
                    twin.suspended = None
                    twin.check(
                        stream.step(SpanStep(step.step_id, middle, 3, True, hidden=result.hidden)), after
                    )
            elif kind == "go on" and twin.suspended:
                result, after = twin.suspended
                result = stream.step(
                    SpanStep(twin.step_id, stream_layer(stream), 3, True, hidden=result.hidden)
                )
                twin.suspended = None
                twin.check(result, after)
            elif kind == "go on":
                stream.step(SpanStep(twin.step_id + 1, 1, 3, True, hidden=torch.zeros(1, 32)))
                raise AssertionError("a batch that nobody began went on")
            else:
                wrong = SpanStep(
                    twin.step_id + number - 4, number % 5, number % 4, number > 4, hidden=torch.zeros(2, 3)
                )
                stream.step(wrong)
                raise AssertionError(f"{wrong} was accepted")
        except BraidError:
            assert backend.card == before
        except KeyError as missing:
            raise AssertionError(f"{kind} of a session that is not open was accepted") from missing


def stream_layer(stream: ShardStream) -> int:
    assert stream._batch is not None
    return stream._batch.layer
