"""Bootstrap intervals: seeded, narrower with more data, and about as sure as they say."""

from __future__ import annotations

import pytest
import torch

from braid_orchestrator.evaluation import Estimate, Resampling
from braid_rpc.errors import InvalidRequestError


def interval(values: torch.Tensor, resampling: Resampling = Resampling(400)) -> Estimate:
    units = torch.stack([values, torch.ones_like(values)], dim=1)
    sums = resampling.sums(units)
    return resampling.estimate(float(values.mean()), sums[:, 0] / sums[:, 1])


def normal(count: int, seed: int) -> torch.Tensor:
    return 3.0 + torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def width(estimate: Estimate) -> float:
    assert estimate.low is not None and estimate.high is not None
    assert estimate.low <= estimate.value <= estimate.high
    return estimate.high - estimate.low


def test_an_interval_shrinks_with_the_root_of_the_data() -> None:
    few, many = (width(interval(normal(count, 1))) for count in (50, 5000))
    assert few / many == pytest.approx(10.0, rel=0.25)
    assert many == pytest.approx(2 * 1.96 / 5000**0.5, rel=0.1)


def test_it_holds_the_known_mean_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        found = interval(normal(60, seed), Resampling(300, 0.9, seed))
        held += found.low <= 3.0 <= found.high  # type: ignore[operator]
    assert 0.84 <= held / 200 <= 0.95  # three standard errors around 0.9, and a little too narrow as they are


def test_a_seed_draws_the_same_and_texts_are_drawn_by_themselves() -> None:
    units = normal(30, 0)[:, None]
    drawn = Resampling(20, seed=4)
    assert torch.equal(drawn.sums(units), drawn.sums(units))
    assert not torch.equal(drawn.sums(units), drawn.sums(units, stratum=1))
    assert not torch.equal(drawn.sums(units), Resampling(20, seed=5).sums(units))


def test_what_is_paired_is_surer_than_what_is_not() -> None:
    left = normal(100, 2)
    right = left + 0.1
    resampling = Resampling(300)
    sums = resampling.sums(torch.stack([left, right], dim=1)) / 100
    paired = resampling.estimate(0.1, sums[:, 1] - sums[:, 0])
    assert width(paired) < 1e-9 < 0.1 < width(interval(left))


def test_many_units_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("braid_orchestrator.evaluation.intervals._COUNTS_AT_ONCE", 64)
    sums = Resampling(33).sums(torch.ones(10, 2))
    assert torch.equal(sums, torch.full((33, 2), 10.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "named"),
    [({"num_resamples": 0}, "resamples: got 0"), ({"confidence": 1.0}, "confidence: got 1.0")],
)
def test_numbers_out_of_range_are_refused(options: dict[str, float], named: str) -> None:
    with pytest.raises(InvalidRequestError, match=named):
        Resampling(**options)  # type: ignore[arg-type]


def test_a_time_stamp_is_a_seed() -> None:
    values = torch.rand(10, 1)
    late = Resampling(20, seed=20_240_612_153_000).sums(values)
    assert torch.equal(late, Resampling(20, seed=20_240_612_153_000).sums(values))
    assert not torch.equal(late, Resampling(20, seed=2**63 - 1).sums(values, stratum=3))
