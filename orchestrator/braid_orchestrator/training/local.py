"""A shard of this process, for training."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from braid_rpc.cards import ShardCard
from braid_rpc.training import SpanInputs, SpanOutputs
from braid_services.shard.backend import ShardBackend


class LocalTrainingShard:
    """A `TrainingShard` with a thread of its own. The backend stays the caller's."""

    def __init__(self, backend: ShardBackend) -> None:
        self._backend = backend
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"training-{backend.config.name}")

    @property
    def name(self) -> str:
        """The shard's name."""
        return self._backend.config.name

    @property
    def card(self) -> ShardCard:
        """See `ports.TrainingShard`."""
        return self._backend.card

    def tokenizer_json(self) -> str:
        """See `ports.TrainingShard`."""
        return self._backend.tokenizer_json()

    def forward(self, inputs: SpanInputs[Tensor], graph_id: str = "") -> Future[SpanOutputs[Tensor]]:
        """See `ports.TrainingShard`."""
        return self._thread.submit(lambda: self._backend.training.forward(inputs, graph_id).outputs)

    def backward(
        self, graph_id: str, gradients: SpanOutputs[Tensor], inputs: SpanInputs[Tensor]
    ) -> Future[Tensor]:
        """See `ports.TrainingShard`."""

        def run() -> Tensor:
            hidden_TD = self._backend.training.backward(graph_id, gradients, inputs).hidden
            if hidden_TD is None:
                raise RuntimeError("a span with its inputs given was answered without a gradient")
            return hidden_TD

        return self._thread.submit(run)

    def shutdown(self) -> None:
        """See `ports.TrainingShard`."""
        self._thread.shutdown(cancel_futures=True)
