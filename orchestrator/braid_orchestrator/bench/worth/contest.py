"""A contest over one pair of models: who takes part, what of each is trained, and how.

Every contestant that is trained gets the same text in the same order and as many steps, and keeps the weights of
its best evaluation on validation text. The models themselves stay as they are. Knows neither where they come from,
nor how text is measured.

Shapes: B windows, L tokens predicted in each, T = B · L packed rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from torch import Tensor, nn
from transformers import LlamaForCausalLM

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
from braid_orchestrator.bench.worth.models import Scorer, model_scorer
from braid_orchestrator.config.values import BraidConfig, PointConfig, ReadoutConfig
from braid_orchestrator.demo.pretrain import next_token_loss
from braid_orchestrator.training.braid_pass import run_pass
from braid_orchestrator.training.local import LocalTrainingShard
from braid_services.shard.backend import ShardBackend

Partner = Literal["other", "itself", "random"]
Cross = bool | Literal["own"]  # a point's option
Evaluate = Callable[[Scorer], Mapping[str, float]]

BRAID, GLOBAL, GATE = evaluation.BRAID.name, evaluation.GLOBAL.name, evaluation.GATE.name
UNIFORM, POSTERIOR, ORACLE = (
    who.name for who in (evaluation.UNIFORM, evaluation.POSTERIOR, evaluation.ORACLE)
)
NO_CROSS = "no-cross control"
MLP_NO_CROSS, OWN_STATES = f"{NO_CROSS}, all mlp", f"{NO_CROSS}, own states"
CONTROLS = (NO_CROSS, MLP_NO_CROSS, OWN_STATES)
LORA = "LoRA on the best single"


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """``learning_rate`` is of fusion modules and gates, ``lora_learning_rate`` of LoRA; both were chosen on
    validation text of one seed. ``mixture_learning_rate`` is of weights for all tokens, which have a long way to go
    where one model is hardly ever better."""

    num_steps: int = 300
    learning_rate: float = 5e-3
    lora_learning_rate: float = 1e-2
    mixture_learning_rate: float = 0.1
    weight_decay: float = 0.01
    window: int = 256
    windows_per_step: int = 4
    num_evaluations: int = 4

    def config(self, learning_rate: float, seed: int) -> TrainerConfig:
        """AdamW with warm-up and a cosine."""
        return TrainerConfig(
            max_steps=self.num_steps,
            optimiser=OptimiserConfig(learning_rate=learning_rate, weight_decay=self.weight_decay),
            schedule=ScheduleConfig(warmup=0.05, shape="cosine"),
            evaluate_every=max(1, self.num_steps // self.num_evaluations),
            early_stopping=EarlyStopping(patience=None),
            seed=seed,
        )


@dataclass(frozen=True, slots=True)
class BraidRecipe:
    """A fusion point of the strategy ``strategies[i]`` before ``layers[i]``, and the gate's width. Layers are the
    anchor's, or relative depths between 0 and 1."""

    layers: tuple[int | float, ...] = (1, 2, 3)
    strategies: tuple[str, ...] = ("mlp", "attention", "mlp")
    fusion_width: int = 64
    gate_hidden: int = 64

    def points(self, *, cross: Cross = True, strategy: str = "") -> tuple[PointConfig, ...]:
        """As a configuration has them. ``strategy``: one for all points in place of the braid's own."""
        return tuple(
            PointConfig(
                layer,
                strategy=strategy or own,
                fusion_width=self.fusion_width,
                options={} if cross is True else {"cross": cross},
            )
            for layer, own in zip(self.layers, self.strategies, strict=True)
        )

    def describe(self) -> str:
        """For a report's settings."""
        places = (f"{own} at {layer}" for own, layer in zip(self.strategies, self.layers, strict=True))
        return f"{', '.join(places)}, of width {self.fusion_width}"


@dataclass(frozen=True, slots=True)
class StackContestant:
    """Two shards under a readout, with or without fusion points between them. ``strategy``: see `BraidRecipe`."""

    partner: Partner = "other"
    has_points: bool = True
    cross: Cross = True
    strategy: str = ""
    readout: Literal["mixture", "gate"] = "gate"
    is_wide: bool = False
    has_history: bool = False


class Pair(Protocol):
    """The two models of a contest, and what may take their places."""

    def backends(self, partner: Partner) -> list[ShardBackend]:
        """Two shards, the anchor first: both models, or the one that counts with itself or with an untrained one."""

    def best(self) -> LlamaForCausalLM:
        """The better single."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A contestant after its training: what scores texts, how many numbers were trained, and the record."""

    scorer: Scorer
    num_parameters: int
    record: TrainingRecord

    def notes(self) -> dict[str, Any]:
        """How the training went, for a run's result."""
        evaluations = [[one.step, one.values["loss"]] for one in self.record.evaluations]
        return {"best_step": self.record.best_step, "evaluations": evaluations}


@dataclass(frozen=True, slots=True)
class Contest:
    """What all contestants of one seed have in common. ``tokens`` train, and are the anchor's. ``closing`` ends the
    threads of the shards that score; until then what was trained can."""

    pair: Pair
    training: TrainingRecipe
    braid: BraidRecipe
    tokens: Tensor
    seed: int
    closing: ExitStack

    def shards(self, backends: Sequence[ShardBackend]) -> list[LocalTrainingShard]:
        """With threads that live until the contest is closed."""
        shards = [LocalTrainingShard(backend) for backend in backends]
        for shard in shards:
            self.closing.callback(shard.shutdown)
        return shards

    def build(self, contestant: StackContestant, backends: Sequence[ShardBackend]) -> FusionStack:
        """A contestant's modules, untrained."""
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

    def braid_size(self) -> int:
        """How many parameters the braid trains."""
        return self.build(StackContestant(), self.pair.backends("other")).num_parameters()

    def train_stack(self, contestant: StackContestant, evaluate: Evaluate) -> Trained:
        """Train a braid, or what is left of it. Raises: BraidError, TrainingError."""
        backends = self.pair.backends(contestant.partner)
        shards = self.shards(backends)
        stack = self.build(contestant, backends)
        is_mixture = contestant.readout == "mixture"
        rate = self.training.mixture_learning_rate if is_mixture else self.training.learning_rate
        config = self.training.config(rate, self.seed)
        windows = self._windows(self.tokens)
        if contestant.has_history:
            gate = HistoryGate(shards, stack)
            return self._fit(gate, partial(_loss, gate), windows, config, gate, evaluate)

        def score(token_ids_T: Tensor, lengths: Sequence[int], targets_T: Tensor) -> Tensor:
            return run_pass(shards, stack, token_ids_T, lengths, targets_T).target_logprobs

        return self._fit(stack, partial(_loss, score), windows, config, score, evaluate)

    def train_lora(self, evaluate: Evaluate, tokens: Tensor | None = None) -> Trained:
        """Train LoRA on the better single, as large as the braid.

        Args:
            tokens: the same text in its own tokens; None: in the anchor's. Its windows hold as much of the text.

        Raises: TrainingError.
        """
        adapted: Any = add_lora(self.pair.best(), self.braid_size(), self.seed)
        config = self.training.config(self.training.lora_learning_rate, self.seed)
        loss_of = partial(next_token_loss, adapted.get_base_model())
        windows = self._windows(self.tokens if tokens is None else tokens)
        return self._fit(adapted, loss_of, windows, config, model_scorer(adapted), evaluate)

    def _fit(
        self,
        module: nn.Module,
        loss_of: Callable[[Tensor], Tensor],
        windows: TokenWindows,
        config: TrainerConfig,
        scorer: Scorer,
        evaluate: Evaluate,
    ) -> Trained:
        trainer = Trainer(module, loss_of, windows, config, evaluate=lambda: evaluate(scorer))
        record = trainer.run()
        return Trained(scorer, record.num_parameters, record)

    def _windows(self, tokens: Tensor) -> TokenWindows:
        length = max(1, round(self.training.window * tokens.numel() / self.tokens.numel()))
        return TokenWindows(tokens, length, self.training.windows_per_step, self.seed)


def _loss(scorer: Scorer, windows: Tensor) -> Tensor:
    """Mean loss in nats on (B, L + 1) tokens."""
    lengths = [windows.shape[1] - 1] * windows.shape[0]
    return -scorer(windows[:, :-1].reshape(-1), lengths, windows[:, 1:].reshape(-1)).mean()
