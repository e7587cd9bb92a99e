"""How fast a generation's own states part: a twin that reads each token a little displaced. Knows no sampling.

Letters: V vocabulary, D model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor
from transformers.cache_utils import Cache

from braid_fusion.errors import StabilityError
from braid_fusion.grafting.cache import GraftRows
from braid_fusion.grafting.rewind import CacheMark
from braid_fusion.resonance.lyapunov import BenettinTwin

# A twin's distance, as a share of the length of the embedding of a token. Float32 resolves a thousandth of that, and
# logits are straight lines over it.
_DISTANCE = 1e-3


class PerturbedTwin:
    """The largest finite-time Lyapunov exponent of x ↦ Σ p(y | x, text) e(y), in nats per token.

    Tokens are discrete, so two generations that are close don't exist. But what a model expects to come next, the
    mean of the embeddings e(y) under its distribution, is a state that can be displaced: the twin reads the
    generation's own tokens, each displaced by the difference that the token before made to that expectation, brought
    back to a small length at each step (Benettin's method, see `BenettinTwin`). Positive: small differences in what
    was expected grow from token to token.

    The keys and values behind the token are the generation's own for both, so this is the exponent of the step from
    one expectation to the next under the given text, not of all states that the model keeps.
    """

    def __init__(self, model: Any, generator: Generator) -> None:
        """``model`` is a causal language model of transformers, wrapped or not."""
        self._model = model
        self._embed = model.get_input_embeddings()
        self._table_VD: Tensor = self._embed.weight.detach()
        length = float(self._table_VD.float().norm(dim=-1).mean())
        self._twin = BenettinTwin(_DISTANCE * length, generator)
        self._apart_D: Tensor | None = None
        self._logits_V: Tensor | None = None

    @property
    def estimate(self) -> float | None:
        """Nats per token, over all tokens so far; None before the first step."""
        return self._twin.estimate

    def step(self, token_id: int, cache: Cache) -> None:
        """Read the next token displaced, before the generation itself reads it; the cache is as it was afterwards.

        Raises: StabilityError if the model's cache can't be put back.
        """
        own_D = torch.zeros(self._table_VD.shape[1], dtype=torch.float32)
        if self._apart_D is None:
            self._apart_D = self._twin.begin(own_D)
        ids = torch.tensor([[token_id]], device=self._table_VD.device)
        embedded_D = self._embed(ids)
        # Some models scale embeddings as they look them up: the displacement is in the table's own units.
        row_D = self._table_VD[token_id].float()
        scale = float(embedded_D.float().norm() / row_D.norm().clamp_min(1e-12))
        displaced_D = embedded_D + (scale * self._apart_D).to(embedded_D)
        mark = CacheMark(cache)
        output = self._model(inputs_embeds=displaced_D, past_key_values=cache, use_cache=True)
        put_back = mark.rewind(1)
        for layer in cache.layers:
            if isinstance(layer, GraftRows):
                layer.crop(-1)
        if not put_back:
            raise StabilityError(
                f"measure_exponent: got a cache of {type(cache).__name__} that can't be put back by one token, "
                "expected one that grows, or a sliding window"
            )
        self._logits_V = output.logits[0, -1]

    def compare(self, logits_V: Tensor) -> None:
        """The generation itself has read the token. Raises: StabilityError for states that are not finite."""
        if self._logits_V is None:
            return
        moved_V = torch.softmax(self._logits_V.double(), -1) - torch.softmax(logits_V.double(), -1)
        moved_D = (moved_V.to(self._table_VD) @ self._table_VD[: len(moved_V)]).float().cpu()
        self._apart_D = self._twin.renormalise(torch.zeros_like(moved_D), moved_D)
        self._logits_V = None
