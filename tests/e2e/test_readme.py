"""What the README and docs/ show of HTTP, gRPC and Python works as it stands there, on the demo's own braid.

Only the ports differ: the service takes free ones. `serve run` has its own test; here the parts are plain processes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from docblocks import REPOSITORY, CodeBlock, code_blocks
from rich.console import Console
from safetensors.torch import load_file

from braid_orchestrator.config.schema import load_braid_config
from braid_orchestrator.demo.build import build_demo
from braid_rpc import BraidClient
from braid_services.shard.main import serve_shard

README, HTTP, FUSION = (
    REPOSITORY / "README.md",
    REPOSITORY / "docs" / "http.md",
    REPOSITORY / "docs" / "fusion.md",
)
HTTP_ADDRESS, GRPC_ADDRESS = "127.0.0.1:8000", "127.0.0.1:9000"
READY_S, STOP_S, COMMAND_S = 240.0, 60.0, 120.0

pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True, slots=True)
class Service:
    """Where it answers, and the folder in which a reader would sit."""

    folder: Path
    http: str
    grpc: str

    def curl(self, block: CodeBlock) -> str:
        """The output of a block of shell commands."""
        if shutil.which("curl") is None:
            pytest.skip("needs curl, which is not installed")
        command = block.substituted({HTTP_ADDRESS: self.http}).code
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
        assert done.returncode == 0, f"{block.where}: {done.stderr}"
        return done.stdout

    def client(self) -> BraidClient:
        return BraidClient(self.grpc)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Laid out as the repository's root, with the demo's models in it."""
    folder = tmp_path_factory.mktemp("root")
    build_demo(folder / ".braid" / "demo", Console(stderr=True), quick=True)
    (folder / "deploy").mkdir()
    text = (REPOSITORY / "deploy" / "braid.yaml").read_text(encoding="utf-8")
    for port in ("port: 8000", "port: 9000"):
        assert text.count(port) == 1
        text = text.replace(port, "port: 0")
    (folder / "deploy" / "braid.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    """The README's `braid serve` over the README's file."""
    braid = Path(sys.executable).with_name("braid")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BRAID_")}
    log = folder / "serve.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [braid, "serve", "--config", "deploy/braid.yaml"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        # A process that hangs is ended, which ends its output too.
        watchdog = threading.Timer(READY_S, process.kill)
        watchdog.start()
        line = process.stdout.readline() if process.stdout else ""
        watchdog.cancel()
        found = re.match(r"braid 'demo' is ready: http://(\S+) .*gRPC at (\S+)$", line)
        assert found, f"not ready: {line!r}\n{log.read_text(errors='replace')[-3000:]}"
        yield Service(folder, found[1], found[2])
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S)
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 0, log.read_text(errors="replace")[-3000:]


def block(path: Path, heading: str, language: str) -> CodeBlock:
    (found,) = [block for block in code_blocks(path, language) if block.heading == heading]
    return found


def test_http_as_the_readme_shows_it(service: Service) -> None:
    answer = json.loads(service.curl(block(README, "HTTP", "bash")))
    assert answer["usage"]["completion_tokens"] == len(answer["tokens"]) <= 24
    assert answer["text"].startswith("".join(token["text"] for token in answer["tokens"]))
    assert answer["weights_version"] not in ("", "untrained")
    for token in answer["tokens"]:
        assert set(token["weights"]) == {"code", "prose"}
        assert sum(token["weights"].values()) == pytest.approx(1.0, abs=1e-4)  # float32
    with service.client() as client:
        same = client.generate("def read(self, size):", max_tokens=24, temperature=0)
    assert (same.text, same.finish_reason) == (answer["text"], answer["finish_reason"])


def test_grpc_as_the_readme_shows_it(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {}
    block(README, "gRPC", "python").substituted({GRPC_ADDRESS: service.grpc}).run(namespace)
    shown = capsys.readouterr().out
    with (
        service.client() as client,
        client.stream("The with statement is used to", max_tokens=24, temperature=0) as events,
    ):
        text = "".join(getattr(event, "text", "") for event in events)
    assert text and shown == f"{text} {namespace['answer'].weights}\n"


def test_python_as_the_readme_shows_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    block(README, "Python", "python").run({})
    assert capsys.readouterr().out.strip()


def link_documents(folder: Path) -> None:
    """The texts that the README's commands read."""
    for name in ("README.md", "docs"):
        if not (folder / name).exists():
            (folder / name).symlink_to(REPOSITORY / name)


def run_shown(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BRAID_")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=4 * COMMAND_S,
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done


def shown_training() -> list[str]:
    """The README's commands, with fewer steps."""
    braid = str(Path(sys.executable).with_name("braid"))
    shown = block(README, "Training", "bash").substituted(
        {".venv/bin/braid": braid, "--steps 40": "--steps 2"}
    )
    return shown.code.strip().splitlines()


def test_training_as_the_readme_shows_it(folder: Path, service: Service) -> None:
    """And against shards as services, with the same result, which the running braid then uses."""
    link_documents(folder)

    def run(command: str) -> str:
        return run_shown(command, folder).stderr

    first, again = shown_training()
    assert "2 steps" in run(first) and "written to .braid/training/weights/trained" in run(again)
    card = json.loads((folder / ".braid/training/weights/trained/card.json").read_text(encoding="utf-8"))
    config = load_braid_config(folder / "deploy" / "braid.yaml")
    with ExitStack() as stack:
        places = ""
        for shard in config.shards:
            model = str(folder / shard.model)
            server = stack.enter_context(serve_shard(replace(shard, model=model), ["127.0.0.1:0"]))
            places += f" --shard {shard.name}={server.targets[0]}"
        said = run(f"{first}{places} --into .braid/over-grpc --publish http://{service.http}")
    remote = json.loads((folder / ".braid/over-grpc/weights/trained/card.json").read_text(encoding="utf-8"))
    assert remote["plan_hash"] == card["plan_hash"] and remote["shard_hashes"] == card["shard_hashes"]
    here, there = (
        load_file(folder / ".braid" / name / "weights" / "trained" / "weights.safetensors")
        for name in ("training", "over-grpc")
    )
    with service.client() as client:
        before = client.describe().weights_version
        assert (
            f"active: {before}" in said
            and client.generate("import os", max_tokens=1).weights_version == before
        )
    for name, tensor in here.items():  # the trainers may have used another number of threads
        torch.testing.assert_close(tensor, there[name], atol=1e-4, rtol=1e-3)


def test_evaluation_as_the_readme_shows_it(folder: Path) -> None:
    """Fewer steps to fit."""
    link_documents(folder)
    if not (folder / ".braid" / "training").exists():
        run_shown(shown_training()[0], folder)
    braid = str(Path(sys.executable).with_name("braid"))
    shown = block(README, "Evaluation", "bash").substituted(
        {".venv/bin/braid eval": f"{braid} eval --resamples 50", "--fit docs": "--fit docs --fit-steps 2"}
    )
    done = run_shown(shown.code, folder)
    assert done.stdout.count("with weights trained") == 2 and "global mix" in done.stdout
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    (text,) = figures["texts"]
    assert [row["name"] for row in text["rows"]][-2:] == ["braid", "oracle"]
    assert (folder / "figures.png").is_file()


def test_grafting_as_the_readme_shows_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {}
    block(README, "Grafting", "python").run(namespace)
    printed = capsys.readouterr().out
    assert "To be, or not" in printed and "gate_coherence" in printed.splitlines()[-1]
    assert (folder / "fusion_weights.safetensors").stat().st_size > 1000
    model = namespace["model"]
    assert any(bool(layer.out.weight.any()) for layer in model.fusion_layers.values())  # it was trained


def test_generate_and_its_stream_as_the_documentation_shows_them(service: Service) -> None:
    answer = json.loads(service.curl(block(HTTP, "Generate", "bash")))
    shown = json.loads(block(HTTP, "Generate", "json").code)
    assert list(answer) == list(shown)
    assert [list(token) for token in answer["tokens"]] == [list(token) for token in shown["tokens"]]
    events = re.findall(r"event: (\w+)\ndata: (.+)\n\n", service.curl(block(HTTP, "Streaming", "bash")))
    shown_events = re.findall(r"event: (\w+)\ndata: (.+)\n", block(HTTP, "Streaming", "").code)
    assert [name for name, _ in events] == [name for name, _ in shown_events]


def test_the_other_routes_as_the_documentation_shows_them(service: Service) -> None:
    score = json.loads(service.curl(block(HTTP, "Score", "bash")))
    assert score["model"] == "code" and score["bits_per_byte"] > 0
    completion = json.loads(service.curl(block(HTTP, "Completions", "bash")))
    assert completion["usage"]["completion_tokens"] <= 16 and completion["choices"][0]["text"]
    scored = json.loads(service.curl(block(HTTP, "Scoring prompts", "bash")))
    assert "choices" in scored, scored
    assert [choice["finish_reason"] for choice in scored["choices"]] == ["length"] * 2
    assert all(len(choice["logprobs"]["top_logprobs"]) > 1 for choice in scored["choices"])
    tokenized, detokenized = service.curl(block(HTTP, "Tokens", "bash")).replace("}{", "}\n{").splitlines()
    assert "".join(json.loads(tokenized)["token_strs"]) == "class Stack:"
    assert set(json.loads(detokenized)) == {"prompt"}
    refused = json.loads(service.curl(block(HTTP, "Errors", "bash")))
    assert refused == json.loads(block(HTTP, "Errors", "json").code)


def test_the_python_clients_as_the_documentation_shows_them(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    blocking, asynchronous = (found for found in code_blocks(HTTP, "python") if found.heading == "gRPC")
    namespace: dict[str, Any] = {}
    blocking.substituted({GRPC_ADDRESS: service.grpc}).run(namespace)
    shown = capsys.readouterr().out
    assert shown.startswith("demo ['code', 'prose']") and "InvalidRequestError prompt:" in shown
    asynchronous.substituted({GRPC_ADDRESS: service.grpc}).run({})
    with service.client() as client:
        answers = [
            client.generate(prompt, max_tokens=8, temperature=0).text
            for prompt in ("import os", "The import statement")
        ]
    assert capsys.readouterr().out == f"{answers}\n"


def test_a_version_is_activated_without_a_restart_as_the_documentation_shows_it(service: Service) -> None:
    with service.client() as client:
        before = client.describe().weights_version
        answer = json.loads(service.curl(block(FUSION, "Versions of the weights", "bash")))
        assert answer == {"active": "untrained"}
        assert client.generate("import os", max_tokens=1).weights_version == "untrained"
    activate = block(FUSION, "Versions of the weights", "bash").substituted({'"untrained"': f'"{before}"'})
    assert json.loads(service.curl(activate)) == {"active": before}


def test_a_version_is_published_as_the_documentation_shows_it(service: Service) -> None:
    with service.client() as client:
        before = client.describe().weights_version
        expected = client.generate("import os", max_tokens=8, temperature=0).text
        answer = json.loads(service.curl(block(FUSION, "Publishing", "bash")))
        assert answer == json.loads(block(FUSION, "Publishing", "json").code)
        told = client.generate("import os", max_tokens=8, temperature=0)
        assert (told.weights_version, told.text) == (answer["version"], expected)
    activate = block(FUSION, "Versions of the weights", "bash").substituted({'"untrained"': f'"{before}"'})
    assert json.loads(service.curl(activate)) == {"active": before}
