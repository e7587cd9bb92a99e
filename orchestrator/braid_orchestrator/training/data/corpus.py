"""The token ids of many documents, held compactly. Knows neither where they come from nor how they are cut.

Letters: N tokens of all documents.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenCorpus:
    """Documents one after the other.

    ``token_ids_N``: int32. ``bounds``: int64, one more than documents: document i is tokens ``bounds[i]`` to
    ``bounds[i + 1]``. ``uncounted``: int32, how many of each document's first tokens are not to be learned, a
    prompt's for example. ``has_prompts``: some document is a prompt with its completion.
    """

    token_ids_N: Tensor  # noqa: N815 - shape letters
    bounds: Tensor
    uncounted: Tensor
    has_prompts: bool = False

    @property
    def num_tokens(self) -> int:
        """Of all documents, those included that were put around their texts."""
        return self.token_ids_N.numel()

    @property
    def num_documents(self) -> int:
        """None of them is empty."""
        return self.uncounted.numel()

    def counts(self, places: Tensor) -> Tensor:
        """Which tokens, numbered through the corpus, are to be learned where they are predicted."""
        documents = torch.searchsorted(self.bounds, places, right=True) - 1
        return places - self.bounds[documents] >= self.uncounted[documents]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex, 16 digits) of all that is here."""
        digest = hashlib.sha256()
        for tensor in (self.token_ids_N, self.bounds, self.uncounted):
            digest.update(f"{tensor.numel()} ".encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def of_documents(self, documents: Tensor) -> TokenCorpus:
        """Those documents alone, by ascending numbers."""
        lengths = self.bounds.diff()
        kept = torch.zeros(self.num_documents, dtype=torch.bool)
        kept[documents] = True
        tokens = self.token_ids_N[kept.repeat_interleave(lengths)]
        return TokenCorpus(tokens, _bounds(lengths[kept]), self.uncounted[kept], self.has_prompts)

    def cut_at(self, place: int) -> tuple[TokenCorpus, TokenCorpus]:
        """The tokens before a place within the corpus and those from it on, perhaps of one document."""
        inner = self.bounds[(self.bounds > 0) & (self.bounds < place)]
        before = torch.cat([torch.tensor([0]), inner, torch.tensor([place])])
        behind = torch.cat([torch.tensor([place]), self.bounds[self.bounds > place]])
        first = self.num_documents - (behind.numel() - 1)
        uncounted = self.uncounted[first:].clone()
        uncounted[0] = (uncounted[0] - (place - self.bounds[first])).clamp(min=0)
        return (
            TokenCorpus(
                self.token_ids_N[:place], before, self.uncounted[: before.numel() - 1], self.has_prompts
            ),
            TokenCorpus(self.token_ids_N[place:], behind - place, uncounted, self.has_prompts),
        )

    @classmethod
    def joined(cls, parts: Sequence[TokenCorpus]) -> TokenCorpus:
        """All documents of several, at least one."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            torch.cat([part.token_ids_N for part in parts]),
            _bounds(torch.cat([part.bounds.diff() for part in parts])),
            torch.cat([part.uncounted for part in parts]),
            any(part.has_prompts for part in parts),
        )


class CorpusBuilder:
    """Takes documents one after the other, four bytes a token."""

    def __init__(self) -> None:
        self._token_ids, self._bounds, self._uncounted = array("i"), array("q", [0]), array("i")
        self._has_prompts = False

    @property
    def num_tokens_pending(self) -> int:
        """Tokens of the document that has not ended."""
        return len(self._token_ids) - self._bounds[-1]

    def extend(self, token_ids: Iterable[int]) -> None:
        """More of the document at hand."""
        self._token_ids.extend(token_ids)

    def end_document(self, uncounted: int, *, has_prompt: bool = False) -> None:
        """What was put in since the last one is a document; it must have a token."""
        self._bounds.append(len(self._token_ids))
        self._uncounted.append(uncounted)
        self._has_prompts |= has_prompt

    def build(self) -> TokenCorpus | None:
        """All ended documents; None if there are none. The builder is not to be used further."""
        if not self._uncounted:
            return None
        return TokenCorpus(
            torch.frombuffer(self._token_ids, dtype=torch.int32),
            torch.frombuffer(self._bounds, dtype=torch.int64),
            torch.frombuffer(self._uncounted, dtype=torch.int32),
            self._has_prompts,
        )


def _bounds(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
