"""A watch takes scores as they come, and refuses what is no number."""

from __future__ import annotations

import math

import pytest
import torch

from braid_orchestrator.engine.watching import Watch
from braid_rpc.errors import BraidError
from braid_rpc.stability import StabilityOptions


def test_the_entropy_is_that_of_the_distribution_whatever_the_scale_of_the_scores() -> None:
    watch = Watch(StabilityOptions(), 0.5)
    probabilities = torch.tensor([0.5, 0.25, 0.25, 0.0])
    for scores_V in (probabilities.log(), probabilities.log() + 40.0):
        told = watch.observe(scores_V, {"gate_coherence": 0.25, "kuramoto_order": 0.75})
        assert told.entropy == pytest.approx(1.5 * math.log(2))
        assert (told.coherence, told.kuramoto_order, told.temperature) == (0.25, 0.75, 0.5)


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(BraidError, match="entropy of token 0: got nan"):
        Watch(StabilityOptions(), 1.0).observe(torch.tensor([0.0, math.nan]), {})
    with pytest.raises(BraidError, match="coherence: got nan"):
        Watch(StabilityOptions(), 1.0).observe(torch.zeros(2), {"prime_coherence": math.nan})


def test_a_text_has_to_end_only_where_that_was_asked_for() -> None:
    for stop in (False, True):
        watch = Watch(StabilityOptions(stop=stop), 1.0)
        for sharpness in range(20, 0, -1):
            watch.observe(torch.arange(50.0) * sharpness * 0.02, {})
        assert not watch.summary().is_stable and watch.has_to_end is stop
