"""Mixed precision: the loss under autocast, and for fp16 gradients scaled so that small ones don't vanish.

Parameters, gradients and optimisers stay in float32. bf16 has float32's range and needs no scale (Micikevicius et
al., 2018, arXiv 1710.03740, for fp16's loss scaling).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from braid_fusion.errors import TrainingConfigError
from braid_fusion.training.config import PrecisionName

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """How losses are computed and gradients scaled.

    Args:
        parameters: those that are trained.

    Raises: TrainingConfigError for fp16 anywhere but on a CUDA device, or where parameters aren't float32.
    """

    def __init__(self, name: PrecisionName, parameters: Sequence[Tensor]) -> None:
        self._device = parameters[0].device.type
        self._dtype = _DTYPES.get(name)
        self._scaler: torch.amp.GradScaler | None = None
        if name == "fp16":
            if self._device != "cuda":
                raise TrainingConfigError(
                    f"training.precision: got 'fp16' for parameters on {self._device}, expected them on a CUDA "
                    "device; bf16 needs none"
                )
            dtypes = {parameter.dtype for parameter in parameters}
            if dtypes != {torch.float32}:
                raise TrainingConfigError(
                    f"training.precision: got 'fp16' for parameters of {sorted(map(str, dtypes))}, "
                    "expected torch.float32"
                )
            self._scaler = torch.amp.GradScaler(self._device)

    def autocast(self) -> AbstractContextManager[Any]:
        """In which losses are computed."""
        return nullcontext() if self._dtype is None else torch.autocast(self._device, self._dtype)

    def scaled(self, loss: Tensor) -> Tensor:
        """What backward begins from."""
        return loss if self._scaler is None else self._scaler.scale(loss)

    def unscale(self, optimisers: Sequence[Optimizer]) -> None:
        """Bring gradients back to their size."""
        if self._scaler is not None:
            for optimiser in optimisers:
                self._scaler.unscale_(optimiser)

    def may_skip(self) -> bool:
        """Whether a gradient that is not finite may be the scale's fault, so that the step is left out and the
        scale halved. Not so once the scale is down to 1."""
        return self._scaler is not None and self._scaler.get_scale() > 1.0

    def step(self, optimisers: Sequence[Optimizer], *, skip: bool) -> None:
        """Let the optimisers take their step, or leave it out; then adapt the scale."""
        if not skip:
            for optimiser in optimisers:
                if self._scaler is None:
                    optimiser.step()
                else:
                    self._scaler.step(optimiser)
        if self._scaler is not None:
            self._scaler.update()

    def state_dict(self) -> dict[str, Any] | None:
        """The scale's state; None without one."""
        return None if self._scaler is None else self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """What `state_dict` gave, in the same precision."""
        if self._scaler is not None and state is not None:
            self._scaler.load_state_dict(state)
