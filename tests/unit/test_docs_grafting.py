"""docs/grafting.md: its code runs, its tables are the code's, and the presets are as small as it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from docblocks import REPOSITORY, code_blocks, table_under
from models import save_tiny_model

from braid_fusion import FusionConfig, ResonanceFusionLayer
from braid_fusion.resonance.config import COMPONENTS
from braid_fusion.resonance.core import ResonanceCore

GRAFTING = REPOSITORY / "docs" / "grafting.md"
WITHOUT_LOOKING_BACK = {"prime", "kuramoto", "coherence_gate"}


def test_what_is_shown_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny_model(tmp_path / ".braid" / "demo" / "prose", 1, num_layers=5)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in code_blocks(GRAFTING, "python"):
        block.run(namespace)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("The with statement is used to")
    assert "kuramoto_order" in printed[1]
    assert int(printed[2]) == namespace["other"].num_fusion_parameters()
    assert (tmp_path / "fusion_weights.safetensors").is_file()
    ids = torch.tensor([[1, 2, 3]])
    bare = namespace["bare"]
    assert namespace["other"].unwrap() is not bare  # it was loaded again from where it came from
    assert bare(input_ids=ids).logits.shape == (1, 3, bare.config.vocab_size)


def test_every_component_is_in_the_table() -> None:
    rows = table_under(GRAFTING, "What a layer is").by_first_column()
    assert set(rows) == set(COMPONENTS)
    for name, row in rows.items():
        components = {name, "prime"} if name in ("prsc", "smf") else {name}
        core = ResonanceCore(FusionConfig(enabled_components=tuple(components)).resolve(64))
        assert core.keeps_rows == (row["looks back"] != "no"), name
        assert core.keeps_rows == (name not in WITHOUT_LOOKING_BACK), name


def test_every_measure_is_in_the_table() -> None:
    rows = table_under(GRAFTING, "What a layer measures").by_first_column()
    named = {name.strip("` ") for row in rows for name in row.split(",")}
    _, measured = ResonanceFusionLayer(64, FusionConfig.full())(torch.randn(1, 4, 64), return_metrics=True)
    assert named == set(measured)


@pytest.mark.parametrize(
    ("preset", "limit"), [("minimal", 100_000), ("standard", 500_000), ("full", 1_000_000)]
)
def test_the_presets_are_as_the_table_says(preset: str, limit: int) -> None:
    row = table_under(GRAFTING, "Configurations").by_first_column()[f"FusionConfig.{preset}()"]
    config = getattr(FusionConfig, preset)()
    assert int(row["layers"]) == config.num_fusion_layers
    if preset == "full":
        assert row["components"] == "all" and set(config.enabled_components) == set(COMPONENTS)
    else:
        named = {word.strip("` ,") for word in row["components"].split("`")} & set(COMPONENTS)
        assert named == set(config.enabled_components)
    layer = ResonanceFusionLayer(768, config)
    assert config.num_fusion_layers * sum(p.numel() for p in layer.parameters()) <= limit
