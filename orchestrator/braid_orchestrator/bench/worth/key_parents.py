"""Two small models for arithmetic over keys: one learns the table, the other to calculate. Knows no braid.

What a braid takes from the first has to be there to be taken. A model that only answers with numbers looks them up
where it answers; so this one also learns by a few heads more which characters come after the next (multi-token
prediction, arXiv 2404.19737), and then knows a key's number where the key ends. The heads are dropped afterwards.

Letters: B exercises, L positions, D width, H horizons.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from braid_fusion.training import OptimiserConfig, Progress, ScheduleConfig, Trainer, TrainerConfig
from braid_orchestrator.bench.worth.key_exercises import (
    ALPHABET,
    Exercise,
    ExerciseBatch,
    ExerciseBatches,
    KeyTasks,
    pack,
)

TABLE, CALCULATOR = "table", "calculator"


@dataclass(frozen=True, slots=True)
class KeyParentRecipe:
    """Llamas of one width; the table's has a layer more, as its last one is heard by nobody. ``step_exercises`` in
    every step."""

    width: int = 128
    num_layers: int = 4
    num_heads: int = 4
    mlp_width: int = 384
    table_steps: int = 600
    calculator_steps: int = 600
    step_exercises: int = 96
    learning_rate: float = 0.01
    matrix_learning_rate: float = 0.02
    ahead_weight: float = 0.5


def make_parent(who: str, recipe: KeyParentRecipe, seed: int) -> LlamaForCausalLM:
    """Untrained."""
    config = LlamaConfig(
        vocab_size=len(ALPHABET),
        hidden_size=recipe.width,
        intermediate_size=recipe.mlp_width,
        num_hidden_layers=recipe.num_layers + (who == TABLE),
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(2 * seed + (who == TABLE))
        return LlamaForCausalLM(config)


def train_parent(
    who: str,
    tasks: KeyTasks,
    recipe: KeyParentRecipe,
    on_progress: Callable[[Progress], None] | None = None,
) -> LlamaForCausalLM:
    """Train `TABLE` or `CALCULATOR` from nothing on endless exercises of its own kind."""
    model = make_parent(who, recipe, tasks.seed)
    ahead = _Ahead(model, tasks.recipe.num_digits if who == TABLE else 1, tasks.seed)

    def make(draw: Random) -> Exercise:
        if who == CALCULATOR:
            return tasks.calculate(draw)
        return tasks.glossed(draw) if draw.random() < 0.5 else tasks.substitute(draw)

    def loss_of(exercises: list[Exercise]) -> Tensor:
        return ahead.loss(pack(exercises), recipe.ahead_weight)

    config = TrainerConfig(
        max_steps=recipe.table_steps if who == TABLE else recipe.calculator_steps,
        optimiser=OptimiserConfig(
            learning_rate=recipe.learning_rate, matrix_learning_rate=recipe.matrix_learning_rate
        ),
        schedule=ScheduleConfig(warmup=0.02, shape="linear", decay_from=0.3),
    )
    batches = ExerciseBatches(make, recipe.step_exercises, f"{who} {tasks.seed}")
    Trainer(ahead, loss_of, batches, config, on_progress=on_progress).run()
    return model.eval().requires_grad_(False)


class _Ahead(nn.Module):
    """A model with heads for ``horizon`` characters from the next one on; its own head is the first."""

    def __init__(self, model: LlamaForCausalLM, horizon: int, seed: int) -> None:
        super().__init__()
        self.model = model
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(
                nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False)
                for _ in range(horizon - 1)
            )

    def loss(self, batch: ExerciseBatch, ahead_weight: float) -> Tensor:
        """Mean loss of the characters that count, and of the same characters seen from further before."""
        shape = (len(batch.lengths), batch.lengths[0])
        hidden_TD = self.model.model(input_ids=batch.token_ids_T.view(shape), use_cache=False)[0].flatten(
            0, 1
        )
        loss = functional.cross_entropy(self.model.lm_head(hidden_TD[batch.loss_rows_R]), batch.targets_R)
        for distance, head in enumerate(self.heads, 1):
            # An exercise begins with a character that never counts, so rows before are its own, but for the first's.
            is_own = batch.loss_rows_R % shape[1] >= distance
            rows = (batch.loss_rows_R - distance)[is_own]
            loss = loss + ahead_weight * functional.cross_entropy(
                head(hidden_TD[rows]), batch.targets_R[is_own]
            )
        return loss
