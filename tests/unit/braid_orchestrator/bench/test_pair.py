"""The two models: different from each other, the same in every process, with a tokenizer that knows every id."""

from __future__ import annotations

import torch

from braid_orchestrator.bench.baselines import PlainModels
from braid_orchestrator.bench.pair import QUICK, make_model, make_prompt, make_tokenizer, same_tokens
from braid_rpc.steps import OpenSession, Segment, SpanStep
from braid_services.shard.backend import ShardBackend


def test_models_come_from_their_seeds_alone() -> None:
    torch.manual_seed(5)
    first = make_model(0, QUICK)
    torch.manual_seed(6)
    again, other = make_model(0, QUICK), make_model(1, QUICK)
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_the_tokenizer_has_the_whole_vocabulary() -> None:
    tokenizer = make_tokenizer(1000)
    assert tokenizer.get_vocab_size() == 1000
    assert tokenizer.decode([*tokenizer.encode("any text").ids, 999])
    assert make_tokenizer(50257).get_vocab_size() == 50257


def test_plain_decoding_and_a_shard_give_the_same_tokens() -> None:
    """Otherwise they would not do the same work."""
    prompt = make_prompt(12, QUICK.vocab_size)
    plain = PlainModels((0,), QUICK, 1).decode(0, prompt, 5).token_ids

    stream = ShardBackend.from_model(make_model(0, QUICK)).stream()
    stream.open([OpenSession("s", 32)])
    ids, position, picked = torch.tensor(prompt), 0, []
    for step in range(6):
        segment = Segment("s", position, len(ids))
        span = SpanStep(step, 0, QUICK.num_layers, True, (segment,), ids, (len(ids) - 1,))
        logits = stream.step(span).logits
        assert logits is not None
        position += len(ids)
        ids = logits[-1].argmax(-1, keepdim=True)
        picked.append(int(ids))
    assert same_tokens([picked[1:], plain])
