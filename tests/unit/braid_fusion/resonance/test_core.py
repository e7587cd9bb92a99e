"""Core and layer: causal, the same in pieces and packed, reached by gradients, in every mode and mix of parts."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from braid_fusion import FusionConfig, FusionContext, ResonanceFusionLayer
from braid_fusion.errors import PlanError
from braid_fusion.resonance.config import COMPONENTS, FUSION_MODES
from braid_fusion.resonance.core import ResonanceCore
from braid_fusion.resonance.stages import Scene
from braid_fusion.row_cache import RowCache

# float64: sums in another order.
ROUNDING = 1e-10
WIDTH, SLICE = 16, 8
MIXES = (*((name,) for name in COMPONENTS[:4]), ("prime", "prsc"), ("smf", "prime"), COMPONENTS)

every_mix = pytest.mark.parametrize("components", MIXES, ids="+".join)
every_mode = pytest.mark.parametrize("mode", FUSION_MODES)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_core(
    components: tuple[str, ...] = COMPONENTS, mode: str = "residual", num_shards: int = 1, seed: int = 0
) -> ResonanceCore:
    config = FusionConfig(
        fusion_width=WIDTH, component_width=SLICE, fusion_mode=mode, enabled_components=components
    ).resolve(WIDTH)
    return ResonanceCore(config, num_shards, torch.Generator().manual_seed(seed)).double()


def make_layer(seed: int = 0, **options: object) -> ResonanceFusionLayer:
    """A layer as if it were trained: whatever starts at zero doesn't."""
    layer = ResonanceFusionLayer(24, FusionConfig(seed=seed, **options)).double()
    with torch.no_grad():
        layer.out.weight.copy_(numbers(*layer.out.weight.shape, seed=5) * 0.3)
    return layer


@every_mix
@every_mode
@pytest.mark.parametrize("num_shards", [1, 2])
def test_no_row_depends_on_a_later_one_or_on_another_sequence(components, mode, num_shards) -> None:
    core = make_core(components, mode, num_shards)
    states = [numbers(9, WIDTH, seed=s) for s in range(num_shards)]
    before, metrics = core.fuse(states, FusionContext.whole([9]))
    for shard in range(num_shards):
        other = [state.clone() for state in states]
        other[shard][5:] += 1.0
        after, other_metrics = core.fuse(other, FusionContext.whole([9]))
        torch.testing.assert_close(after[:5], before[:5], atol=ROUNDING, rtol=ROUNDING)
        assert not torch.allclose(after[5:], before[5:])
        for name, rows in metrics.items():
            torch.testing.assert_close(other_metrics[name][:5], rows[:5], atol=ROUNDING, rtol=ROUNDING)
    for lengths in ([3, 3, 3], [4, 1, 4]):
        packed, _ = core.fuse(states, FusionContext.whole(lengths))
        for start, length in zip(itertools.accumulate([0, *lengths]), lengths, strict=False):
            alone, _ = core.fuse(
                [state[start : start + length] for state in states], FusionContext.whole([length])
            )
            torch.testing.assert_close(packed[start : start + length], alone, atol=ROUNDING, rtol=ROUNDING)


@settings(max_examples=10, deadline=None)
@given(pieces=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=5))
@pytest.mark.parametrize("num_shards", [1, 2])
def test_pieces_of_two_sequences_with_caches_equal_the_wholes(num_shards, pieces) -> None:
    core = make_core(num_shards=num_shards)
    lengths = [sum(piece[i] for piece in pieces) for i in range(2)]
    texts = [
        [numbers(length, WIDTH, seed=10 * s + i) for s in range(num_shards)]
        for i, length in enumerate(lengths)
    ]
    caches, done = (RowCache(), RowCache()), [0, 0]
    got: list[list[Tensor]] = [[], []]
    with torch.no_grad():
        for counts in pieces:
            if not any(counts):
                continue
            rows = [
                torch.cat([texts[i][s][done[i] : done[i] + counts[i]] for i in range(2)])
                for s in range(num_shards)
            ]
            fused, metrics = core.fuse(rows, FusionContext(counts, (done[0], done[1]), caches))
            assert all(values.shape == (sum(counts),) for values in metrics.values())
            for i, part in enumerate(fused.split([*counts])):
                got[i].append(part)
                done[i] += counts[i]
        for i in range(2):
            if lengths[i]:
                whole, _ = core.fuse(texts[i], FusionContext.whole([lengths[i]]))
                torch.testing.assert_close(torch.cat(got[i]), whole, atol=ROUNDING, rtol=ROUNDING)


def test_a_crop_forgets() -> None:
    layer, rows = make_layer(enabled_components=COMPONENTS), numbers(8, 24)
    cache = RowCache()
    with torch.no_grad():
        layer.fuse(rows, FusionContext((8,), (0,), (cache,)))
        cache.crop(3)
        again = layer.fuse(rows[3:], FusionContext((5,), (3,), (cache,))).hidden_TD
        whole = layer.fuse(rows, FusionContext.whole([8])).hidden_TD
    torch.testing.assert_close(again, whole[3:], atol=ROUNDING, rtol=ROUNDING)


@every_mix
def test_rows_are_kept_only_where_a_component_looks_back(components) -> None:
    core, piece = make_core(components), FusionContext((2,), (1,), None)
    assert core.keeps_rows == bool({"quaternion", "prsc", "smf"} & set(components))
    if core.keeps_rows:
        with pytest.raises(PlanError, match="got rows from the middle of a sequence"):
            core.fuse([numbers(2, WIDTH)], piece)
    else:
        cache = RowCache()
        core.fuse([numbers(2, WIDTH)], piece)
        core.fuse([numbers(2, WIDTH)], FusionContext((2,), (1,), (cache,)))
        assert cache.num_bytes() == 0


@every_mix
@every_mode
def test_two_steps_reach_every_parameter(components, mode) -> None:
    layer = ResonanceFusionLayer(24, FusionConfig(enabled_components=components, fusion_mode=mode)).double()
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    reached = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in layer.named_parameters()}
    for step in range(3):
        optimiser.zero_grad()
        (layer(numbers(3, 12, 24, seed=step)) - numbers(3, 12, 24, seed=9 + step)).square().mean().backward()
        for name, parameter in layer.named_parameters():
            reached[name] |= parameter.grad != 0
        optimiser.step()
    assert [name for name, mask in reached.items() if not mask.all()] == []


def test_the_measures_carry_gradients() -> None:
    layer, hidden = make_layer(), numbers(2, 6, 24)
    metrics = layer(hidden, return_metrics=True)[1]
    loss = 2.0 - metrics["gate_coherence"] - metrics["kuramoto_order"]
    loss.backward()
    assert layer.enter.weight.grad.abs().sum() > 0
    assert layer.core.stages["kuramoto"].oscillators.coupling.grad != 0
    assert layer.core.stages["prime"].projection.weight.grad.abs().sum() > 0


def test_nothing_is_measured_unless_wanted() -> None:
    core, states = make_core(), [numbers(4, WIDTH)]
    quiet, none = core.fuse(states, FusionContext.whole([4], want_metrics=False))
    loud, metrics = core.fuse(states, FusionContext.whole([4]))
    assert none == {} and torch.equal(quiet, loud)
    assert metrics.keys() == {"prime_entropy", "prime_coherence", "kuramoto_order", "gate_coherence", "gate"}
    assert make_core(("kuramoto",)).fuse(states, FusionContext.whole([4]))[1].keys() == {"kuramoto_order"}


def test_the_gate_is_neither_shut_nor_open_at_the_start() -> None:
    gate = make_core().fuse([numbers(400, WIDTH)], FusionContext.whole([400]))[1]["gate"]
    assert 0.2 < float(gate.mean().detach()) < 0.8
    assert float(gate.std().detach()) > 0.05


def test_incoherent_rows_are_changed_less() -> None:
    components = ("prime", "coherence_gate")
    core, states = make_core(components), [numbers(400, WIDTH)]
    fused, metrics = core.fuse(states, FusionContext.whole([400]))
    ungated = core.coherence_gate
    core.coherence_gate = None
    plain, _ = core.fuse(states, FusionContext.whole([400]))
    core.coherence_gate = ungated
    torch.testing.assert_close(fused, plain * metrics["gate"].unsqueeze(-1))
    order = metrics["gate_coherence"].argsort()
    assert (metrics["gate"][order].diff() >= -ROUNDING).all()


def test_shards_that_agree_synchronise_better_than_shards_that_do_not() -> None:
    core = make_core(("kuramoto",), num_shards=2)
    with torch.no_grad():  # the stream's own oscillators see the first shard, too
        core.combine.weight.copy_(torch.cat([torch.eye(WIDTH), torch.zeros(WIDTH, WIDTH)], dim=1))
        one, other = numbers(200, WIDTH, seed=1), numbers(200, WIDTH, seed=2)
        context = FusionContext.whole([200])
        agreeing = core.fuse([one, one], context)[1]["kuramoto_order"].mean()
        differing = core.fuse([one, other], context)[1]["kuramoto_order"].mean()
    assert agreeing > differing + 0.02


def test_the_modes_differ_and_chain_as_they_say() -> None:
    states, context = [numbers(5, WIDTH)], FusionContext.whole([5])
    prime = make_core(("prime", "quaternion"), "parallel").stages["prime"]
    attention = make_core(("prime", "quaternion"), "parallel").stages["quaternion"]
    scene, z = Scene(states, context), states[0][:, :SLICE]
    tenth = float(torch.tensor(0.1))  # what a component's part of the residual stream begins with, in float32
    stream = z + tenth * prime(z, scene)
    expected = {
        "parallel": prime(z, scene) + attention(z, scene),
        "sequential": attention(prime(z, scene), scene),
        "residual": stream + tenth * attention(stream, scene),
    }
    assert expected.keys() == set(FUSION_MODES)
    for mode, y in expected.items():
        fused = make_core(("prime", "quaternion"), mode).fuse(states, context)[0]
        torch.testing.assert_close(fused[:, :SLICE], y.relu().square())


@every_mode
def test_components_see_and_change_their_channels_only(mode) -> None:
    components = tuple(name for name in COMPONENTS if name != "coherence_gate")
    core, states, context = make_core(components, mode), numbers(6, WIDTH), FusionContext.whole([6])
    fused, metrics = core.fuse([states], context)
    torch.testing.assert_close(fused[:, SLICE:], states[:, SLICE:].relu().square())
    other = states.clone()
    other[:, SLICE:] += 1.0
    again, other_metrics = core.fuse([other], context)
    assert torch.equal(again[:, :SLICE], fused[:, :SLICE])
    assert all(torch.equal(other_metrics[name], rows) for name, rows in metrics.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@every_mode
def test_it_runs_in_narrower_numbers(dtype, mode) -> None:
    layer = make_layer(enabled_components=COMPONENTS, fusion_mode=mode)
    rows = numbers(6, 24)
    exact = layer.fuse(rows, FusionContext.whole([6])).hidden_TD
    narrow = layer.to(dtype).fuse(rows.to(dtype), FusionContext.whole([6]))
    assert narrow.hidden_TD.dtype == dtype
    assert all(torch.isfinite(values.float()).all() for values in narrow.row_metrics.values())
    tolerance = 0.25 if dtype == torch.bfloat16 else 1e-3
    torch.testing.assert_close(narrow.hidden_TD.double(), exact, atol=tolerance, rtol=tolerance)


def test_the_seed_alone_decides_the_start() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = ResonanceFusionLayer(24, FusionConfig.full()).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    second = ResonanceFusionLayer(24, FusionConfig.full()).state_dict()
    other = ResonanceFusionLayer(24, FusionConfig.full(seed=1)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["enter.weight"], other["enter.weight"])


def test_weights_there_and_back() -> None:
    layer, rows = make_layer(enabled_components=COMPONENTS), numbers(2, 5, 24)
    fresh = ResonanceFusionLayer(24, FusionConfig.full(seed=7)).double()
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(rows), layer(rows))


def test_alpha_scales_the_update_and_may_be_fixed() -> None:
    rows = numbers(5, 24)
    updates = {}
    for alpha in (0.5, 1.0):
        layer = make_layer(fusion_alpha=alpha, learnable_alpha=False)
        assert "alpha" not in dict(layer.named_parameters()) and "alpha" in layer.state_dict()
        updates[alpha] = layer(rows) - rows
    torch.testing.assert_close(updates[0.5] * 2.0, updates[1.0])


def test_states_of_any_scale_are_changed_alike() -> None:
    layer, rows = make_layer(), numbers(5, 24) * 10.0
    update = layer(rows) - rows
    torch.testing.assert_close(layer(rows * 100.0) - rows * 100.0, update, atol=1e-4, rtol=1e-4)
