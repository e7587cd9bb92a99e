"""From text to token ids and back, and text that grows token by token. Knows tokenizers, not models.

A stream of tokens is not a stream of characters: a token may hold half of one, or spaces that only show
between two tokens. `IncrementalDecoder` gives out text as soon as later tokens can't change it;
`StopScanner` keeps back what may turn out to be the beginning of a stop string.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenizers import Tokenizer

from braid_orchestrator.engine.token_bytes import bytes_of_piece
from braid_rpc.errors import ConfigError, InvalidRequestError

# How many tokens of the prompt are decoded along with the first new ones, so that spacing comes out right.
_CONTEXT_TOKENS = 5
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# No character takes more tokens than this; what is held back longer is no character.
_MAX_HELD_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids with their character offsets, ``[start, end)`` each; (0, 0) for tokens not in the text."""

    token_ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


class TextCodec:
    """A tokenizer as the engine needs it. Safe to use from several threads."""

    def __init__(self, tokenizer_json: str) -> None:
        """Raises: ConfigError if the text is not a tokenizer of the `tokenizers` library."""
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises bare Exception
            raise ConfigError(f"tokenizer: not readable by the tokenizers library: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @cached_property
    def longest_token(self) -> int:
        """The most characters that one token stands for. More than that only come of texts that a normalizer
        shortens, or that are unknown as a whole."""
        return max((len(token) for token in self._tokenizer.get_vocab(with_added_tokens=True)), default=1)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Encoded:
        """Raises: InvalidRequestError if the text can't be encoded (a lone surrogate, say)."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"prompt: got a lone surrogate at character {error.start}, expected valid Unicode text"
            ) from error
        encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return Encoded(tuple(encoding.ids), tuple(encoding.offsets))

    def decode(self, token_ids: Sequence[int], *, keep_special_tokens: bool = False) -> str:
        """The text of the ids; bytes that form no character come out as U+FFFD."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=not keep_special_tokens)

    def token_name(self, token_id: int) -> str:
        """The text of one token on its own, special tokens by their name."""
        return self.decode([token_id], keep_special_tokens=True)

    def token_bytes(self, token_id: int) -> list[int] | None:
        """The UTF-8 bytes of one token's text, also where they are but a part of a character; None if the tokenizer
        doesn't tell."""
        name = self.token_name(token_id)
        piece = self._tokenizer.id_to_token(token_id) or ""
        if _REPLACEMENT in name:
            return bytes_of_piece(piece)
        # Decoders drop the space before a text's first word.
        return [*(" " + name if piece.startswith("▁") and not name.startswith(" ") else name).encode()]


class IncrementalDecoder:
    """Gives out the text of a growing list of token ids, each character once and only when it is whole."""

    def __init__(self, codec: TextCodec, prompt_ids: Sequence[int]) -> None:
        self._codec = codec
        self._window = list(prompt_ids[-_CONTEXT_TOKENS:])
        self._emitted = len(self._codec.decode(self._window))
        self._num_settled = len(self._window)
        self.is_within_character = False
        """Whether the tokens so far end with a part of a character, which was not given out."""

    def push(self, token_id: int) -> str:
        """The text that became certain with this token."""
        self._window.append(token_id)
        text = self._codec.decode(self._window)
        is_open = text.endswith(_REPLACEMENT) and len(self._window) - self._num_settled < _MAX_HELD_TOKENS
        self.is_within_character = is_open and len(text) > self._emitted
        return "" if is_open or len(text) <= self._emitted else self._advance(text)

    def copy(self) -> IncrementalDecoder:
        """The same, to go on differently."""
        twin = IncrementalDecoder(self._codec, ())
        twin._window, twin._emitted = [*self._window], self._emitted
        twin._num_settled, twin.is_within_character = self._num_settled, self.is_within_character
        return twin

    def flush(self) -> str:
        """What is left at the end, half characters as U+FFFD."""
        text = self._codec.decode(self._window)
        return self._advance(text) if len(text) > self._emitted else ""

    def _advance(self, text: str) -> str:
        fresh = text[self._emitted :]
        # Tokens given out completely stay only as context for the spacing of those that follow.
        self._window = self._window[self._num_settled :]
        self._num_settled = len(self._window)
        self._emitted = len(self._codec.decode(self._window))
        return fresh


class StopScanner:
    """Looks for stop strings in text that comes in pieces. The one that is complete first ends the text, the
    longest of those that end at the same place; so how the text is cut makes no difference."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Returns what can be given out and the stop string that was met, if one was: the text ends before it."""
        if not self._stop:
            return text, None
        self._held += text
        hits = [(self._held.find(stop), stop) for stop in self._stop if stop in self._held]
        if hits:
            at, stop = min(hits, key=lambda hit: (hit[0] + len(hit[1]), hit[0]))
            out, self._held = self._held[:at], ""
            return out, stop
        keep = max(_longest_suffix_that_begins(self._held, stop) for stop in self._stop)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out, None

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        out, self._held = self._held, ""
        return out


def _longest_suffix_that_begins(text: str, stop: str) -> int:
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
