"""A whole training run, its shards in process or behind real gRPC: the same curve, the same weights."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from braids import braid_config, two_backends
from killable_shard import WITHIN, KillableShard
from models import save_tiny_model, tiny_backend
from tensorboard_events import scalars
from training_shards import TRANSPORTS, remote, training_shards

from braid_fusion.errors import CheckpointMismatchError, TrainingDivergedError
from braid_fusion.stack import FusionStack
from braid_fusion.training import has_tensorboard, read_log
from braid_fusion.weights import read_card
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.config.values import PointConfig
from braid_orchestrator.training.data import DocumentEncoder, TrainingTexts, find_texts, load_texts
from braid_orchestrator.training.ports import TrainingShard
from braid_orchestrator.training.run import LOG_FILE, PLOT_FILE, TENSORBOARD, Outcome, RunOptions, train_braid
from braid_rpc.errors import ContextLengthError, InvalidRequestError, UnsupportedModelError
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig
from braid_services.shard.main import serve_backend

OPTIONS = RunOptions(steps=6, window=12, batch_size=2, accumulate=2, evaluate_every=3, checkpoint_every=2)
CONFIG = braid_config()


@pytest.fixture(scope="module")
def backends() -> list[ShardBackend]:
    return two_backends()


@pytest.fixture(scope="module")
def texts(backends: list[ShardBackend], tmp_path_factory: pytest.TempPathFactory) -> TrainingTexts:
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text("the thing in the other inner theatre is thin there " * 12)
    encoder = DocumentEncoder(backends[0].tokenizer_json(), backends[0].card.eos_token_ids)
    return load_texts(find_texts([str(path)], held_out_share=0.2), encoder, window=OPTIONS.window)


def run(
    shards: list[TrainingShard],
    texts: TrainingTexts,
    folder: Path,
    options: RunOptions = OPTIONS,
    **how: object,
) -> Outcome:
    stack = FusionStack(resolve_plan(CONFIG, [shard.card for shard in shards]))
    return train_braid(shards, stack, texts, options, folder, version="v1", progress_bar=False, **how)  # type: ignore[arg-type]


def curve(folder: Path) -> list[float]:
    return [line["loss"] for line in read_log(folder / LOG_FILE) if "loss" in line]


def sha256(outcome: Outcome) -> str:
    return read_card(outcome.weights).weights_sha256


@pytest.fixture(scope="module")
def undisturbed(backends, texts, tmp_path_factory) -> Iterator[tuple[list[float], str]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with training_shards(backends, "in process") as shards:
        outcome = run(shards, texts, folder)
    assert outcome.record.steps == 6 and outcome.held_out is not None
    assert {"loss", "weight/left", "weight/right"} <= outcome.held_out.keys()
    return curve(folder), sha256(outcome)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_where_the_shards_are_changes_no_bit(transport, backends, texts, undisturbed, tmp_path) -> None:
    with training_shards(backends, transport) as shards:
        outcome = run(shards, texts, tmp_path)
    assert (curve(tmp_path), sha256(outcome)) == undisturbed
    assert (tmp_path / PLOT_FILE).read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_costs_the_picture_only(backends, texts, tmp_path, caplog) -> None:
    (tmp_path / PLOT_FILE).mkdir()
    with training_shards(backends, "in process") as shards:
        outcome = run(shards, texts, tmp_path, replace(OPTIONS, steps=2))
    assert read_card(outcome.weights).weights_sha256
    assert "no plot of the run: " in caplog.text and PLOT_FILE in caplog.text


@pytest.mark.skipif(not has_tensorboard(), reason="needs tensorboardX, which is absent")
def test_events_for_tensorboard_go_into_the_runs_folder_or_elsewhere(backends, texts, tmp_path) -> None:
    with training_shards(backends, "in process") as shards:
        run(shards, texts, tmp_path / "run")
        run(shards, texts, tmp_path / "other", tensorboard=tmp_path / "events")
    shown = scalars(tmp_path / "run" / TENSORBOARD)
    assert [step for step, _ in shown["training/weight/left"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in shown["evaluation/loss"]] == [3, 6]
    assert shown == scalars(tmp_path / "events") and not (tmp_path / "other" / TENSORBOARD).exists()


def test_a_run_that_was_ended_goes_on_bit_for_bit(backends, texts, undisturbed, tmp_path) -> None:
    with training_shards(backends, "grpc") as shards:

        def end(progress) -> None:
            if progress.step == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(shards, texts, tmp_path, on_progress=end)
        outcome = run(shards, texts, tmp_path, resume=True)
    assert (curve(tmp_path), sha256(outcome)) == undisturbed


def test_a_shard_that_is_killed_within_a_span_changes_no_bit(backends, texts, undisturbed, tmp_path) -> None:
    target = f"unix:{tmp_path}/right.sock"
    # Two steps run its four layers twice each. This is the last layer for the third step's first batch, a span of its
    # own; the graph of the span before it, which waits for its gradients, dies too.
    hang_at = 2 * 2 * 4 + 4
    steps: list[int] = [0]
    found: list[tuple[int, int]] = []
    with (
        serve_backend(backends[0], [f"unix:{tmp_path}/left.sock"]) as left,
        KillableShard(1, target, hang_at) as first,
        KillableShard(1, target) as second,
    ):

        def kill_and_replace() -> None:
            first.wait_for(WITHIN)
            found.append((steps[-1], first.kill()))
            second.serve()

        first.serve()
        thread = threading.Thread(target=kill_and_replace)
        thread.start()
        shards = [remote("left", left.targets[0]), remote("right", target)]
        try:
            outcome = run(
                shards, texts, tmp_path / "run", on_progress=lambda progress: steps.append(progress.step)
            )
        finally:
            first.kill()
            thread.join()
            for shard in shards:
                shard.shutdown()
    assert found == [(2, -signal.SIGKILL)]
    assert (curve(tmp_path / "run"), sha256(outcome)) == undisturbed


def test_another_base_model_is_another_run(backends, texts, tmp_path) -> None:
    with training_shards(backends, "in process") as shards:
        run(shards, texts, tmp_path)
    others = [backends[0], tiny_backend("right", 9, width=48, num_layers=4)]
    with (
        training_shards(others, "in process") as shards,
        pytest.raises(CheckpointMismatchError, match="plan"),
    ):
        run(shards, texts, tmp_path, resume=True)


def test_the_same_model_in_another_precision_is_another_run(texts, tmp_path) -> None:
    folders = [
        save_tiny_model(tmp_path / "left", 1, width=32, num_layers=3),
        save_tiny_model(tmp_path / "right", 2, width=48, num_layers=4),
    ]

    def loaded(*dtypes: str) -> list[ShardBackend]:
        return [
            ShardBackend.load(ShardConfig(folder.name, str(folder), dtype=dtype))
            for folder, dtype in zip(folders, dtypes, strict=True)
        ]

    options = replace(OPTIONS, steps=2)
    with training_shards(loaded("float32", "float32"), "in process") as shards:
        run(shards, texts, tmp_path / "run", options)
    with (
        training_shards(loaded("float32", "bfloat16"), "in process") as shards,
        pytest.raises(
            CheckpointMismatchError,
            match=r"shards\.right\.dtype: the checkpoint has 'float32', this run has 'bfloat16'$",
        ),
    ):
        run(shards, texts, tmp_path / "run", options, resume=True)


def test_a_shard_that_refuses_or_has_no_gradients_is_named_before_anything_is_run(texts, tmp_path) -> None:
    backends = two_backends()
    config = ShardConfig("right", "right", training_share=0.0)
    refusing = ShardBackend(backends[1].model, backends[1].tokenizer, config)
    with (
        training_shards([backends[0], refusing], "grpc") as shards,
        pytest.raises(UnsupportedModelError, match=r"^shard 'right': cannot take part.*training_share is 0$"),
    ):
        run(shards, texts, tmp_path / "run")
    backends[1].training.no_backward = "it is quantized"
    backends[1]._fixed_card = replace(backends[1]._fixed_card, supports_backward=False)
    with training_shards(backends, "grpc") as shards:
        with pytest.raises(UnsupportedModelError, match=r"training: shard right: no gradients"):
            run(shards, texts, tmp_path / "run")
        # One that only gives needs none.
        points = (PointConfig(at=1, strategy="mlp", receivers=("left",)),)
        plan = resolve_plan(braid_config(points=points), [shard.card for shard in shards])
        options = RunOptions(steps=1, window=12, batch_size=2)
        train_braid(shards, FusionStack(plan), texts, options, tmp_path / "gives", version="v1")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "/abs", "untrained"])
def test_a_name_that_no_service_would_find_is_refused_before_anything_is_run(name, texts, tmp_path) -> None:
    with training_shards(two_backends(), "in process") as shards:
        stack = FusionStack(resolve_plan(CONFIG, [shard.card for shard in shards]))
        with pytest.raises(InvalidRequestError, match="version: got"):
            train_braid(shards, stack, texts, OPTIONS, tmp_path / "run", version=name)
    assert not (tmp_path / "run").exists()


def test_a_window_beyond_a_shards_context_is_refused(backends, texts, tmp_path) -> None:
    options = RunOptions(window=257)
    with training_shards(backends, "in process") as shards, pytest.raises(ContextLengthError, match="257"):
        run(shards, texts, tmp_path, options)


def test_a_loss_that_is_no_number_names_step_and_batch(backends, texts, tmp_path) -> None:
    with training_shards(backends, "in process") as shards:

        def spoil(progress) -> None:
            if progress.step == 3:
                with torch.no_grad():
                    next(stack.parameters()).fill_(float("nan"))

        stack = FusionStack(resolve_plan(CONFIG, [shard.card for shard in shards]))
        with pytest.raises(TrainingDivergedError, match="step 3, batch 6"):
            train_braid(
                shards, stack, texts, OPTIONS, tmp_path, version="v1", on_progress=spoil, progress_bar=False
            )
    assert (tmp_path / "checkpoints" / "step-00000002.ckpt").exists()
