"""Texts as token ids for training grafted layers. Knows a tokenizer and no model.

One item is one text, or a piece of one that is too long. Texts are not packed into one row: the layers look back
within a row, and a text must not see the one before it. Padding is up to whoever makes batches.

Letters: B items, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from braid_fusion.errors import TrainingConfigError, TrainingDataError
from braid_fusion.training.identity import tokens_hash

IGNORED = -100
"""The label of what isn't predicted, as transformers has it."""

_SAMPLES = 64


class FusionDataset(Dataset[dict[str, Tensor]]):
    """Items with ``input_ids``, ``attention_mask`` and ``labels``, (T,) int64 each with 2 ≤ T ≤ max_length.

    Labels are the input ids: a model shifts them by itself.
    """

    def __init__(self, pieces: Sequence[Tensor]) -> None:
        self._pieces = pieces

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids_T = self._pieces[index]
        return {"input_ids": ids_T, "attention_mask": torch.ones_like(ids_T), "labels": ids_T}


def create_fusion_dataset(
    texts: Sequence[str], tokenizer: Any, max_length: int = 512, *, append_eos: bool = True
) -> FusionDataset:
    """Tokenise texts for `FusionTrainer`.

    A text of more than ``max_length`` tokens is cut into pieces that overlap by one token, so that each of its tokens
    but the first is predicted exactly once. Texts with fewer than two tokens have nothing to predict: left out.

    Args:
        tokenizer: of transformers; adds the special tokens that it adds to any text.
        append_eos: put the end-of-text token, where the tokenizer has one, after each text, so that ends are learned.

    Raises: TrainingConfigError for a wrong ``max_length``, TrainingDataError if ``texts`` is one text or nothing is
        left of them.
    """
    if not isinstance(max_length, int) or isinstance(max_length, bool) or max_length < 2:
        raise TrainingConfigError(f"max_length: got {max_length!r}, expected a whole number from 2 on")
    if isinstance(texts, str):
        raise TrainingDataError(f"texts: got one text {texts[:40]!r}, expected a sequence of texts")
    end = tokenizer.eos_token_id if append_eos else None
    pieces: list[Tensor] = []
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TrainingDataError(f"texts[{number}]: got {type(text).__name__}, expected a text")
        ids = list(tokenizer(text, truncation=False, verbose=False)["input_ids"])
        if end is not None and ids[-1:] != [end]:
            ids.append(end)
        starts = range(0, max(len(ids) - 1, 0), max_length - 1)
        pieces += [torch.tensor(ids[start : start + max_length], dtype=torch.int64) for start in starts]
    if not pieces:
        raise TrainingDataError(
            f"texts: got {len(texts)} texts without two tokens in one, expected at least one such text"
        )
    return FusionDataset(pieces)


def pad_batch(items: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """A batch of items, (B, T) each, padded on the right to the longest: mask 0, label −100.

    Items may lack ``attention_mask`` (then all ones) and ``labels`` (then the input ids where the mask is 1).
    Raises: TrainingDataError for an item without ``input_ids`` or with parts of unequal lengths.
    """
    columns: dict[str, list[Tensor]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for item in items:
        if "input_ids" not in item:
            raise TrainingDataError(f"item: got {sorted(item)}, expected input_ids among them")
        ids_T = torch.as_tensor(item["input_ids"], dtype=torch.int64)
        mask_T = torch.as_tensor(item.get("attention_mask", torch.ones_like(ids_T)), dtype=torch.int64)
        labels_T = torch.as_tensor(
            item.get("labels", ids_T.masked_fill(mask_T == 0, IGNORED)), dtype=torch.int64
        )
        if not ids_T.dim() == 1 or not ids_T.shape == mask_T.shape == labels_T.shape:
            raise TrainingDataError(
                f"item: got input_ids {tuple(ids_T.shape)}, attention_mask {tuple(mask_T.shape)}, "
                f"labels {tuple(labels_T.shape)}, expected (T,) each"
            )
        for name, column in zip(columns, (ids_T, mask_T, labels_T), strict=True):
            columns[name].append(column)
    fillings = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORED}
    return {
        name: torch.nn.utils.rnn.pad_sequence(column, batch_first=True, padding_value=fillings[name])
        for name, column in columns.items()
    }


def describe_items(items: Any) -> dict[str, Any]:
    """What tells a dataset from another: a hash of the ids of at most 64 of its items, evenly spread."""
    count = len(items)
    chosen = [items[number] for number in range(0, count, max(1, count // _SAMPLES))][:_SAMPLES]
    ids = torch.cat([torch.as_tensor(item["input_ids"], dtype=torch.int64) for item in chosen])
    return {"sampled_ids_sha256": tokens_hash(ids)}
