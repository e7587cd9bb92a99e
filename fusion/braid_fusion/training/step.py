"""One optimiser step: the losses of its batches, their gradient, clipping, the update. Knows no schedule or end.

**The rule for several batches per step.** A loss is the mean over its batch's tokens. Where the loss function says
under "tokens" how many those were, n_i of batch i, the step's loss is Σ n_i·loss_i / Σ n_i, and so are gradient and
figures: the same as of one batch that holds them all. Without "tokens" every batch counts the same. A batch of no
tokens counts for nothing, whatever its loss.

**Numbers of batches.** The batches of a run are one sequence from 0, whoever takes them: of N workers, worker r takes
r, r + N, r + 2N, …. What is random in a batch follows from its number and the run's seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from braid_fusion.errors import TrainingDataError, TrainingDivergedError
from braid_fusion.training.batch_seed import batch_seed
from braid_fusion.training.peers import NoPeers, Peers
from braid_fusion.training.precision import Precision

BatchT = TypeVar("BatchT")
Losses = Tensor | Mapping[str, Tensor]

TOKENS = "tokens"


class OptimiserStep(Generic[BatchT]):
    """Takes steps on parameters. After an error the parameters are those before the step, without gradients, unless
    it was the update itself that failed.

    Args:
        clip_norm: to what the norm of all gradients together is brought down; None: never.
        seed: of what is random in a batch.
        peers: with whom a step is shared: it is the one on all their batches together.
    """

    def __init__(
        self,
        loss_of: Callable[[BatchT], Losses],
        parameters: Sequence[nn.Parameter],
        optimisers: Sequence[Optimizer],
        precision: Precision,
        *,
        accumulate: int,
        clip_norm: float | None,
        seed: int = 0,
        peers: Peers | None = None,
    ) -> None:
        self._loss_of = loss_of
        self._parameters = parameters
        self._optimisers = optimisers
        self._precision = precision
        self._accumulate = accumulate
        self._clip_norm = clip_norm
        self._seed = seed
        self._peers = peers or NoPeers()
        self._last: tuple[BatchT, int] | None = None
        self.is_updating = False
        """Whether an update has begun and not ended: after an error in one, parameters may be anything."""

    def take(self, batches: Iterator[BatchT], step: int) -> dict[str, float]:
        """Step number ``step`` of the run, counted from 0, which messages name.

        Returns: the loss function's figures, means over the step, tokens as a sum; the gradient's norm before
            clipping; "skipped" 1 where fp16's scale was too large, so that no update was made.
        Raises: TrainingDivergedError, TrainingDataError, whatever the loss raises.
        """
        try:
            figures = self._backward(batches, step)
            self._precision.unscale(self._optimisers)
            skip = self._clip(figures, step)
            self.is_updating = True
            self._precision.step(self._optimisers, skip=skip)
            self.is_updating = False
            if skip:
                figures["skipped"] = 1.0
            return figures
        finally:
            for parameter in self._parameters:
                parameter.grad = None

    @torch.no_grad()
    def last_loss(self) -> float | None:
        """Of this worker's last batch, with the parameters as they are now; None without a batch that counts."""
        if self._last is None:
            return None
        batch, number = self._last
        with batch_seed(self._seed, number):
            losses = self._losses_of(batch)
        return None if TOKENS in losses and not float(losses[TOKENS]) else float(losses["loss"])

    def _backward(self, batches: Iterator[BatchT], step: int) -> dict[str, float]:
        sums: dict[str, float] = {}
        total, unit = 0.0, 0.0
        bad: tuple[int, float] | None = None
        for index in range(self._accumulate):
            number = self._number(step, index)
            with batch_seed(self._seed, number):
                batch = self._next(batches, f"step {step}, batch {number}")
                self._last = (batch, number)
                losses = self._losses_of(batch)
                count = float(losses[TOKENS]) if TOKENS in losses else 1.0
                for name in losses:
                    sums.setdefault(name, 0.0)
                if count == 0.0:
                    continue
                loss = losses["loss"]
                value = float(loss.detach())
                if not math.isfinite(value):
                    bad = (number, value)
                    break
                # Weights relative to the first batch, so that numbers stay of the loss's own size.
                unit = unit or count
                weighted = loss if count == unit else loss * (count / unit)
                self._precision.scaled(weighted).backward()  # type: ignore[no-untyped-call]
            total += count
            for name, figure in losses.items():
                share = 1.0 if name == TOKENS else count
                sums[name] += float(figure.detach()) * share
        if self._peers.count > 1:
            total, unit, bad = self._share(sums, total, unit, bad)
        if bad is not None:
            raise TrainingDivergedError(
                f"loss: got {bad[1]} at step {step}, batch {bad[0]}, expected a finite number"
            )
        if total == 0.0:
            raise TrainingDataError(f"step {step}: got no token to predict, expected at least one")
        if total != unit:
            gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            torch._foreach_mul_(gradients, unit / total)
        return {name: value if name == TOKENS else value / total for name, value in sums.items()}

    def _number(self, step: int, index: int) -> int:
        """Of this worker's batch ``index`` of a step, in the run's one sequence."""
        return (step * self._accumulate + index) * self._peers.count + self._peers.rank

    def _share(
        self, sums: dict[str, float], total: float, unit: float, bad: tuple[int, float] | None
    ) -> tuple[float, float, tuple[int, float] | None]:
        """Put the sums over all workers into ``sums`` and the gradients.

        Args:
            bad: number and loss of this worker's first batch whose loss is no finite number.

        Returns: the new total, the unit of the gradients, and what is ``bad`` of all workers' batches.
        """
        names = sorted(sums)
        figures = torch.tensor([total, *(sums[name] for name in names)], dtype=torch.float64)
        has_gradient = torch.tensor([parameter.grad is not None for parameter in self._parameters]).double()
        gradients = [
            torch.zeros_like(p) if p.grad is None else p.grad.mul_(unit)  # as if each token's had been added
            for p in self._parameters
        ]
        bad_2N = torch.zeros(2, self._peers.count, dtype=torch.float64)  # a worker writes into its own column
        if bad is not None:
            bad_2N[:, self._peers.rank] = torch.tensor([bad[0] + 1, bad[1]], dtype=torch.float64)
        self._peers.sum_([figures, has_gradient, bad_2N, *gradients])
        for parameter, gradient, somewhere in zip(
            self._parameters, gradients, has_gradient.tolist(), strict=True
        ):
            parameter.grad = gradient if somewhere else None
        total, *values = figures.tolist()
        sums.update(zip(names, values, strict=True))
        all_bad = [(int(number) - 1, loss) for number, loss in bad_2N.T.tolist() if number]
        return total, 1.0, min(all_bad, default=None)

    def _next(self, batches: Iterator[BatchT], where: str) -> BatchT:
        try:
            return next(batches)
        except StopIteration:
            raise TrainingDataError(
                f"batches: ended before {where}, expected enough for every step"
            ) from None

    def _losses_of(self, batch: BatchT) -> Mapping[str, Tensor]:
        with self._precision.autocast():
            result = self._loss_of(batch)
        return result if isinstance(result, Mapping) else {"loss": result}

    def _clip(self, figures: dict[str, float], step: int) -> bool:
        """Note the norm and clip; whether the step must be left out."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        figures["gradient_norm"] = float(norm)
        if not math.isfinite(figures["gradient_norm"]):
            if self._precision.may_skip():
                return True
            per_step = self._accumulate * self._peers.count
            first, last = step * per_step, (step + 1) * per_step - 1
            batches = f"batch {last}" if first == last else f"in one of batches {first} to {last}"
            raise TrainingDivergedError(
                f"gradient norm: got {figures['gradient_norm']} at step {step}, {batches}, with a loss of "
                f"{figures['loss']}, expected a finite number"
            )
        if self._clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self._clip_norm, norm)
        return False
