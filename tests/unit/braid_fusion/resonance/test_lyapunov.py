"""Lyapunov exponents of systems whose exponent is known, and the entropy slope of series whose slope is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from braid_fusion import BenettinTwin, LyapunovMonitor, finite_time_exponent
from braid_fusion.errors import StabilityError


def logistic(rate: float) -> float:
    def step(x: Tensor) -> Tensor:
        return rate * x * (1.0 - x)

    start = torch.tensor(0.3, dtype=torch.float64)
    return finite_time_exponent(step, start, 4000, transient=200, distance=1e-9)


def test_the_logistic_map_at_4_has_the_logarithm_of_2() -> None:
    assert logistic(4.0) == pytest.approx(math.log(2), abs=0.01)


@pytest.mark.parametrize(
    ("rate", "exponent"),
    [
        (2.5, math.log(0.5)),  # a fixed point of slope 2 - r
        (3.2, math.log(0.16) / 2),  # a cycle of two, of slope 4 + 2r - r²
    ],
)
def test_a_settled_logistic_map_has_the_slope_of_its_cycle(rate: float, exponent: float) -> None:
    assert logistic(rate) == pytest.approx(exponent, abs=1e-3)


def test_a_superstable_map_is_as_low_as_its_numbers_can_tell() -> None:
    assert -math.inf < logistic(2.0) < -15.0


def test_the_henon_map() -> None:
    def step(state: Tensor) -> Tensor:
        x, y = state
        return torch.stack((1.0 - 1.4 * x * x + y, 0.3 * x))

    start = torch.tensor([0.1, 0.1], dtype=torch.float64)
    # Sprott, Chaos and Time-Series Analysis (2003): 0.41922.
    assert finite_time_exponent(step, start, 5000, transient=200) == pytest.approx(0.41922, abs=0.015)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_a_linear_map_has_the_logarithm_of_its_spectral_radius(scale: float) -> None:
    rotation, _ = torch.linalg.qr(
        torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )
    matrix = (
        scale * rotation @ torch.diag(torch.tensor([1.0, 0.7, 0.5, 0.1], dtype=torch.float64)) @ rotation.T
    )
    # From 0 the trajectory stays there, whatever the scale; only the twin moves.
    exponent = finite_time_exponent(matrix.mv, torch.zeros(4, dtype=torch.float64), 200, transient=50)
    assert exponent == pytest.approx(math.log(scale), abs=1e-6)


def test_the_first_direction_comes_from_the_generator() -> None:
    def begun(seed: int) -> Tensor:
        return BenettinTwin(0.5, torch.Generator().manual_seed(seed)).begin(torch.zeros(3))

    assert torch.equal(begun(1), begun(1)) and not torch.equal(begun(1), begun(2))
    assert float(begun(1).norm()) == pytest.approx(0.5)


def test_step_by_step_equals_the_whole_run() -> None:
    def step(x: Tensor) -> Tensor:
        return 3.9 * x * (1.0 - x)

    state = torch.tensor(0.3, dtype=torch.float64)
    whole = finite_time_exponent(step, state, 50, distance=1e-8)
    running = BenettinTwin(1e-8, torch.Generator().manual_seed(0))
    twin = running.begin(state)
    for _ in range(50):
        state, twin = step(state), step(twin)
        twin = running.renormalise(state, twin)
        assert float((twin - state).norm()) == pytest.approx(1e-8, rel=1e-6)
    assert running.estimate == whole and running.num_steps == 50


def test_a_twin_that_meets_its_trajectory_starts_again() -> None:
    running = BenettinTwin(1e-3, torch.Generator().manual_seed(0))
    state = torch.ones(3)
    twin = running.renormalise(state, state.clone())
    assert float((twin - state).norm()) == pytest.approx(1e-3, rel=1e-3)
    assert running.estimate == pytest.approx(math.log(torch.finfo(torch.float32).eps))


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("distance: got 0.0", lambda: BenettinTwin(0.0, torch.Generator())),
        ("num_steps: got 0", lambda: finite_time_exponent(lambda x: x, torch.zeros(1), 0)),
        ("distance nan", lambda: finite_time_exponent(lambda x: x / 0.0, torch.zeros(1), 1)),
        ("window: got 3", lambda: LyapunovMonitor(window=3)),
        ("window: got 8.5", lambda: LyapunovMonitor(window=8.5)),  # type: ignore[arg-type]
        ("min_tokens: got 0", lambda: LyapunovMonitor(min_tokens=0)),
        ("threshold: got -1", lambda: LyapunovMonitor(threshold=-1.0)),
        ("confidence: got nan", lambda: LyapunovMonitor(confidence=math.nan)),
        ("entropy of token 0: got nan", lambda: LyapunovMonitor().observe(math.nan)),
    ],
)
def test_what_makes_no_sense_is_refused(message: str, call: object) -> None:
    with pytest.raises(StabilityError, match=message):
        call()  # type: ignore[operator]


# --- the entropy's slope -------------------------------------------------------------------------------------


def noise(num_tokens: int, seed: int) -> list[float]:
    """As entropies of a good text are: skewed, from nothing to several nats."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.empty(num_tokens, dtype=torch.float64).exponential_(0.6, generator=generator)
    return drawn.clamp(max=7.0).tolist()


@pytest.mark.parametrize("slope", [0.25, -0.1, 0.0])
def test_a_straight_series_has_its_slope(slope: float) -> None:
    monitor = LyapunovMonitor()
    estimates = [monitor.observe(3.0 + slope * token) for token in range(60)]
    assert estimates[0] is None
    assert estimates[1:] == pytest.approx([slope] * 59)


def test_outliers_hardly_move_the_slope() -> None:
    monitor = LyapunovMonitor()
    for token in range(32):
        monitor.observe(0.1 * token + (8.0 if token % 5 == 4 else 0.0))
    assert monitor.estimate == pytest.approx(0.1, abs=0.03)


def test_only_the_window_counts() -> None:
    monitor = LyapunovMonitor(window=8)
    for entropy in (*range(50), *range(50, 42, -1)):
        monitor.observe(float(entropy))
    assert monitor.estimate == pytest.approx(-1.0)
    assert monitor.num_tokens == 58


def test_a_rise_is_found_and_stays_found() -> None:
    monitor = LyapunovMonitor()
    risen = [entropy / 2 + 0.15 * token for token, entropy in enumerate(noise(48, seed=3))]
    for entropy in noise(40, seed=4):
        monitor.observe(entropy / 2)
    assert monitor.is_stable
    for entropy in risen:
        monitor.observe(entropy)
    assert not monitor.is_stable
    for _ in range(40):
        monitor.observe(1.0)
    assert not monitor.is_diverging and not monitor.is_stable


def test_noise_ends_no_good_text() -> None:
    for seed in range(20):
        monitor = LyapunovMonitor()
        for entropy in noise(300, seed):
            monitor.observe(entropy)
        assert monitor.is_stable, seed


def test_a_short_rise_is_no_divergence() -> None:
    monitor = LyapunovMonitor(min_tokens=16)
    for token in range(15):
        monitor.observe(float(token))
    assert monitor.is_stable
    monitor.observe(15.0)
    assert not monitor.is_stable


def test_a_noisy_text_needs_a_steeper_rise() -> None:
    calm, noisy = LyapunovMonitor(), LyapunovMonitor()
    for token, entropy in enumerate(noise(32, seed=5)):
        calm.observe(0.05 * token)
        noisy.observe(0.05 * token + entropy)
    assert not calm.is_stable and noisy.is_stable
    assert noisy.lower_bound(3.0) < noisy.lower_bound(1.0) < (noisy.estimate or 0.0)


def test_too_few_tokens_give_no_confidence() -> None:
    monitor = LyapunovMonitor()
    for token in range(4):
        monitor.observe(float(token))
    assert monitor.lower_bound(3.0) == -math.inf
