"""What an evaluation says, its shards in process or behind real gRPC: the figures that plain sums give."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from braids import braid_config, shake, two_backends
from models import reading_backend, tiny_backend
from torch import Tensor
from training_shards import TRANSPORTS, training_shards

from braid_fusion.plan import PlanReadout
from braid_fusion.stack import FusionStack
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.config.values import PointConfig, ReadoutConfig
from braid_orchestrator.evaluation import (
    BRAID,
    GATE,
    GLOBAL,
    ORACLE,
    POSTERIOR,
    UNIFORM,
    Cut,
    FitOptions,
    LaneReaders,
    Lineup,
    MeasuredText,
    Predictor,
    Resampling,
    fit_readouts,
    make_report,
    measure_scores,
    measure_shard,
    measure_text,
)
from braid_orchestrator.evaluation.measuring import ShardLimit, rows_at_once
from braid_orchestrator.evaluation.scoring import Scores, outputs_plan
from braid_orchestrator.inprocess.whole_text import run_whole
from braid_orchestrator.training.braid_pass import run_pass
from braid_orchestrator.training.data import Document, MemorySource, TrainingTexts, encode_source
from braid_orchestrator.training.ports import TrainingShard
from braid_rpc.errors import ContextLengthError, FrameError, InvalidRequestError
from braid_services.shard.backend import ShardBackend

# Two orders of the same sums in float32, and what tiny models give away in them.
TOLERANCE = 1e-5
WINDOW = 32
TEXTS = (
    "The quick brown fox jumps over the inner dog; né à Zürich, then there. " * 2,
    "In the other thing. " * 5,
)
DOCUMENTS = [Document(str(index), text) for index, text in enumerate(TEXTS)]
LEFT, RIGHT = Predictor("shard", "left"), Predictor("shard", "right")


@pytest.fixture(scope="module")
def backends() -> list[ShardBackend]:
    return two_backends()


@pytest.fixture(scope="module", params=TRANSPORTS)
def shards(request: pytest.FixtureRequest, backends: list[ShardBackend]) -> Iterator[list[TrainingShard]]:
    with training_shards(backends, request.param) as shards:
        yield shards


def stack_of(backends: Sequence[ShardBackend], readout: str = "gate", **parts: object) -> FusionStack:
    config = braid_config(readout=ReadoutConfig(readout), **parts)  # type: ignore[arg-type]
    stack = FusionStack(resolve_plan(config, [backend.card for backend in backends]))
    shake(stack, 1)
    return stack


def measured(
    shards: Sequence[TrainingShard], stack: FusionStack, cut: Cut = Cut(WINDOW), **lineup: object
) -> MeasuredText:
    text = LaneReaders(shards, stack.plan).read("text", DOCUMENTS, cut.window)
    return measure_text(Lineup(shards, stack, **lineup), text, cut)  # type: ignore[arg-type]


def windows(backend: ShardBackend) -> list[Tensor]:
    """Each window with the token behind it, by hand; the end-of-text token is no text."""
    found = []
    for text in TEXTS:
        ids = torch.tensor(backend.tokenize(text)[0])
        found += [ids[at : at + WINDOW + 1] for at in range(0, len(ids) - 1, WINDOW)]
    return found


def num_bytes(backend: ShardBackend) -> int:
    """Of all but each document's first token."""
    return sum(len(text.encode()) - len(backend.detokenize(backend.tokenize(text)[0][:1])) for text in TEXTS)


def by_hand(backend: ShardBackend, scores: list[Tensor]) -> tuple[float, float]:
    """Bits per byte and accuracy of log-probabilities (L, V) of each window."""
    bits = hits = tokens = 0.0
    for ids, log_probs in zip(windows(backend), scores, strict=True):
        own = log_probs[: len(ids) - 1].log_softmax(-1)
        bits -= float(own.gather(1, ids[1:, None]).double().sum()) / math.log(2)
        hits += int((own.argmax(-1) == ids[1:]).sum())
        tokens += len(ids) - 1
    return bits / num_bytes(backend), hits / tokens


def test_a_shard_alone_has_the_loss_that_transformers_has(shards, backends) -> None:
    found = measured(shards, stack_of(backends))
    for backend, who in zip(backends, (LEFT, RIGHT), strict=True):
        loss = 0.0
        for ids in windows(backend):
            loss += float(backend.model(ids[None], labels=ids[None]).loss) * (len(ids) - 1)
        assert found.sums[who].bits_per_byte == pytest.approx(
            loss / math.log(2) / num_bytes(backend), rel=TOLERANCE
        )
        logits = [backend.model(ids[None, :-1]).logits[0] for ids in windows(backend)]
        assert found.sums[who].accuracy == pytest.approx(by_hand(backend, logits)[1])


def test_what_is_measured_by_itself_has_the_figures_that_it_has_among_others(shards, backends) -> None:
    stack, cut = stack_of(backends), Cut(WINDOW, unit="window")
    lane = LaneReaders(shards, stack.plan).read("text", DOCUMENTS, WINDOW).lanes[0]

    def score(ids_T: Tensor, lengths: Sequence[int], targets_T: Tensor) -> dict[Predictor, Scores]:
        with torch.no_grad():
            return {BRAID: Scores(run_pass(shards, stack, ids_T, lengths, targets_T).target_logprobs)}

    among = measured(shards, stack, cut).sums
    for alone, who in (
        (measure_shard(shards[0], lane, cut), LEFT),
        (measure_scores(score, lane, replace(cut, max_rows=WINDOW))[BRAID], BRAID),
    ):
        torch.testing.assert_close(alone.bits_U, among[who].bits_U, rtol=TOLERANCE, atol=0)
        assert torch.equal(alone.bytes_U, among[who].bytes_U)


def test_the_uniform_mix_is_the_mean_of_the_probabilities(shards, backends) -> None:
    found = measured(shards, stack_of(backends)).sums[UNIFORM]
    means = []
    for ids in windows(backends[0]):
        probabilities = [backend.model(ids[None, :-1]).logits[0].softmax(-1) for backend in backends]
        means.append(torch.stack(probabilities).mean(0).log())
    bits, accuracy = by_hand(backends[0], means)
    assert found.bits_per_byte == pytest.approx(bits, rel=TOLERANCE)
    assert found.accuracy == pytest.approx(accuracy)


@pytest.mark.parametrize("readout", ["anchor", "mixture", "gate"])
def test_the_braid_is_the_whole_text_run_in_process(shards, backends, readout: str) -> None:
    stack = stack_of(backends, readout)
    found = measured(shards, stack).sums[BRAID]
    with torch.no_grad():
        scores = [run_whole(backends, stack, ids[:-1], [len(ids) - 1]).scores for ids in windows(backends[0])]
    bits, accuracy = by_hand(backends[0], scores)
    assert found.bits_per_byte == pytest.approx(bits, rel=TOLERANCE)
    assert found.accuracy == pytest.approx(accuracy)


def test_the_oracle_is_no_worse_than_anyone_without_exchange(shards, backends) -> None:
    sums = measured(shards, stack_of(backends)).sums
    oracle = sums[ORACLE].bits_U
    for who in (LEFT, RIGHT, UNIFORM, POSTERIOR):
        assert bool((oracle <= sums[who].bits_U + 1e-6).all())
    assert float(oracle.sum()) < 0.99 * min(float(sums[who].bits_U.sum()) for who in (LEFT, RIGHT))


def test_the_posterior_mix_never_loses_more_than_the_choice_among_shards(shards, backends) -> None:
    sums = measured(shards, stack_of(backends)).sums
    best = torch.minimum(sums[LEFT].bits_U, sums[RIGHT].bits_U)
    assert bool((sums[POSTERIOR].bits_U <= best + 1.0 + 1e-4).all())  # log2 of two shards, for each window


def test_without_accuracy_no_logits_travel_and_the_bits_are_the_same(shards, backends) -> None:
    stack = stack_of(backends)
    learned = {
        GATE: FusionStack(outputs_plan(stack.plan)),
        GLOBAL: FusionStack(outputs_plan(stack.plan, "mixture")),
    }
    for module in learned.values():
        shake(module, 2)
    asked: list[bool] = []
    for shard in shards:
        forward = shard.forward

        def noting(inputs, graph_id="", forward=forward):
            asked.append(inputs.head is not None and inputs.head.want_logits)
            return forward(inputs, graph_id)

        shard.forward = noting  # type: ignore[method-assign]
    try:
        with_hits = measured(shards, stack, learned=learned)
        assert any(asked)
        asked.clear()
        without = measured(shards, stack, learned=learned, accuracy=False)
        assert asked and not any(asked)
    finally:
        for shard in shards:
            del shard.forward
    assert list(without.sums) == list(with_hits.sums)
    assert list(without.sums) == [LEFT, RIGHT, UNIFORM, POSTERIOR, GATE, GLOBAL, BRAID, ORACLE]
    for who, sums in without.sums.items():
        assert sums.accuracy is None
        torch.testing.assert_close(sums.bits_U, with_hits.sums[who].bits_U, rtol=1e-5, atol=1e-4)


def limits_of(num_bytes: int) -> dict[str, ShardLimit]:
    return {name: ShardLimit(message_bytes=num_bytes) for name in ("left", "right")}


def test_how_many_windows_run_at_once_changes_nothing(shards, backends) -> None:
    stack = stack_of(backends)
    whole = measured(shards, stack)
    single = measured(shards, stack, Cut(WINDOW, max_rows=1))
    row_bytes = max(4 * (backend.card.vocab_size + backend.card.width) for backend in backends)
    narrow = measured(shards, stack, Cut(WINDOW, limits=limits_of(row_bytes * WINDOW)))
    for other in (single, narrow):
        for who, sums in whole.sums.items():
            torch.testing.assert_close(sums.bits_U, other.sums[who].bits_U, rtol=1e-5, atol=1e-4)
    with pytest.raises(FrameError, match=r"window: got 32 tokens, whose logits in shard '.*smaller windows"):
        measured(shards, stack, Cut(WINDOW, limits=limits_of(row_bytes * WINDOW - 1)))


@dataclass(frozen=True)
class Sized:
    """A shard of which only the sizes are known."""

    name: str
    vocab_size: int
    width: int = 64
    dtype: str = "float32"
    context_length: int = 512

    @property
    def card(self) -> Sized:
        return self


@pytest.mark.parametrize(
    ("held_bytes", "turn_rows", "window", "rows"),
    [
        (0, 512, 128, 512),  # of one turn: of the small shard's and the large one's
        (0, 32, 128, 32),  # less than a window: each by itself
        (4 * (32_000 + 64) * 300, 32, 128, 300),  # of what the large one holds
        (2**30, 32, 128, 2048),  # no more than anybody runs at once
    ],
)
def test_shards_of_any_sizes_run_as_many_rows_as_each_of_them_takes(
    held_bytes: int, turn_rows: int, window: int, rows: int
) -> None:
    unlike = [Sized("small", 512), Sized("large", 32_000)]
    limit = ShardLimit(held_bytes, turn_rows, message_bytes=None)
    cut = Cut(window, limits={shard.name: limit for shard in unlike})
    assert rows_at_once(unlike, cut) == rows_at_once(unlike[::-1], cut) == rows


def test_units_are_windows_or_documents_with_the_same_sums(shards, backends) -> None:
    stack = stack_of(backends)
    windowed = measured(shards, stack)
    documents = measured(shards, stack, Cut(WINDOW, unit="document"))
    assert (windowed.unit, documents.unit) == ("window", "document")
    assert (windowed.num_units, documents.num_units) == (len(windows(backends[0])), 2)
    assert windowed.sums[LEFT].tokens_U.tolist() == [len(ids) - 1 for ids in windows(backends[0])]
    for who, sums in windowed.sums.items():
        assert float(sums.bits_U.sum()) == pytest.approx(float(documents.sums[who].bits_U.sum()))
        assert documents.sums[who].bytes_U.sum() == sums.bytes_U.sum() == num_bytes(backends[0])
    many = [replace(DOCUMENTS[1], text=TEXTS[1]) for _ in range(30)]
    text = LaneReaders(shards, stack.plan).read("many", many, WINDOW)
    assert measure_text(Lineup(shards, stack, accuracy=False), text, Cut(WINDOW)).unit == "document"


def test_a_report_compares_everybody_on_the_same_units(shards, backends) -> None:
    found = measured(shards, stack_of(backends))
    report = make_report([found, replace(found, name="again")], Resampling(200), {"window": WINDOW})
    first, _, together = report.texts
    assert together.name == "all together" and together.num_units == 2 * first.num_units
    assert together.num_bytes == 2 * first.num_bytes == 2 * num_bytes(backends[0])
    for row, twice in zip(first.rows, together.rows, strict=True):
        assert row.bits_per_byte.value == pytest.approx(twice.bits_per_byte.value)
        assert twice.bits_per_byte.high - twice.bits_per_byte.low < (
            row.bits_per_byte.high - row.bits_per_byte.low
        )
    best = first.row(first.best_shard)
    assert best.to_best_shard is None and first.row("braid").to_braid is None
    assert best.bits_per_byte.value == min(first.row(name).bits_per_byte.value for name in ("left", "right"))
    braid = first.row("braid")
    expected = braid.bits_per_byte.value - best.bits_per_byte.value
    assert braid.to_best_shard.bits_per_byte.value == pytest.approx(expected)
    assert braid.to_best_shard.relative.value == pytest.approx(expected / best.bits_per_byte.value)
    # Windows of other difficulty move both alike.
    paired = braid.to_best_shard.bits_per_byte
    assert paired.high - paired.low < best.bits_per_byte.high - best.bits_per_byte.low
    assert report.to_dict()["texts"][0]["rows"][0]["kind"] == "shard"


def test_learned_mixes_gain_on_what_they_are_fitted_on(shards, backends) -> None:
    stack = stack_of(backends)
    encoder = LaneReaders(shards, stack.plan).anchor.encoder
    corpus = encode_source(MemorySource("fit", DOCUMENTS), encoder, max_example_tokens=WINDOW)
    fitted = fit_readouts(
        shards, stack.plan, TrainingTexts(corpus, corpus), FitOptions(steps=40, window=WINDOW, batch_size=4)
    )
    sums = measured(shards, stack, learned=fitted.stacks).sums
    for who in (GLOBAL, GATE):
        assert sums[who].bits_per_byte < sums[UNIFORM].bits_per_byte
    assert sums[GATE].bits_per_byte < 0.97 * sums[UNIFORM].bits_per_byte
    assert fitted.record["tokens"] == corpus.num_tokens and fitted.record["steps_done"] <= 40
    for stack in fitted.stacks.values():
        assert stack.plan.points == ()
    assert fitted.stacks[GLOBAL].plan.readout == PlanReadout("mixture")
    # Either shard alone is a mix, too.
    assert sums[GLOBAL].bits_per_byte < 1.001 * min(sums[LEFT].bits_per_byte, sums[RIGHT].bits_per_byte)


def test_how_many_windows_are_fitted_on_at_once_changes_nothing(shards, backends) -> None:
    stack = stack_of(backends)
    encoder = LaneReaders(shards, stack.plan).anchor.encoder
    corpus = encode_source(MemorySource("fit", DOCUMENTS), encoder, max_example_tokens=WINDOW)

    def learned(windows_at_once: int | None) -> list[Tensor]:
        options = FitOptions(steps=3, window=WINDOW, batch_size=8, windows_at_once=windows_at_once)
        fitted = fit_readouts(shards, stack.plan, TrainingTexts(corpus, None), options)
        return [one for who in (GLOBAL, GATE) for one in fitted.stacks[who].state_dict().values()]

    together = learned(None)
    for windows_at_once in (1, 3, 100):
        for one, other in zip(learned(windows_at_once), together, strict=True):
            assert torch.allclose(one, other, atol=1e-4)


def test_without_held_out_text_every_batch_is_fitted_on_once(shards, backends) -> None:
    stack = stack_of(backends)
    encoder = LaneReaders(shards, stack.plan).anchor.encoder
    corpus = encode_source(MemorySource("fit", DOCUMENTS), encoder, max_example_tokens=WINDOW)
    texts = [TrainingTexts(corpus, held_out) for held_out in (None, corpus)]
    options = FitOptions(steps=2, window=WINDOW, batch_size=2)
    fitted = [fit_readouts(shards, stack.plan, text, options).stacks[GLOBAL].state_dict() for text in texts]
    for name, tensor in fitted[0].items():
        assert torch.equal(tensor, fitted[1][name]), name


def test_a_window_too_long_for_a_finer_tokenizer_is_run_in_parts(caplog) -> None:
    backends = [
        reading_backend("left", "byte bpe", 1, context=256),
        reading_backend("right", "bytes", 2, context=40),
    ]
    stack = stack_of(backends, points=(PointConfig(at=1, strategy="mlp"),))
    with training_shards(backends, "in process") as shards, caplog.at_level(logging.WARNING):
        found = measured(shards, stack)
        encoder = LaneReaders(shards, stack.plan).anchor.encoder
        corpus = encode_source(MemorySource("fit", DOCUMENTS), encoder, max_example_tokens=WINDOW)
        fit_readouts(shards, stack.plan, TrainingTexts(corpus, None), FitOptions(2, WINDOW, 4))
    assert int(found.sums[BRAID].tokens_U.sum()) == sum(len(ids) - 1 for ids in windows(backends[0]))
    assert [record.message for record in caplog.records if "run in parts" in record.message] != []


def test_a_text_shorter_than_a_window_is_one_unit_without_an_interval(shards, backends) -> None:
    stack = stack_of(backends)
    text = LaneReaders(shards, stack.plan).read("short", [Document("s", "inner thing")], WINDOW)
    found = measure_text(Lineup(shards, stack), text, Cut(WINDOW))
    (report,) = make_report([found], Resampling(10)).texts
    assert report.num_units == 1
    assert all(row.bits_per_byte.low is None and row.bits_per_byte.value > 0 for row in report.rows)


def test_what_cannot_be_evaluated_is_refused(shards, backends) -> None:
    stack = stack_of(backends)
    readers = LaneReaders(shards, stack.plan)
    with pytest.raises(
        ContextLengthError, match=r"window: got 1000 tokens, expected at most 256, the context"
    ):
        measured(shards, stack, Cut(1000))
    with pytest.raises(InvalidRequestError, match=r"blank: got no text .*white space"):
        readers.read("blank", [Document("b", " \n")], WINDOW)
    with pytest.raises(InvalidRequestError, match="one: got a text of one token"):
        readers.read("one", [Document("b", "x")], WINDOW)
    with pytest.raises(InvalidRequestError, match="unit: got 'line'"):
        Cut(WINDOW, unit="line")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="forgetting: got 0"):
        Lineup(shards, stack, forgetting=0.0)


def test_a_braid_of_one_shard_is_compared_with_it_alone() -> None:
    backends = [tiny_backend("left", 1)]
    stack = stack_of(backends, "anchor", points=(), names=("left",))
    with training_shards(backends, "in process") as shards:
        found = measured(shards, stack)
    assert list(found.sums) == [LEFT, BRAID]
    assert found.sums[LEFT].bits_per_byte == pytest.approx(found.sums[BRAID].bits_per_byte)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("accuracy", [True, False])
def test_across_tokenizers_everybody_is_measured_by_the_same_bytes(transport: str, accuracy: bool) -> None:
    backends = [
        reading_backend("left", "byte bpe", 0, context=512, num_layers=3),
        reading_backend("right", "llama", 1, context=512, num_layers=4),
    ]
    points = (PointConfig(at=1, strategy="mlp"),)
    stack = stack_of(backends, points=points)
    with training_shards(backends, transport) as shards:
        found = measured(shards, stack, accuracy=accuracy)
    anchor, other = found.sums[LEFT], found.sums[RIGHT]
    assert other.bytes_U.numel() == anchor.bytes_U.numel() == found.num_units
    # Windows end within words of the other tokenizer, by a token at most.
    assert float((other.bytes_U - anchor.bytes_U).abs().max()) <= 16
    assert float(other.bytes_U.sum()) == pytest.approx(float(anchor.bytes_U.sum()), rel=0.02)
    assert (other.accuracy is not None) == accuracy
    with torch.no_grad():
        own_bits = 0.0
        for text in TEXTS:
            ids = torch.tensor([1, *backends[1].tokenize(text)[0]])  # behind its begin-of-text token
            for at in range(0, len(ids) - 1, WINDOW):
                window = ids[at : at + WINDOW + 1]
                own_bits += float(backends[1].model(window[None], labels=window[None]).loss) * (
                    len(window) - 1
                )
    assert float(other.bits_U.sum()) == pytest.approx(own_bits / math.log(2), rel=TOLERANCE)
    with torch.no_grad():
        scores = [run_whole(backends, stack, ids[:-1], [len(ids) - 1]).scores for ids in windows(backends[0])]
    assert found.sums[BRAID].bits_per_byte == pytest.approx(by_hand(backends[0], scores)[0], rel=1e-4)
