"""Who takes part in the experiment with two specialists: which models each has, and what of it is trained.

Every contestant that is trained gets the same windows in the same order and as many steps, and keeps the weights of
its best evaluation on validation text. The specialists themselves stay as they are.

Shapes: B windows, L tokens predicted in each, T = B · L packed rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from braid_fusion.stack import FusionStack
from braid_fusion.training import (
    EarlyStopping,
    OptimiserConfig,
    ScheduleConfig,
    TokenWindows,
    Trainer,
    TrainerConfig,
    TrainingRecord,
)
from braid_orchestrator import evaluation
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.bench.adapters import add_lora
from braid_orchestrator.bench.worth.history_gate import HistoryGate
from braid_orchestrator.bench.worth.specialist_models import (
    Scorer,
    load_backend,
    load_model,
    model_scorer,
    shard_config,
)
from braid_orchestrator.bench.worth.specialist_parents import KINDS, ParentRecipe
from braid_orchestrator.config.values import BraidConfig, PointConfig, ReadoutConfig
from braid_orchestrator.demo.pretrain import make_model, next_token_loss
from braid_orchestrator.training.braid_pass import run_pass
from braid_orchestrator.training.local import LocalTrainingShard
from braid_services.shard.backend import ShardBackend

Partner = Literal["specialist", "itself", "random"]
Evaluate = Callable[[Scorer], Mapping[str, float]]

BRAID, GLOBAL, GATE = evaluation.BRAID.name, evaluation.GLOBAL.name, evaluation.GATE.name
WIDE_GATE, HISTORY_GATE = f"{GATE}, wide", f"{GATE}, with history"
NO_CROSS, MLP_NO_CROSS = "no-cross control", "no-cross control, all mlp"
WITH_ITSELF, WITH_RANDOM = (
    "braid of the best single with itself",
    "braid of the best single with a random model",
)
LORA = "LoRA on the best single"


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """``learning_rate`` is of fusion modules and readouts, ``lora_learning_rate`` of LoRA; both were chosen on
    validation text of one seed."""

    num_steps: int = 600
    learning_rate: float = 5e-3
    lora_learning_rate: float = 1e-2
    weight_decay: float = 0.01
    window: int = 256
    windows_per_step: int = 4
    num_evaluations: int = 4

    def config(self, learning_rate: float) -> TrainerConfig:
        """AdamW with warm-up and a cosine."""
        return TrainerConfig(
            max_steps=self.num_steps,
            optimiser=OptimiserConfig(learning_rate=learning_rate, weight_decay=self.weight_decay),
            schedule=ScheduleConfig(warmup=0.05, shape="cosine"),
            evaluate_every=max(1, self.num_steps // self.num_evaluations),
            early_stopping=EarlyStopping(patience=None),
        )


@dataclass(frozen=True, slots=True)
class BraidRecipe:
    """A fusion point of the strategy ``strategies[i]`` before ``layers[i]`` of both shards, and the gate's width."""

    layers: tuple[int, ...] = (1, 2, 3)
    strategies: tuple[str, ...] = ("mlp", "attention", "mlp")
    fusion_width: int = 64
    gate_hidden: int = 64

    def points(self, *, cross: bool = True, strategy: str = "") -> tuple[PointConfig, ...]:
        """As a configuration has them. ``strategy``: one for all points in place of the braid's own."""
        return tuple(
            PointConfig(
                layer,
                strategy=strategy or own,
                fusion_width=self.fusion_width,
                options={} if cross else {"cross": False},
            )
            for layer, own in zip(self.layers, self.strategies, strict=True)
        )


@dataclass(frozen=True, slots=True)
class StackContestant:
    """Two shards under a readout, with or without fusion points between them. ``strategy``: see `BraidRecipe`."""

    partner: Partner = "specialist"
    has_points: bool = True
    cross: bool = True
    strategy: str = ""
    readout: Literal["mixture", "gate"] = "gate"
    is_wide: bool = False
    has_history: bool = False


STACKS: dict[str, StackContestant] = {
    GLOBAL: StackContestant(has_points=False, readout="mixture"),
    GATE: StackContestant(has_points=False),
    WIDE_GATE: StackContestant(has_points=False, is_wide=True),
    HISTORY_GATE: StackContestant(has_points=False, has_history=True),
    WITH_ITSELF: StackContestant("itself"),
    WITH_RANDOM: StackContestant("random"),
    NO_CROSS: StackContestant(cross=False),
    MLP_NO_CROSS: StackContestant(cross=False, strategy="mlp"),
    BRAID: StackContestant(),
}
TRAINED = (LORA, *STACKS)
CONTROLS = (NO_CROSS, MLP_NO_CROSS)


@dataclass(frozen=True, slots=True)
class Trained:
    """A contestant after its training: what scores texts, how many numbers were trained, and the record."""

    scorer: Scorer
    num_parameters: int
    record: TrainingRecord


@dataclass(frozen=True, slots=True)
class Contest:
    """What all contestants of one seed have in common. ``best`` is the kind of the better single. ``closing`` ends
    the threads of the shards that score; until then what was trained can."""

    folder: Path
    parents: ParentRecipe
    training: TrainingRecipe
    braid: BraidRecipe
    tokens: Tensor
    best: str
    seed: int
    closing: ExitStack

    def train(self, who: str, evaluate: Evaluate) -> Trained:
        """Train one of `TRAINED`. Raises: BraidError, TrainingError."""
        return self._lora(evaluate) if who == LORA else self._stack(STACKS[who], evaluate)

    def braid_size(self) -> int:
        """How many parameters the braid trains."""
        return self._build(STACKS[BRAID], self._backends("specialist")).num_parameters()

    def _stack(self, contestant: StackContestant, evaluate: Evaluate) -> Trained:
        backends = self._backends(contestant.partner)
        shards = [LocalTrainingShard(backend) for backend in backends]
        for shard in shards:
            self.closing.callback(shard.shutdown)
        stack = self._build(contestant, backends)
        config = self.training.config(self.training.learning_rate)
        if contestant.has_history:
            gate = HistoryGate(shards, stack)
            return self._fit(gate, partial(_loss, gate), config, gate, evaluate)

        def score(token_ids_T: Tensor, lengths: Sequence[int], targets_T: Tensor) -> Tensor:
            return run_pass(shards, stack, token_ids_T, lengths, targets_T).target_logprobs

        return self._fit(stack, partial(_loss, score), config, score, evaluate)

    def _build(self, contestant: StackContestant, backends: Sequence[ShardBackend]) -> FusionStack:
        hidden = self.braid.gate_hidden
        if contestant.is_wide:
            per_unit = sum(backend.card.width for backend in backends)
            hidden = max(hidden, self.braid_size() // per_unit)
        config = BraidConfig(
            name="worth",
            anchor=backends[0].card.name,
            shards=tuple(backend.config for backend in backends),
            points=self.braid.points(cross=contestant.cross, strategy=contestant.strategy)
            if contestant.has_points
            else (),
            readout=ReadoutConfig(
                contestant.readout, {"hidden": hidden} if contestant.readout == "gate" else {}
            ),
            seed=self.seed,
        )
        return FusionStack(resolve_plan(config, [backend.card for backend in backends]))

    def _backends(self, partner: Partner) -> list[ShardBackend]:
        if partner == "specialist":
            return [load_backend(self.folder, kind) for kind in KINDS]
        best = load_backend(self.folder, self.best)
        if partner == "itself":
            return [best, load_backend(self.folder, self.best, "itself")]
        recipe = replace(self.parents, seed=self.seed + _RANDOM_SEED).of("random", KINDS, 1)
        untrained = make_model(recipe, best.card.vocab_size)
        config = shard_config("random", "in memory")
        return [best, ShardBackend.from_model(untrained.eval(), best.tokenizer, config)]

    def _lora(self, evaluate: Evaluate) -> Trained:
        model = load_model(self.folder, self.best)
        adapted: Any = add_lora(model, self.braid_size(), self.seed)
        config = self.training.config(self.training.lora_learning_rate)
        loss_of = partial(next_token_loss, adapted.get_base_model())
        return self._fit(adapted, loss_of, config, model_scorer(adapted), evaluate)

    def _fit(
        self,
        module: nn.Module,
        loss_of: Callable[[Tensor], Tensor],
        config: TrainerConfig,
        scorer: Scorer,
        evaluate: Evaluate,
    ) -> Trained:
        trainer = Trainer(module, loss_of, self._windows(), config, evaluate=lambda: evaluate(scorer))
        record = trainer.run()
        return Trained(scorer, record.num_parameters, record)

    def _windows(self) -> TokenWindows:
        return TokenWindows(self.tokens, self.training.window, self.training.windows_per_step, self.seed)


def _loss(scorer: Scorer, windows: Tensor) -> Tensor:
    """Mean loss in nats on (B, L + 1) tokens."""
    lengths = [windows.shape[1] - 1] * windows.shape[0]
    return -scorer(windows[:, :-1].reshape(-1), lengths, windows[:, 1:].reshape(-1)).mean()


_RANDOM_SEED = 1000  # far from those of the specialists
