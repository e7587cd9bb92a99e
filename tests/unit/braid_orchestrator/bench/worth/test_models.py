"""Models of experiments: in their folders whole or not at all, and missed by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import byte_tokenizer, tiny_llama

from braid_orchestrator.bench.worth.key_runs import KeysRecipe, KeysRunner, KeysSpec
from braid_orchestrator.bench.worth.models import load_llama, model_scorer, save_model
from braid_rpc.errors import NotFoundError


def test_a_model_is_saved_with_its_tokenizer_in_the_place_of_another(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    for seed in (1, 2):
        save_model(
            tiny_llama(seed), tmp_path / "model", tokenizer=tmp_path / "tokenizer", recipe={"seed": seed}
        )
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer", "model"}
    assert (tmp_path / "model" / "tokenizer.json").is_file()
    assert (tmp_path / "model" / "recipe.json").read_text() == '{"seed": 2}'
    for name, value in load_llama(tmp_path / "model").state_dict().items():
        torch.testing.assert_close(value, tiny_llama(2).state_dict()[name])


def test_a_model_that_has_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"seed-0.*table: got no model, expected .*finished runs"):
        KeysRunner(str(tmp_path)).run(KeysSpec("braid", 0, KeysRecipe()))


def test_a_window_scores_the_same_beside_a_longer_one() -> None:
    scorer = model_scorer(tiny_llama(0))
    ids_T, targets_T = torch.randint(0, 250, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = scorer(ids_T, [4, 8], targets_T)
        alone = scorer(ids_T[:4], [4], targets_T[:4])
    torch.testing.assert_close(together[:4], alone)
