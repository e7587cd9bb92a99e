from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from braid_orchestrator.logs import configure_logs
from braid_rpc.errors import ConfigError


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    packages = [
        logging.getLogger(name)
        for name in ("braid_orchestrator", "braid_services", "braid_fusion", "braid_rpc")
    ]
    levels = [package.level for package in packages]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for package, its_level in zip(packages, levels, strict=True):
        package.setLevel(its_level)


def lines(environ: dict[str, str]) -> list[str]:
    stream = io.StringIO()
    configure_logs(environ, stream=stream)
    ours, theirs = logging.getLogger("braid_services.shard"), logging.getLogger("somebody.else")
    ours.debug("said %s", "softly")
    ours.info("step %d\nrefused", 7, extra={"session_id": "ab.0", "shard": "left", "reason": None})
    theirs.info("chatter")
    theirs.warning("mind")
    try:
        raise ValueError("text")
    except ValueError:
        ours.exception("broken")
    return stream.getvalue().splitlines()


def test_json_is_one_object_in_a_line_with_all_fields() -> None:
    found = [json.loads(line) for line in lines({"BRAID_LOG_FORMAT": "json"})]
    assert [one["event"] for one in found] == ["step 7\nrefused", "mind", "broken"]
    assert found[0]["session_id"] == "ab.0" and found[0]["shard"] == "left" and "reason" not in found[0]
    assert found[0]["level"] == "info" and found[0]["logger"] == "braid_services.shard"
    assert found[0]["timestamp"].endswith("Z")
    assert "ValueError: text" in found[2]["exception"]


def test_the_level_is_ours_and_others_are_heard_from_warning_on() -> None:
    found = [
        json.loads(line)["event"] for line in lines({"BRAID_LOG_FORMAT": "JSON", "BRAID_LOG_LEVEL": "debug"})
    ]
    assert found == ["said softly", "step 7\nrefused", "mind", "broken"]


def test_the_console_shows_fields_too_and_begins_at_warnings() -> None:
    text = "\n".join(lines({}))
    assert "refused" not in text and "broken" in text
    assert "session_id=ab.0" in "\n".join(lines({"BRAID_LOG_LEVEL": "info"}))


@pytest.mark.parametrize(("name", "value"), [("BRAID_LOG_FORMAT", "yaml"), ("BRAID_LOG_LEVEL", "loud")])
def test_unknown_values_are_refused_with_what_is_allowed(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: got '{value}', expected one of"):
        configure_logs({name: value}, stream=sys.stderr)


def test_a_console_shows_the_fields_and_leaves_the_record_to_others() -> None:
    seen: dict[str, list[str]] = {"console": [], "other": []}

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen[self.name].append(record.getMessage())

    console, other = Listener(), Listener()
    console.name, other.name = "console", "other"
    configure_logs({"BRAID_LOG_LEVEL": "info"}, console)
    logging.getLogger().addHandler(other)
    logging.getLogger("braid_services.shard").info("step %d", 7, extra={"shard": "left"})
    assert seen["console"] and seen["console"][0].startswith("step 7 ") and "shard=left" in seen["console"][0]
    assert seen["other"] == ["step 7"]
