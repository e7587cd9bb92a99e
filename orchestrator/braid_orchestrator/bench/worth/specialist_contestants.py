"""Who takes part in the experiment with two specialists. Trains nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import LlamaForCausalLM

from braid_orchestrator.bench.worth.contest import (
    BRAID,
    GATE,
    GLOBAL,
    LORA,
    MLP_NO_CROSS,
    NO_CROSS,
    OWN_STATES,
    Contest,
    Evaluate,
    Partner,
    StackContestant,
    Trained,
)
from braid_orchestrator.bench.worth.models import load_backend, load_llama, shard_config
from braid_orchestrator.bench.worth.specialist_parents import KINDS, ParentRecipe
from braid_orchestrator.demo.pretrain import make_model
from braid_services.shard.backend import ShardBackend

WIDE_GATE, HISTORY_GATE = f"{GATE}, wide", f"{GATE}, with history"
GATES = (GATE, WIDE_GATE, HISTORY_GATE)
WITH_ITSELF, WITH_RANDOM = (
    "braid of the best single with itself",
    "braid of the best single with a random model",
)

STACKS: dict[str, StackContestant] = {
    WITH_ITSELF: StackContestant("itself"),
    WITH_RANDOM: StackContestant("random"),
    NO_CROSS: StackContestant(cross=False),
    OWN_STATES: StackContestant(cross="own"),
    BRAID: StackContestant(),
    MLP_NO_CROSS: StackContestant(cross=False, strategy="mlp"),
    HISTORY_GATE: StackContestant(has_points=False, has_history=True),
    WIDE_GATE: StackContestant(has_points=False, is_wide=True),
    GATE: StackContestant(has_points=False),
    GLOBAL: StackContestant(has_points=False, readout="mixture"),
}
TRAINED = (*STACKS, LORA)  # those that take long come first, so that no core waits for one at the end
_RANDOM_SEED = 1000  # far from those of the specialists


@dataclass(frozen=True, slots=True)
class Specialists:
    """Both, in ``folder``; see `Pair`. ``best_kind`` is the better one, which pairs with itself and with an
    untrained model."""

    folder: Path
    parents: ParentRecipe
    best_kind: str
    seed: int

    def backends(self, partner: Partner) -> list[ShardBackend]:
        """See `Pair`."""
        if partner == "other":
            return [load_backend(self.folder / kind) for kind in KINDS]
        best = load_backend(self.folder / self.best_kind)
        if partner == "itself":
            return [best, load_backend(self.folder / self.best_kind, "itself")]
        recipe = replace(self.parents, seed=self.seed + _RANDOM_SEED).of("random", 1)
        untrained = make_model(recipe, best.card.vocab_size)
        config = shard_config("random", "in memory")
        return [best, ShardBackend.from_model(untrained.eval(), best.tokenizer, config)]

    def best(self) -> LlamaForCausalLM:
        """See `Pair`."""
        return load_llama(self.folder / self.best_kind)


def train(contest: Contest, who: str, evaluate: Evaluate) -> Trained:
    """One of `TRAINED`. Raises: BraidError, TrainingError."""
    return contest.train_lora(evaluate) if who == LORA else contest.train_stack(STACKS[who], evaluate)
