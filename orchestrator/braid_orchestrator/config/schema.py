"""Reads a braid's configuration: from a file or a mapping, with overrides from the environment.

The same file serves Ray Serve (its application's ``args``), plain processes and notebooks. Every mistake
becomes a `ConfigError` that names the key, what it got and what it expected. Nothing here loads a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from braid_orchestrator.config.environment import apply_environment
from braid_orchestrator.config.messages import explain, show
from braid_orchestrator.config.models import SECTIONS, BraidModel, ShardModel, StateModel
from braid_orchestrator.config.presets import with_preset
from braid_orchestrator.config.values import BraidConfig, StateConfig
from braid_rpc.errors import ConfigError
from braid_services.shard.config import ShardConfig


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where users reach the braid: what a Ray Serve file says of its proxies."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 9000


def parse_braid_config(raw: object, environment: Mapping[str, str] | None = None) -> BraidConfig:
    """Validate one braid's settings, after overriding single keys from the environment (None: no overrides).

    Raises: ConfigError, naming the key, what it got and what it expected.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(
            f"configuration: got {show(raw)}, expected a mapping with keys such as anchor and shards"
        )
    _refuse_written_secret(raw)
    environment = environment or {}
    # The environment may name the preset, and single keys of what the preset brings.
    preset = apply_environment(raw, environment).get("preset")
    settings = apply_environment(with_preset(raw, preset), environment)
    try:
        model = BraidModel.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(explain(error, settings, BraidModel, SECTIONS)) from None
    model.check_references()
    return model.freeze()


def _refuse_written_secret(raw: Mapping[str, Any]) -> None:
    state = raw.get("state")
    url = state.get("url") if isinstance(state, Mapping) else None
    if isinstance(url, str) and "@" in url:
        raise ConfigError(
            "state.url: got a name or password in a file, expected it in the environment (BRAID_STATE__URL) or in "
            "the file that state.password_file names"
        )


def parse_shard_config(raw: Mapping[str, Any]) -> ShardConfig:
    """Validate one shard's settings. Raises: ConfigError."""
    try:
        return ShardConfig(**ShardModel.model_validate(raw).model_dump())
    except ValidationError as error:
        raise ConfigError(explain(error, raw, ShardModel, {})) from None


def parse_state_config(environment: Mapping[str, str]) -> StateConfig:
    """The state store as the environment alone names it, for parts that run without a file. Raises: ConfigError."""
    settings = apply_environment({}, {k: v for k, v in environment.items() if k.startswith("BRAID_STATE__")})
    state = settings.get("state", {})
    try:
        model = StateModel.model_validate(state)
    except ValidationError as error:
        raise ConfigError(f"state.{explain(error, state, StateModel, {})}") from None
    model.check()
    return StateConfig(**model.model_dump())


def load_braid_config(path: Path | str, environment: Mapping[str, str] | None = None) -> BraidConfig:
    """Read a Ray Serve file (its first application's ``args``) or a bare braid file.

    Raises: ConfigError, beginning with the file's name.
    """
    document = _read_yaml(path)
    applications = document.get("applications")
    settings: object = document
    if applications is not None:
        if not isinstance(applications, list) or not applications or not isinstance(applications[0], Mapping):
            raise ConfigError(
                f"{path}: applications: got {show(applications)}, expected a list with one application"
            )
        settings = applications[0].get("args")
    try:
        return parse_braid_config(settings, environment)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}") from None


def load_endpoints(path: Path | str) -> Endpoints:
    """The addresses a Ray Serve file gives to its proxies, or the defaults. Raises: ConfigError."""
    document = _read_yaml(path)
    http = document.get("http_options") or {}
    grpc = document.get("grpc_options") or {}
    for key, section in (("http_options", http), ("grpc_options", grpc)):
        if not isinstance(section, Mapping):
            raise ConfigError(f"{path}: {key}: got {show(section)}, expected a mapping")
    endpoints = Endpoints(
        host=http.get("host", Endpoints().host),
        http_port=http.get("port", Endpoints().http_port),
        grpc_port=grpc.get("port", Endpoints().grpc_port),
    )
    for key, port in (("http_options.port", endpoints.http_port), ("grpc_options.port", endpoints.grpc_port)):
        if not isinstance(port, int) or not 0 <= port < 2**16:
            raise ConfigError(f"{path}: {key}: got {show(port)}, expected a port number")
    return endpoints


def _read_yaml(path: Path | str) -> dict[str, Any]:
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}, expected a readable YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: got {show(document)}, expected a mapping")
    return document
