"""How the records of `steps` become parts of requests to the `Fusion` service, and what its answers hold."""

from __future__ import annotations

from collections.abc import Sequence

from braid_rpc.errors import FrameError
from braid_rpc.shard_messages import segments_to_proto
from braid_rpc.steps import Lane
from braid_rpc.v1 import fusion_pb2


def lanes_to_proto(lanes: Sequence[Lane]) -> list[fusion_pb2.Lane]:
    """The messages that say the same; the first lane's segments stand in the request itself."""
    return [
        fusion_pb2.Lane(
            segments=segments_to_proto(lane.segments) if index else (),
            seen=[fusion_pb2.Seen(positions=positions) for positions in lane.seen],
        )
        for index, lane in enumerate(lanes)
    ]


def row_metrics_of(fused: fusion_pb2.Fused, num_rows: int) -> dict[str, tuple[float, ...]]:
    """What a point tells of the ``num_rows`` rows asked for, by name. Raises: FrameError for another number."""
    found = {name: tuple(told.values) for name, told in fused.row_metrics.items()}
    for name, values in found.items():
        if len(values) != num_rows:
            raise FrameError(f"fusion service: got {len(values)} values of {name!r}, expected {num_rows}")
    return found
