"""Sessions in the fusion service, from a program of one's own: states in, fused states out, as numpy arrays.

Shapes: T rows of a batch, R rows of a readout, S shards, D_s a shard's width, N features read off its logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from braid_rpc.errors import FrameError
from braid_rpc.fusion_messages import lanes_to_proto
from braid_rpc.shard_messages import segments_to_proto
from braid_rpc.steps import Lane, Segment
from braid_rpc.stream_client import FusionStreamClient
from braid_rpc.tensor import FLOAT_DTYPES, AnyArray, decode_tensor, encode_tensor
from braid_rpc.v1 import fusion_pb2


class FusionStream:
    """Sessions in the fusion service, with numpy arrays. Not for two threads.

    Every method raises what the service raised, UnavailableError if it is gone, DeadlineError if it takes longer
    than the client's timeout.
    """

    def __init__(self, target: str, timeout_s: float, max_message_bytes: int) -> None:
        self._timeout_s = timeout_s
        self._max_bytes = max_message_bytes
        self._client = FusionStreamClient(
            target, max_message_bytes=max_message_bytes, send_timeout_s=timeout_s
        )

    def open(self, session_ids: Sequence[str], version: str = "") -> str:
        """Open sessions, under ``version`` (empty: the active one); returns the version that they keep."""
        op = fusion_pb2.OpenFusionSessions(session_ids=session_ids, version=version)
        return str(self._call(fusion_pb2.FusionRequest(open=op)).opened.version)

    def fuse(
        self,
        step_id: int,
        point: int,
        segments: Sequence[Segment],
        states: Sequence[AnyArray],
        lanes: Sequence[Lane] = (),
    ) -> list[AnyArray | None]:
        """Exchange states at a point of the plan.

        Args:
            segments: whose rows these are, in order.
            states: one (T, D_s) per shard of the plan.
            lanes: where shards have different tokenizers, the rows of each lane, the anchor's (the same
                ``segments``) first.

        Returns: one (T, D_s) per shard, injected already; None for a shard that receives nothing.
        """
        op = fusion_pb2.Fuse(
            step_id=step_id,
            point=point,
            segments=segments_to_proto(segments),
            states=[encode_tensor(state) for state in states],
            lanes=lanes_to_proto(lanes),
        )
        fused = self._call(fusion_pb2.FusionRequest(fuse=op)).fused.states
        if len(fused) != len(states):
            raise FrameError(f"fused: got {len(fused)} states, expected one per shard: {len(states)}")
        return [
            decode_tensor(
                message, dtypes=FLOAT_DTYPES, shape=state.shape, max_bytes=self._max_bytes, what="fused state"
            )
            if message.shape
            else None
            for message, state in zip(fused, states, strict=True)
        ]

    def read_out(
        self,
        step_id: int,
        session_ids: Sequence[str],
        hidden: Sequence[AnyArray],
        features_RSN: AnyArray | None = None,
    ) -> AnyArray:
        """The shards' mixing weights, as logarithms: (R, S) float32.

        Args:
            session_ids: one per row.
            hidden: one (R, D_s) per shard, the head's input.
            features_RSN: what was read off the shards' logits, where the readout asks for it.
        """
        op = fusion_pb2.ReadOut(
            step_id=step_id,
            session_ids=session_ids,
            hidden=[encode_tensor(states) for states in hidden],
            features=None if features_RSN is None else encode_tensor(features_RSN),
        )
        reply = self._call(fusion_pb2.FusionRequest(read_out=op))
        return decode_tensor(
            reply.weights.log_weights,
            dtypes=("float32",),
            shape=(len(session_ids), len(hidden)),
            max_bytes=self._max_bytes,
            what="log_weights",
        )

    def crop(self, session_id: str, length: int, lane_lengths: Sequence[int] = ()) -> None:
        """Forget cached positions from ``length`` on, in further lanes from theirs."""
        op = fusion_pb2.CropFusion(session_id=session_id, length=length, lane_lengths=lane_lengths)
        self._call(fusion_pb2.FusionRequest(crop=op))

    def close(self, session_ids: Sequence[str]) -> None:
        """Free the sessions' state. Unknown ids are passed over."""
        op = fusion_pb2.CloseFusionSessions(session_ids=session_ids)
        self._call(fusion_pb2.FusionRequest(close=op))

    def end(self) -> None:
        """End the stream, which frees everything that was opened on it."""
        self._client.close()

    def _call(self, request: fusion_pb2.FusionRequest) -> fusion_pb2.FusionReply:
        return self._client.call(request, self._timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
