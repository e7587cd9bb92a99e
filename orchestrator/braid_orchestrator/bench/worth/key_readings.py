"""How models read exercises: tokenizers, and exercises as packed batches of their tokens.

A model reads characters, or pairs of letters: any two different letters side by side are one token, everything else
is characters. Both are tokenizers as shards have them. Knows no model.

Shapes: T packed rows, R rows of answers, E exercises.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Encoding, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from braid_orchestrator.bench.worth.key_exercises import START, Exercise
from braid_rpc.errors import InvalidRequestError

ALPHABET = "\n " + string.ascii_letters + string.digits + "+-=>"


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One tokenizer. Answers are read character by character by each, as none has letters."""

    tokenizer: Tokenizer

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return self.tokenizer.get_vocab_size()

    def encode(self, text: str) -> Encoding:
        """Raises: InvalidRequestError for a character that is not in `ALPHABET`."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        if sum(end - begin for begin, end in encoding.offsets) != len(text):
            raise InvalidRequestError(f"exercise: got {text!r}, expected characters of {ALPHABET!r} alone")
        return encoding


@dataclass(frozen=True, slots=True, eq=False)
class ExerciseBatch:
    """Exercises, one after the other, all as long as the longest, which is quicker than as long as they are: a
    `training.loss.Batch`. ``rows_E`` counts the answered characters of each."""

    token_ids_T: Tensor  # noqa: N815 - shape letters
    lengths: tuple[int, ...]
    loss_rows_R: Tensor  # noqa: N815 - shape letters
    targets_R: Tensor  # noqa: N815 - shape letters
    rows_E: tuple[int, ...]  # noqa: N815 - shape letters

    @property
    def num_targets(self) -> int:
        """How many characters are answered."""
        return self.targets_R.shape[0]


def pack(exercises: Sequence[Exercise], reading: Reading) -> ExerciseBatch:
    """Without the last token of each, which nothing is predicted from; filled up with starts."""
    (fill,) = reading.encode(START).ids
    encodings = [reading.encode(exercise.text) for exercise in exercises]
    length = max(map(len, encodings)) - 1
    ids: list[int] = []
    rows: list[int] = []
    targets: list[int] = []
    counts = []
    for exercise, encoding in zip(exercises, encodings, strict=True):
        is_answer = [False] * len(START)
        for part, counts_here in exercise.parts:
            is_answer += [counts_here] * len(part)
        own, begin = encoding.ids, len(ids)
        counted = [index for index, (at, _) in enumerate(encoding.offsets) if is_answer[at]]
        ids += own[:-1] + [fill] * (length + 1 - len(own))
        rows += [begin + index - 1 for index in counted]
        targets += [own[index] for index in counted]
        counts.append(len(counted))
    lengths = (length,) * len(exercises)
    return ExerciseBatch(torch.tensor(ids), lengths, torch.tensor(rows), torch.tensor(targets), tuple(counts))


def _reading(pairs: Sequence[tuple[str, str]]) -> Reading:
    """A token per character, in the order of the alphabet, and one per pair."""
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    names = [as_bytes.pre_tokenize_str(character)[0][0] for character in ALPHABET]
    names += [one + other for one, other in pairs]
    model = models.BPE({name: index for index, name in enumerate(names)}, list(pairs))
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = as_bytes
    tokenizer.decoder = decoders.ByteLevel()
    return Reading(tokenizer)


CHARACTERS = _reading(())
PAIRS = _reading(tuple(itertools.permutations(string.ascii_letters, 2)))
