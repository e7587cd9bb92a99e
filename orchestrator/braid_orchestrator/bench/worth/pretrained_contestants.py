"""Who takes part in the experiment with a pretrained model, and the partner that is trained for it. Knows no texts.

The pretrained model is the anchor; its partner has a tokenizer of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM

from braid_orchestrator.bench.worth.contest import (
    BRAID,
    GATE,
    GLOBAL,
    LORA,
    MLP_NO_CROSS,
    NO_CROSS,
    OWN_STATES,
    Partner,
    StackContestant,
)
from braid_orchestrator.bench.worth.llamas import LlamaRecipe, train_llama, train_llama_tokenizer
from braid_orchestrator.bench.worth.models import load_backend, load_llama, shard_config
from braid_orchestrator.demo.pretrain import make_model
from braid_services.shard.backend import ShardBackend

ANCHOR, PARTNER = "anchor", "partner"
SINGLES = (ANCHOR, PARTNER)
WITH_ITSELF, WITH_RANDOM = "braid of the anchor with itself", "braid of the anchor with a random model"

STACKS: dict[str, StackContestant] = {
    WITH_RANDOM: StackContestant("random"),
    NO_CROSS: StackContestant(cross=False),
    MLP_NO_CROSS: StackContestant(cross=False, strategy="mlp"),
    OWN_STATES: StackContestant(cross="own"),
    BRAID: StackContestant(),
    WITH_ITSELF: StackContestant("itself"),
    GATE: StackContestant(has_points=False),
    GLOBAL: StackContestant(has_points=False, readout="mixture"),
}
TRAINED = (*STACKS, LORA)  # those that take long come first, so that no core waits for one at the end
_RANDOM_SEED = 1000  # far from those of the partners


@dataclass(frozen=True, slots=True)
class PartnerRecipe(LlamaRecipe):
    """A Llama that is trained for ``num_steps``. ``tokenizer``: byte pairs, or bytes alone, of which a window has two
    to four times as many."""

    num_steps: int = 1500
    tokenizer: Literal["bpe", "bytes"] = "bpe"

    def reading_bytes(self) -> PartnerRecipe:
        """The same that reads bytes."""
        return replace(self, tokenizer="bytes", vocab_size=257, context_length=2048)


def train_partner(recipe: PartnerRecipe, texts: Sequence[str], folder: Path) -> dict[str, Any]:
    """Train tokenizer and model, into ``folder``. Returns: the model's training record."""
    tokenizer = train_llama_tokenizer([texts], recipe, folder, recipe.tokenizer)
    return train_llama(PARTNER, recipe, recipe.num_steps, tokenizer, texts, folder)


@dataclass(frozen=True, slots=True)
class AnchorAndPartner:
    """See `Pair`. ``anchor`` is a model's folder, ``folder`` has the partner; ``best_single`` is one of `SINGLES`."""

    anchor: Path
    folder: Path
    recipe: PartnerRecipe
    best_single: str
    seed: int

    def backends(self, partner: Partner) -> list[ShardBackend]:
        """See `Pair`. An untrained model has the partner's shape and tokenizer."""
        anchor = load_backend(self.anchor, ANCHOR)
        if partner == "itself":
            return [anchor, load_backend(self.anchor, "itself")]
        trained = load_backend(self.folder / PARTNER)
        if partner == "other":
            return [anchor, trained]
        recipe = replace(self.recipe, seed=self.seed + _RANDOM_SEED).of("random", 1)
        untrained = make_model(recipe, trained.card.vocab_size).eval()
        config = shard_config("random", "in memory")
        return [anchor, ShardBackend.from_model(untrained, trained.tokenizer, config)]

    def best(self) -> Any:
        """See `Pair`."""
        if self.best_single == PARTNER:
            return load_llama(self.folder / PARTNER)
        return AutoModelForCausalLM.from_pretrained(self.anchor, dtype=torch.float32).eval()
