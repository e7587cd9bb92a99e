"""A shard's next-token probabilities over the anchor's vocabulary, against the definition taken literally."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizations import KINDS, tokenizer_json
from tokenizers import Tokenizer
from torch import Tensor

import braid_fusion.alignment.vocabulary as vocabulary_module
from braid_fusion.alignment import VocabularyMap, token_pieces

ANCHOR = [b"", b"a", b"ab", b"abc", b" a", b" ", b"b", b"\xe2\x82", b"\xe2"]
SHARD = [b"a", b"", b"abcd", b" ab", b"\xe2\x82\xac", b"ab", b"zz", b"", b"\xff\xff"]


def literally(shard_U: Tensor, anchor_V: Tensor, pending: bytes, same: dict[int, int]) -> Tensor:
    """One row, token by token."""
    given_V = torch.zeros_like(anchor_V)
    silent, told = 0.0, 0.0
    for own, piece in enumerate(SHARD):
        q = float(shard_U[own])
        if not piece:
            if pending:
                continue
            if own in same:
                given_V[same[own]] += q
                told += q
            else:
                silent += q
        elif pending.startswith(piece):
            silent += q
        elif piece.startswith(pending):
            rest = piece[len(pending) :]
            agree = [w for w, p in enumerate(ANCHOR) if p and (p.startswith(rest) or rest.startswith(p))]
            total = sum(float(anchor_V[w]) for w in agree)
            if total > 0:
                told += q
                for w in agree:
                    given_V[w] += q * float(anchor_V[w]) / total
    return (given_V + silent * anchor_V) / (told + silent) if told + silent > 0 else anchor_V


@settings(max_examples=60)
@given(
    st.integers(0, 2**20), st.sampled_from([b"", b"a", b"ab", b" ", b"q", b"abcd", b"\xff"]), st.booleans()
)
def test_as_defined(seed: int, pending: bytes, sharp: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = 8.0 if sharp else 1.0
    shard = (scale * torch.randn(1, len(SHARD), generator=generator, dtype=torch.float64)).log_softmax(-1)
    anchor = torch.randn(1, len(ANCHOR), generator=generator, dtype=torch.float64).log_softmax(-1)
    projected = VocabularyMap(ANCHOR, SHARD, [(1, 0)]).project(shard, anchor, [pending])
    expected = literally(shard[0].exp(), anchor[0].exp(), pending, {1: 0})
    torch.testing.assert_close(projected[0].exp(), expected, rtol=1e-9, atol=1e-12)
    assert math.isclose(float(projected.exp().sum()), 1.0, rel_tol=1e-9)


def test_nothing_known_leaves_it_to_the_anchor() -> None:
    shard, anchor = torch.randn(2, len(SHARD)).log_softmax(-1), torch.randn(2, len(ANCHOR)).log_softmax(-1)
    projected = VocabularyMap(ANCHOR, SHARD).project(shard, anchor, [None, b"nothing begins so"])
    torch.testing.assert_close(projected, anchor)


def test_many_rows_go_another_way_and_give_the_same() -> None:
    shard = torch.randn(5, len(SHARD), dtype=torch.float64).log_softmax(-1)
    anchor = torch.randn(5, len(ANCHOR), dtype=torch.float64).log_softmax(-1)
    pending = [b"", b"a", b"", None, b" "]
    mapping = VocabularyMap(ANCHOR, SHARD)
    alone = [mapping.project(shard[r : r + 1], anchor[r : r + 1], pending[r : r + 1]) for r in range(5)]
    torch.testing.assert_close(mapping.project(shard, anchor, pending), torch.cat(alone))


def test_threads_may_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and serving do; each asks for other pending texts than the other one pushes out."""
    monkeypatch.setattr(vocabulary_module, "_KEPT_PAIRS", 2 * vocabulary_module._LEAST_PAIRS)
    mapping = VocabularyMap(ANCHOR, SHARD)
    shard, anchor = torch.randn(1, len(SHARD)).log_softmax(-1), torch.randn(1, len(ANCHOR)).log_softmax(-1)

    def ask(seed: int) -> None:
        for i in range(200):
            mapping.project(shard, anchor, [[b"", b"a", b"ab", b" ", b"q"][(i * seed) % 5]])
            assert len(mapping._kept) <= 2

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(1, 5)))


def test_gradients_reach_both_sides() -> None:
    shard = torch.randn(3, len(SHARD), dtype=torch.float64, requires_grad=True)
    anchor = torch.randn(3, len(ANCHOR), dtype=torch.float64, requires_grad=True)
    mapping = VocabularyMap(ANCHOR, SHARD, [(1, 0)])

    def project(own: Tensor, others: Tensor) -> Tensor:
        return mapping.project(own.log_softmax(-1), others.log_softmax(-1), [b"", b"a", None])

    assert torch.autograd.gradcheck(project, (shard, anchor))


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_put_together_are_the_text(kind: str) -> None:
    """What the tokens of a text stand for is what the tokenizer's own decoder writes."""
    tokenizer = Tokenizer.from_str(tokenizer_json(kind))
    pieces = token_pieces(tokenizer_json(kind), tokenizer.get_vocab_size())
    text = "Once upon a time there is a fox; größe 🙂 they're"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    written = tokenizer.decode(ids, skip_special_tokens=False)
    read = b"".join(pieces[i] or tokenizer.id_to_token(i).encode() for i in ids).decode()
    assert read.replace(" ", "").replace("<unk>", "") == written.replace(" ", "").replace("<unk>", "")
    if kind not in ("words", "word piece"):
        assert read.lstrip() == written.lstrip()
