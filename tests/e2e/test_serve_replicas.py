"""`serve run` with two replicas of a shard and a Redis: both register, both are used, and no token changes."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import yaml
from braids import local_tokens
from programs import Program, eventually, free_port, tiny_braid_settings, write_serve_file
from redis_server import RedisServer

from braid_orchestrator.state.redis_store import RedisStore
from braid_orchestrator.state.registry import Registry

pytest.importorskip("ray", reason="needs ray, which is absent")
pytestmark = pytest.mark.timeout(600)

READY_S = 300.0
PROMPTS = ("the inner thread", "another", "a third", "and four")
SAMPLED = {"max_tokens": 24, "temperature": 0.9, "seed": 11, "ignore_eos": True}


def test_two_replicas_give_the_same_tokens(tmp_path: Path, redis_server: RedisServer) -> None:
    settings = tiny_braid_settings(tmp_path)
    settings["state"] = {"store": "redis", "url": redis_server.url}
    http_port = free_port()
    config = write_serve_file(tmp_path / "braid.yaml", settings, http_port, free_port())
    document = yaml.safe_load(config.read_text())
    document["applications"][0]["deployments"][0]["num_replicas"] = 2
    config.write_text(yaml.safe_dump(document))
    expected = [asyncio.run(local_tokens(config, prompt, SAMPLED)) for prompt in PROMPTS]
    serve = str(Path(sys.executable).with_name("serve"))
    environment = {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
    program = Program([serve, "run", str(config)], tmp_path / "log", **environment)
    url = f"http://127.0.0.1:{http_port}"

    def is_ready() -> bool:
        try:
            return httpx.get(f"{url}/ready", timeout=2.0, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def tokens(prompt: str) -> list[int]:
        body = {"prompt": prompt, **SAMPLED}
        answer = httpx.post(f"{url}/generate", json=body, timeout=120.0, trust_env=False)
        assert answer.status_code == 200, answer.text
        return [token["id"] for token in answer.json()["tokens"]]

    try:
        program.wait_until(is_ready, READY_S, "serve run is ready")
        with closing(RedisStore(redis_server.url, "tiny")) as store:
            registry = Registry(store)
            eventually(lambda: len(registry.replicas("left")) == 2, READY_S, "two replicas have registered")
            with ThreadPoolExecutor(4) as threads:
                assert list(threads.map(tokens, PROMPTS)) == expected
    finally:
        program.clean_up()
