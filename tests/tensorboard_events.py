"""Files of TensorBoard's events, read as it reads them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

Scalars = dict[str, list[tuple[int, float]]]


def records(path: Path) -> Iterator[bytes]:
    """Of a file: length, its checksum, the bytes, their checksum."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield data[at + 12 : at + 12 + length]
        at += 12 + length + 4


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
