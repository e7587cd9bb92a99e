"""Contestants are what their names say: as large as each other, cut where they should be, parents unharmed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from braid_orchestrator.bench.worth.contest import (
    BRAID,
    CONTROLS,
    LORA,
    MLP_NO_CROSS,
    NO_CROSS,
    OWN_STATES,
    BraidRecipe,
    Contest,
    TrainingRecipe,
)
from braid_orchestrator.bench.worth.llamas import load_llama_tokenizer, train_llama_tokenizer
from braid_orchestrator.bench.worth.models import Scorer, load_llama, model_scorer
from braid_orchestrator.bench.worth.specialist_contestants import (
    STACKS,
    TRAINED,
    WIDE_GATE,
    WITH_ITSELF,
    Specialists,
    train,
)
from braid_orchestrator.bench.worth.specialist_parents import START, ParentRecipe, soup, train_parent
from braid_orchestrator.demo.tokenizer import encode_documents

PARENTS = ParentRecipe(
    vocab_size=300, tokenizer_chars=5_000, width=16, mlp_width=32, start_steps=2, own_steps=3, step_tokens=256
)
CODE = [f"def name_{n}(self):\n    return self.value + {n}\n" for n in range(200)]
PROSE = [f"The value number {n} is what the method gives.\n" for n in range(200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("specialists")
    tokenizer = train_llama_tokenizer([CODE, PROSE], PARENTS, folder)
    for name, texts in ((START, CODE + PROSE), ("code", CODE), ("prose", PROSE)):
        train_parent(name, PARENTS, tokenizer, texts, folder)
    return folder


@pytest.fixture(scope="module")
def contest(folder: Path) -> Iterator[Contest]:
    with ExitStack() as closing:
        yield Contest(
            pair=Specialists(folder, PARENTS, "prose", 0),
            training=TrainingRecipe(num_steps=2, window=32, windows_per_step=2, num_evaluations=1),
            braid=BraidRecipe(fusion_width=8, gate_hidden=4),
            tokens=torch.tensor(encode_documents(load_llama_tokenizer(folder), CODE + PROSE)),
            seed=0,
            closing=closing,
        )


def bits(scorer: Scorer, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return scorer(tokens[:64], [40, 24], tokens[1:65])


def test_specialists_of_one_start_learned_different_things(folder: Path) -> None:
    start, code, prose = (load_llama(folder / name).state_dict() for name in (START, "code", "prose"))
    changed = [key for key in start if not torch.equal(start[key], code[key])]
    assert changed and any(not torch.equal(code[key], prose[key]) for key in changed)


def test_the_soup_is_the_mean_of_the_weights(folder: Path) -> None:
    code, prose = (load_llama(folder / name).state_dict() for name in ("code", "prose"))
    for key, value in soup(folder).state_dict().items():
        torch.testing.assert_close(value, (code[key] + prose[key]) / 2)


def test_all_that_could_be_as_large_as_the_braid_are(contest: Contest) -> None:
    sizes = {
        who: train(contest, who, lambda scorer: {"loss": 1.0}).num_parameters
        for who in (BRAID, *CONTROLS, WIDE_GATE, LORA)
    }
    assert sizes[BRAID] == sizes[NO_CROSS] == contest.braid_size()
    assert all(0.7 < size / sizes[BRAID] < 1.4 for size in sizes.values()), sizes


@pytest.mark.parametrize("who", TRAINED)
def test_everybody_is_trained_and_scores(contest: Contest, folder: Path, who: str) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    scored: list[Scorer] = []

    def evaluate(scorer: Scorer) -> dict[str, float]:
        scored.append(scorer)
        return {"loss": -float(bits(scorer, contest.tokens).mean())}

    trained = train(contest, who, evaluate)
    assert trained.num_parameters > 0 and trained.record.steps == 2
    assert scored == [trained.scorer]
    assert torch.isfinite(bits(trained.scorer, contest.tokens)).all()
    assert before == {path: path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_the_controls_are_the_braid_cut_in_three_ways(contest: Contest) -> None:
    cut = {who for who, stack in STACKS.items() if stack.has_points and stack.cross is not True}
    assert cut == set(CONTROLS)
    plans = {
        who: contest.build(STACKS[who], contest.pair.backends("other")).plan for who in (BRAID, *CONTROLS)
    }
    points = plans[BRAID].points
    assert {point.strategy for point in points} == {"mlp", "attention"}
    silent = tuple(replace(point, options={**point.options, "cross": False}) for point in points)
    assert plans[NO_CROSS] == replace(plans[BRAID], points=silent)
    mlp = tuple(replace(point, strategy="mlp") for point in silent)
    assert plans[MLP_NO_CROSS] == replace(plans[BRAID], points=mlp)
    own = tuple(replace(point, options={**point.options, "cross": "own"}) for point in points)
    assert plans[OWN_STATES] == replace(plans[BRAID], points=own)


def test_an_untrained_pair_with_itself_is_the_model(contest: Contest, folder: Path) -> None:
    """Both shards say the same, so no gate changes it; training is what the pair is measured for."""
    still = replace(contest, training=replace(contest.training, num_steps=1, learning_rate=1e-30))
    pair = train(still, WITH_ITSELF, lambda scorer: {"loss": 1.0})
    alone = model_scorer(load_llama(folder / "prose"))
    torch.testing.assert_close(
        bits(pair.scorer, contest.tokens), bits(alone, contest.tokens), rtol=1e-5, atol=1e-5
    )
