"""State matching: 1 for a point that does nothing, and it falls as the point learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import Tensor

from braid_fusion.stack import FusionStack
from braid_fusion.training import OptimiserConfig, Trainer, TrainerConfig
from braid_orchestrator.bench.worth.key_contestants import BRAID, NO_CROSS, STACKS, KeyContest
from braid_orchestrator.bench.worth.key_exercises import KeyTasks
from braid_orchestrator.bench.worth.key_matching import MatchingPairs, Pair, matching_loss
from braid_orchestrator.bench.worth.key_parents import CALCULATOR, TABLE, make_parent
from braid_orchestrator.bench.worth.key_readings import CHARACTERS, pack
from braid_orchestrator.bench.worth.keys import VARIANTS
from braid_orchestrator.training.ports import TrainingShard


@pytest.fixture(params=VARIANTS)
def contest(request: pytest.FixtureRequest) -> KeyContest:
    recipe = VARIANTS[request.param].quick().recipe
    # Nobody has trained the partner here: what it knows of a key is faint.
    parents = replace(recipe.parents, width=64, mlp_width=128)
    recipe = replace(recipe, parents=parents, training=replace(recipe.training, fusion_width=32, dropout=0.0))
    models = [make_parent(who, recipe.parents, 0).eval() for who in (TABLE, CALCULATOR)]
    return KeyContest(KeyTasks(recipe.keys, 0), *models, recipe.parents, recipe.training)


def loss_for(
    contest: KeyContest, shards: list[TrainingShard], stack: FusionStack
) -> Callable[[list[Pair]], Tensor]:
    return matching_loss(shards, stack, contest.parents.reading(contest.anchor), CHARACTERS)


def test_it_measures_from_where_nothing_is_done(contest: KeyContest) -> None:
    shards, stack = contest.build(STACKS[BRAID])
    (pairs,) = islice(MatchingPairs(contest.tasks, 0.5, 16), 1)
    assert any(read is meant for read, meant in pairs) and any(read is not meant for read, meant in pairs)
    assert loss_for(contest, shards, stack)(pairs).item() == pytest.approx(1.0)


def test_it_is_zero_where_the_states_are_the_goal(
    contest: KeyContest, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, stack = contest.build(STACKS[BRAID])
    (pairs,) = islice(MatchingPairs(contest.tasks, 1.0, 4), 1)
    goal = contest.calculator.get_input_embeddings()(
        pack([meant for _, meant in pairs], CHARACTERS).token_ids_T
    )

    class Perfect:
        states = (goal, None)

    monkeypatch.setattr(stack, "fuse", lambda *args: Perfect)
    assert loss_for(contest, shards, stack)(pairs).item() == pytest.approx(0.0, abs=1e-9)


def test_what_the_partner_knows_lets_it_fall_further(contest: KeyContest) -> None:
    torch.manual_seed(0)
    reached = {}
    for who in (BRAID, NO_CROSS):
        shards, stack = contest.build(STACKS[who])
        config = TrainerConfig(max_steps=150, optimiser=OptimiserConfig(learning_rate=1e-2))
        loss_of = loss_for(contest, shards, stack)
        Trainer(stack, loss_of, MatchingPairs(contest.tasks, 0.7, 32), config).run()
        stack.eval()
        with torch.no_grad():
            reached[who] = float(loss_of(next(iter(MatchingPairs(contest.tasks, 0.7, 200)))))
    assert reached[BRAID] < 0.9 * reached[NO_CROSS] < 0.9
