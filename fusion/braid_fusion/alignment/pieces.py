"""The bytes that each token of a tokenizer stands for in the middle of a text."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import Tokenizer


def token_pieces(tokenizer_json: str, vocab_size: int) -> list[bytes]:
    """Bytes per token id, ``vocab_size`` of them; empty for special tokens and for ids without a token.

    A leading space belongs to a token whose decoder writes one before it.
    """
    tokenizer = Tokenizer.from_str(tokenizer_json)
    raw = json.loads(tokenizer_json)
    special = {token["id"] for token in raw.get("added_tokens", ()) if token.get("special")}
    kinds = _kinds(raw.get("decoder"), "decoders") | _kinds(raw.get("pre_tokenizer"), "pretokenizers")
    pieces = [b""] * vocab_size
    for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
        if token_id < vocab_size and token_id not in special:
            pieces[token_id] = _piece(tokenizer, token, token_id, kinds)
    return pieces


def _piece(tokenizer: Tokenizer, token: str, token_id: int, kinds: frozenset[str]) -> bytes:
    if "ByteLevel" in kinds and all(char in _byte_of_char() for char in token):
        return bytes(_byte_of_char()[char] for char in token)
    if "ByteFallback" in kinds and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    # Behind itself, a token shows the space that the decoder leaves out at the start of a text.
    once = tokenizer.decode([token_id], skip_special_tokens=False)
    twice = tokenizer.decode([token_id, token_id], skip_special_tokens=False)
    return (twice[len(once) :] if twice.startswith(once) else once).encode()


def _kinds(part: dict[str, Any] | None, members: str) -> frozenset[str]:
    if part is None:
        return frozenset()
    inner = [_kinds(one, members) for one in part.get(members, ())]
    return frozenset([str(part.get("type"))]).union(*inner)


@cache
def _byte_of_char() -> dict[str, int]:
    """The printable character that byte-level tokenizers write for each byte, the other way round: printable
    Latin-1 stands for itself, all other bytes for the characters from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
