"""What one step packs is bounded, in every lane."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizations import TEXT, tokenizer_json

from braid_fusion.alignment import SettlingTokenizer, Weave
from braid_orchestrator.config.values import LimitsConfig
from braid_orchestrator.engine.lanes import WovenText
from braid_orchestrator.engine.packing import pack
from braid_orchestrator.engine.requests import SamplingOptions
from braid_orchestrator.engine.scheduler import Scheduler
from braid_orchestrator.engine.sessions import (
    BRAIDED,
    GeneratedSequence,
    Request,
    ScoredSequence,
    Sequence,
)
from braid_orchestrator.engine.text import IncrementalDecoder, TextCodec

CODEC = TextCodec(tokenizer_json("byte bpe"))
READERS = [SettlingTokenizer(tokenizer_json(kind)) for kind in ("words", "bytes")]


def sequence(length: int, scored: bool) -> Sequence:
    ids = CODEC.encode(TEXT).token_ids[:length]
    woven = WovenText(IncrementalDecoder(CODEC, ()), Weave(READERS), (999, 999, 999))
    for token_id in ids:
        woven.push(token_id)
    request = Request("r", print, 1, len(ids), 60.0)
    if scored:
        return ScoredSequence(request, 0, BRAIDED, list(ids), woven=woven, max_rows=50)
    return GeneratedSequence.begin(request, 0, BRAIDED, ids, SamplingOptions(), CODEC, frozenset(), woven)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.tuples(st.integers(2, 60), st.booleans()), min_size=1, max_size=5),
    max_logit_rows=st.integers(2, 12),
    max_rows=st.integers(40, 80),
)
def test_rows_and_logits_of_a_step_are_bounded_and_all_get_their_turn(
    lengths: list[tuple[int, bool]], max_logit_rows: int, max_rows: int
) -> None:
    limits = LimitsConfig(max_batch_tokens=max_rows, prefill_chunk=max_rows)
    scheduler = Scheduler(limits, max_logit_rows)
    scheduler.enqueue([sequence(*one) for one in lengths])
    scheduler.admit(lambda one: bool(one.renew_session() or True))
    for _ in range(500):
        works = scheduler.next_works()
        if not works:
            break
        batch = pack(works)
        assert all(len(lane.logit_rows) <= max_logit_rows for lane in batch.lanes)
        # One token of the anchor may settle a whole word of bytes.
        assert all(len(lane.token_ids) <= max_rows + 32 for lane in batch.lanes)
        for work in works:
            work.sequence.num_cached += work.num_rows
            if work.sequence.num_pending == 0:
                scheduler.remove(work.sequence)
    assert scheduler.num_running == 0
