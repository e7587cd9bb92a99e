"""How the records of `steps` become parts of requests to the `Fusion` service."""

from __future__ import annotations

from collections.abc import Sequence

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
