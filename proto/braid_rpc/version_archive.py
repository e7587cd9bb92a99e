"""A version of the fusion weights as one file: its folder as a plain tar. So it travels over HTTP.

`tar -C weights/v2 -c card.json weights.safetensors` makes the same. Nothing is ever unpacked to a disk.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import PurePosixPath

from braid_rpc.errors import InvalidRequestError

CARD_FILE, WEIGHTS_FILE = "card.json", "weights.safetensors"
ENVELOPE_BYTES = 64 * 2**10
"""More than the tar of two files has beside their content."""
_EXPECTED = f"a tar, not compressed, of {CARD_FILE} and {WEIGHTS_FILE}"


def write_archive(card_json: str, data: bytes) -> bytes:
    """The tar of a card and the weights that it belongs to."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in ((CARD_FILE, card_json.encode()), (WEIGHTS_FILE, data)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def read_archive(body: bytes) -> tuple[str, bytes]:
    """The card and the weights out of a tar of at least them; folders around them don't matter.

    Raises: InvalidRequestError for what is none, is damaged, or holds something else.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(body), mode="r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if member.isdir():
                    continue
                # A sparse file's holes would be filled in memory.
                if not member.isreg() or member.issparse() or name not in (CARD_FILE, WEIGHTS_FILE):
                    raise InvalidRequestError(f"body: got {member.name[:80]!r} in it, expected {_EXPECTED}")
                if name in found:
                    raise InvalidRequestError(f"body: got {name!r} twice, expected {_EXPECTED}")
                file = archive.extractfile(member)
                found[name] = b"" if file is None else file.read()
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        raise InvalidRequestError(
            f"body: got {len(body)} bytes that are no tar ({type(error).__name__}: {error}), expected {_EXPECTED}"
        ) from error
    for name in (CARD_FILE, WEIGHTS_FILE):
        if name not in found:
            raise InvalidRequestError(f"body: got no {name!r} in it, expected {_EXPECTED}")
    try:
        return found[CARD_FILE].decode(), found[WEIGHTS_FILE]
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{CARD_FILE}: got bytes that are not UTF-8 at {error.start}") from error
