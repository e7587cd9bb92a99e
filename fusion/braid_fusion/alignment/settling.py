"""A tokenizer that reads text as it grows and gives out only tokens that no later text can change.

Text is cut at places where the tokenizer itself cuts whatever follows, and each part is tokenized once. What was
given out is never taken back, so token by token and all at once give the same tokens by construction. Where a
tokenizer would have joined two parts after all (which the rules below make rare), its tokens differ there from
those of the whole text: a matter of quality, never of consistency.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding, Tokenizer

from braid_fusion.errors import UnreadableTokenizer

# A part that ends between two characters neither of which is white space needs that many behind it:
# contractions such as 'll are recognised late.
LOOKAHEAD_CHARS = 4
# Text without a place to cut is cut by force, so that neither lag nor work per token grows without limit.
MAX_PENDING_CHARS = 96
_FORCED_TAIL_CHARS = 32

_JOINERS = frozenset("\u200c\u200d")


@dataclass(frozen=True, slots=True)
class SettledToken:
    """``end`` counts the characters of the whole text up to which this token reaches."""

    token_id: int
    end: int


class SettlingTokenizer:
    """One lane's tokenizer; shared by all sessions, safe to use from several threads."""

    def __init__(self, tokenizer_json: str) -> None:
        """Raises: UnreadableTokenizer."""
        try:
            self._first = Tokenizer.from_str(tokenizer_json)
            self._rest = Tokenizer.from_str(_without_prefix(tokenizer_json))
        except Exception as error:  # the library raises bare Exception
            raise UnreadableTokenizer(f"tokenizer: not readable: {error}") from error
        for tokenizer in (self._first, self._rest):
            tokenizer.no_truncation()
            tokenizer.no_padding()
            # A special token's name in a text is text: who writes it mustn't end a document by it.
            tokenizer.encode_special_tokens = True
        raw = json.loads(tokenizer_json)
        self.leading_ids = _leading_ids(self._first)
        """What the tokenizer puts before every text, such as a begin-of-text token."""
        self._has_words = raw.get("pre_tokenizer") is not None
        self._settles_at_once = _never_joins(raw)
        added = [token["content"] for token in raw.get("added_tokens", ()) if not token.get("special")]
        self._begun_tokens = frozenset(token[:length] for token in added for length in range(1, len(token)))
        self._longest_begun = max((len(token) - 1 for token in added), default=0)

    def begin(self) -> SettlingText:
        """A text from its start."""
        return SettlingText(self)

    def encode(self, text: str, *, at_start: bool) -> Encoding:
        """Tokens of a part of a text, without special tokens; a space before the text only at its start."""
        tokenizer = self._first if at_start else self._rest
        return tokenizer.encode(text, add_special_tokens=False)

    def may_settle(self, text: str) -> bool:
        """False where `settled_tokens` would be 0 for certain; much cheaper."""
        if self._settles_at_once or len(text) > MAX_PENDING_CHARS:
            return True
        if any(map(str.isspace, text[1:])):
            return True
        return self._has_words and (len(text) > LOOKAHEAD_CHARS or text[0].isspace())

    def settled_tokens(self, text: str, encoding: Encoding) -> int:
        """How many of the encoding's tokens no later text can change."""
        starts = [start for start, _ in encoding.offsets]
        if self._settles_at_once:
            return len(starts)
        last = self._last_cut(text)
        words = encoding.word_ids
        for index in range(len(starts) - 1, 0, -1):
            at = starts[index]
            if not 0 < at <= last or at <= starts[index - 1]:
                continue
            begins_word = words[index] != words[index - 1] if self._has_words else _begins_blank(text, at)
            if begins_word and _cuts(text, at):
                return index
        if len(text) > MAX_PENDING_CHARS:
            limit = len(text) - _FORCED_TAIL_CHARS
            begins = (i for i in range(1, len(starts)) if starts[i - 1] < starts[i] <= limit)
            return max(begins, default=len(starts))
        return 0

    def _last_cut(self, text: str) -> int:
        """Beyond it, more text may join what is there: white space, or the beginning of an added token."""
        last = len(text.rstrip())
        for length in range(min(self._longest_begun, len(text)), 0, -1):
            if text[-length:] in self._begun_tokens:
                return min(last, len(text) - length)
        return last


class SettlingText:
    """One text while it grows."""

    def __init__(self, tokenizer: SettlingTokenizer) -> None:
        self._tokenizer = tokenizer
        self._tail = ""
        self.settled_chars = 0
        """Characters of the text whose tokens were given out."""

    @property
    def pending(self) -> str:
        """The text behind those."""
        return self._tail

    def push(self, text: str) -> list[SettledToken]:
        """More of the text; returns the tokens that became certain with it."""
        if not text:
            return []
        tokens: list[SettledToken] = []
        # By character, where much comes at once: so it makes no difference to where text is cut by force.
        for begin in range(0, len(text), _FORCED_TAIL_CHARS):
            self._tail += text[begin : begin + _FORCED_TAIL_CHARS]
            tokens.extend(self._settle())
        return tokens

    def copy(self) -> SettlingText:
        """The same text, to grow differently."""
        twin = SettlingText(self._tokenizer)
        twin._tail, twin.settled_chars = self._tail, self.settled_chars
        return twin

    def _settle(self) -> list[SettledToken]:
        if not self._tokenizer.may_settle(self._tail):
            return []
        encoding = self._tokenizer.encode(self._tail, at_start=self.settled_chars == 0)
        offsets = encoding.offsets
        count = self._tokenizer.settled_tokens(self._tail, encoding)
        if count == 0 and (offsets or len(self._tail) <= MAX_PENDING_CHARS):
            return []  # text that makes no tokens at all, such as white space for some, is passed over
        cut = offsets[count][0] if count < len(offsets) else len(self._tail)
        tokens, reached = [], 0
        for token_id, (_, end) in zip(encoding.ids[:count], offsets, strict=False):
            reached = min(max(reached, end), cut)
            tokens.append(SettledToken(token_id, self.settled_chars + reached))
        self._tail = self._tail[cut:]
        self.settled_chars += cut
        return tokens


def _begins_blank(text: str, at: int) -> bool:
    return text[at].isspace() and not text[at - 1].isspace()


def _cuts(text: str, at: int) -> bool:
    """A word that begins here begins here whatever follows."""
    before, after = text[at - 1], text[at]
    if _extends(after):
        return False
    if before.isspace() != after.isspace():
        return True
    return len(text) - at >= LOOKAHEAD_CHARS and not (before.isdigit() and after.isdigit())


def _extends(char: str) -> bool:
    """It belongs to the character before it: combining marks, joiners, variation selectors, skin tones."""
    return char in _JOINERS or unicodedata.category(char)[0] == "M" or "\U0001f3fb" <= char <= "\U0001f3ff"


def _leading_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    encoding = tokenizer.encode("a", add_special_tokens=True)
    leading = []
    for token_id, is_special in zip(encoding.ids, encoding.special_tokens_mask, strict=True):
        if not is_special:
            break
        leading.append(token_id)
    return tuple(leading)


def _never_joins(raw: dict[str, Any]) -> bool:
    """Every character has tokens of its own: no merges, nothing normalised, no word that is looked up whole."""
    model = raw.get("model") or {}
    if model.get("type") != "BPE" or raw.get("normalizer"):
        return False
    looks_further = ("merges", "ignore_merges", "fuse_unk", "continuing_subword_prefix", "end_of_word_suffix")
    added = any(not token.get("special") for token in raw.get("added_tokens", ()))
    return not added and not any(model.get(key) for key in looks_further)


def _without_prefix(tokenizer_json: str) -> str:
    """The same tokenizer for text that goes on: no space is put before it."""
    raw = json.loads(tokenizer_json)
    raw["normalizer"] = _strip_prefix(raw.get("normalizer"), "normalizers")
    raw["pre_tokenizer"] = _strip_prefix(raw.get("pre_tokenizer"), "pretokenizers")
    return json.dumps(raw)


def _strip_prefix(part: dict[str, Any] | None, members: str) -> dict[str, Any] | None:
    if part is None or part.get("type") == "Prepend":
        return None
    if part.get("type") == "Sequence":
        kept: Sequence[Any] = [_strip_prefix(one, members) for one in part.get(members, ())]
        return {**part, members: [one for one in kept if one is not None]}
    if part.get("type") == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    if part.get("type") == "ByteLevel":
        return {**part, "add_prefix_space": False}
    return part
