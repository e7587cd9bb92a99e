"""Who takes part in the experiment with two specialists: which models each has, and what of it is trained.

Every contestant that is trained gets the same windows in the same order and as many steps, and keeps the weights of
its best evaluation on validation text. The specialists themselves stay as they are.

Letters: B windows, L tokens predicted in each, T = B · L.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
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
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.bench.adapters import add_lora
from braid_orchestrator.bench.worth.history_gate import HistoryGate
from braid_orchestrator.bench.worth.specialist_parents import KINDS, ParentRecipe
from braid_orchestrator.config.values import BraidConfig, PointConfig, ReadoutConfig
from braid_orchestrator.demo.pretrain import make_model, next_token_loss
from braid_orchestrator.evaluation import Scorer, braid_scorer
from braid_orchestrator.inprocess.fusion_training import train_fusion
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig

Partner = Literal["specialist", "itself", "random"]
Evaluate = Callable[[Scorer], Mapping[str, float]]

BRAID, NO_CROSS, LORA = "braid", "no-cross control", "LoRA on the best single"
GATE, WIDE_GATE, HISTORY_GATE = "gate per token", "gate per token, wide", "gate per token, with history"


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

    def points(self, cross: bool) -> tuple[PointConfig, ...]:
        """As a configuration has them."""
        return tuple(
            PointConfig(
                layer,
                strategy=strategy,
                fusion_width=self.fusion_width,
                options={} if cross else {"cross": False},
            )
            for layer, strategy in zip(self.layers, self.strategies, strict=True)
        )


@dataclass(frozen=True, slots=True)
class StackContestant:
    """Two shards under a readout, with or without fusion points between them."""

    partner: Partner = "specialist"
    has_points: bool = True
    cross: bool = True
    readout: Literal["mixture", "gate"] = "gate"
    is_wide: bool = False


STACKS: dict[str, StackContestant] = {
    "learned global mix": StackContestant(has_points=False, readout="mixture"),
    GATE: StackContestant(has_points=False),
    WIDE_GATE: StackContestant(has_points=False, is_wide=True),
    "braid of the best single with itself": StackContestant("itself"),
    "braid of the best single with a random model": StackContestant("random"),
    NO_CROSS: StackContestant(cross=False),
    BRAID: StackContestant(),
}
TRAINED = (*STACKS, HISTORY_GATE, LORA)


@dataclass(frozen=True, slots=True)
class Trained:
    """A contestant after its training: what scores texts, how many numbers were trained, and the record."""

    scorer: Scorer
    num_parameters: int
    record: TrainingRecord


@dataclass(frozen=True, slots=True)
class Contest:
    """What all contestants of one seed have in common. ``best`` is the kind of the better single."""

    folder: Path
    parents: ParentRecipe
    training: TrainingRecipe
    braid: BraidRecipe
    tokens: Tensor
    best: str
    seed: int

    def train(self, who: str, evaluate: Evaluate) -> Trained:
        """Train one of `TRAINED`. Raises: BraidError, TrainingError."""
        if who == LORA:
            return self._lora(evaluate)
        return self._history_gate(evaluate) if who == HISTORY_GATE else self._stack(STACKS[who], evaluate)

    def braid_size(self) -> int:
        """How many parameters the braid trains."""
        return self._build(STACKS[BRAID], self._backends("specialist")).num_parameters()

    def _stack(self, contestant: StackContestant, evaluate: Evaluate) -> Trained:
        backends = self._backends(contestant.partner)
        stack = self._build(contestant, backends)
        scorer = braid_scorer(backends, stack)
        training = self.training
        record = train_fusion(
            backends,
            stack,
            self._windows(),
            training.config(training.learning_rate),
            evaluate=lambda: evaluate(scorer),
        )
        return Trained(scorer, stack.num_parameters(), record)

    def _build(self, contestant: StackContestant, backends: Sequence[ShardBackend]) -> FusionStack:
        hidden = self.braid.gate_hidden
        if contestant.is_wide:
            per_unit = sum(backend.card.width for backend in backends)
            hidden = max(hidden, self.braid_size() // per_unit)
        config = BraidConfig(
            name="worth",
            anchor=backends[0].card.name,
            shards=tuple(backend.config for backend in backends),
            points=self.braid.points(contestant.cross) if contestant.has_points else (),
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
        config = ShardConfig(name="random", model="in memory", threads=0, cache_bytes=_CACHE_BYTES)
        return [best, ShardBackend.from_model(untrained.eval(), best.tokenizer, config)]

    def _history_gate(self, evaluate: Evaluate) -> Trained:
        gate = HistoryGate(self._backends("specialist"), self.braid.gate_hidden, self.seed)

        def loss_of(windows: Tensor) -> Tensor:
            lengths = [windows.shape[1] - 1] * windows.shape[0]
            logprobs_T: Tensor = gate(windows[:, :-1].reshape(-1), lengths, windows[:, 1:].reshape(-1))
            return -logprobs_T.mean()

        config = self.training.config(self.training.learning_rate)
        trainer = Trainer(gate, loss_of, self._windows(), config, evaluate=lambda: evaluate(gate))
        record = trainer.run()
        return Trained(gate, record.num_parameters, record)

    def _lora(self, evaluate: Evaluate) -> Trained:
        model = load_model(self.folder, self.best)
        adapted: Any = add_lora(model, self.braid_size(), self.seed)
        scorer = model_scorer(adapted)
        training = self.training
        inner = adapted.get_base_model()
        trainer = Trainer(
            adapted,
            lambda windows: next_token_loss(inner, windows),
            self._windows(),
            training.config(training.lora_learning_rate),
            evaluate=lambda: evaluate(scorer),
        )
        record = trainer.run()
        return Trained(scorer, record.num_parameters, record)

    def _windows(self) -> TokenWindows:
        return TokenWindows(self.tokens, self.training.window, self.training.windows_per_step, self.seed)


_CACHE_BYTES = 2**20  # nothing is generated here
_RANDOM_SEED = 1000  # far from those of the specialists


def load_backend(folder: Path, model: str, name: str | None = None) -> ShardBackend:
    """A specialist as a shard."""
    return ShardBackend.load(
        ShardConfig(name=name or model, model=str(folder / model), threads=0, cache_bytes=_CACHE_BYTES)
    )


def load_model(folder: Path, name: str) -> LlamaForCausalLM:
    """A specialist, or the start, as transformers has it."""
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
    return model.eval()


def soup(folder: Path) -> LlamaForCausalLM:
    """The mean of both specialists' weights (Wortsman et al., 2022)."""
    model, other = (load_model(folder, kind) for kind in KINDS)
    with torch.no_grad():
        for mine, its in zip(model.parameters(), other.parameters(), strict=True):
            mine.lerp_(its, 0.5)
    return model


def model_scorer(model: Any) -> Scorer:
    """A model of transformers alone, on packed sequences of one length."""

    def score(token_ids_T: Tensor, lengths: Sequence[int], targets_T: Tensor) -> Tensor:
        logits_BLV = model(input_ids=token_ids_T.view(len(lengths), -1), use_cache=False).logits
        return -functional.cross_entropy(logits_BLV.float().flatten(0, 1), targets_T, reduction="none")

    return score
