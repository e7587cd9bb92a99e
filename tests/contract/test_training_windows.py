"""Windows of the anchor's tokens that are too long for the context of a shard with a finer tokenizer."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from braids import braid_config, shake
from models import reading_backend
from torch import Tensor
from training_shards import TRANSPORTS, training_shards

from braid_fusion.stack import FusionStack
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.config.values import PointConfig
from braid_orchestrator.inprocess.whole_lanes import whole_lanes
from braid_orchestrator.training.braid_pass import run_pass
from braid_orchestrator.training.data import DocumentEncoder, TrainingBatch, find_texts, load_texts
from braid_orchestrator.training.loss import braid_loss
from braid_orchestrator.training.run import RunOptions, train_braid
from braid_rpc.errors import ContextLengthError
from braid_services.shard.backend import ShardBackend

NAMES = ("coarse", "fine")
TEXT = "Once upon a time, there was a little girl named Lily. She'd like to play; they're friends, größe 🙂 "


def two_tokenizers(fine_context: int) -> list[ShardBackend]:
    """The second one reads every byte of a text."""
    return [
        reading_backend("coarse", "byte bpe", 1, context=256),
        reading_backend("fine", "bytes", 2, context=fine_context),
    ]


def stack_of(backends: list[ShardBackend]) -> FusionStack:
    config = braid_config(points=(PointConfig(at=1, strategy="attention"),), names=NAMES)
    stack = FusionStack(resolve_plan(config, [backend.card for backend in backends]))
    shake(stack, 3)
    return stack


def batch(ids_T: Tensor, lengths: tuple[int, ...]) -> TrainingBatch:
    rows_R = torch.arange(0, ids_T.shape[0] - 1, 2)
    return TrainingBatch(ids_T, lengths, rows_R, ids_T[rows_R + 1])


def test_what_does_not_fit_is_run_in_as_few_parts_as_fit() -> None:
    backends = two_tokenizers(fine_context=48)
    stack = stack_of(backends)
    ids_T = torch.tensor(backends[0].tokenize(TEXT * 2)[0])
    whole = batch(ids_T, (10, ids_T.shape[0] - 10))
    with training_shards(backends, "in process") as shards:
        loss = braid_loss(shards, stack)(whole)
        rows, cut = whole.loss_rows_R.tolist(), []
        lanes = whole_lanes(shards, stack.plan, ids_T, whole.lengths, rows, on_cut=cut.append)
        lengths = lanes.of_shard(0).lengths
        assert cut == [ids_T.shape[0] - 10]
        assert lengths[0] == 10 and len(lengths) > 4 and sum(lengths) == ids_T.shape[0]
        # As if they had been given so; and a part with the token behind it wouldn't fit.
        given = run_pass(shards, stack, ids_T, lengths, whole.targets_R, rows)
        assert torch.equal(loss["loss"], -given.target_logprobs.mean())
        begin = 10
        for length in lengths[1:-1]:
            longer = ids_T[begin : begin + length + 1]
            with pytest.raises(ContextLengthError, match="expected at most 48"):
                run_pass(shards, stack, longer, [length + 1], longer[1:2], [0])
            begin += length


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_run_goes_on_and_says_so_once(transport: str, tmp_path: Path, caplog) -> None:
    backends = two_tokenizers(fine_context=32)
    stack = stack_of(backends)
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 8)
    encoder = DocumentEncoder(backends[0].tokenizer_json(), backends[0].card.eos_token_ids)
    # More of the anchor's tokens than the other's context has, of its own.
    options = RunOptions(steps=4, window=64, batch_size=2, evaluate_every=2)
    texts = load_texts(find_texts([str(path)], held_out_share=0.2), encoder, window=options.window)
    with training_shards(backends, transport) as shards, caplog.at_level(logging.WARNING):
        outcome = train_braid(
            shards, stack, texts, options, tmp_path / "run", version="v1", progress_bar=False
        )
    assert outcome.record.steps == 4 and outcome.weights is not None
    (said,) = [one.getMessage() for one in caplog.records if "run in parts" in one.getMessage()]
    assert said.startswith("a window of 64 tokens")


def test_windows_that_fit_are_left_whole(caplog) -> None:
    backends = two_tokenizers(fine_context=256)
    ids_T = torch.tensor(backends[0].tokenize(TEXT)[0])
    with training_shards(backends, "in process") as shards, caplog.at_level(logging.WARNING):
        braid_loss(shards, stack_of(backends))(batch(ids_T, (ids_T.shape[0],)))
    assert not caplog.records


def test_a_token_that_fits_nowhere_is_named() -> None:
    backends = two_tokenizers(fine_context=2)
    ids_T = torch.tensor(backends[0].tokenize("Once upon a time, there was")[0])
    with (
        training_shards(backends, "in process") as shards,
        pytest.raises(ContextLengthError, match=r"one token of the anchor, id \d+, .* its context, 2$"),
    ):
        braid_loss(shards, stack_of(backends))(batch(ids_T, (ids_T.shape[0],)))
