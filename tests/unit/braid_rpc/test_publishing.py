"""How a version travels: in parts, again where nobody answers, and as one file."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid_rpc.errors import DeadlineError, InvalidRequestError, UnavailableError
from braid_rpc.fusion_client import FusionClient
from braid_rpc.publishing import (
    CHUNK_BYTES,
    MAX_CARD_BYTES,
    PublishedVersion,
    publish_header,
    publish_parts,
    publish_timeout_s,
)
from braid_rpc.v1 import fusion_pb2
from braid_rpc.version_archive import CARD_FILE, ENVELOPE_BYTES, WEIGHTS_FILE, read_archive, write_archive

from .fakes import serving
from .test_fusion_client import FakeFusion

DATA = bytes(range(256)) * 3 * 2**12


class Taking(FakeFusion):
    """Takes in what comes; refuses to answer a few times."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.failures = failures
        self.came: list[tuple[fusion_pb2.PublishHeader, list[bytes]]] = []

    def PublishVersion(self, parts: Iterator[Any], context: Any) -> fusion_pb2.PublishReply:
        header = next(parts).header
        self.came.append((header, [part.data for part in parts]))
        if len(self.came) <= self.failures:
            raise UnavailableError("not now")
        self.active = header.version if header.activate else self.active
        return fusion_pb2.PublishReply(version=header.version, in_memory_only=True, card=self.card())


def test_a_version_is_sent_in_chunks_with_its_progress(tmp_path: Path) -> None:
    taking, seen = Taking(), []
    with serving(taking, tmp_path) as server, FusionClient(server.targets[0]) as client:
        published = client.publish("{}", DATA, "v2", on_progress=lambda *at: seen.append(at))
        assert published == PublishedVersion("v2", "v2", in_memory_only=True)
        assert client.publish("{}", b"", "v3", False).active_version == "v2"
    header, chunks = taking.came[0]
    assert (header.version, header.card_json, header.activate) == ("v2", "{}", True)
    assert (header.num_bytes, header.sha256) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    assert b"".join(chunks) == DATA
    assert [len(chunk) for chunk in chunks] == [CHUNK_BYTES] * 3
    assert seen == [(CHUNK_BYTES * n, len(DATA)) for n in (1, 2, 3)]
    assert taking.came[1][1] == []


def test_it_is_repeated_from_its_beginning_where_nobody_answers(tmp_path: Path) -> None:
    taking = Taking(failures=2)
    with serving(taking, tmp_path) as server, FusionClient(server.targets[0], retries=2) as client:
        client.publish("{}", DATA, "v2")
    assert [b"".join(chunks) == DATA for _, chunks in taking.came] == [True] * 3
    with (
        serving(Taking(failures=3), tmp_path) as server,
        FusionClient(server.targets[0], retries=2) as client,
        pytest.raises(UnavailableError, match="not now"),
    ):
        client.publish("{}", DATA, "v2")


def test_what_takes_too_long_is_ended(tmp_path: Path) -> None:
    class Stuck(FakeFusion):
        def PublishVersion(self, parts: Iterator[Any], context: Any) -> fusion_pb2.PublishReply:
            for _ in parts:
                pass
            ended = threading.Event()
            if context.add_callback(ended.set):
                ended.wait(30)
            return fusion_pb2.PublishReply()

    with (
        serving(Stuck(), tmp_path) as server,
        FusionClient(server.targets[0]) as client,
        pytest.raises(DeadlineError, match=r"within 0\.2 s"),
    ):
        client.publish("{}", b"x", timeout_s=0.2)
    assert publish_timeout_s(60.0, 2**30) == 60.0 + 1024


def test_a_card_that_cannot_travel_is_refused_at_home() -> None:
    with pytest.raises(InvalidRequestError, match=f"card: got {MAX_CARD_BYTES + 2} bytes"):
        publish_header("é" + "x" * MAX_CARD_BYTES, b"", "", True)
    with pytest.raises(InvalidRequestError, match="not Unicode"):
        publish_header("\ud800", b"", "", True)


@given(st.binary(max_size=40), st.integers(1, 50))
def test_parts_hold_everything_once(data: bytes, chunk_bytes: int) -> None:
    first, *rest = publish_parts(publish_header("{}", data, "v", True), data, chunk_bytes)
    assert first.header.num_bytes == len(data)
    assert b"".join(part.data for part in rest) == data
    assert all(0 < len(part.data) <= chunk_bytes for part in rest)


# --- as one file --------------------------------------------------------------------------------------------


def tar_of(*members: tuple[str | tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=50), st.binary(max_size=5000))
def test_an_archive_comes_back_as_it_was(card_json: str, data: bytes) -> None:
    body = write_archive(card_json, data)
    assert read_archive(body) == (card_json, data)
    assert len(body) <= len(card_json.encode()) + len(data) + ENVELOPE_BYTES


def test_what_tar_makes_of_a_folder_is_one(tmp_path: Path) -> None:
    folder = tmp_path / "weights" / "v2"
    folder.mkdir(parents=True)
    (folder / CARD_FILE).write_text("{}")
    (folder / WEIGHTS_FILE).write_bytes(DATA)
    for arguments in (
        ["-C", str(folder), "-c", "card.json", "weights.safetensors"],
        ["-C", str(tmp_path), "-c", "."],
    ):
        made = subprocess.run(["tar", *arguments], capture_output=True, check=True, timeout=30)
        assert read_archive(made.stdout) == ("{}", DATA)


def special(kind: bytes, name: str = CARD_FILE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = "/etc/passwd"
    return member


CARD, WEIGHTS = (CARD_FILE, b"{}"), (WEIGHTS_FILE, b"x")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no tar"),
        (b"hello", "no tar"),
        (bytes(10_240), "no 'card.json' in it"),
        (tar_of(CARD), "no 'weights.safetensors' in it"),
        (tar_of(WEIGHTS), "no 'card.json' in it"),
        (tar_of(CARD, WEIGHTS, CARD), "'card.json' twice"),
        (tar_of(CARD, WEIGHTS, ("notes.txt", b"")), "got 'notes.txt' in it"),
        (tar_of((special(tarfile.SYMTYPE), b""), WEIGHTS), "got 'card.json' in it"),
        (tar_of((special(tarfile.LNKTYPE), b""), WEIGHTS), "got 'card.json' in it"),
        (tar_of((special(tarfile.FIFOTYPE), b""), WEIGHTS), "got 'card.json' in it"),
        (tar_of((CARD_FILE, b"\xff"), WEIGHTS), "not UTF-8 at 0"),
        (tar_of(CARD, (WEIGHTS_FILE, DATA))[:10_000], "no tar"),
    ],
)
def test_what_is_no_version_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        read_archive(body)


def test_an_archive_does_not_grow_in_memory() -> None:
    member = special(tarfile.GNUTYPE_SPARSE, WEIGHTS_FILE)
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"77777777777\0"  # the size of what it claims to be
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(InvalidRequestError, match="in it, expected a tar"):
        read_archive(bytes(header) + bytes(10_240))


@given(st.data())
def test_any_bytes_are_an_archive_or_a_typed_error(draw: st.DataObject) -> None:
    body = bytearray(write_archive("{}", b"weights"))
    for _ in range(draw.draw(st.integers(0, 8))):
        body[draw.draw(st.integers(0, 1600))] = draw.draw(st.integers(0, 255))
    with suppress(InvalidRequestError):
        read_archive(bytes(body[: draw.draw(st.integers(0, len(body)))]))
