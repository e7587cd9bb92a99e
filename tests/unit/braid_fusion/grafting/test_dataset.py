"""Texts become items without losing or doubling a token, and batches pad without adding one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import byte_tokenizer

from braid_fusion import create_fusion_dataset
from braid_fusion.errors import TrainingConfigError, TrainingDataError
from braid_fusion.grafting.dataset import describe_items, pad_batch

TOKENIZER = byte_tokenizer()
END = TOKENIZER.eos_token_id


@given(st.lists(st.text(max_size=30), min_size=1, max_size=4), st.integers(2, 12))
def test_every_token_but_a_texts_first_is_predicted_once_from_its_own_text(
    texts: list[str], max_length: int
) -> None:
    expected = [[*TOKENIZER(text)["input_ids"], END] for text in texts]
    expected = [ids for ids in expected if len(ids) > 1]
    if not expected:
        return
    dataset = create_fusion_dataset(texts, TOKENIZER, max_length=max_length)
    items = [dataset[number]["input_ids"].tolist() for number in range(len(dataset))]
    assert all(2 <= len(item) <= max_length for item in items)
    for ids in expected:  # items come in the texts' order
        joined = items.pop(0)
        while len(joined) < len(ids):
            piece = items.pop(0)
            assert piece[0] == joined[-1]
            joined = joined + piece[1:]
        assert joined == ids
    assert not items


def test_an_item_is_ids_mask_and_labels() -> None:
    dataset = create_fusion_dataset(["the hat"], TOKENIZER)
    ids = torch.tensor([*TOKENIZER("the hat")["input_ids"], END])
    (item,) = [dataset[number] for number in range(len(dataset))]
    assert torch.equal(item["input_ids"], ids)
    assert torch.equal(item["labels"], ids)
    assert torch.equal(item["attention_mask"], torch.ones_like(ids))
    without_end = create_fusion_dataset(["the hat"], TOKENIZER, append_eos=False)
    assert torch.equal(without_end[0]["input_ids"], ids[:-1])


def test_an_end_that_is_there_is_not_doubled() -> None:
    dataset = create_fusion_dataset(["hat" + TOKENIZER.eos_token], TOKENIZER)
    assert dataset[0]["input_ids"].tolist().count(END) == 1


@pytest.mark.parametrize("max_length", [1, 0, 2.5, True])
def test_a_wrong_length_is_named(max_length: int) -> None:
    with pytest.raises(TrainingConfigError, match=f"max_length: got {max_length}, expected a whole number"):
        create_fusion_dataset(["text"], TOKENIZER, max_length=max_length)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one text", "got one text 'one text', expected a sequence"),
        (["fine", 3], r"texts\[1\]: got int"),
        (["", ""], "got 2 texts without two tokens"),
        ([], "got 0 texts"),
    ],
)
def test_wrong_texts_are_named(texts: list[str], message: str) -> None:
    with pytest.raises(TrainingDataError, match=message):
        create_fusion_dataset(texts, TOKENIZER)


def test_a_batch_is_padded_on_the_right_and_padding_is_neither_seen_nor_predicted() -> None:
    batch = pad_batch([{"input_ids": [5, 6, 7]}, {"input_ids": torch.tensor([8, 9])}], pad_id=3)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, 9, -100]]


def test_items_that_are_padded_already_keep_their_masks() -> None:
    item = {"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0]}
    assert pad_batch([item], pad_id=3)["labels"].tolist() == [[5, 6, -100]]
    masked = {**item, "labels": [-100, 6, -100]}
    assert pad_batch([masked], pad_id=3)["labels"].tolist() == [[-100, 6, -100]]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"ids": [1]}, r"got \['ids'\], expected input_ids"),
        ({"input_ids": [1, 2], "labels": [1]}, r"labels \(1,\), expected \(T,\) each"),
        ({"input_ids": [[1, 2]]}, r"input_ids \(1, 2\)"),
    ],
)
def test_items_of_another_form_are_refused(item: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingDataError, match=message):
        pad_batch([item], pad_id=0)


def test_other_texts_are_told_apart() -> None:
    described = [
        describe_items(create_fusion_dataset([text] * 3, TOKENIZER)) for text in ("a hat", "a hat", "a cat")
    ]
    assert described[0] == described[1] != described[2]
