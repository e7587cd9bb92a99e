"""Checks what a caller says of a batch's rows before anything is looked up by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from braid_rpc.errors import InvalidRequestError, StepOrderError
from braid_rpc.steps import Lane


def check_lanes(lanes: Sequence[Lane], num_lanes: int, lengths: Mapping[str, Sequence[int]]) -> None:
    """The lanes of a new batch fit to each other and to the sessions' ``lengths``, one per lane; the sessions in the
    order of the anchor's segments.

    Raises: InvalidRequestError, StepOrderError; saying what was got and what was expected.
    """
    if len(lanes) != num_lanes:
        raise InvalidRequestError(
            f"fuse: got the rows of {len(lanes)} lanes, expected {num_lanes}: one per tokenizer"
        )
    order = {name: place for place, name in enumerate(lengths)}
    for index, lane in enumerate(lanes):
        _check_segments(index, lane, lengths)
        places = [order[segment.session_id] for segment in lane.segments]
        if places != sorted(places):
            raise InvalidRequestError(
                f"fuse: lane {index}: got sessions {[segment.session_id for segment in lane.segments]}, expected "
                "them in the order of the anchor's lane"
            )
    if num_lanes == 1:
        return
    ends = [{s.session_id: s.position + s.num_rows for s in lane.segments} for lane in lanes]
    for index, lane in enumerate(lanes):
        shape = [len(positions) for positions in lane.seen]
        if shape != [lane.num_rows] * num_lanes:
            raise InvalidRequestError(
                f"fuse: lane {index}: seen: got {shape} positions, expected {num_lanes} times {lane.num_rows}"
            )
        for other, positions in enumerate(lane.seen):
            row = 0
            for segment in lane.segments:
                name = segment.session_id
                end = ends[other].get(name, lengths[name][other])
                own = positions[row : row + segment.num_rows]
                row += segment.num_rows
                if not -1 <= min(own) <= max(own) < end:
                    raise InvalidRequestError(
                        f"fuse: session {name!r}: lane {index} sees {min(own)} to {max(own)} of lane {other}, "
                        f"expected -1 to {end - 1}"
                    )


def _check_segments(index: int, lane: Lane, lengths: Mapping[str, Sequence[int]]) -> None:
    if len({segment.session_id for segment in lane.segments}) != len(lane.segments):
        raise InvalidRequestError("fuse: got two segments of one session, expected each session once")
    for segment in lane.segments:
        name = segment.session_id
        if name not in lengths:
            raise InvalidRequestError(
                f"fuse: lane {index}: got session {name!r}, expected one that has rows in the anchor's lane"
            )
        if segment.num_rows < 1:
            raise InvalidRequestError(
                f"fuse: session {name!r}: got {segment.num_rows} rows, expected at least 1"
            )
        if segment.position != lengths[name][index]:
            raise StepOrderError(
                f"fuse: session {name!r}: got position {segment.position}, expected {lengths[name][index]}"
            )
