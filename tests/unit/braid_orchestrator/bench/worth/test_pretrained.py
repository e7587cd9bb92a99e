"""`braid bench worth pretrained`: runs in order, the better single, targets of means, the picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from models import save_tiny_model

from braid_orchestrator.bench.worth import pretrained
from braid_orchestrator.bench.worth.contest import BRAID, GATE, LORA, MLP_NO_CROSS, NO_CROSS, ORACLE
from braid_orchestrator.bench.worth.contest_plot import plot_contest
from braid_orchestrator.bench.worth.contest_result import ContestResult, Windows
from braid_orchestrator.bench.worth.measuring import TEST, VALIDATION
from braid_orchestrator.bench.worth.pretrained import PretrainedOptions, run_pretrained
from braid_orchestrator.bench.worth.pretrained_contestants import ANCHOR, PARTNER, SINGLES, TRAINED
from braid_orchestrator.bench.worth.pretrained_report import ROWS, STAGES, pretrained_report
from braid_orchestrator.bench.worth.pretrained_runs import UNTRAINED, PretrainedRunner, PretrainedSpec
from braid_orchestrator.bench.worth.pretrained_texts import TEXTS
from braid_orchestrator.bench.worth.texts import MIX
from braid_rpc.errors import ContextLengthError, NotFoundError, UnsupportedModelError


def result(*rows: str, bits: dict[str, float], seconds: float = 60.0) -> ContestResult:
    """As many bits per byte as are given for a row on the mix of test text, else 3."""
    figures = {row: {side: {text: 3.0 for text in TEXTS} for side in (VALIDATION, TEST)} for row in rows}
    for row in rows:
        figures[row][TEST][MIX] = bits.get(row, 3.0)
        figures[row][VALIDATION][MIX] = bits.get(f"{row}, validation", 3.0)

    def windows(row: str) -> Windows:
        return {
            text: {"bits": [10.0 * figures[row][TEST][text]] * 3, "bytes": [10.0] * 3, "tokens": [4.0] * 3}
            for text in TEXTS
        }

    return ContestResult(figures, {row: windows(row) for row in rows}, 7, seconds, 100.0)


class Pool:
    """Gives what is set by seed, and notes what is asked for at once."""

    def __init__(self, bits: dict[int, dict[str, float]]) -> None:
        self.bits = bits
        self.asked: list[list[PretrainedSpec]] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing runs."""

    def run(self, specs: list[PretrainedSpec]) -> list[ContestResult]:
        self.asked.append(specs)
        rows = {PARTNER: (), UNTRAINED: tuple(row for row in ROWS if row not in TRAINED)}
        return [result(*rows.get(one.who, (one.who,)), bits=self.bits[one.seed]) for one in specs]


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    pool = Pool(
        {
            0: {BRAID: 1.8, GATE: 2.1, NO_CROSS: 1.9, ORACLE: 1.5, f"{PARTNER}, validation": 2.9},
            1: {BRAID: 2.0, GATE: 1.9, NO_CROSS: 2.1, ORACLE: 1.5, f"{ANCHOR}, validation": 2.9},
        }
    )
    monkeypatch.setattr(pretrained, "RunPool", lambda *arguments: pool)
    return pool


@pytest.fixture
def options(tmp_path: Path) -> PretrainedOptions:
    anchor = save_tiny_model(tmp_path / "anchor", 1, num_layers=4, context=512)
    text = tmp_path / "stories.txt"
    stories = [f"Once there were {n} little cats, and they were happy.\n" * 4 for n in range(90)]
    text.write_text("<|endoftext|>\n".join(stories), encoding="utf-8")
    options = PretrainedOptions(anchor, text, seeds=(0, 1))
    return replace(options, recipe=replace(options.recipe, corpus_share=0.01))


def test_models_come_before_those_who_need_them(
    pool: Pool, options: PretrainedOptions, tmp_path: Path
) -> None:
    run_pretrained(options, tmp_path)
    assert [(one[0].seed, tuple(spec.who for spec in one)) for one in pool.asked] == [
        (seed, whos) for seed in (0, 1) for whos in ((PARTNER,), (UNTRAINED,), TRAINED)
    ]
    assert {spec.recipe.partner.seed == spec.recipe.texts.seed == spec.seed for spec in pool.asked[5]} == {
        True
    }


def test_lora_is_on_the_single_that_is_better_on_mixed_validation_text(
    pool: Pool, options: PretrainedOptions, tmp_path: Path
) -> None:
    run_pretrained(options, tmp_path)
    bests = {one[0].seed: {spec.best for spec in one} for one in pool.asked if one[-1].who == LORA}
    assert bests == {0: {PARTNER}, 1: {ANCHOR}}


def test_another_braid_finds_the_partner_trained(
    pool: Pool, options: PretrainedOptions, tmp_path: Path
) -> None:
    recipe = options.recipe
    run_pretrained(options, tmp_path)
    wider = replace(recipe, braid=replace(recipe.braid, fusion_width=32), window=256)
    run_pretrained(replace(options, recipe=wider), tmp_path)
    assert pool.asked[0] == pool.asked[6] and pool.asked[1] != pool.asked[7]


def test_targets_are_of_means_and_the_better_control(
    pool: Pool, options: PretrainedOptions, tmp_path: Path
) -> None:
    report = run_pretrained(options, tmp_path)
    targets = {target.name: (pytest.approx(target.value), target.met) for target in report.targets}
    minutes = 1.0 + 1.0 + (len(TRAINED) + 1) // 2
    assert targets == {
        f"mix: braid below the {GATE}": (5.0, True),
        f"mix: braid below the {NO_CROSS}": (5.0, True),
        f"mix: braid below the best of all others, the {GATE}": (5.0, True),
        "a seed on 2 cores": (minutes, True),
    }
    pool.bits[0][MLP_NO_CROSS] = pool.bits[1][MLP_NO_CROSS] = 1.0
    missed = {target.name: target.met for target in run_pretrained(options, tmp_path).targets}
    assert missed[f"mix: braid below the {MLP_NO_CROSS}"] is False


def test_everybody_has_a_row_and_a_place_in_the_picture(
    pool: Pool, options: PretrainedOptions, tmp_path: Path
) -> None:
    report = run_pretrained(options, tmp_path)
    table = {str(row[0]): row for row in report.tables[0].rows}
    assert len(table) == len(ROWS) and set(TRAINED) < set(table)
    assert table[BRAID][2] == "1.9000 ± 0.1414"
    assert {f"{single} alone" for single in SINGLES} < set(table)
    path = tmp_path / "plot.png"
    plot_contest(report, path, rows=ROWS, texts=TEXTS)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_two_cores_share_what_waits_for_nothing() -> None:
    runs = {who: result(bits={}, seconds=10.0) for who in (PARTNER, UNTRAINED, *TRAINED)}
    runs[TRAINED[0]] = result(bits={}, seconds=1000.0)
    assert pretrained_report([runs]).minutes_target(STAGES).value == (10.0 + 10.0 + 1000.0) / 60.0


def test_an_anchor_of_a_short_context_is_refused(options: PretrainedOptions, tmp_path: Path) -> None:
    save_tiny_model(options.anchor, 1, context=64)
    with pytest.raises(ContextLengthError, match="anchor: got a context of 64 tokens, expected at least 512"):
        run_pretrained(options, tmp_path)


def test_an_anchor_of_too_few_layers_is_refused(options: PretrainedOptions, tmp_path: Path) -> None:
    save_tiny_model(options.anchor, 1, num_layers=3, context=512)
    with pytest.raises(UnsupportedModelError, match="anchor: got 3 layers, expected at least 4"):
        run_pretrained(options, tmp_path)


def test_a_partner_that_has_gone_is_named(options: PretrainedOptions, tmp_path: Path) -> None:
    runner = PretrainedRunner(str(tmp_path / "work"), str(options.anchor), str(options.text))
    spec = PretrainedSpec(BRAID, 0, options.recipe, "", "", "")
    with pytest.raises(NotFoundError, match=r"seed-0.*partner: got no model, expected .*finished runs"):
        runner.run(spec)
