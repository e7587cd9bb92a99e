"""All that changes in a training run, and its way into a checkpoint and back. Takes no step and writes no file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from braid_fusion.errors import TrainingDataError
from braid_fusion.training.early_stopping import StopWatch
from braid_fusion.training.epochs import ResumableSource
from braid_fusion.training.identity import (
    check_same,
    describe_parameters,
    describe_values,
    trained_tensors,
)
from braid_fusion.training.precision import Precision
from braid_fusion.training.random_state import random_state, set_random_state
from braid_fusion.training.record import Evaluation


@dataclass(slots=True)
class Position:
    """How far a run is. ``loss`` is smoothed; ``stopped_by`` None: it isn't over."""

    step: int = 0
    fraction: float = 0.0
    seconds: float = 0.0
    loss: float = math.nan
    stopped_by: str | None = None
    evaluations: list[Evaluation] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Mark:
    """What a step that fails halfway has moved all the same, as it was before: the position in the data, the random
    generators, and buffers such as running means."""

    source: Mapping[str, Any]
    random: Mapping[str, Any]
    buffers: Mapping[str, Tensor]


class TrainingState:
    """A run's module, optimisers, scale, data position, early stopping and random generators together.

    Args:
        settings: what decides the run's outcome besides these: a checkpoint of others is refused.
        watch: None: the best weights aren't looked for.
    """

    def __init__(
        self,
        module: nn.Module,
        optimisers: Sequence[Optimizer],
        precision: Precision,
        source: Iterable[Any],
        settings: Mapping[str, Any],
        watch: StopWatch | None,
    ) -> None:
        self.position = Position()
        self.watch = watch
        self.best: dict[str, Tensor] | None = None
        self._module = module
        self._optimisers = optimisers
        self._precision = precision
        self._source = source
        self._settings = dict(settings)
        of_module = dict(module.named_buffers())
        self._buffer_names = of_module.keys() & trained_tensors(module).keys()

    def note_evaluation(self, step: int, values: Mapping[str, float]) -> bool:
        """Remember an evaluation, and the weights if it is the best so far; whether it is."""
        self.position.evaluations.append(Evaluation(step, dict(values)))
        if self.watch is None or not self.watch.note(step, values):
            return False
        self.best = self.copy_trained()
        return True

    @torch.no_grad()
    def put_best_back(self) -> None:
        """Give the module the weights of the best evaluation, if there are any."""
        if self.best is not None:
            self.put_trained(self.best)

    def mark(self) -> Mark:
        """Where things are now; parameters and optimisers aren't copied. Raises: as `require_resumable`."""
        buffers = {
            name: buffer.detach().to("cpu", copy=True)
            for name, buffer in self._module.named_buffers()
            if name in self._buffer_names
        }
        return Mark(self.require_resumable().state_dict(), random_state(), buffers)

    def description(self) -> dict[str, Any]:
        """What all workers of a run have in common before they begin, as plain values: settings, the shapes of what
        is trained, the source of batches and its position."""
        source = self._source.state_dict() if isinstance(self._source, ResumableSource) else None
        return {
            "settings": self._settings,
            "parameters": describe_parameters(self._module),
            "source": describe_values(source),
        }

    def content(self, mark: Mark | None = None) -> dict[str, Any]:
        """For a checkpoint: tensors and plain values.

        Args:
            mark: where things were when what has failed since began, which had made no update; None: as they are.

        Raises: TrainingDataError, as `require_resumable`.
        """
        mark = mark or self.mark()
        return {
            "settings": self._settings,
            "parameters": describe_parameters(self._module),
            "tensors": {**self.copy_trained(), **mark.buffers},
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
            "scale": self._precision.state_dict(),
            "source": mark.source,
            "random": mark.random,
            "position": asdict(self.position),
            "watch": None if self.watch is None else self.watch.state_dict(),
            "best": self.best,
        }

    def restore(self, content: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; after an error nothing has changed.

        Raises: CheckpointMismatchError, naming each difference; TrainingDataError, as `require_resumable`.
        """
        check_same("configuration", content["settings"], self._settings)
        check_same("module", content["parameters"], describe_parameters(self._module))
        self.require_resumable().load_state_dict(content["source"])
        self.put_trained(content["tensors"])
        for optimiser, state in zip(self._optimisers, content["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        self._precision.load_state_dict(content["scale"])
        position = dict(content["position"])
        position["evaluations"] = [Evaluation(**evaluation) for evaluation in position["evaluations"]]
        self.position = Position(**position)
        if self.watch is not None:
            self.watch.load_state_dict(content["watch"])
        self.best = content["best"]
        set_random_state(content["random"])

    def require_resumable(self) -> ResumableSource:
        """The source of batches. Raises: TrainingDataError if its position can't be stored."""
        if isinstance(self._source, ResumableSource):
            return self._source
        raise TrainingDataError(
            f"batches: got {type(self._source).__name__}, expected a source with state_dict and "
            "load_state_dict, such as TokenWindows, for checkpoints hold its position"
        )

    def copy_trained(self) -> dict[str, Tensor]:
        """What training changes, on the CPU; see `trained_tensors`."""
        return {
            name: tensor.detach().to("cpu", copy=True)
            for name, tensor in trained_tensors(self._module).items()
        }

    @torch.no_grad()
    def put_trained(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the module such a copy's numbers."""
        for name, tensor in trained_tensors(self._module).items():
            tensor.copy_(tensors[name])
