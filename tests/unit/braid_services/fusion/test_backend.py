"""Plans, versions and metrics of a fusion backend."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest
import torch

from braid_fusion.context import FusionContext
from braid_fusion.stack import FusionStack
from braid_fusion.weights import load_stack, save_stack
from braid_rpc.errors import (
    ConfigError,
    ConflictError,
    CorruptWeightsError,
    UnknownVersionError,
    WeightMismatchError,
)
from braid_rpc.steps import Segment
from braid_services.fusion.backend import FusionBackend

ROUNDING = 1e-5


@pytest.fixture
def backend(plan, weights_dir) -> FusionBackend:
    backend = FusionBackend(weights_dir)
    backend.prepare(plan)
    return backend


def _fuse_all(stream, step_id, segments, draw, num_points=4):
    """All points of one batch; the states that went in and came out at each."""
    return [
        (draw(seed=point), stream.fuse(step_id, point, segments, draw(seed=point)).states)
        for point in range(num_points)
    ]


def test_the_newest_version_is_the_first_to_be_active(backend) -> None:
    assert backend.active_version == "second"
    assert backend.status().loaded_versions == ("second",)
    assert [(v.version, v.active) for v in backend.list_versions()] == [
        ("untrained", False),
        ("first", False),
        ("second", True),
    ]
    assert json.loads(backend.list_versions()[1].card_json)["training"] == {"seed": 0}


def test_a_folder_with_the_name_of_the_untrained_modules_is_passed_over(plan, weights_dir) -> None:
    save_stack(FusionStack(plan), weights_dir / "untrained")  # the newest
    backend = FusionBackend(weights_dir)
    backend.prepare(plan)
    assert backend.active_version == "second"
    assert [v.version for v in backend.list_versions()] == ["untrained", "first", "second"]


def test_without_a_folder_the_modules_are_untrained(plan, rows) -> None:
    backend = FusionBackend()
    backend.prepare(plan)
    assert backend.active_version == "untrained"
    stream = backend.stream()
    stream.open(["s"])
    before = rows(3)
    after = stream.fuse(1, 0, [Segment("s", 0, 3)], before).states
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_empty_folder_gives_untrained_modules_and_a_warning(plan, tmp_path, caplog) -> None:
    backend = FusionBackend(tmp_path)
    with caplog.at_level(logging.WARNING):
        backend.prepare(plan)
    assert backend.active_version == "untrained"
    assert "untrained" in caplog.text


def test_running_sessions_keep_their_version_in_one_batch_with_others(
    backend, plan, weights_dir, rows
) -> None:
    stream = backend.stream()
    assert stream.open(["old"]) == "second"
    backend.activate("first")
    assert stream.open(["new"]) == "first"
    assert stream.open(["asked"], "second") == "second"
    segments = [Segment("old", 0, 2), Segment("new", 0, 3), Segment("asked", 0, 1)]
    alone = {name: load_stack(plan, weights_dir / name) for name in ("first", "second")}
    slices = {"old": ("second", slice(0, 2)), "new": ("first", slice(2, 5)), "asked": ("second", slice(5, 6))}
    for point, (before, after) in enumerate(_fuse_all(stream, 1, segments, lambda seed: rows(6, seed))):
        for version, part in slices.values():
            own = [state[part] for state in before]
            context = FusionContext.whole([part.stop - part.start])
            for got, expected in zip(after, alone[version].fuse(point, own, context).states, strict=True):
                if expected is None:
                    assert got is None
                else:
                    torch.testing.assert_close(got[part], expected, atol=ROUNDING, rtol=ROUNDING)
    features = torch.rand(2, 2, 3)
    weights = stream.read_out(1, ["new", "old"], rows(2), features)
    for row, version in enumerate(("first", "second")):
        expected = alone[version].read_out([h[row : row + 1] for h in rows(2)], features[row : row + 1])
        torch.testing.assert_close(weights[row : row + 1], expected, atol=ROUNDING, rtol=ROUNDING)


def test_a_version_read_again_serves_new_sessions_only(backend, plan, weights_dir, rows) -> None:
    stream = backend.stream()
    stream.open(["old"])
    save_stack(FusionStack(plan), weights_dir / "second")
    backend.load("second")
    stream.open(["new"])
    before = rows(1)
    old = stream.fuse(1, 0, [Segment("old", 0, 1)], before).states
    new = stream.fuse(2, 0, [Segment("new", 0, 1)], before).states
    assert not torch.equal(old[0], before[0])
    assert torch.equal(new[0], before[0])


def test_activating_an_overwritten_version_reads_it_again(backend, plan, weights_dir, rows) -> None:
    stream = backend.stream()
    stream.open(["old"])
    save_stack(FusionStack(plan), weights_dir / "second")
    backend.activate("second")
    stream.open(["new"])
    before = rows(1)
    assert not torch.equal(stream.fuse(1, 0, [Segment("old", 0, 1)], before).states[0], before[0])
    assert torch.equal(stream.fuse(2, 0, [Segment("new", 0, 1)], before).states[0], before[0])
    held = backend.versions.stack("second")
    backend.activate("second")
    assert backend.versions.stack("second") is held


def test_a_card_that_cannot_be_read_is_only_its_versions_error(plan, weights_dir, caplog) -> None:
    (weights_dir / "second" / "card.json").write_text("{")
    backend = FusionBackend(weights_dir)
    backend.prepare(plan)
    assert backend.active_version == "first"
    assert [info.version for info in backend.list_versions()] == ["untrained", "first"]
    assert "second" in caplog.text
    with pytest.raises(CorruptWeightsError, match="second"):
        backend.activate("second")
    with pytest.raises(UnknownVersionError, match="untrained, first"):
        backend.activate("third")


def test_an_unknown_version_names_the_known_ones(backend) -> None:
    for ask in (backend.activate, backend.load):
        with pytest.raises(UnknownVersionError, match="'third', expected one of untrained, first, second"):
            ask("third")
    for name in ("../weights/first", "", ".", "first/", "x" * 256, "ä" * 128, "a\0b"):
        with pytest.raises(UnknownVersionError):
            backend.load(name)
    assert backend.active_version == "second"
    with pytest.raises(UnknownVersionError, match="'third'"):
        backend.stream().open(["s"], "third")
    assert backend.num_sessions == 0


def test_weights_of_other_shards_are_refused_and_the_plan_stands(backend, plan) -> None:
    shards = (dataclasses.replace(plan.shards[0], model_hash="other"), plan.shards[1])
    with pytest.raises(WeightMismatchError, match="the weights have 'm0', this braid has 'other'"):
        backend.prepare(dataclasses.replace(plan, shards=shards))
    assert backend.status().plan_hash == plan.hash()


def test_corrupt_weights_are_refused_and_the_active_version_stands(backend, weights_dir) -> None:
    path = weights_dir / "first" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CorruptWeightsError, match="first"):
        backend.activate("first")
    assert backend.active_version == "second"


def test_a_plan_that_cannot_be_built_is_a_config_error(plan) -> None:
    points = (dataclasses.replace(plan.points[0], strategy="none"),)
    with pytest.raises(ConfigError, match="strategy: got 'none'"):
        FusionBackend().prepare(dataclasses.replace(plan, points=points))
    with pytest.raises(UnknownVersionError, match="no weights folder"):
        FusionBackend(None, "v1").prepare(plan)
    with pytest.raises(UnknownVersionError, match="no folder"):
        FusionBackend("nowhere-at-all").prepare(plan)


def test_another_plan_is_refused_while_sessions_are_open(plan) -> None:
    backend = FusionBackend()
    backend.prepare(plan)
    stream = backend.stream()
    stream.open(["s"])
    other = dataclasses.replace(plan, points=plan.points[:1])
    backend.prepare(plan)
    with pytest.raises(ConflictError, match="1 sessions"):
        backend.prepare(other)
    stream.end()
    backend.prepare(other)
    assert backend.status().plan_hash == other.hash()


def test_nothing_works_before_a_plan_is_prepared() -> None:
    backend = FusionBackend()
    assert backend.status().plan_hash == ""
    assert backend.metrics() == []
    with pytest.raises(ConflictError, match="no plan is prepared"):
        backend.stream().open(["s"])


def test_modules_that_exist_are_served_as_they_change(plan, rows) -> None:
    stack = FusionStack(plan)
    backend = FusionBackend.from_stack(stack)
    backend.prepare(plan)
    assert backend.active_version == "in-process"
    stream = backend.stream()
    stream.open(["s"])
    before = rows(1)
    assert torch.equal(stream.fuse(1, 0, [Segment("s", 0, 1)], before).states[0], before[0])
    with torch.no_grad():
        stack.points["1"].outputs[0].out.bias.fill_(1.0)
    assert torch.equal(stream.fuse(2, 0, [Segment("s", 0, 1)], before).states[0], before[0] + 1.0)
    assert all(parameter.requires_grad for parameter in stack.parameters())


def test_metrics_count_all_rows_and_average_the_sampled_ones(backend, rows) -> None:
    stream = backend.stream()
    stream.open(["s"])
    for step in range(20):
        _fuse_all(stream, step, [Segment("s", step, 1)], lambda seed: rows(1, seed))
        stream.read_out(step, ["s"], rows(1), torch.rand(1, 2, 3))
    points = {entry.point: entry for entry in backend.metrics()}
    assert list(points) == ["1", "2", "3", "4", "readout"]
    assert {entry.rows for entry in points.values()} == {20}
    assert points["1"].mean["weight/code"] + points["1"].mean["weight/prose"] == pytest.approx(1.0)
    assert points["2"].mean["weight/code"] == pytest.approx(0.5)
    assert 0.0 < points["3"].mean["router_entropy"] <= 0.7
    assert 0.0 < points["4"].mean["gate/code"] < 2.0
    assert points["4"].mean["update/prose"] > 0.0
    assert points["readout"].mean["weight/code"] + points["readout"].mean["weight/prose"] == pytest.approx(
        1.0
    )


def test_what_streams_keep_is_freed_however_they_end(backend, rows) -> None:
    streams = [backend.stream() for _ in range(3)]
    for stream in streams:
        stream.open(["a", "b"])
        _fuse_all(stream, 1, [Segment("a", 0, 5), Segment("b", 0, 2)], lambda seed: rows(7, seed))
    assert backend.num_sessions == 6
    assert backend.status().cache_bytes > 0
    streams[0].end()
    streams[1].close(["a", "b", "never opened"])
    del streams[2:], stream
    assert (backend.num_sessions, backend.status().cache_bytes) == (0, 0)
