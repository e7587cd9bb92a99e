"""How stable a text is, asked over every way that leads to a braid: all tell the same."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from braids import braid_config
from served import LIMITS, chatting_backends, served
from telling import POINTS
from typer.testing import CliRunner

from braid_orchestrator.cli.main import app
from braid_orchestrator.inprocess.braided import BraidedLLM
from braid_orchestrator.inprocess.model_wrapper import ModelWrapper
from braid_rpc import BraidClient, InvalidRequestError, StabilityOptions

# The same numbers, packed otherwise.
TOLERANCE = 1e-5
ASKED: dict[str, Any] = {"max_tokens": 12, "temperature": 0.9, "seed": 5, "ignore_eos": True}


def test_every_way_tells_the_same() -> None:
    backends = chatting_backends()
    with served(backends, braid_config(points=POINTS, limits=LIMITS)) as braid:
        options = {"auto_temperature": True, "window": 8, "min_tokens": 4}
        body = {"prompt": "the one", **ASKED, "stability": options}
        with braid.http() as http:
            whole = http.post("/generate", json=body).json()
            streamed = http.post("/generate", json={**body, "stream": True}).text
        events = [json.loads(block.split("data: ")[1]) for block in streamed.strip().split("\n\n")]
        told = [token["stability"] for token in whole["tokens"]]
        assert len(told) == 12 and all(0 < one["coherence"] < 1 for one in told)
        same([event["stability"] for event in events[1:13]], told)
        same([events[13]["stability"]], [whole["stability"]])
        with BraidClient(braid.grpc_target) as client:
            answer = client.generate("the one", **ASKED, stability=StabilityOptions(**options))
            with pytest.raises(InvalidRequestError, match=r"stability\.window: got 2"):
                client.generate("the one", stability=StabilityOptions(window=2))
            with pytest.raises(InvalidRequestError, match=r"stability: got \{'stop': True\}"):
                client.generate("the one", stability={"stop": True})  # type: ignore[typeddict-item]
            with pytest.raises(InvalidRequestError, match=r"stability\.window: got -1"):
                client.generate("the one", stability=StabilityOptions(window=-1))
        same([asdict(token.stability) for token in answer.tokens if token.stability], told)
        same([asdict(answer.stability)] if answer.stability else [], [whole["stability"]])
        assert [token.token_id for token in answer.tokens] == [token["id"] for token in whole["tokens"]]

        plain = ["generate", "the one", "-n", "12", "--temperature", "0.9", "--seed", "5"]
        for target in (braid.url, braid.grpc_target):
            shown = CliRunner().invoke(app, [*plain, "--target", target, "--json", "--auto-temperature"])
            printed = json.loads(shown.stdout)
            assert all("entropy" in token["stability"] for token in printed["tokens"])
            assert printed["stability"].keys() == whole["stability"].keys()
            shown = CliRunner().invoke(app, [*plain, "--target", target, "--stability"])
            assert "stable (entropy slope" in " ".join(shown.stderr.split())
            shown = CliRunner().invoke(app, [*plain, "--target", target])
            assert "stable" not in shown.stderr


def same(got: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one == pytest.approx(other, abs=TOLERANCE)


def test_a_braid_in_a_notebook_is_watched_too() -> None:
    models = [ModelWrapper.from_backend(backend) for backend in chatting_backends()]
    braided = BraidedLLM(models, "told", [1, 2], readout="gate")
    try:
        watched = braided.complete("the one", 12, stability=StabilityOptions(), ignore_eos=True)
        assert watched.stability is not None and watched.stability.is_stable
        assert watched.stability.mean_coherence is not None and watched.stability.mean_kuramoto_order is None
        assert all(token.stability is not None for token in watched.tokens)
        plain = braided.complete("the one", 12, ignore_eos=True)
        assert plain.text == watched.text and plain.stability is None
    finally:
        braided.close()
