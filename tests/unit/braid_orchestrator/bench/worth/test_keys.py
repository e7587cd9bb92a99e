"""`braid bench worth keys`: all runs once, targets from means over seeds, the picture."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from braid_orchestrator.bench.worth import keys
from braid_orchestrator.bench.worth.key_contestants import BRAID, CONTESTANTS, GATE, UNMATCHED
from braid_orchestrator.bench.worth.key_exercises import CALCULATE, COMPOSE, COMPOSE_UNSEEN, SUBSTITUTE
from braid_orchestrator.bench.worth.key_plot import plot_keys
from braid_orchestrator.bench.worth.key_runs import PARENTS, KeysResult, KeysSpec
from braid_orchestrator.bench.worth.keys import VARIANTS, KeysOptions, run_keys
from braid_orchestrator.cli.bench_worth import Variant

EVERYBODY = (*PARENTS, *CONTESTANTS)


def result(composed: float, seconds: float = 60.0) -> KeysResult:
    solved = {SUBSTITUTE: 0.95, CALCULATE: 0.96, COMPOSE: composed, COMPOSE_UNSEEN: composed}
    return KeysResult(solved, 100, seconds, 500.0)


class Pool:
    """Gives what is set for (who, seed), and notes the order in which runs are asked for."""

    def __init__(self, results: dict[tuple[str, int], KeysResult]) -> None:
        self.results = results
        self.asked: list[list[KeysSpec]] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing runs."""

    def run(self, specs: list[KeysSpec]) -> list[KeysResult]:
        self.asked.append(specs)
        return [self.results[spec.who, spec.seed] for spec in specs]


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    everything = {(who, seed): result(0.01) for who in EVERYBODY for seed in (0, 1)}
    everything |= {(BRAID, 0): result(0.98), (BRAID, 1): result(0.90)}
    pool = Pool(everything)

    class Given:
        def __class_getitem__(cls, item: object) -> object:
            return lambda *arguments: pool

    monkeypatch.setattr(keys, "RunPool", Given)
    return pool


def targets(tmp_path: Path) -> dict[str, tuple[float, bool]]:
    report = run_keys(KeysOptions(seeds=(0, 1)), tmp_path)
    return {target.name: (round(target.value, 6), target.met) for target in report.targets}


def test_models_come_before_those_who_need_them(pool: Pool, tmp_path: Path) -> None:
    run_keys(KeysOptions(seeds=(0, 1)), tmp_path)
    assert [{spec.who for spec in specs} for specs in pool.asked] == [
        set(PARENTS),
        set(EVERYBODY) - set(PARENTS),
    ]
    assert sum(map(len, pool.asked)) == 2 * len(EVERYBODY)


def test_targets_are_means_over_seeds(pool: Pool, tmp_path: Path) -> None:
    found = targets(tmp_path)
    assert found[f"braid: {COMPOSE}"] == (94.0, False)
    assert found[f"braid: {COMPOSE_UNSEEN}"] == (94.0, True)
    assert found[f"braid: {SUBSTITUTE}"] == (95.0, True)
    assert found[f"best of the others: {COMPOSE}"] == (1.0, True)
    assert found["models and braid, from nothing"] == (2.0, True)


def test_one_who_does_as_well_without_exchange_is_seen(pool: Pool, tmp_path: Path) -> None:
    pool.results[GATE, 1] = result(0.5)
    # The braid without state matching is a braid: what it solves is no argument against braiding.
    pool.results[UNMATCHED, 0] = result(0.99)
    assert targets(tmp_path)[f"best of the others: {COMPOSE}"] == (25.5, False)


def test_the_slowest_seed_counts(pool: Pool, tmp_path: Path) -> None:
    pool.results[PARENTS[0], 1] = replace(result(0.01), seconds=600.0)
    assert targets(tmp_path)["models and braid, from nothing"] == (11.0, False)


def test_the_picture_has_everybody(pool: Pool, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra `plots`")
    report = run_keys(KeysOptions(seeds=(0, 1)), tmp_path)
    plot_keys(report, tmp_path / "plots" / "keys.png")
    assert (tmp_path / "plots" / "keys.png").read_bytes().startswith(b"\x89PNG")
    assert {row[0] for row in report.tables[0].rows} == set(EVERYBODY)


def test_variants_are_told_apart(pool: Pool, tmp_path: Path) -> None:
    """By runs, so that one folder keeps all of them, and by reports, so that none takes another's place."""
    reports = [run_keys(replace(options, seeds=(0,)), tmp_path) for options in VARIANTS.values()]
    assert len({report.benchmark for report in reports}) == 3
    assert [*VARIANTS] == [*Variant]
    assert len({str(report.settings) for report in reports}) == 3
    rows = [[str(row[0]) for row in report.tables[0].rows] for report in reports]
    assert (
        rows[0] == [*EVERYBODY] and rows[1] == rows[2] and {*PARENTS, GATE, BRAID} < {*rows[1]} < {*EVERYBODY}
    )
    recipes = [specs[0].recipe for specs in pool.asked[::2]]
    assert len({json.dumps(asdict(recipe)) for recipe in recipes}) == 3
    quick = [options.quick() for options in VARIANTS.values()]
    assert len({json.dumps(asdict(options.recipe)) for options in quick}) == 3
    assert [one.recipe.keys.num_operands for one in quick] == [2, 3, 2]


def test_what_ran_with_one_tokenizer_stays_found() -> None:
    """A setting more here makes everybody's finished runs worthless, so it has to be wanted."""
    recipe = asdict(VARIANTS["plain"].recipe)
    assert set(recipe) == {"keys", "parents", "training", "num_tests"}
    assert set(recipe["keys"]) == {"num_keys", "num_trained", "num_digits", "num_operands"}
    assert "table_reads" not in recipe["parents"]
    assert asdict(VARIANTS["tokenizers"].recipe)["parents"]["table_reads"] == "pairs"


def test_each_variant_has_its_time(pool: Pool, tmp_path: Path) -> None:
    pool.results[PARENTS[0], 0] = replace(result(0.01), seconds=1200.0)
    met = {
        name: {target.name: target.met for target in run_keys(replace(options, seeds=(0,)), tmp_path).targets}
        for name, options in VARIANTS.items()
    }
    assert {name: found["models and braid, from nothing"] for name, found in met.items()} == {
        "plain": False,
        "larger": True,
        "tokenizers": False,
    }
