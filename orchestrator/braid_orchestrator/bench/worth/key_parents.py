"""Two small models for arithmetic over keys: one learns the table, the other to calculate. Knows no braid.

Each is trained to be of use to another one, besides doing its own:

- What a braid takes from the table has to be there to be taken. A model that only answers with numbers looks them up
  where it answers; so this one also learns, by heads that read the states before its last layer, which characters
  come next and after (multi-token prediction, arXiv 2404.19737; dropout makes them easy to read). It then knows a
  key's number where the key ends. The heads are dropped afterwards.
- What the calculator hears will not be quite what it would read. So it learns with noise on its embeddings, as in
  NEFTune (arXiv 2310.05914). The noise grows from nothing: with all of it from the beginning, it depends on the
  draws whether the model ever finds out how to carry.

Letters: B exercises, L positions, D width, T packed rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from braid_fusion.training import OptimiserConfig, Progress, ScheduleConfig, Trainer, TrainerConfig
from braid_orchestrator.bench.worth.key_exercises import Exercise, ExerciseBatches, KeyTasks
from braid_orchestrator.bench.worth.key_readings import CHARACTERS, PAIRS, ExerciseBatch, Reading, pack

TABLE, CALCULATOR = "table", "calculator"


@dataclass(frozen=True, slots=True)
class KeyParentRecipe:
    """Llamas of one width; the table's has a layer more, as its last one is heard by nobody. ``step_exercises`` in
    every step. The calculator's learning rates are ``calculator_rate`` times what stands here.

    The table's heads weigh ``ahead_weight`` each and lose ``ahead_dropout`` of what they read. The calculator's
    embeddings get Gaussian noise of ``noise`` times their own size, all of it after ``noise_warmup`` of its steps."""

    width: int = 128
    num_layers: int = 4
    num_heads: int = 4
    mlp_width: int = 384
    table_steps: int = 600
    calculator_steps: int = 700
    step_exercises: int = 96
    learning_rate: float = 0.01
    matrix_learning_rate: float = 0.02
    calculator_rate: float = 0.5
    ahead_weight: float = 1.0
    ahead_dropout: float = 0.3
    noise: float = 0.3
    noise_warmup: float = 0.3

    def reading(self, who: str) -> Reading:
        """How `TABLE` or `CALCULATOR` reads."""
        return CHARACTERS

    def keys_at(self, tasks: KeyTasks, step: int) -> Sequence[str]:
        """Which keys the table's exercises are about in a step."""
        return tasks.all_keys

    def calculate(self, tasks: KeyTasks, step: int, draw: Random) -> Exercise:
        """An exercise of the calculator in a step."""
        return tasks.calculate(draw)

    def is_ready_for_noise(self, loss: float) -> bool:
        """Whether the calculator's noise grows after a batch with this loss."""
        return True


@dataclass(frozen=True, slots=True)
class PairsParentRecipe(KeyParentRecipe):
    """The same with two tokenizers: the table reads pairs of letters, the calculator characters. A recipe of its own,
    so that finished runs with one tokenizer stay what they are."""

    table_reads: Literal["pairs"] = "pairs"

    def reading(self, who: str) -> Reading:
        """As `KeyParentRecipe.reading`."""
        return PAIRS if who == TABLE else CHARACTERS


@dataclass(frozen=True, slots=True)
class GradualParentRecipe(KeyParentRecipe):
    """The same for a table that is too large, and sums that are too long, to be found out all at once.

    The table's exercises are about ``first_keys`` keys at first; the others are added evenly until ``growing`` of its
    steps are done. Of the calculator's, a share of ``easier`` have numbers of fewer digits, or may have, until
    ``easier_until`` of its steps are done; its noise grows after batches with a loss below ``calm_loss``, so not
    before it can calculate."""

    first_keys: int = 300
    growing: float = 0.6
    easier: float = 0.7
    easier_until: float = 0.5
    calm_loss: float = 0.3

    def keys_at(self, tasks: KeyTasks, step: int) -> Sequence[str]:
        """See `KeyParentRecipe`."""
        keys = tasks.shuffled_keys
        share = step / max(1.0, self.growing * self.table_steps)
        return keys[: self.first_keys + max(0, round(share * (len(keys) - self.first_keys)))]

    def calculate(self, tasks: KeyTasks, step: int, draw: Random) -> Exercise:
        """See `KeyParentRecipe`."""
        is_easier = step < self.easier_until * self.calculator_steps and draw.random() < self.easier
        return tasks.calculate_less(draw) if is_easier else tasks.calculate(draw)

    def is_ready_for_noise(self, loss: float) -> bool:
        """See `KeyParentRecipe`."""
        return loss < self.calm_loss


def make_parent(who: str, recipe: KeyParentRecipe, seed: int) -> LlamaForCausalLM:
    """Untrained."""
    config = LlamaConfig(
        vocab_size=recipe.reading(who).vocab_size,
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
    model, reading = make_parent(who, recipe, tasks.seed), recipe.reading(who)
    trained = _Readable(model, tasks, recipe) if who == TABLE else _Tolerant(model, recipe)

    def make(draw: Random, step: int) -> Exercise:
        if who == CALCULATOR:
            return recipe.calculate(tasks, step, draw)
        keys = recipe.keys_at(tasks, step)
        return tasks.glossed(draw, keys) if draw.random() < 0.5 else tasks.substitute(draw, keys)

    def loss_of(exercises: list[Exercise]) -> Tensor:
        return trained.loss(pack(exercises, reading))

    rate = 1.0 if who == TABLE else recipe.calculator_rate
    config = TrainerConfig(
        max_steps=recipe.table_steps if who == TABLE else recipe.calculator_steps,
        optimiser=OptimiserConfig(
            learning_rate=rate * recipe.learning_rate, matrix_learning_rate=rate * recipe.matrix_learning_rate
        ),
        schedule=ScheduleConfig(warmup=0.02, shape="linear", decay_from=0.3),
        seed=tasks.seed,
    )
    batches = ExerciseBatches(make, recipe.step_exercises, f"{who} {tasks.seed}")
    Trainer(trained, loss_of, batches, config, on_progress=on_progress).run()
    return model.eval().requires_grad_(False)


class _Readable(nn.Module):
    """A model whose states before the last layer tell the next ``num_digits`` characters to linear heads."""

    def __init__(self, model: LlamaForCausalLM, tasks: KeyTasks, recipe: KeyParentRecipe) -> None:
        super().__init__()
        self.model = model
        self._weight, self._dropout = recipe.ahead_weight, recipe.ahead_dropout
        with torch.random.fork_rng():
            torch.manual_seed(tasks.seed)
            self.heads = nn.ModuleList(
                nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False)
                for _ in range(tasks.recipe.num_digits)
            )

    def loss(self, batch: ExerciseBatch) -> Tensor:
        """Mean loss of the characters that count, and of the same characters seen by each head from before."""
        ids_BL = _rectangle(batch)
        output = self.model.model(input_ids=ids_BL, use_cache=False, output_hidden_states=True)
        loss = _answer_loss(self.model, output.last_hidden_state, batch)
        # The last of all is what the last layer made, behind the final norm.
        heard_TD = output.hidden_states[-2].flatten(0, 1)
        heard_TD = functional.layer_norm(heard_TD, heard_TD.shape[-1:])
        heard_TD = functional.dropout(heard_TD, self._dropout, self.training)
        for distance, head in enumerate(self.heads):
            # An exercise begins with a character that never counts, so rows before are its own, but for the first's.
            is_own = batch.loss_rows_R % ids_BL.shape[1] >= distance
            rows = (batch.loss_rows_R - distance)[is_own]
            loss = loss + self._weight * functional.cross_entropy(
                head(heard_TD[rows]), batch.targets_R[is_own]
            )
        return loss


class _Tolerant(nn.Module):
    """A model that reads through noise, more with every batch at first for which the recipe finds it ready."""

    def __init__(self, model: LlamaForCausalLM, recipe: KeyParentRecipe) -> None:
        super().__init__()
        self.model = model
        self._recipe = recipe
        self._warmup = max(1, round(recipe.noise_warmup * recipe.calculator_steps))
        self._num_ready = 1

    def loss(self, batch: ExerciseBatch) -> Tensor:
        """Mean loss of the characters that count."""
        read_BLD = self.model.get_input_embeddings()(_rectangle(batch))
        if self.training:
            share = min(1.0, self._num_ready / self._warmup)
            size = read_BLD.detach().square().mean().sqrt()
            read_BLD = read_BLD + share * self._recipe.noise * size * torch.randn_like(read_BLD)
        output = self.model.model(inputs_embeds=read_BLD, use_cache=False)
        loss = _answer_loss(self.model, output.last_hidden_state, batch)
        if self.training:
            self._num_ready += self._recipe.is_ready_for_noise(loss.item())
        return loss


def _rectangle(batch: ExerciseBatch) -> Tensor:
    return batch.token_ids_T.view(len(batch.lengths), batch.lengths[0])


def _answer_loss(model: LlamaForCausalLM, hidden_BLD: Tensor, batch: ExerciseBatch) -> Tensor:
    hidden_RD = hidden_BLD.flatten(0, 1)[batch.loss_rows_R]
    loss: Tensor = functional.cross_entropy(model.lm_head(hidden_RD), batch.targets_R)
    return loss
