"""What a client checks of a server before it talks to it."""

from __future__ import annotations

from braid_rpc.cards import PROTOCOL_VERSION
from braid_rpc.errors import ProtocolVersionError


def check_protocol(target: str, version: int) -> None:
    """Raises: ProtocolVersionError, naming both versions, unless the peer speaks ours."""
    if version != PROTOCOL_VERSION:
        raise ProtocolVersionError(
            f"{target}: the server speaks protocol version {version}, this client version {PROTOCOL_VERSION}"
        )
