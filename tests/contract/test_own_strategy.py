"""A strategy of a user's own, named in a configuration, works wherever the fusion modules run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from braids import braid_config, running, two_backends

from braid_orchestrator.config.values import FusionConfig, PointConfig
from braid_rpc.errors import ConfigError

MODULE = """
import torch
from braid_fusion import FusionLayer, register_strategy

@register_strategy("concatenated")
class Concatenated(FusionLayer):
    def __init__(self, num_models, hidden_dim):
        super().__init__()
        self.mix = torch.nn.Linear(num_models * hidden_dim, hidden_dim)

    def forward(self, hidden_states):
        return self.mix(torch.cat(list(hidden_states), dim=-1))
"""


@pytest.mark.parametrize("transport", ["in process", "grpc, fusion service"])
def test_the_configuration_brings_it_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    name = f"own_strategies_{transport.count('g')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    point = PointConfig(at=1, strategy="concatenated")
    config = replace(braid_config(points=[point]), fusion=FusionConfig("embedded", imports=(name,)))
    with TemporaryDirectory() as sockets, running(config, two_backends(), transport, Path(sockets)) as client:
        assert client.generate("the one", max_tokens=4, ignore_eos=True).token_ids
    assert name in sys.modules


def test_a_module_that_is_not_there_is_named() -> None:
    config = replace(braid_config(), fusion=FusionConfig("embedded", imports=("no_such_module",)))
    with (
        pytest.raises(ConfigError, match=r"fusion\.imports: got 'no_such_module'"),
        running(config, two_backends(), "in process", Path()),
    ):
        pass
