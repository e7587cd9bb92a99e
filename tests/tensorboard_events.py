"""Files of TensorBoard's events, read as it reads them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

Scalars = dict[str, list[tuple[int, float]]]


def records(path: Path) -> Iterator[bytes]:
    """Of a file: length, its checksum, the bytes, their checksum. One that was cut off at the end is left out."""
    data, at = path.read_bytes(), 0
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        end = at + 12 + length + 4
        if end > len(data):
            return
        yield data[at + 12 : end - 4]
        at = end


def scalars(folder: Path) -> Scalars:
    """As TensorBoard shows them: a session that starts at a step makes it forget what was there from that step on."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    shown: Scalars = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for record in records(path):
            event = Event.FromString(record)
            if event.session_log.status == SessionLog.START:
                shown = {
                    tag: [point for point in points if point[0] < event.step] for tag, points in shown.items()
                }
            for value in event.summary.value:
                shown.setdefault(value.tag, []).append((event.step, value.simple_value))
    return shown
