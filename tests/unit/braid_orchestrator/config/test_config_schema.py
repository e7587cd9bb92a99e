from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from braid_orchestrator.config import environment
from braid_orchestrator.config import values as config
from braid_orchestrator.config.files import locate_files
from braid_orchestrator.config.models import (
    BraidingModel,
    BraidModel,
    FusionModel,
    LimitsModel,
    PointModel,
    ReadoutModel,
    ShardModel,
)
from braid_orchestrator.config.schema import load_braid_config, load_endpoints, parse_braid_config
from braid_rpc.errors import ConfigError
from braid_services.shard.config import ShardConfig

DEPLOY = Path(__file__).parents[4] / "deploy" / "braid.yaml"


def settings() -> dict[str, Any]:
    return {
        "anchor": "left",
        "shards": [{"name": "left", "model": "gpt2"}, {"name": "right-2", "model": "opt"}],
        "points": [{"at": 0.5}],
    }


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    raw = settings()
    change(raw)
    return raw


@pytest.mark.parametrize(
    ("model", "frozen"),
    [
        (BraidModel, config.BraidConfig),
        (ShardModel, ShardConfig),
        (PointModel, config.PointConfig),
        (ReadoutModel, config.ReadoutConfig),
        (FusionModel, config.FusionConfig),
        (BraidingModel, config.BraidingConfig),
        (LimitsModel, config.LimitsConfig),
    ],
)
def test_every_frozen_value_can_be_configured_and_has_the_same_default(model: Any, frozen: Any) -> None:
    fields = {field.name: field for field in dataclasses.fields(frozen)}
    assert set(model.model_fields) == set(fields)
    for name, field in fields.items():
        if field.default is not dataclasses.MISSING:
            default = model.model_fields[name].get_default(call_default_factory=True)
            assert (tuple(default) if isinstance(default, list) else default) == field.default, name


def test_every_key_of_a_braid_can_be_set_from_the_environment() -> None:
    assert set(environment.KEYS) == set(BraidModel.model_fields)
    braid = parse_braid_config(
        settings(), {"BRAID_BRAIDING__DEFAULT": "auto", "BRAID_BRAIDING__DECIDE": "by_looks"}
    )
    assert braid.braiding == config.BraidingConfig("auto", "by_looks")


def test_sizes_are_written_as_people_write_them() -> None:
    for text, size in (("256MiB", 2**28), ("2 GB", 2 * 10**9), ("1.5KiB", 1536), (4096, 4096), ("77", 77)):
        raw = changed(lambda raw, text=text: raw["shards"][0].update(cache_bytes=text))
        assert parse_braid_config(raw).shards[0].cache_bytes == size


def test_a_shard_may_have_no_room_for_graphs_and_must_have_some_for_caches() -> None:
    raw = changed(lambda raw: raw["shards"][0].update(training_bytes=0))
    assert parse_braid_config(raw).shards[0].training_bytes == 0
    with pytest.raises(ConfigError, match=r"shards\.left\.cache_bytes: got 0, expected at least 1"):
        parse_braid_config(changed(lambda raw: raw["shards"][0].update(cache_bytes=0)))


def test_a_bare_readout_is_its_kind() -> None:
    assert parse_braid_config({**settings(), "readout": "gate"}).readout == config.ReadoutConfig("gate", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda raw: raw.update(braiding={"default": "auto"}),
            "braiding.default: got 'auto' without braiding.decide, expected a predicate's name",
        ),
        (
            lambda raw: raw.update(braiding={"default": "sometimes"}),
            "braiding.default: got 'sometimes', expected true, false or 'auto'",
        ),
        (
            lambda raw: raw.update(braiding={"decide": "by_looks", "margin": 0.1}),
            "braiding.margin: got 0.1, expected a classifier's folder in braiding.decide with it",
        ),
        (
            lambda raw: raw.update(braiding={"decide": "./x", "margin": 2}),
            "braiding.margin: got 2, expected at most 1",
        ),
        (lambda raw: raw.update(anchro="left"), "anchro: unknown key, did you mean 'anchor'?"),
        (
            lambda raw: raw["shards"][0].update(dtpye="x"),
            "shards.left.dtpye: unknown key, did you mean 'dtype'?",
        ),
        (lambda raw: raw.pop("anchor"), "anchor: missing, expected the name of the shard"),
        (
            lambda raw: raw.update(anchor="middle"),
            "anchor: got 'middle', expected one of the shards: left, right-2",
        ),
        (lambda raw: raw["shards"][1].update(name="left"), "shards[1].name: got 'left' a second time"),
        (lambda raw: raw["shards"][0].update(name="a/b"), "'a/b', expected letters, digits"),
        (lambda raw: raw.update(name="left"), "name: got 'left', which is also a shard's"),
        (lambda raw: raw.update(shards=[]), "shards: got [], expected at least one entry"),
        (
            lambda raw: raw["shards"][0].update(dtype="int7"),
            "shards.left.dtype: got 'int7', expected one of: 'float32'",
        ),
        (
            lambda raw: raw["shards"][0].update(device="gpu"),
            "shards.left.device: got 'gpu', expected cpu, mps, cuda",
        ),
        (lambda raw: raw["shards"][0].update(threads=-1), "shards.left.threads: got -1, expected at least 0"),
        (
            lambda raw: raw["shards"][0].update(cache_bytes=-5),
            "shards.left.cache_bytes: got -5, expected at least 1",
        ),
        (
            lambda raw: raw["shards"][0].update(cache_bytes="-5MiB"),
            "got '-5MiB', expected a size such as 256MiB",
        ),
        (
            lambda raw: raw["points"][0].update(at=1.0),
            "points[0].at: got 1.0, expected a relative depth in (0, 1)",
        ),
        (
            lambda raw: raw["points"][0].update(at=0.0),
            "points[0].at: got 0.0, expected a relative depth in (0, 1)",
        ),
        (
            lambda raw: raw["points"][0].update(at=float("nan")),
            "points[0].at: got nan, expected a relative depth",
        ),
        (
            lambda raw: raw["points"][0].update(at=-1),
            "points[0].at: got -1, expected a layer index of at least 0",
        ),
        (lambda raw: raw["points"][0].update(at=True), "points[0].at: got True, expected a relative depth"),
        (
            lambda raw: raw["points"][0].update(at={"left": 1}),
            "points[0].at: got layers for left, expected for each",
        ),
        (
            lambda raw: raw["points"][0].update(receivers=["up"]),
            "points[0].receivers: got 'up', expected shards among",
        ),
        (lambda raw: raw.update(readout="gated"), "readout.kind: got 'gated', expected one of: 'anchor'"),
        (
            lambda raw: raw.update(limits={"max_waiting": -1}),
            "limits.max_waiting: got -1, expected at least 0",
        ),
        (
            lambda raw: raw.update(limits={"max_running": "many"}),
            "limits.max_running: got 'many', expected a whole",
        ),
        (
            lambda raw: raw.update(limits={"prefill_chunk": 999}),
            "limits.prefill_chunk: got 999, expected at most",
        ),
        (
            lambda raw: raw.update(limits={"step_timeout_s": 0}),
            "limits.step_timeout_s: got 0, expected more than 0",
        ),
    ],
)
def test_a_mistake_is_told_by_key_got_and_expected(
    change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_braid_config(changed(change))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_told_at_once() -> None:
    raw = {**settings(), "seed": -1, "readout": "gated"}
    with pytest.raises(ConfigError, match=r"readout\.kind.*; seed: got -1"):
        parse_braid_config(raw)


def test_the_environment_overrides_single_keys() -> None:
    environment = {
        "BRAID_ANCHOR": "right-2",
        "BRAID_SHARDS__RIGHT_2__DTYPE": "bfloat16",
        "BRAID_SHARDS__0__CACHE_BYTES": "1MiB",
        "BRAID_LIMITS__MAX_WAITING": "3",
        "BRAID_POINTS__0__STRATEGY": "router",
        "BRAID_READOUT__KIND": "gate",
        "BRAID_TARGET": "of the command line",
        "BRAID_SERVICE_HOST": "10.0.0.1",  # what Kubernetes sets for a service of that name
        "OTHER": "x",
    }
    raw = settings()
    braid = parse_braid_config(raw, environment)
    assert braid.anchor == "right-2"
    assert braid.shards[1].dtype == "bfloat16"
    assert braid.shards[0].cache_bytes == 2**20
    assert braid.limits.max_waiting == 3
    assert braid.points[0].strategy == "router"
    assert braid.readout.kind == "gate"
    assert raw == settings()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("BRAID_ANCHR", "left", "environment variable BRAID_ANCHR: no such key, did you mean BRAID_ANCHOR?"),
        ("BRAID_SHARDS__UP__DTYPE", "float16", "no 'up' in shards, expected one of: left, right-2"),
        ("BRAID_LIMITS__MAX_WAITIN", "3", "limits.max_waitin: unknown key, did you mean 'max_waiting'?"),
        ("BRAID_LIMITS__MAX_WAITING", "many", "limits.max_waiting: got 'many', expected a whole number"),
        ("BRAID_ANCHOR__NAME", "left", "BRAID_ANCHOR__NAME: braid.anchor is 'left', nothing lies below"),
        ("BRAID_SEED", "[1", "BRAID_SEED: got '[1', expected a YAML value"),
    ],
)
def test_a_slip_in_the_environment_is_told(variable: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_braid_config(settings(), {variable: value})
    assert message in str(caught.value)


def test_a_serve_file_and_a_bare_file_say_the_same(tmp_path: Path) -> None:
    bare, serve = tmp_path / "bare.yaml", tmp_path / "serve.yaml"
    args = "anchor: a\nshards: [{name: a, model: gpt2}]\n"
    bare.write_text(args)
    serve.write_text(
        "http_options: {port: 81}\napplications:\n- name: braid\n  args:\n"
        + "".join(f"    {line}\n" for line in args.splitlines())
    )
    assert load_braid_config(bare) == load_braid_config(serve)
    assert load_endpoints(bare).http_port == 8000
    assert load_endpoints(serve).http_port == 81


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("- a", "expected a mapping"),
        ("applications: []", "applications: got [], expected a list with one application"),
        ("applications: [{name: x}]", "configuration: got None, expected a mapping"),
    ],
)
def test_a_broken_file_is_told_by_its_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "braid.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_braid_config(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: No such file or directory"):
        load_braid_config(tmp_path / "nothing.yaml")


def test_the_shipped_deployment_is_valid_and_names_its_deployments() -> None:
    import yaml

    braid = load_braid_config(DEPLOY)
    application = yaml.safe_load(DEPLOY.read_text())["applications"][0]
    parts = {shard.name for shard in braid.shards} | {"fusion", "orchestrator"}
    assert {deployment["name"] for deployment in application["deployments"]} == parts
    assert load_endpoints(DEPLOY).grpc_port == 9000
    assert 2 <= len(braid.points) <= 3


def test_paths_become_absolute_and_hub_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    raw = settings()
    raw["shards"][0]["model"] = "mine"
    braid = locate_files(parse_braid_config(raw))
    assert [shard.model for shard in braid.shards] == [str(tmp_path / "mine"), "opt"]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("secrets/redis.txt", "{here}/secrets/redis.txt"),
        ("~/redis.txt", "{home}/redis.txt"),
        ("/run/redis.txt", "/run/redis.txt"),
        (None, None),
    ],
)
def test_the_password_file_is_found_from_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, found: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    raw = {**settings(), "state": {"store": "redis", "url": "redis://127.0.0.1:1", "password_file": given}}
    expected = None if found is None else found.format(here=tmp_path, home=tmp_path / "home")
    assert locate_files(parse_braid_config(raw)).state.password_file == expected


@pytest.mark.parametrize("key", ["shards.left.model", "fusion.weights"])
def test_a_path_with_nothing_there_is_told_before_anything_is_loaded(tmp_path: Path, key: str) -> None:
    raw = settings()
    if key == "fusion.weights":
        raw["fusion"] = {"weights": str(tmp_path / "nothing")}
    else:
        raw["shards"][0]["model"] = str(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=f"{key}: no folder .*nothing"):
        locate_files(parse_braid_config(raw))
