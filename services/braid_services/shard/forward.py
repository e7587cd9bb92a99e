"""A stateless, differentiable run of a model over whole sequences, span by span: what training and notebooks use.

Shapes: T packed rows, D width, R logit rows, V vocabulary. Knows no sessions and no caches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from braid_rpc.errors import InvalidRequestError, ShapeMismatchError, StepOrderError
from braid_services.shard.attention import WholeSequences
from braid_services.shard.spans import SpanModel, SpanRun, check_packed


class SpanForward:
    """A stateless forward over packed whole sequences, differentiable where gradients are enabled.

    Made by `ShardBackend.forward`; used on one thread. Gradients flow from the logits to injected states; the
    model's own parameters get none.
    """

    def __init__(
        self,
        model: SpanModel,
        token_ids_T: Tensor,
        lengths: Sequence[int],
        logit_rows: Sequence[int] | None = None,
    ) -> None:
        num_rows = check_packed(token_ids_T, lengths, model.input_vocab)
        if logit_rows is not None and not all(0 <= row < num_rows for row in logit_rows):
            raise InvalidRequestError(f"logit_rows: got {list(logit_rows)}, expected rows of [0, {num_rows})")
        device = model.device
        positions_T = torch.cat([torch.arange(length, device=device) for length in lengths])
        rows = None if logit_rows is None else torch.tensor(list(logit_rows), dtype=torch.long, device=device)
        self._model = model
        self._num_rows = num_rows
        self._run = SpanRun(model, token_ids_T.to(device), positions_T, rows, WholeSequences(list(lengths)))
        self._given: Tensor | None = None

    def run_to(self, layer: int) -> Tensor:
        """The states (T, D) entering ``layer``, without changing those so far."""
        return self._advance(layer, self._given)

    def resume(self, hidden_TD: Tensor, layer: int) -> Tensor:
        """Put ``hidden_TD`` in place of the present states, then run to ``layer``: (T, D)."""
        return self._advance(layer, self._checked(hidden_TD))

    def finish(self, hidden_TD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run to the end, from ``hidden_TD`` if given: the head's input (R, D) and the logits (R, V)."""
        hidden_TD = self._given if hidden_TD is None else self._checked(hidden_TD)
        self._refuse_if_done()
        self._given = None
        with self._model.lock.serving():
            return self._run.finish(hidden_TD)

    def _advance(self, layer: int, hidden_TD: Tensor | None) -> Tensor:
        self._refuse_if_done()
        if not self._run.layer <= layer < self._model.num_layers:
            raise StepOrderError(
                f"layer: got {layer}, expected one of [{self._run.layer}, {self._model.num_layers}); "
                "finish() runs the last span"
            )
        with self._model.lock.serving():
            self._given = self._run.advance(layer, hidden_TD)
        return self._given

    def _refuse_if_done(self) -> None:
        if self._run.is_done:
            raise StepOrderError("the forward has been finished; start another one")

    def _checked(self, hidden_TD: Tensor) -> Tensor:
        if self._given is None:
            raise StepOrderError("no states to replace yet: run_to() a layer first")
        if hidden_TD.shape != (self._num_rows, self._model.width):
            raise ShapeMismatchError(
                f"hidden: got {tuple(hidden_TD.shape)}, expected {(self._num_rows, self._model.width)}"
            )
        return hidden_TD.to(device=self._model.device, dtype=self._model.dtype)
