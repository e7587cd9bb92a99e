"""One text to train on, and which fields of a record it is made of. Reads nothing, and knows no tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from braid_rpc.errors import InvalidRequestError

TEXT = "text"
PROMPT, COMPLETION = "prompt", "completion"


@dataclass(frozen=True, slots=True)
class Document:
    """A text; with a ``prompt``, what is to follow that.

    ``where`` names it in messages. ``size`` is its part in its source's size, in whatever unit that counts.
    """

    where: str
    text: str
    prompt: str | None = None
    size: int = 0


@dataclass(slots=True)
class Skipped:
    """What was left out, counted by reason, with the first of each: nothing is left out in silence."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def note(self, where: str, reason: str) -> None:
        """One more; ``reason`` completes "3 left out: …"."""
        self.counts[reason] += 1
        self.first.setdefault(reason, where)

    def lines(self) -> tuple[str, ...]:
        """One sentence for each reason."""
        return tuple(
            f"{count} left out: {reason}; the first is {self.first[reason]}"
            for reason, count in self.counts.items()
        )


def fields_of_document(names: Collection[str], asked: str | None, where: str) -> tuple[str, ...]:
    """Which of a record's fields make its document: one, or `PROMPT` and `COMPLETION`.

    Args:
        asked: the field that the user named; None: `TEXT`, or `PROMPT` and `COMPLETION`.

    Raises: InvalidRequestError if they are not there, or both kinds are.
    """
    kinds: tuple[tuple[str, ...], ...] = ((TEXT,), (PROMPT, COMPLETION)) if asked is None else ((asked,),)
    found = [kind for kind in kinds if all(name in names for name in kind)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(map(repr, names)) or "none"
    expected = ", or ".join(" and ".join(map(repr, kind)) for kind in kinds)
    both = ", not both; or to be told which field it is" if found else ""
    raise InvalidRequestError(f"{where}: got the fields {listed}, expected {expected}{both}")


def document_of(record: Mapping[str, object], fields: tuple[str, ...], where: str, size: int) -> Document:
    """The document of a record's ``fields``, as `fields_of_document` gives them.

    Raises: InvalidRequestError for a value that is no text, or none that UTF-8 can write.
    """
    texts = []
    for name in fields:
        value = record[name]
        if not isinstance(value, str):
            raise InvalidRequestError(f"{where}: {name}: got {type(value).__name__}, expected a text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"{where}: {name}: got a lone surrogate at character {error.start}, expected valid Unicode text"
            ) from error
        texts.append(value)
    return Document(where, texts[-1], texts[0] if len(texts) > 1 else None, size)
