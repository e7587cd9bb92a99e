"""A share of a corpus that is kept from training, the same for every run on the same corpus. Cuts no windows."""

from __future__ import annotations

import torch

from braid_orchestrator.training.data.corpus import TokenCorpus
from braid_rpc.errors import InvalidRequestError

# Runs of different seeds are compared on the same held-out text, so the choice has a seed of its own.
_SEED = 0
# Whole documents are taken if their share of the tokens is wrong by no more than this factor.
_TOLERANCE = 2.0
_MIN_TOKENS = 2


def split_corpus(corpus: TokenCorpus, share: float, where: str) -> tuple[TokenCorpus, TokenCorpus]:
    """What is trained on and what is held out; they have no token in common.

    Held out are whole documents, drawn at random, with about ``share`` of the tokens together. Where documents are
    too few and too long for that, the last tokens are, so that one document may be cut in two; prompts with their
    completions are never cut.

    Args:
        share: of the tokens, between 0 and 1.
        where: names the corpus in messages.

    Raises: InvalidRequestError for a share outside of that, or a corpus that leaves nothing for either part.
    """
    if not 0.0 < share < 1.0:
        raise InvalidRequestError(f"held-out share: got {share}, expected more than 0 and less than 1")
    wanted = share * corpus.num_tokens
    if corpus.num_documents > 1:
        order = torch.randperm(corpus.num_documents, generator=torch.Generator().manual_seed(_SEED))
        taken = corpus.bounds.diff()[order].cumsum(0)[:-1]
        count = int((taken - wanted).abs().argmin()) + 1
        fits = wanted / _TOLERANCE <= float(taken[count - 1]) <= wanted * _TOLERANCE
        if fits or corpus.has_prompts:
            return corpus.of_documents(order[count:]), corpus.of_documents(order[:count])
    num_held_out = round(wanted)
    if corpus.has_prompts or min(num_held_out, corpus.num_tokens - num_held_out) < _MIN_TOKENS:
        raise InvalidRequestError(
            f"{where}: got {corpus.num_tokens} tokens in {corpus.num_documents} document(s), expected enough to hold "
            f"out {share:.3g} of them"
        )
    return corpus.cut_at(corpus.num_tokens - num_held_out)
