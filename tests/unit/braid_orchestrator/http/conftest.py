from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from braid_orchestrator.http import create_app
from braid_orchestrator.serving.metrics import MeteredService

from ..fake_service import FakeService


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
async def http(service: FakeService) -> AsyncIterator[httpx.AsyncClient]:
    metered = MeteredService(service)
    app = create_app(
        lambda: metered,
        metered.render_metrics,
        max_body_bytes=10_000,
        count_response=metered.count_response,
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://braid") as client:
        yield client
