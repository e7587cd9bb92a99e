"""Who takes part in arithmetic over keys, what of each is trained, and how it answers.

All that are trained get the same exercises in the same order, and as many steps. The two models stay as they are.

Shapes: T packed rows, R rows of answers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, islice
from random import Random
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from braid_fusion.stack import FusionStack
from braid_fusion.training import OptimiserConfig, ScheduleConfig, Trainer, TrainerConfig
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.bench.adapters import add_lora, num_trainable
from braid_orchestrator.bench.worth.key_answers import (
    Answerer,
    answer_logits,
    model_predict,
    posterior_predict,
    share_solved,
)
from braid_orchestrator.bench.worth.key_exercises import Exercise, ExerciseBatches, KeyTasks
from braid_orchestrator.bench.worth.key_matching import MatchingPairs, matching_loss
from braid_orchestrator.bench.worth.key_parents import CALCULATOR, TABLE, KeyParentRecipe, make_parent
from braid_orchestrator.bench.worth.key_readings import ExerciseBatch, pack
from braid_orchestrator.bench.worth.measuring import FORGETTINGS
from braid_orchestrator.config.values import BraidConfig, PointConfig, ReadoutConfig
from braid_orchestrator.training.braid_pass import run_pass
from braid_orchestrator.training.local import LocalTrainingShard
from braid_orchestrator.training.loss import braid_loss
from braid_orchestrator.training.ports import TrainingShard
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig

UNIFORM, POSTERIOR, GLOBAL, GATE = "uniform mix", "posterior mix", "global mix", "gate per token"
LORA, LORA_TABLE = "LoRA on the calculator", "LoRA on the table"
RANDOM, NO_CROSS, UNMATCHED = "braid with a random partner", "no-cross control", "braid, not matched"
BRAID = "braid"


@dataclass(frozen=True, slots=True)
class KeyTrainingRecipe:
    """``match_steps`` of state matching, then ``num_steps`` of the language-model loss; what has nothing to match
    takes all of them for the loss. ``mix``: shares of compositions, calculations, substitutions."""

    match_steps: int = 400
    num_steps: int = 400
    match_learning_rate: float = 5e-3
    learning_rate: float = 1e-3
    readout_learning_rate: float = 3e-3
    lora_learning_rate: float = 3e-3
    mixture_learning_rate: float = 0.1
    weight_decay: float = 0.01
    step_exercises: int = 96
    mix: tuple[float, float, float] = (0.5, 0.25, 0.25)
    fusion_width: int = 128
    dropout: float = 0.4

    def rate_of(self, contestant: StackContestant) -> float:
        """What is matched already learns slowly; weights for all tokens have a long way to go."""
        if contestant.is_matched:
            return self.learning_rate
        return self.mixture_learning_rate if contestant.readout == "mixture" else self.readout_learning_rate

    def config(self, num_steps: int, learning_rate: float, seed: int) -> TrainerConfig:
        """AdamW with warm-up and a cosine."""
        return TrainerConfig(
            max_steps=num_steps,
            optimiser=OptimiserConfig(learning_rate=learning_rate, weight_decay=self.weight_decay),
            schedule=ScheduleConfig(warmup=0.05, shape="cosine"),
            seed=seed,
        )


@dataclass(frozen=True, slots=True)
class StackContestant:
    """Both models under a readout, perhaps with a point between them."""

    readout: Literal["mixture", "gate"] = "gate"
    has_point: bool = True
    cross: bool = True
    is_matched: bool = True
    is_trained: bool = True
    partner: Literal["table", "random"] = "table"


STACKS: Mapping[str, StackContestant] = {
    UNIFORM: StackContestant("mixture", has_point=False, is_matched=False, is_trained=False),
    GLOBAL: StackContestant("mixture", has_point=False, is_matched=False),
    GATE: StackContestant(has_point=False, is_matched=False),
    NO_CROSS: StackContestant(cross=False),
    RANDOM: StackContestant(partner="random"),
    UNMATCHED: StackContestant(is_matched=False),
    BRAID: StackContestant(),
}
CONTESTANTS = (LORA, LORA_TABLE, POSTERIOR, *STACKS)
_TO_CHOOSE_BY = 300  # exercises of the training's


@dataclass(frozen=True, slots=True)
class KeyContest:
    """What all contestants of one seed have in common."""

    tasks: KeyTasks
    table: LlamaForCausalLM
    calculator: LlamaForCausalLM
    parents: KeyParentRecipe
    training: KeyTrainingRecipe

    @property
    def anchor(self) -> str:
        """Whose tokens drive the braid: with two tokenizers the table's, which are longer. A character is settled at
        once, a pair of letters only with what follows it. Driven by characters, the table would lag one behind: a
        key would be heard too late, and the table could say nothing about the next character."""
        table, calculator = self.parents.reading(TABLE), self.parents.reading(CALCULATOR)
        return CALCULATOR if table is calculator else TABLE

    def train(self, who: str) -> Answerer:
        """One of `CONTESTANTS`. Raises: TrainingError."""
        if who in (LORA, LORA_TABLE):
            return self._lora(TABLE if who == LORA_TABLE else CALCULATOR)
        if who == POSTERIOR:
            return self._posterior()
        contestant, training = STACKS[who], self.training
        shards, stack = self.build(contestant)
        reading = self.parents.reading(self.anchor)
        if contestant.is_matched:
            config = training.config(training.match_steps, training.match_learning_rate, self.tasks.seed)
            compose, calculate, _ = training.mix
            pairs = MatchingPairs(self.tasks, compose / (compose + calculate), training.step_exercises)
            loss = matching_loss(shards, stack, reading, self.parents.reading(CALCULATOR))
            Trainer(stack, loss, pairs, config).run()
        if contestant.is_trained:
            loss_of = braid_loss(shards, stack)
            num_steps = training.num_steps + (0 if contestant.is_matched else training.match_steps)
            rate = training.rate_of(contestant)
            config = training.config(num_steps, rate, self.tasks.seed)
            batches = self._exercises()
            Trainer(stack, lambda exercises: loss_of(pack(exercises, reading)), batches, config).run()
        stack.eval()

        def predict(batch: ExerciseBatch) -> Tensor:
            rows = batch.loss_rows_R.tolist()
            output = run_pass(
                shards, stack, batch.token_ids_T, batch.lengths, batch.targets_R, rows, want_log_probs=True
            )
            if output.log_probs is None:
                raise RuntimeError("a pass gave less than it was asked for")
            return output.log_probs

        return Answerer(predict, reading, stack.num_parameters() if contestant.is_trained else 0)

    def build(self, contestant: StackContestant) -> tuple[list[TrainingShard], FusionStack]:
        """Its shards, the calculator first, and its modules, untrained."""
        partner = self.table
        if contestant.partner == "random":
            partner = make_parent(TABLE, self.parents, self.tasks.seed + _RANDOM_SEED).eval()
        models = {CALCULATOR: self.calculator, TABLE: partner}
        shards: list[TrainingShard] = [self._shard(name, model) for name, model in models.items()]
        point = PointConfig(
            # Where a key has been read the calculator, before its first layer, hears what it is worth.
            {CALCULATOR: 0, TABLE: partner.config.num_hidden_layers - 1},
            strategy="mlp",
            fusion_width=self.training.fusion_width,
            receivers=(CALCULATOR,),
            options={"cross": contestant.cross, "dropout": self.training.dropout},
        )
        config = BraidConfig(
            name="keys",
            anchor=self.anchor,
            shards=tuple(ShardConfig(shard.name, "in memory") for shard in shards),
            points=(point,) if contestant.has_point else (),
            readout=ReadoutConfig(contestant.readout),
            seed=self.tasks.seed,
        )
        return shards, FusionStack(resolve_plan(config, [shard.card for shard in shards]))

    def _shard(self, name: str, model: LlamaForCausalLM) -> LocalTrainingShard:
        tokenizer = self.parents.reading(name).tokenizer
        return LocalTrainingShard(ShardBackend.from_model(model, tokenizer, ShardConfig(name, "in memory")))

    def _posterior(self) -> Answerer:
        """With the forgetting that solves most of some exercises of the training."""
        shards, stack = self.build(STACKS[UNIFORM])
        reading = self.parents.reading(self.anchor)
        exercises = list(islice(chain.from_iterable(self._exercises()), _TO_CHOOSE_BY))
        mixes = [Answerer(posterior_predict(shards, stack, one), reading, 0) for one in FORGETTINGS]
        return max(mixes, key=lambda mix: share_solved(mix, exercises))

    def _lora(self, who: str) -> Answerer:
        _, braid = self.build(STACKS[BRAID])
        model = self.table if who == TABLE else self.calculator
        adapted: Any = add_lora(deepcopy(model), braid.num_parameters(), self.tasks.seed)
        training, reading = self.training, self.parents.reading(who)

        def loss_of(exercises: list[Exercise]) -> Tensor:
            batch = pack(exercises, reading)
            return functional.cross_entropy(answer_logits(adapted, batch), batch.targets_R)

        num_steps = training.match_steps + training.num_steps
        config = training.config(num_steps, training.lora_learning_rate, self.tasks.seed)
        Trainer(adapted, loss_of, self._exercises(), config).run()
        adapted.eval()
        return Answerer(model_predict(adapted), reading, num_trainable(adapted))

    def _exercises(self) -> ExerciseBatches:
        tasks, (compose, calculate, _) = self.tasks, self.training.mix

        def make(draw: Random, number: int) -> Exercise:
            share = draw.random()
            if share < compose:
                return tasks.compose(draw, tasks.trained_keys)
            if share < compose + calculate:
                return tasks.calculate(draw)
            return tasks.substitute(draw, tasks.trained_keys)

        return ExerciseBatches(make, self.training.step_exercises, f"exercises {tasks.seed}")


_RANDOM_SEED = 1000  # far from those of the models
