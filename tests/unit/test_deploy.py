"""What lies in deploy/ fits together and fits the code, as far as that can be told without running it."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from docblocks import REPOSITORY, table_under

from braid_orchestrator.cli.main import app
from braid_orchestrator.config.schema import load_braid_config, load_endpoints
from braid_orchestrator.config.values import FUSION, ORCHESTRATOR

DEPLOY = REPOSITORY / "deploy"
SERVE_FILES = [DEPLOY / "braid.yaml", DEPLOY / "mixed.yaml", *sorted((DEPLOY / "examples").glob("*.yaml"))]
# What a container of its own is for beside the parts of the braid.
BESIDE = {"redis"}
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def compose_services() -> dict[str, Any]:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    return dict(services)


def parsed(words: list[str]) -> dict[str, Any]:
    """A command line's options as the command would get them."""
    command: Any = typer.main.get_command(app)
    return dict(command.commands[words[0]].make_context(words[0], words[1:]).params)


# --- compose ------------------------------------------------------------------------------------------------


def test_compose_runs_every_part_of_the_braid_by_its_name() -> None:
    braid = load_braid_config(DEPLOY / "braid.yaml")
    services = compose_services()
    shards = [shard.name for shard in braid.shards]
    assert set(services) == {*shards, FUSION, ORCHESTRATOR, *BESIDE}
    for name in shards:
        assert services[name]["command"][0] == "shard" and parsed(services[name]["command"])["name"] == name
    assert services[FUSION]["command"][0] == "fusion" and parsed(services[FUSION]["command"])
    serve = services[ORCHESTRATOR]["command"]
    assert serve[0] == "serve"
    options = parsed(serve)
    assert (options["host"], options["http_port"], options["grpc_port"]) == ("0.0.0.0", 8000, 9000)
    assert options["join"] is True
    assert services[ORCHESTRATOR]["environment"] == {
        **services[FUSION]["environment"],
        "BRAID_API_KEYS": None,
    }
    assert set(services[ORCHESTRATOR]["depends_on"]) == set(services) - {ORCHESTRATOR}


def test_every_container_is_confined_limited_and_asked_whether_it_is_well() -> None:
    for name, service in compose_services().items():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"] and service["pids_limit"], name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert not service.get("privileged") and not service.get("cap_add"), name
        assert bool(service.get("ports")) == (name == ORCHESTRATOR), name
        assert all(mount["read_only"] for mount in service.get("volumes", ())), name


def test_health_checks_of_compose_are_commands_that_exist() -> None:
    for name, service in compose_services().items():
        _, program, *words = service["healthcheck"]["test"]
        if name not in BESIDE:
            assert program == "braid" and parsed(words)["target"], name


def test_the_variables_that_compose_takes_are_documented_with_their_defaults() -> None:
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    taken = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", text))
    rows = table_under(REPOSITORY / "docs" / "deployment.md", "Containers").by_first_column()
    assert {name: row["default"].strip("`") for name, row in rows.items()} == {
        name: default.removeprefix("./") for name, default in taken.items()
    }


# --- the image ----------------------------------------------------------------------------------------------


def test_the_image_installs_what_the_services_need_and_nothing_else() -> None:
    requirements = runpy.run_path(str(DEPLOY / "requirements.py"))["requirements"]
    found = requirements(PROJECT, ["services", "redis"])
    extras = PROJECT["optional-dependencies"]
    expected = {*PROJECT["dependencies"], *extras["models"], *extras["services"], *extras["redis"]}
    expected -= {"braid[models]"}
    assert set(found) == expected and len(found) == len(expected)
    assert not any(requirement.startswith(("ray", "pytest", "braid")) for requirement in found)
    with pytest.raises(KeyError, match="nothing"):
        requirements(PROJECT, ["nothing"])


def test_the_image_has_a_torch_that_the_project_allows_and_no_cuda() -> None:
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    found = re.search(r"^ARG TORCH=(\S+)$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    (allowed,) = (
        requirement.removeprefix("torch")
        for requirement in PROJECT["optional-dependencies"]["models"]
        if re.match(r"torch[<>=]", requirement)
    )
    assert Version(found[1]) in SpecifierSet(allowed)
    assert Version(found[1]).local == "cpu"


# --- files for Ray Serve ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SERVE_FILES, ids=lambda path: path.name)
def test_a_file_for_ray_serve_describes_a_braid_and_places_its_parts(path: Path) -> None:
    braid = load_braid_config(path)
    load_endpoints(path)
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    (application,) = document["applications"]
    parts = [*(shard.name for shard in braid.shards), FUSION, ORCHESTRATOR]
    assert [deployment["name"] for deployment in application["deployments"]] == parts
    on_gpu = {shard.name for shard in braid.shards if shard.device.startswith("cuda")}
    for deployment in application["deployments"]:
        assert ("num_gpus" in deployment["ray_actor_options"]) == (deployment["name"] in on_gpu)


@pytest.mark.parametrize("path", SERVE_FILES, ids=lambda path: path.name)
def test_ray_serve_accepts_the_file(path: Path) -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="needs ray, which is not installed")
    schema.ServeDeploySchema.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
