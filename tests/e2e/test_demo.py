"""`braid demo` from an empty folder to its figures, with the quick recipe and on plain processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from programs import free_port

from braid_orchestrator.config.schema import load_endpoints

DEPLOY = Path(__file__).parents[2] / "deploy"
DEMO_S = 600.0

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as the repository's root, with ports that are free."""
    root = tmp_path_factory.mktemp("root")
    (root / "deploy").mkdir()
    for name in ("braid.yaml", "mixed.yaml"):
        text = (DEPLOY / name).read_text()
        for port in (8000, 9000):
            assert text.count(f"port: {port}") == 1
            text = text.replace(f"port: {port}", f"port: {free_port()}")
        (root / "deploy" / name).write_text(text)
    return root


def demo(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "braid_orchestrator.cli", "demo", "--quick", *options]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=DEMO_S, check=False)


def test_the_demo_builds_serves_asks_compares_and_ends(root: Path) -> None:
    done = demo(root, "--plain", "--json", "--max-tokens", "8")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    bits = figures["bits_per_byte"]
    assert set(bits) == {"code", "prose", "uniform mix", "braid"}
    best = min(bits["code"]["mix"], bits["prose"]["mix"])
    assert figures["gains"]["best model alone"]["mix"] == pytest.approx(1 - bits["braid"]["mix"] / best)
    assert figures["gains"]["uniform mix"].keys() == bits["braid"].keys()
    assert len(figures["completion"]["tokens"]) == 8
    assert sum(figures["completion"]["weights"].values()) == pytest.approx(1.0)
    # The same again needs no building, and finds the ports free.
    again = demo(root, "--build-only")
    assert again.returncode == 0, again.stderr
    assert "already" in again.stderr


def test_three_shards_of_three_tokenizers_too(root: Path) -> None:
    done = demo(root, "--braid", "mixed", "--plain", "--json", "--max-tokens", "8")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert set(figures["bits_per_byte"]) == {"code", "prose", "bytes", "uniform mix", "braid"}
    assert set(figures["completion"]["weights"]) == {"code", "prose", "bytes"}
    hashes = {
        json.dumps(json.loads((root / ".braid/mixed" / name / "tokenizer.json").read_text())["model"])
        for name in ("code", "prose", "bytes")
    }
    assert len(hashes) == 3


def test_a_port_that_is_taken_is_told_in_one_line(root: Path) -> None:
    import socket

    endpoints = load_endpoints(root / "deploy" / "braid.yaml")
    with socket.create_server(("127.0.0.1", endpoints.http_port)):
        done = demo(root, "--plain")
    assert done.returncode == 1
    assert f"port {endpoints.http_port} is taken" in done.stderr
    assert "Traceback" not in done.stderr
