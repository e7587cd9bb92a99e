"""The bytes that a vocabulary's entries stand for, where an entry on its own is no text. Knows no tokenizer."""

from __future__ import annotations

import re

_BYTE_FALLBACK = re.compile("<0x([0-9A-F]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, those from U+0100 on for the others."""
    itself = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in itself]
    return {chr(byte): byte for byte in itself} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_LEVEL = _byte_level_alphabet()


def bytes_of_piece(piece: str) -> list[int] | None:
    """By byte fallback (``<0xE2>``) or in the byte-level alphabet; None if the entry is of neither kind."""
    if fallback := _BYTE_FALLBACK.fullmatch(piece):
        return [int(fallback[1], 16)]
    found = [_BYTE_LEVEL.get(char) for char in piece]
    return None if None in found else [byte for byte in found if byte is not None]
