"""README and docs say what the code holds: commands, links, keys, defaults, messages, fields, metrics, code."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
import torch
import typer
import yaml
from braids import shake, shaken_weights
from docblocks import (
    DOCUMENTS,
    REPOSITORY,
    CodeBlock,
    code_blocks,
    code_texts,
    headings,
    links,
    table_under,
    tables,
)
from models import save_tiny_model, tiny_backend
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from braid_fusion import errors
from braid_fusion.context import FusionContext
from braid_fusion.deciding import predicates
from braid_fusion.resonance.lyapunov import LyapunovMonitor
from braid_fusion.row_cache import RowCache
from braid_fusion.strategies import RouterFusion, make_strategy, registry, strategy_names
from braid_fusion.weights import load_stack
from braid_orchestrator import BraidedLLM
from braid_orchestrator.cli.main import app as command_line
from braid_orchestrator.config.files import locate_files
from braid_orchestrator.config.kinds import parse_size
from braid_orchestrator.config.models import SECTIONS, BraidModel
from braid_orchestrator.config.presets import PRESETS
from braid_orchestrator.config.schema import load_braid_config, parse_braid_config
from braid_orchestrator.deciding import make_decider, model_hashes
from braid_orchestrator.engine.requests import (
    ChoiceFinished,
    Finished,
    RequestTimings,
    SamplingOptions,
    Started,
    TokenEvent,
)
from braid_orchestrator.http.answers import event_data
from braid_orchestrator.http.app import create_app
from braid_orchestrator.http.errors import error_body
from braid_orchestrator.http.native_schemas import GenerateBody, GenerateOut, PublishedOut, TokenOut
from braid_orchestrator.http.stability_schemas import ChoiceStabilityOut, StabilityFields, TokenStabilityOut
from braid_orchestrator.serving.metrics import MeteredService
from braid_rpc.errors import ERROR_TYPES, BraidError, ConfigError, InvalidRequestError
from braid_rpc.stability import StabilityOptions
from braid_services.fusion.backend import FusionBackend
from braid_services.fusion.main import serve_fusion
from braid_services.shard.backend import ShardBackend
from braid_services.shard.main import serve_backend

from .braid_orchestrator.fake_service import FakeService

CONFIGURATION, EVALUATION, FUSION, HTTP, OBSERVABILITY, STABILITY = (
    REPOSITORY / "docs" / f"{name}.md"
    for name in ("configuration", "evaluation", "fusion", "http", "observability", "stability")
)
DEPLOY = REPOSITORY / "deploy" / "braid.yaml"

# Every Python block of a document, by the heading above it; those of HTTP and gRPC run in tests/e2e/test_readme.py.
RUN_HERE = {
    ("braiding.md", "A classifier"),
    ("braiding.md", "A predicate"),
    ("configuration.md", "Plain processes"),
    ("evaluation.md", "From Python"),
    ("fusion.md", "A strategy of your own"),
    ("fusion.md", "Publishing"),
    ("fusion.md", "Training"),
    ("grafting.md", "On a model"),  # in test_docs_grafting.py, as the next
    ("grafting.md", "Configurations"),
    ("http.md", "One shard"),
    ("training.md", "Grafted layers"),  # in test_docs_training.py, as the next
    ("training.md", "The trainer core"),
    ("stability.md", "One model by itself"),
}
RUN_END_TO_END = {
    ("README.md", "gRPC"),
    ("README.md", "Grafting"),
    ("README.md", "Python"),
    ("http.md", "gRPC"),
}


def blocks_under(path: Path, heading: str, language: str = "python") -> list[CodeBlock]:
    found = [block for block in code_blocks(path, language) if block.heading == heading]
    assert found, f"{path.name}: no {language} block under {heading!r}"
    return found


# --- all documents ------------------------------------------------------------------------------------------


def test_every_python_block_is_run_by_a_test() -> None:
    found = {(path.name, block.heading) for path in DOCUMENTS for block in code_blocks(path, "python")}
    assert found == RUN_HERE | RUN_END_TO_END


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_exist(path: Path) -> None:
    for link in links(path):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{path.name}: {link}"
        if anchor:
            assert anchor in {_slug(heading) for heading in headings(target)}, f"{path.name}: {link}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(path: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    named = {
        name for _, text in code_texts(path) for name in re.findall(r"(?:^|\s)make ([a-z][a-z-]*)", text)
    }
    assert named <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_braid_commands_and_their_options_exist(path: Path) -> None:
    for line, text in code_texts(path):
        for match in re.finditer(r"(?:^|[\s/])braid ([a-z][^;&|]*)", text):
            _check_command(shlex.split(match[1]), f"{path.name}:{line}: {text}")


def _check_command(words: list[str], where: str) -> None:
    command: Any = typer.main.get_command(command_line)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not getattr(command, "commands", {}) or not words, f"{where}: no command {words[0]!r}"
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"} <= known, where


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


CONFIGURED: dict[str, type[BaseModel]] = {"The braid": BraidModel, **SECTIONS}


# --- configuration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heading", "model"), CONFIGURED.items(), ids=CONFIGURED)
def test_every_configuration_key_is_documented_with_its_default(heading: str, model: type[BaseModel]) -> None:
    _check_fields(table_under(CONFIGURATION, heading).by_first_column(), model)


def _check_fields(rows: dict[str, dict[str, str]], model: type[BaseModel]) -> None:
    assert list(rows) and set(rows) == set(model.model_fields)
    for key, field in model.model_fields.items():
        documented = rows[key]["default"]
        if field.is_required():
            assert documented == "required", key
            continue
        default = field.get_default(call_default_factory=True)
        value = yaml.safe_load(documented.strip("`"))
        if isinstance(default, BaseModel):
            value = type(default).model_validate(value)
        elif isinstance(default, int) and isinstance(value, str):
            value = parse_size(value)
        default = list(default) if isinstance(default, tuple) else default
        assert value == default and isinstance(value, bool) == isinstance(default, bool), key


def test_variables_of_the_environment_that_are_shown_change_the_configuration() -> None:
    (block,) = blocks_under(CONFIGURATION, "The environment", "bash")
    assignments = re.findall(r"^export (BRAID_\w+)=(.*)$", block.code, re.MULTILINE)
    assert len(assignments) == len(block.code.splitlines())
    for variable, value in assignments:
        assert load_braid_config(DEPLOY, {variable: value}) != load_braid_config(DEPLOY), variable


REFUSED = next(table for table in tables(CONFIGURATION) if table.columns[0] == "set")


@pytest.mark.parametrize(("assignment", "message"), REFUSED.rows, ids=[row[0] for row in REFUSED.rows])
def test_mistakes_are_refused_in_the_documented_words(assignment: str, message: str) -> None:
    variable, _, value = assignment.strip("`").partition("=")
    with pytest.raises(ConfigError) as refused:
        load_braid_config(DEPLOY, {variable: value})
    assert refused.value.message == f"{DEPLOY}: {message}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_errors_that_documents_name_exist(path: Path) -> None:
    named = {name for _, text in code_texts(path) for name in re.findall(r"\b[A-Z]\w*Error\b", text)}
    of_fusion = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert named - {"HTTPError"} <= set(ERROR_TYPES) | of_fusion


async def test_a_braid_can_be_connected_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    (block,) = blocks_under(CONFIGURATION, "Plain processes")
    shards = [tiny_backend("code", 1, num_layers=4), tiny_backend("prose", 2, num_layers=5, width=48)]
    servers = [serve_backend(shard, ["127.0.0.1:0"]) for shard in shards]
    servers.append(serve_fusion(None, None, ["127.0.0.1:0"]))
    addresses = ["10.0.0.5:7001", "10.0.0.6:7001", "10.0.0.5:7100"]
    targets = [server.targets[0] for server in servers]
    namespace: dict[str, Any] = {}
    try:
        block.substituted(dict(zip(addresses, targets, strict=True))).run(namespace)
        transport = httpx.ASGITransport(namespace["app"])
        async with httpx.AsyncClient(transport=transport, base_url="http://braid") as client:
            answer = await client.post(
                "/generate", json={"prompt": "the", "max_tokens": 4, "ignore_eos": True}
            )
        assert len(answer.json()["tokens"]) == 4
        assert set(answer.json()["weights"]) == {"code", "prose"}
    finally:
        if "braid" in namespace:
            namespace["braid"].stop()
        for server in servers:
            server.stop()


# --- fusion -------------------------------------------------------------------------------------------------


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_STRATEGIES", dict(registry._STRATEGIES))


def test_every_strategy_is_documented_with_its_options() -> None:
    sections = {heading.strip("`") for heading in headings(FUSION) if heading.startswith("`")}
    own = {name: registry._STRATEGIES[name] for name in strategy_names()}
    built_in = {name: cls for name, cls in own.items() if cls.__module__.startswith("braid_fusion.")}
    assert {built_in[name] for name in sections} == set(built_in.values())
    assert all(f"`{name}`" in FUSION.read_text(encoding="utf-8") for name in built_in)
    given = {"num_models", "hidden_dim", "receivers", "anchor", "generator"}
    for name in sections:
        expected = {
            key: parameter.default
            for key, parameter in inspect.signature(built_in[name]).parameters.items()
            if key not in given
        }
        described = [table for table in tables(FUSION) if table.heading == f"`{name}`"]
        found = {
            key: yaml.safe_load(row["default"].strip("`"))
            for table in described
            for key, row in table.by_first_column().items()
        }
        assert found == expected, name


def test_the_strategies_that_are_shown_work_in_pieces_as_on_the_whole(own_registry: None) -> None:
    import torch

    namespace: dict[str, Any] = {}
    for block in blocks_under(FUSION, "A strategy of your own"):
        block.run(namespace)
    assert {"custom", "running_mean"} <= set(strategy_names())
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(7, 12, generator=generator) for _ in range(3)]
    custom = make_strategy("custom", 3, 12, {"dropout": 0.1}, generator=generator).eval()
    assert custom(states).shape == (7, 12)

    mean = make_strategy("running_mean", 3, 12)
    whole = mean.fuse(states, FusionContext.whole([4, 3])).states
    caches = (RowCache(), RowCache())
    pieces = []
    for counts, positions in (((3, 1), (0, 0)), ((1, 2), (3, 1))):
        rows = [*range(positions[0], sum((positions[0], counts[0])))]
        rows += [4 + row for row in range(positions[1], positions[1] + counts[1])]
        out = mean.fuse([state[rows] for state in states], FusionContext(counts, positions, caches))
        pieces += list(zip(rows, out.states, strict=True))
    together = torch.stack([row for _, row in sorted(pieces, key=lambda piece: piece[0])])
    torch.testing.assert_close(together, whole)
    torch.testing.assert_close(whole[3], torch.stack(states).mean(0)[:4].mean(0))


def test_every_preset_is_documented_as_it_is() -> None:
    rows = table_under(FUSION, "Presets").by_first_column()
    assert set(rows) == set(PRESETS)
    for name, preset in PRESETS.items():
        row = {key.strip("`"): text.replace("`", "") for key, text in rows[name].items()}
        options = "".join(f", {key}: {value}" for key, value in preset.options.items())
        default = "auto, if braiding.decide is given" if preset.decides else "true"
        assert (row["strategy"], row["readout"], row["braiding.default"]) == (
            preset.strategy + options,
            preset.readout,
            default,
        )
        assert preset.injection == "residual"


@pytest.fixture
def demo_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Laid out as the repository's root with the demo built, but with tiny models and weights made up."""
    shards = {"code": {"num_layers": 4}, "prose": {"num_layers": 6, "width": 48}}
    for seed, (name, shape) in enumerate(shards.items()):
        save_tiny_model(tmp_path / ".braid" / "demo" / name, seed, **shape)
    (tmp_path / "deploy").symlink_to(DEPLOY.parent)
    monkeypatch.chdir(tmp_path)
    config = load_braid_config(DEPLOY)
    shaken_weights(
        config, [ShardBackend.load(shard) for shard in config.shards], Path(str(config.fusion.weights))
    )
    return tmp_path


def test_the_training_that_is_shown_lowers_the_loss_and_serves(own_registry: None, demo_folder: Path) -> None:
    namespace: dict[str, Any] = {}
    first, exchange, for_the_service = blocks_under(FUSION, "Training")
    first.run(namespace)
    assert namespace["losses"][-1] < namespace["losses"][0]
    assert (demo_folder / "fusion_weights.pt").is_file()
    exchange.run(namespace)
    assert type(namespace["braided"].fusion_modules["3"].strategy) is RouterFusion
    namespace["braided"].close()
    for_the_service.run(namespace)
    service = FusionBackend(".braid/demo/fusion")
    service.prepare(namespace["braided"].plan)
    assert [version.version for version in service.list_versions()] == ["untrained", "v3", "v2"]
    assert service.active_version == "v2"


def test_the_evaluation_that_is_shown_compares_everybody(
    demo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = blocks_under(EVALUATION, "From Python")
    namespace: dict[str, Any] = {}
    block.run(namespace)
    found = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert found == ["code", "prose", "uniform", "posterior", "braid", "oracle"]
    for shard in namespace["shards"]:
        shard.shutdown()


def test_the_publishing_that_is_shown_activates_what_was_sent(
    demo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    braided = BraidedLLM.from_config(load_braid_config(DEPLOY))
    shake(braided, 9)
    (block,) = blocks_under(FUSION, "Publishing")
    with serve_fusion(".braid/demo/fusion", None, ["127.0.0.1:0"]) as server:
        block.substituted({"127.0.0.1:7100": server.targets[0]}).run({"braided": braided})
        version, active = capsys.readouterr().out.split()
    braided.close()
    assert version == active
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{8}", version)
    loaded = load_stack(braided.plan, demo_folder / ".braid" / "demo" / "fusion" / version).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in braided.stack.state_dict().items())


def test_the_answer_to_publishing_that_is_shown_has_its_shape() -> None:
    (block,) = blocks_under(FUSION, "Publishing", "json")
    shown = json.loads(block.code)
    assert PublishedOut.model_validate(shown).model_dump() == shown


def test_the_refusals_of_publishing_are_shown_with_their_statuses() -> None:
    for cell in table_under(FUSION, "Publishing").by_first_column():
        name, status = re.fullmatch(r"`?(\w+)`? \((\d+)\)", cell).groups()  # type: ignore[union-attr]
        assert ERROR_TYPES[name].http_status == int(status)


def test_the_deciders_that_are_shown_decide(demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicates, "_PREDICATES", {})
    braiding = REPOSITORY / "docs" / "braiding.md"
    (block,) = blocks_under(braiding, "A predicate")
    namespace: dict[str, Any] = {}
    block.run(namespace)
    by_looks = predicates.find_predicate("by_looks")
    assert [by_looks(text) for text in ("x" * 500, "def f():", "A word.")] == [True, "code", "prose"]
    (block,) = blocks_under(braiding, "A classifier")
    block.run(namespace)
    namespace["braided"].close()
    assert namespace["completion"].answered_by in {"demo", "code", "prose"}
    hashes = model_hashes([backend.card for backend in namespace["braided"].backends])
    settings = yaml.safe_load(DEPLOY.read_text(encoding="utf-8"))["applications"][0]["args"]
    for shown in blocks_under(braiding, "A classifier", "yaml"):
        config = locate_files(parse_braid_config(settings | yaml.safe_load(shown.code)))
        assert make_decider(config.braiding, hashes) is not None


# --- HTTP and gRPC ------------------------------------------------------------------------------------------


def test_every_route_is_documented() -> None:
    paths = create_app(FakeService, lambda: b"").openapi()["paths"]
    served = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert set(table_under(HTTP, "Routes").by_first_column()) == served


def test_every_field_of_generate_is_documented_with_its_default() -> None:
    _check_fields(table_under(HTTP, "Generate").by_first_column(), GenerateBody)


def test_every_error_is_documented_with_its_statuses() -> None:
    rows = table_under(HTTP, "Errors").by_first_column()
    assert set(rows) == set(ERROR_TYPES)
    for name, cls in ERROR_TYPES.items():
        base = cls.__bases__[0].__name__ if cls is not BraidError else ""
        row = rows[name]
        assert (row["below"].strip("`"), row["HTTP"], row["gRPC"].strip("`")) == (
            base,
            str(cls.http_status),
            cls.grpc_status,
        )


def test_every_metric_is_documented_with_its_kind() -> None:
    families = text_string_to_metric_families(MeteredService(FakeService()).render_metrics().decode())
    served = {
        f"{family.name}_total" if family.type == "counter" else family.name: family.type
        for family in families
        if not family.name.endswith("_created")
    }
    rows: dict[str, Any] = {}
    for heading in ("Requests", "The engine", "Shards and spans", "Fusion"):
        rows |= table_under(OBSERVABILITY, heading).by_first_column()
    assert {name: row["kind"] for name, row in rows.items()} == served


def test_the_answer_that_is_shown_has_the_shape_of_an_answer() -> None:
    (block,) = blocks_under(HTTP, "Generate", "json")
    shown = json.loads(block.code)
    assert GenerateOut.model_validate(shown).model_dump(exclude_unset=True) == shown
    assert set(shown) == set(GenerateOut.model_fields) - {"choices", "stability"}


def test_the_figures_of_stability_that_are_shown_have_their_shape() -> None:
    (block,) = blocks_under(STABILITY, "How stable a text is", "json")
    shown = json.loads(block.code)
    tokens = [TokenOut.model_validate(token).model_dump(exclude_unset=True) for token in shown["tokens"]]
    assert tokens == shown["tokens"]
    told = ChoiceStabilityOut.model_validate(shown["stability"])
    assert told.model_dump(exclude_unset=True) == shown["stability"]
    assert set(shown["stability"]) == set(ChoiceStabilityOut.model_fields)
    figures = table_under(STABILITY, "How stable a text is").by_first_column()
    assert set(figures) == {*TokenStabilityOut.model_fields, "is_stable"}


def test_the_generation_that_is_shown_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks_under(STABILITY, "One model by itself")
    folder = save_tiny_model(tmp_path / "model", 1, num_layers=6)
    namespace: dict[str, Any] = {}
    block.substituted({'"gpt2"': repr(str(folder))}).run(namespace)
    assert namespace["result"].exponent is not None and "nan" not in capsys.readouterr().out


def test_every_option_of_stability_is_documented_with_its_default() -> None:
    _check_fields(table_under(STABILITY, "Options").by_first_column(), StabilityFields)
    values = StabilityFields().model_dump()
    assert (
        values
        == asdict(StabilityOptions())
        == _monitor_defaults(LyapunovMonitor)
        | {
            "stop": False,
            "auto_temperature": False,
        }
    )


def _monitor_defaults(monitor: type[LyapunovMonitor]) -> dict[str, Any]:
    """Of the options that requests have too."""
    parameters = inspect.signature(monitor).parameters
    return {name: parameters[name].default for name in ("threshold", "window", "min_tokens")}


def test_the_error_that_is_shown_is_the_one_that_is_sent() -> None:
    (block,) = blocks_under(HTTP, "Errors", "json")
    with pytest.raises(InvalidRequestError) as refused:
        SamplingOptions(temperature=-1.0).validate()
    assert json.loads(block.code) == error_body(refused.value)


def test_the_events_that_are_shown_have_the_shape_of_events() -> None:
    (block,) = blocks_under(HTTP, "Streaming", "")
    shown = re.findall(r"event: (\w+)\ndata: (.+)\n", block.code)
    timings = RequestTimings(0.0, 0.0, 0.0)
    sent = [
        event_data(event, "demo", braided=True)
        for event in (
            Started("id", 5, "v1"),
            TokenEvent(0, 287, " is", weights={"code": 0.2, "prose": 0.8}),
            ChoiceFinished(0, "length"),
            Finished(5, 1, timings),
        )
    ]
    assert [(name, list(json.loads(data))) for name, data in shown] == [
        (name, list(data)) for name, data in sent
    ]


def test_the_client_of_one_shard_that_is_shown_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks_under(HTTP, "One shard")
    with (
        TemporaryDirectory() as folder,
        serve_backend(tiny_backend("code", 1), [f"unix:{folder}/code.sock"]) as server,
    ):
        block.substituted({"127.0.0.1:7001": server.targets[0]}).run({})
    assert capsys.readouterr().out.startswith("llama 3 32")
