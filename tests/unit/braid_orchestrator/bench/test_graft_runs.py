"""A run's text is split so that no test byte is trained on, and bits per byte are those of the definition."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from models import byte_tokenizer, save_tiny_model, tiny_llama
from torch.nn import functional

from braid_orchestrator.bench.graft_runs import EncodedSplit, Runner, RunSpec, bits_per_byte, read_splits

PARAGRAPHS = [f"paragraph {number}: " + "word " * (number % 7) for number in range(400)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    save_tiny_model(folder / "model", seed=1)
    (folder / "text.txt").write_text("\n\n".join(PARAGRAPHS), encoding="utf-8")
    return folder


def test_training_and_held_out_texts_share_nothing(folder: Path) -> None:
    train_ids, validation, test = read_splits(str(folder / "model"), str(folder / "text.txt"), 16, 10_000)
    tokenizer = byte_tokenizer()
    train = tokenizer.decode(train_ids.tolist())
    held_out = [
        tokenizer.decode(torch.cat([w[:-1] for w in s.windows_NL]).tolist()) for s in (validation, test)
    ]
    last = [max(n for n in range(400) if f"paragraph {n}:" in text) for text in (train, held_out[0])]
    first = [min(n for n in range(400) if f"paragraph {n}:" in text) for text in held_out]
    assert last[0] < first[0] and last[1] < first[1]


def test_bits_per_byte_are_those_of_the_definition() -> None:
    model, text = tiny_llama(2), "the other thing is the answer, in her other house there"
    ids = byte_tokenizer()(text)["input_ids"]
    length = (len(ids) - 1) // 2
    windows = torch.tensor([ids[: length + 1], ids[length : 2 * length + 1]])
    num_bytes = len(byte_tokenizer().decode(ids[1 : 2 * length + 1]).encode())
    nats = 0.0
    for window in windows:
        with torch.no_grad():
            logits = model(input_ids=window[None, :-1]).logits[0]
        nats += sum(
            float(-functional.log_softmax(row, -1)[target])
            for row, target in zip(logits, window[1:], strict=True)
        )
    assert bits_per_byte(model, EncodedSplit(windows, num_bytes)) == pytest.approx(
        nats / math.log(2) / num_bytes, rel=1e-5
    )


def test_a_bare_run_trains_nothing_and_a_grafted_one_learns(folder: Path) -> None:
    runner = Runner()
    spec = RunSpec(str(folder / "model"), str(folder / "text.txt"), window=16, held_out_bytes=500)
    bare = runner.run(spec)
    assert bare.num_parameters == 0
    grafted = runner.run(
        RunSpec(spec.model, spec.text, "graft", "minimal", num_steps=15, window=16, held_out_bytes=500)
    )
    assert grafted.num_parameters > 0
    assert grafted.test < bare.test - 0.1
