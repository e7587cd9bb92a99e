from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from braid_orchestrator.cli.main import app
from braid_services.fusion.main import serve_fusion
from braid_services.serving import RunningServer


class Answers(BaseHTTPRequestHandler):
    """Alive but not ready, as a braid says it; and a route that answers in no words of a braid's."""

    def do_GET(self) -> None:
        unready = json.dumps({"error": {"message": "shard 'left' is gone"}}).encode()
        status, body = {"/health": (200, b"{}"), "/ready": (503, unready)}.get(self.path, (404, b"[]"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing of this belongs into a test's output."""


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # not for one's own parts
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def part() -> Iterator[RunningServer]:
    with serve_fusion(None, None, ["127.0.0.1:0"]) as server:
        yield server


def health(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["health", *arguments], env={"COLUMNS": "200"})
    assert len(result.output.strip().splitlines()) == 1, result.output
    return result.exit_code, result.output


def test_a_part_that_serves_is_well_until_it_says_otherwise(part: RunningServer) -> None:
    (target,) = part.targets
    assert health(target) == (0, f"{target} is well\n")
    part.set_serving(False)
    code, said = health(target)
    assert code == 1 and "got health NOT_SERVING, expected SERVING" in said
    part.stop()
    code, said = health(target, "--timeout", "2")
    assert code == 1 and f"{target}: no answer to a health check" in said


def test_a_braid_may_be_alive_without_being_ready(url: str) -> None:
    assert health(f"{url}/") == (0, f"{url}/ is well\n")
    assert health(url, "--ready") == (1, f"error: {url}: got 503 from /ready: shard 'left' is gone\n")
    assert health(f"{url}/elsewhere") == (1, f"error: {url}/elsewhere: got 404 from /health: Not Found\n")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["http://127.0.0.1:1"], 1, "http://127.0.0.1:1: no answer to a health check"),
        (["http://"], 2, "target: got 'http://', expected a URL such as 'http://host:port'"),
        (["http://127.0.0.1:port"], 2, "target: got 'http://127.0.0.1:port', expected a URL"),
        (["nonsense"], 2, "expected 'host:port' or 'unix:/path'"),
        (["127.0.0.1:1", "--ready"], 2, "--ready: got it with '127.0.0.1:1', expected it with"),
        (["127.0.0.1:1", "--timeout", "0"], 2, "--timeout: got 0, expected"),
    ],
)
def test_what_cannot_be_asked_is_told(arguments: list[str], code: int, words: str) -> None:
    got, said = health(*arguments)
    assert (got, words in said) == (code, True), said
