"""What is told of a watched generation, and the temperature that follows from it."""

from __future__ import annotations

import math

import pytest

from braid_fusion import LyapunovMonitor, StabilityMonitor, TemperatureControl
from braid_fusion.errors import StabilityError
from braid_fusion.resonance.stability import coherence_of, order_of


def watching(temperature: float = 0.8, *, auto: bool = True) -> StabilityMonitor:
    return StabilityMonitor(LyapunovMonitor(window=16, min_tokens=8), temperature, auto_temperature=auto)


def temperatures(
    monitor: StabilityMonitor, entropies: list[float], coherence: float | None = None
) -> list[float]:
    return [monitor.observe(entropy, coherence).temperature for entropy in entropies]


def test_a_calm_text_keeps_its_temperature() -> None:
    assert temperatures(watching(), [1.0, 1.5, 0.5] * 20, 0.6) == pytest.approx([0.8] * 60)


def test_rising_entropy_lowers_the_temperature_within_bounds_and_it_returns() -> None:
    monitor = watching()
    rising = temperatures(monitor, [0.2 * token for token in range(40)])
    assert rising[:7] == [0.8] * 7, "nothing is changed before min_tokens"
    assert rising[7:] == sorted(rising[7:], reverse=True)
    assert 0.8 * TemperatureControl.floor <= rising[-1] < 0.41
    calm = temperatures(monitor, [8.0] * 60)
    assert calm[-1] == pytest.approx(0.8, abs=1e-3)


def test_falling_coherence_lowers_the_temperature_and_it_returns() -> None:
    monitor = watching()
    assert monitor.observe(1.0, 0.9).temperature == 0.8
    for _ in range(20):
        monitor.observe(1.0, 0.9)
    fallen = [monitor.observe(1.0, 0.3).temperature for _ in range(8)]
    assert fallen == sorted(fallen, reverse=True)
    assert 0.4 <= fallen[-1] < 0.6
    assert [monitor.observe(1.0, 0.9).temperature for _ in range(60)][-1] == pytest.approx(0.8, abs=1e-3)


def test_nothing_is_changed_unless_asked() -> None:
    assert temperatures(watching(auto=False), [0.3 * token for token in range(40)]) == [0.8] * 40
    assert temperatures(watching(0.0), [0.3 * token for token in range(40)]) == [0.0] * 40


def test_the_figures_seen_build_the_same_state_again() -> None:
    figures = [(0.2 * token + math.sin(token), 0.5 + 0.4 * math.cos(token)) for token in range(50)]
    whole, again = watching(), watching()
    told = [whole.observe(*one) for one in figures]
    for one in told[:30]:
        again.observe(one.entropy, one.coherence, one.kuramoto_order)
    assert [again.observe(*one) for one in figures[30:]] == told[30:]
    assert again.summary() == whole.summary()


def test_the_summary_is_of_the_whole_text() -> None:
    monitor = watching()
    assert math.isnan(monitor.summary().mean_entropy) and monitor.summary().is_stable
    for token in range(40):
        told = monitor.observe(0.5 * token, 0.25 if token % 2 else None, 0.5)
    summary = monitor.summary()
    assert (told.coherence, told.kuramoto_order, told.entropy) == (0.25, 0.5, 19.5)
    assert summary.mean_entropy == pytest.approx(9.75)
    assert summary.mean_coherence == 0.25 and summary.mean_kuramoto_order == 0.5
    assert summary.lyapunov_estimate == pytest.approx(0.5) and told.lyapunov_estimate == pytest.approx(0.5)
    assert not summary.is_stable and not monitor.is_stable


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(StabilityError, match="coherence: got nan"):
        watching().observe(1.0, math.nan)
    with pytest.raises(StabilityError, match="kuramoto_order: got inf"):
        watching().observe(1.0, 0.5, math.inf)


def test_coherence_is_the_gates_or_else_the_primes() -> None:
    assert coherence_of({"prime_coherence": 0.25, "gate_coherence": 0.5}) == 0.5
    assert coherence_of({"prime_coherence": 0.25, "gate": 0.5}) == 0.25
    assert coherence_of({"gate": 0.5}) is None
    assert order_of({"kuramoto_order": 0.75}) == 0.75 and order_of({}) is None
