"""What is random in a batch follows from seed and number, and disturbs nobody else's random numbers."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.nn import functional

from braid_fusion.training.batch_seed import batch_seed


def draws() -> tuple[list[float], float, float, float]:
    dropped = functional.dropout(torch.ones(64), 0.5).tolist()
    return dropped, float(torch.rand(())), random.random(), float(np.random.rand())


def draws_in(seed: int, number: int) -> tuple[list[float], float, float, float]:
    with batch_seed(seed, number):
        return draws()


def test_a_batch_draws_the_same_whatever_was_drawn_before() -> None:
    first = draws_in(3, 7)
    draws()
    assert draws_in(3, 7) == first


def test_other_seeds_and_other_batches_draw_otherwise() -> None:
    found = [draws_in(seed, number) for seed, number in ((0, 0), (0, 1), (1, 0), (1, 1), (-1, 0), (2**70, 0))]
    for figures in zip(*found, strict=True):
        assert len({str(figure) for figure in figures}) == len(found)


def test_outside_all_generators_go_on_where_they_were() -> None:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    straight = draws()
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])
    with pytest.raises(KeyError), batch_seed(0, 0):
        draws()
        raise KeyError
    assert draws() == straight
