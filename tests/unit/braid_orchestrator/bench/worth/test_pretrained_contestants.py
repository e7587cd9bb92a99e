"""Contestants of two tokenizers are what their names say, and everybody is booked to the anchor's windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from models import save_tiny_model
from torch import Tensor

from braid_orchestrator.bench.worth.contest import (
    BRAID,
    CONTROLS,
    GATE,
    MLP_NO_CROSS,
    NO_CROSS,
    OWN_STATES,
    BraidRecipe,
    Contest,
    StackContestant,
    TrainingRecipe,
)
from braid_orchestrator.bench.worth.measuring import TEST, VALIDATION, MeasuredTexts
from braid_orchestrator.bench.worth.models import Scorer, load_llama, model_scorer
from braid_orchestrator.bench.worth.pretrained_contestants import (
    ANCHOR,
    PARTNER,
    STACKS,
    WITH_ITSELF,
    WITH_RANDOM,
    AnchorAndPartner,
    PartnerRecipe,
    train_partner,
)
from braid_orchestrator.evaluation import (
    ORACLE,
    POSTERIOR,
    UNIFORM,
    Cut,
    LaneReader,
    LaneReaders,
    Lineup,
    measure_text,
)
from braid_orchestrator.inprocess.whole_lanes import whole_lanes
from braid_orchestrator.training.data import Document, MemorySource, encode_source

RECIPE = PartnerRecipe(
    vocab_size=300,
    tokenizer_chars=5_000,
    width=16,
    mlp_width=32,
    context_length=256,
    step_tokens=256,
    num_steps=3,
)
PROSE = [f"The value number {n} is what the method gives.\n" for n in range(200)]
TEXTS = {
    "mix": [Document("mix", "A cat was here.\n\nThe method gives the value of the number.\n" * 3)],
    "prose": [Document("one", PROSE[7] + PROSE[8]), Document("two", PROSE[9])],
}


@dataclass(frozen=True)
class Setting:
    """A contest, and texts for it."""

    contest: Contest
    pair: AnchorAndPartner
    measured: MeasuredTexts
    partner_tokens: torch.Tensor


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("pretrained")
    save_tiny_model(folder / "given", 1, num_layers=5)
    train_partner(RECIPE, PROSE, folder / "trained")
    pair = AnchorAndPartner(folder / "given", folder / "trained", RECIPE, PARTNER, 0)
    readers = [LaneReader(backend) for backend in pair.backends("other")]
    train = MemorySource("train", [Document("train", "".join(PROSE))])
    tokens = [encode_source(train, one.encoder, max_example_tokens=64).token_ids_N for one in readers]
    with ExitStack() as closing:
        contest = Contest(
            pair,
            TrainingRecipe(num_steps=2, window=32, windows_per_step=2, num_evaluations=1),
            BraidRecipe((0.25, 0.5, 0.75), fusion_width=8, gate_hidden=4),
            tokens[0],
            0,
            closing,
        )
        yield Setting(contest, pair, MeasuredTexts(readers, TEXTS, TEXTS, 48), tokens[1])


def untrained(scorer: Scorer) -> dict[str, float]:
    return {"loss": 1.0}


def test_points_are_at_the_same_depths_of_both_models(setting: Setting) -> None:
    plan = setting.contest.build(STACKS[BRAID], setting.pair.backends("other")).plan
    assert [shard.num_layers for shard in plan.shards] == [5, 4]
    assert [point.layers for point in plan.points] == [(1, 1), (2, 2), (4, 3)]
    assert (plan.anchor, plan.lane_of) == (0, (0, 1))


def test_partners_read_as_they_should(setting: Setting) -> None:
    anchor, trained = setting.pair.backends("other")
    _, random = setting.pair.backends("random")
    _, itself = setting.pair.backends("itself")
    assert trained.card.tokenizer_hash == random.card.tokenizer_hash != anchor.card.tokenizer_hash
    assert trained.card.model_hash != random.card.model_hash
    assert random.card.num_parameters == trained.card.num_parameters
    assert (itself.card.model_hash, itself.card.tokenizer_hash) == (
        anchor.card.model_hash,
        anchor.card.tokenizer_hash,
    )


def test_the_controls_are_the_braid_cut_in_three_ways(setting: Setting) -> None:
    plans = {
        who: setting.contest.build(STACKS[who], setting.pair.backends("other")).plan
        for who in (BRAID, *CONTROLS)
    }
    cut = tuple(replace(one, options={**one.options, "cross": False}) for one in plans[BRAID].points)
    assert plans[NO_CROSS] == replace(plans[BRAID], points=cut)
    assert plans[MLP_NO_CROSS].points == tuple(replace(one, strategy="mlp") for one in cut)
    own = tuple(replace(one, options={**one.options, "cross": "own"}) for one in plans[BRAID].points)
    assert plans[OWN_STATES].points == own


@pytest.mark.parametrize("who", [BRAID, GATE, WITH_RANDOM, WITH_ITSELF])
def test_everybody_is_trained_and_measured(setting: Setting, who: str) -> None:
    folders = (setting.pair.anchor, setting.pair.folder)
    before = {path: path.read_bytes() for one in folders for path in one.rglob("*.safetensors")}
    trained = setting.contest.train_stack(STACKS[who], setting.measured.validate)
    assert trained.record.steps == 2 and trained.notes()["evaluations"][0][1] > 0
    sums = setting.measured.measure(who, trained.scorer)
    assert all(0 < one.bits_per_byte < 20 for by_name in sums.values() for one in by_name.values())
    assert before == {path: path.read_bytes() for one in folders for path in one.rglob("*.safetensors")}


@pytest.mark.parametrize(("best", "lane"), [(ANCHOR, 0), (PARTNER, 1)])
def test_lora_reads_by_the_better_singles_tokenizer(setting: Setting, best: str, lane: int) -> None:
    tokens = (setting.contest.tokens, setting.partner_tokens)[lane]
    contest = replace(setting.contest, pair=replace(setting.pair, best_single=best))
    windows = contest._windows(tokens)
    share = windows.length / setting.contest._windows(setting.contest.tokens).length
    assert share == pytest.approx(tokens.numel() / setting.contest.tokens.numel(), abs=1 / 32)
    trained = contest.train_lora(lambda scorer: setting.measured.validate(scorer, lane), tokens)
    assert trained.record.steps == 2
    assert 0.5 < trained.num_parameters / contest.braid_size() < 1.5


def test_singles_and_mixes_are_what_an_evaluation_says(setting: Setting) -> None:
    contest = setting.contest
    backends = setting.pair.backends("other")
    shards = contest.shards(backends)
    outputs = contest.build(StackContestant(has_points=False, readout="mixture"), backends)
    sums, forgetting = setting.measured.measure_mixes(shards, outputs)
    lineup = Lineup(shards, outputs, forgetting=forgetting, accuracy=False)
    readers = LaneReaders(shards, outputs.plan)
    rows = {ANCHOR, UNIFORM.name, POSTERIOR.name, ORACLE.name}
    assert set(sums) == {PARTNER, *rows}
    for name, documents in TEXTS.items():
        told = measure_text(lineup, readers.read(name, documents, 48), Cut(48)).sums
        for who in (one for one in told if one.name in rows):
            for found in (sums[who.name][VALIDATION][name], sums[who.name][TEST][name]):
                torch.testing.assert_close(found.bits_U, told[who].bits_U, rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(found.bytes_U, told[who].bytes_U)


def test_what_reads_by_another_tokenizer_is_booked_to_the_anchors_windows(setting: Setting) -> None:
    partner = load_llama(setting.pair.folder / PARTNER)
    own = setting.measured.measure("own", model_scorer(partner), lane=1)[TEST]["mix"]
    anchors = setting.measured.measure("anchor", model_scorer(load_llama(setting.pair.anchor)))[TEST]["mix"]
    assert own.bits_U.shape == anchors.bits_U.shape and own.bits_U.numel() > 2
    assert own.tokens_U.sum() != anchors.tokens_U.sum()
    torch.testing.assert_close(own.bytes_U, anchors.bytes_U, rtol=0.4, atol=4.0)


def test_a_window_holds_as_much_text_in_any_tokens(setting: Setting) -> None:
    lengths: dict[str, set[int]] = {}

    def spy(who: str) -> Scorer:
        def score(ids_T: Tensor, of_windows: Sequence[int], targets_T: Tensor) -> Tensor:
            lengths.setdefault(who, set()).update(of_windows)
            return torch.full((ids_T.numel(),), -1.0)

        return score

    for lane, who in enumerate(("anchor", "partner")):
        setting.measured.measure(who, spy(who), lane)
    per_anchor = setting.partner_tokens.numel() / setting.contest.tokens.numel()
    assert max(lengths["anchor"]) == 48
    assert max(lengths["partner"]) == pytest.approx(48 * per_anchor, rel=0.35)
    assert max(lengths["partner"]) != 48


def test_stretches_are_measured_on_all_that_the_anchor_is(setting: Setting) -> None:
    backends = setting.pair.backends("other")
    shards = setting.contest.shards(backends)
    sums, forgetting = setting.measured.measure_stretches(shards)
    anchors = setting.measured.measure("anchor", model_scorer(load_llama(setting.pair.anchor)))
    assert 0.0 < forgetting <= 1.0
    for side, by_name in sums.items():
        for name, found in by_name.items():
            torch.testing.assert_close(found.bytes_U, anchors[side][name].bytes_U)
            assert bool((found.bits_U > 0).all())


def test_a_partner_that_reads_bytes_has_settled_all_that_was_read(setting: Setting, tmp_path: Path) -> None:
    recipe = RECIPE.reading_bytes()
    train_partner(recipe, PROSE, tmp_path)
    backends = replace(setting.pair, folder=tmp_path, recipe=recipe).backends("other")
    plan = setting.contest.build(STACKS[GATE], backends).plan
    assert [shard.vocab_size for shard in plan.shards] == [262, 257]
    ids_T = setting.contest.tokens[:40].long()
    of_partner = whole_lanes(backends, plan, ids_T, [40], range(40)).of_shard(1)
    assert set(of_partner.pending) == {b""}
    text = backends[0].tokenizer.decode(ids_T.tolist())
    assert of_partner.token_ids_T.numel() == len(text.encode())
