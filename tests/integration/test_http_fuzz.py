"""The HTTP API against requests made up from its own description: no crash, and answers as described."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from braids import braid_config
from hypothesis import HealthCheck, Phase, given, settings
from served import LIMITS, chatting_backends, served

from braid_orchestrator.http import create_app

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis: pip install '.[dev]'")

# A short context: whatever is asked for, little is made.
CONTEXT = 48
EXAMPLES = 12

pytestmark = pytest.mark.timeout(300)
schemathesis.serializer.alias("application/x-tar", "application/octet-stream")


@pytest.fixture(scope="module")
def api() -> Iterator[Any]:
    with served(chatting_backends(context=CONTEXT), braid_config(limits=LIMITS)) as braid:
        yield schemathesis.openapi.from_url(f"{braid.url}/openapi.json")
        braid.wait_until_idle()


DESCRIBED = create_app(lambda: None, lambda: b"").openapi()["paths"]  # type: ignore[arg-type,return-value]
OPERATIONS = sorted((path, method) for path, methods in DESCRIBED.items() for method in methods)
# What has nothing to get wrong can't be asked wrongly.
WITH_BODY = [one for one in OPERATIONS if "requestBody" in DESCRIBED[one[0]][one[1]]]
MODES = schemathesis.GenerationMode
CASES = [(*one, MODES.POSITIVE) for one in OPERATIONS] + [(*one, MODES.NEGATIVE) for one in WITH_BODY]


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    CASES,
    ids=[f"{method} {path} {mode.value}" for path, method, mode in CASES],
)
def test_every_route_answers_as_it_says(api: Any, path: str, method: str, mode: Any) -> None:
    openapi = schemathesis.specs.openapi.checks
    checks = [
        schemathesis.checks.not_a_server_error,
        openapi.status_code_conformance,
        openapi.content_type_conformance,
        openapi.response_schema_conformance,
    ]

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=api[path][method.upper()].as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        response = case.call(timeout=60)
        case.validate_response(response, checks=checks)
        if response.status_code >= 400:
            error = response.json()["error"]
            assert error["code"] == response.status_code
            assert error["message"] and error["type"]

    ask()
