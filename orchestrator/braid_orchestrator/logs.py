"""How logs are written: for people, or as JSON, one object in a line, as ``BRAID_LOG_FORMAT`` and ``…_LEVEL`` say.

Modules log by the standard library, with what belongs to a line as its ``extra``: nothing else knows of structlog.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog

from braid_rpc.errors import ConfigError

FORMATS = ("console", "json")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
# Ours; other libraries are heard from WARNING on.
_PACKAGES = ("braid_orchestrator", "braid_services", "braid_fusion", "braid_rpc")


def configure_logs(
    environ: Mapping[str, str], console: logging.Handler | None = None, stream: TextIO | None = None
) -> None:
    """Have the whole process log as the environment says: for people unless it says otherwise.

    Without a level, JSON begins at INFO and the console at WARNING. ``console`` writes the latter (None: plain
    lines); ``stream`` is where lines go (None: stderr). Raises: ConfigError, naming the variable.
    """
    form = _one_of(environ, "BRAID_LOG_FORMAT", "console", FORMATS)
    level = _one_of(environ, "BRAID_LOG_LEVEL", "INFO" if form == "json" else "WARNING", _LEVELS)
    handler = console if form == "console" else None
    if handler is None:
        handler = logging.StreamHandler(stream or sys.stderr)
        handler.setFormatter(formatter(form))
    else:
        handler = _WithFields(handler)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(level)


def formatter(form: str) -> logging.Formatter:
    """Turns a record with its ``extra`` into a line."""
    renderer: Any = structlog.processors.JSONRenderer(ensure_ascii=False)
    if form == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=False)
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.stdlib.ExtraAdder(),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _without_nothing,
            renderer,
        ],
    )


def _without_nothing(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: value for name, value in event.items() if value is not None}


class _WithFields(logging.Handler):
    """For a handler that knows no ``extra``: it stands behind the message. Others see the record as it was."""

    def __init__(self, inner: logging.Handler) -> None:
        super().__init__(inner.level)
        self._inner = inner

    def emit(self, record: logging.LogRecord) -> None:
        """A copy with its fields goes to the inner handler."""
        fields = structlog.stdlib.ExtraAdder()(logging.getLogger(), "", {"_record": record})
        del fields["_record"]
        told = [f"{name}={value}" for name, value in fields.items() if value is not None]
        if told:
            record = copy.copy(record)
            record.msg, record.args = " ".join([record.getMessage(), *told]), ()
        self._inner.handle(record)


def _one_of(environ: Mapping[str, str], name: str, default: str, allowed: tuple[str, ...]) -> str:
    given = environ.get(name, "").strip()
    for value in allowed:
        if (given or default).lower() == value.lower():
            return value
    raise ConfigError(f"{name}: got {given!r}, expected one of {', '.join(allowed)}")
