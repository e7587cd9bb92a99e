"""AdamW for everything, or Muon for the weight matrices and AdamW for the rest.

Muon (K. Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks") replaces a matrix's
momentum by the nearest half-orthogonal matrix. Small language models get to the same loss in a fraction of the
steps. It must not be used on embeddings, output heads, or connections that start at zero.

Shapes: N matrices of one shape, (A, C) with A ≤ C after transposition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from braid_fusion.errors import TrainingConfigError

# The quintic iteration of the source above: its slope at zero grows small singular values fastest.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
# Of rates and decays; with their products float32 would overflow long after all has diverged.
_HIGHEST = 1e15


@torch.no_grad()
def orthogonalise(matrices: Tensor, num_iterations: int = 5) -> Tensor:
    """The matrices with all singular values brought close to one (between about 0.7 and 1.2).

    Args:
        matrices: (N, rows, columns), any float dtype; computed in it.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x_NAC = matrices.mT if is_tall else matrices
    x_NAC = x_NAC / (x_NAC.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(num_iterations):
        gram_NAA = x_NAC @ x_NAC.mT
        polynomial_NAA = torch.baddbmm(gram_NAA, gram_NAA, gram_NAA, beta=b, alpha=c)
        x_NAC = torch.baddbmm(x_NAC, polynomial_NAA, x_NAC, beta=a)
    return x_NAC.mT if is_tall else x_NAC


class Muon(Optimizer):
    """Momentum, orthogonalised; for matrices only. Matrices of one shape are updated together.

    The step is ``lr · max(1, rows / columns)^½`` in spectral norm, whatever the gradient's size.
    Raises: ValueError for a parameter that is not a matrix.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        num_iterations: int = 5,
    ) -> None:
        matrices = list(params)
        for parameter in matrices:
            if parameter.ndim != 2:
                raise ValueError(
                    f"Muon: got a parameter of shape {tuple(parameter.shape)}, expected a matrix"
                )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "num_iterations": num_iterations,
        }
        super().__init__(matrices, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every matrix that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)
        return loss

    def _update(self, parameters: Sequence[Tensor], group: dict[str, Any]) -> None:
        directions = []
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is None:
                continue
            state = self.state[parameter]
            buffer = state.setdefault("momentum_buffer", torch.zeros_like(gradient))
            buffer.lerp_(gradient, 1.0 - group["momentum"])
            directions.append(gradient.lerp(buffer, group["momentum"]))  # Nesterov's look ahead
        updates = orthogonalise(torch.stack(directions), group["num_iterations"])
        rows, columns = parameters[0].shape
        scale = group["lr"] * max(1.0, rows / columns) ** 0.5
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-scale)


@dataclass(frozen=True, slots=True)
class OptimiserConfig:
    """``matrix_learning_rate`` not None: Muon for the weights of linear layers, save those whose name holds one
    of ``without_muon``; AdamW for the rest. Weight decay of AdamW is for matrices and embeddings only.

    Raises: TrainingConfigError for learning rates and weight decays that are no finite numbers from 0 on, and for
        ``betas`` and ``matrix_momentum`` outside [0, 1).
    """

    learning_rate: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    matrix_learning_rate: float | None = None
    matrix_momentum: float = 0.95
    matrix_weight_decay: float = 0.0
    without_muon: tuple[str, ...] = ("lm_head",)

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay", "matrix_learning_rate", "matrix_weight_decay"):
            value = getattr(self, name)
            if value is None and name == "matrix_learning_rate":
                continue
            if not 0.0 <= value <= _HIGHEST:
                raise TrainingConfigError(
                    f"optimiser.{name}: got {value}, expected a number from 0 to {_HIGHEST:g}"
                )
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise TrainingConfigError(f"optimiser.betas: got {self.betas}, expected two numbers in [0, 1)")
        if not 0.0 <= self.matrix_momentum < 1.0:
            raise TrainingConfigError(
                f"optimiser.matrix_momentum: got {self.matrix_momentum}, expected a number in [0, 1)"
            )


def make_optimisers(module: nn.Module, config: OptimiserConfig) -> list[Optimizer]:
    """Optimisers that together hold every trainable parameter of the module exactly once.

    Raises: TrainingConfigError if nothing is trainable.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trainable:
        raise TrainingConfigError(
            f"{type(module).__name__}: got no trainable parameter, expected at least one"
        )
    linear_weights = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear)}
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    matrices = [
        parameter
        for name, parameter in trainable.items()
        if config.matrix_learning_rate is not None
        and id(parameter) in linear_weights - embeddings  # a tied head is an embedding
        and not any(part in name for part in config.without_muon)
    ]
    taken = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in trainable.values() if id(parameter) not in taken]
    optimisers: list[Optimizer] = []
    if matrices and config.matrix_learning_rate is not None:
        optimisers.append(
            Muon(
                matrices,
                lr=config.matrix_learning_rate,
                momentum=config.matrix_momentum,
                weight_decay=config.matrix_weight_decay,
            )
        )
    if rest:
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimisers.append(
            AdamW([g for g in groups if g["params"]], lr=config.learning_rate, betas=config.betas, eps=1e-10)
        )
    return optimisers
