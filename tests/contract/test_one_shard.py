"""A braid of one shard: strategy `resonance` is a layer grafted onto it, between its own layers."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from braids import TRANSPORTS, braid_config, oracle_log_probs, running, shaken_weights, two_backends

from braid_fusion.weights import load_stack
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.config.values import PointConfig, ReadoutConfig
from braid_services.shard.backend import ShardBackend

TEXT = "the other thing in there, 1234567890: a text of more than one chunk"
# Two orders of summation of the same float32 numbers.
TOLERANCE = 1e-4
EVERYTHING = ["prime", "quaternion", "kuramoto", "coherence_gate", "prsc", "smf"]
POINTS = (
    PointConfig(at=1, strategy="resonance"),
    PointConfig(at=2, strategy="resonance", options={"components": EVERYTHING, "mode": "parallel"}),
)


@pytest.fixture(scope="module")
def backends() -> list[ShardBackend]:
    return two_backends()[:1]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_untrained_it_is_the_shard_exactly(backends: list[ShardBackend], transport: str) -> None:
    config = braid_config(points=POINTS, names=("left",), readout=ReadoutConfig("anchor"))
    with TemporaryDirectory() as sockets, running(config, backends, transport, Path(sockets)) as client:
        braided = client.generate(TEXT, max_tokens=12, seed=3, logprobs=0, ignore_eos=True)
        alone = client.generate(TEXT, max_tokens=12, seed=3, logprobs=0, ignore_eos=True, use_braiding=False)
    assert braided.token_ids == alone.token_ids and braided.logprobs == alone.logprobs


def test_token_by_token_is_the_whole_text_at_once(backends: list[ShardBackend], tmp_path: Path) -> None:
    options = {"points": POINTS, "names": ("left",), "readout": ReadoutConfig("anchor")}
    weights = shaken_weights(braid_config(**options), backends, tmp_path / "weights")
    config = braid_config(**options, weights=weights)
    with running(config, backends, "in process", tmp_path) as client:
        result = client.generate(TEXT, max_tokens=16, seed=1, logprobs=0, ignore_eos=True)
        alone = client.generate(TEXT, max_tokens=16, seed=1, logprobs=0, ignore_eos=True, use_braiding=False)
        prompt = list(client.engine.text.encode(TEXT).token_ids)
    assert result.logprobs != alone.logprobs
    plan = resolve_plan(config, [backend.card for backend in backends])
    expected = oracle_log_probs(
        plan, load_stack(plan, weights / "v3"), backends, [*prompt, *result.token_ids]
    )
    for at, (token_id, logprob) in enumerate(
        zip(result.token_ids, result.logprobs, strict=True), len(prompt)
    ):
        assert float(expected[at - 1, token_id]) == pytest.approx(logprob, abs=TOLERANCE)
