"""What holds for all components: the same work for any number of positions, any device, seeded draws alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import braid_fusion
from braid_fusion.errors import GraftConfigError
from braid_fusion.row_cache import RowCache

D, P = 24, 6
Draw = Callable[..., Tensor]


def _quaternion(generator: Generator) -> nn.Module:
    return braid_fusion.QuaternionAttention(D, 3, generator=generator)


MAKE: Mapping[str, Callable[[Generator], nn.Module]] = {
    "prime": lambda g: braid_fusion.PrimeProjection(D, P, generator=g),
    "quaternion": _quaternion,
    "kuramoto": lambda g: braid_fusion.KuramotoModule(D, generator=g),
    "coherence_gate": lambda g: braid_fusion.CoherenceGatingLayer(D, generator=g),
    "prsc": lambda g: braid_fusion.PRSC(P),
    "smf": lambda g: braid_fusion.SMF(D, generator=g),
}
LOOKS_BACK = ("quaternion", "prsc", "smf")
# Calls of torch kernels that compute, views left out, for one row behind a history: each is some 5 µs when decoding.
MOST_KERNELS = {"prime": 6, "quaternion": 12, "kuramoto": 81, "coherence_gate": 20, "prsc": 7, "smf": 23}
_FREE = {"view", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "slice", "select", "unbind"}
_FREE |= {"_unsafe_view", "as_strided", "alias", "detach", "split", "promote_types"}


def _inputs(name: str, T: int, device: str = "cpu") -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, T, D, generator=generator)
    if name == "prsc":
        x = torch.randn(1, T, P, 4, generator=generator)
    both = (x, torch.rand(1, T, generator=generator)) if name == "smf" else (x,)
    return tuple(tensor.to(device) for tensor in both)


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


class _Kernels(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += function.overloadpacket.__name__ not in _FREE
        return function(*args, **(kwargs or {}))


def _kernels(component: nn.Module, inputs: tuple[Tensor, ...], **options: Any) -> int:
    with torch.no_grad(), _Kernels() as kernels:
        component(*inputs, **options)
    return kernels.count


@pytest.mark.parametrize("name", MAKE)
def test_no_loop_over_positions(name: str, generator: Generator) -> None:
    component = MAKE[name](generator)
    _kernels(component, _inputs(name, 2))  # tables are made at the first call
    assert _kernels(component, _inputs(name, 5)) == _kernels(component, _inputs(name, 60))


@pytest.mark.parametrize("name", MAKE)
def test_one_row_costs_few_kernels(name: str, generator: Generator) -> None:
    component = MAKE[name](generator)
    options = {"history": RowCache()} if name in LOOKS_BACK else {}
    _kernels(component, _inputs(name, 9), **options)
    assert _kernels(component, _inputs(name, 1), **options) <= MOST_KERNELS[name]


@pytest.mark.parametrize("name", MAKE)
def test_nothing_stays_on_another_device(name: str, generator: Generator) -> None:
    """On the meta device, where a tensor made on the CPU by mistake cannot join in."""
    component = MAKE[name](generator).to("meta")
    assert _first(component(*_inputs(name, 5, "meta"))).device.type == "meta"


@pytest.mark.parametrize("name", MAKE)
def test_draws_come_from_the_generator_alone(name: str) -> None:
    torch.manual_seed(0)
    one = MAKE[name](torch.Generator().manual_seed(3))
    before = torch.get_rng_state()
    other = MAKE[name](torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before)
    for left, right in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("name", MAKE)
def test_nothing_is_drawn_in_a_forward(name: str, generator: Generator) -> None:
    component, inputs = MAKE[name](generator), _inputs(name, 5)
    before = torch.get_rng_state()
    assert torch.equal(_first(component(*inputs)), _first(component(*inputs)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", MAKE)
def test_a_saved_component_is_loaded_as_it_was(name: str, generator: Generator) -> None:
    component = MAKE[name](generator)
    with torch.no_grad():
        for parameter in component.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    other = MAKE[name](torch.Generator().manual_seed(9))
    other.load_state_dict(component.state_dict())
    inputs = _inputs(name, 5)
    assert torch.equal(_first(component(*inputs)), _first(other(*inputs)))


@pytest.mark.parametrize("name", MAKE)
def test_sequences_of_a_batch_do_not_meet(name: str, generator: Generator) -> None:
    component = MAKE[name](generator)
    inputs = [torch.cat([tensor, tensor.flip(1)]) for tensor in _inputs(name, 6)]
    together = _first(component(*inputs))
    for i in range(2):
        alone = _first(component(*(tensor[i : i + 1] for tensor in inputs)))
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MAKE)
def test_an_empty_chunk_is_no_row(name: str, generator: Generator) -> None:
    component = MAKE[name](generator)
    options = {"history": RowCache()} if name in LOOKS_BACK else {}
    component(*_inputs(name, 3), **options)
    assert _first(component(*_inputs(name, 0), **options)).shape[1] == 0


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: braid_fusion.PrimeProjection(0, 3), "input_dim: got 0"),
        (lambda: braid_fusion.PrimeProjection(8, 1), "num_primes: got 1"),
        (lambda: braid_fusion.QuaternionAttention(32, 8.0), "num_heads: got 8.0"),
        (lambda: braid_fusion.QuaternionAttention(24, 0), "num_heads: got 0"),
        (lambda: braid_fusion.QuaternionAttention(0, 1), "hidden_dim: got 0"),
        (lambda: braid_fusion.QuaternionAttention(30, 2), "hidden_dim 30 and num_heads 2"),
        (lambda: braid_fusion.KuramotoModule(0), "input_dim: got 0"),
        (lambda: braid_fusion.KuramotoModule(8, coupling=float("nan")), "coupling: got nan"),
        (lambda: braid_fusion.CoherenceGatingLayer(-1), "hidden_dim: got -1"),
        (lambda: braid_fusion.SMF(0), "input_dim: got 0"),
    ],
)
def test_a_size_that_makes_no_sense_is_refused_by_name(make: Callable[[], object], named: str) -> None:
    with pytest.raises(GraftConfigError, match=named):
        make()
