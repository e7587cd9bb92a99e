"""What a forward of a whole braid gives, and its loss. Knows neither models nor engine.

Shapes: B texts, T tokens of the longest, S shards, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, int64
from torch.nn import functional

IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class BraidedOutput:
    """What `BraidedLLM.forward` gives. Padding has zeros.

    ``logits`` (B, T, V): the anchor's, or log-probabilities where the readout mixes shards. ``hidden_states``:
    the anchor's, each (B, T, D): the embeddings, the states between its layers (fused where they are), and what
    enters its head. ``weights`` (B, T, S): each shard's in the next token's probability. ``loss``: mean over
    the labels, None without any. ``metrics``: of each fusion point, scalar tensors.
    """

    logits: Tensor
    hidden_states: tuple[Tensor, ...]
    weights: Tensor
    loss: Tensor | None
    metrics: dict[str, Tensor]


def next_token_loss(logits_BTV: Tensor, labels_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Mean cross-entropy of each label and what was predicted one position before; −100 and padding don't count."""
    if mask_BT is not None:
        labels_BT = labels_BT.masked_fill(mask_BT == 0, IGNORED_LABEL)
        # A text padded on the left starts after padding: nothing predicted its first token.
        before_BT = functional.pad(mask_BT[:, :-1], (1, 0))
        labels_BT = labels_BT.masked_fill(before_BT == 0, IGNORED_LABEL)
    targets = labels_BT[:, 1:].reshape(-1).to(logits_BTV.device)
    return functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1), targets.to(int64), ignore_index=IGNORED_LABEL
    )
