"""What is remembered is what would be made now, whatever has happened to the parameters in between."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor, nn

from braid_fusion.resonance.primes import PrimeProjection
from braid_fusion.resonance.quaternion_attention import QuaternionAttention
from braid_fusion.resonance.remembered import Remembered

Draw = Callable[..., Tensor]


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.twice = Remembered()
        self.times = 0

    def forward(self) -> Tensor:
        return self.twice(self._make, self.weight)

    def _make(self, weight: Tensor) -> Tensor:
        self.times += 1
        return 2.0 * weight


def test_with_gradients_off_it_is_made_once() -> None:
    module = _Twice()
    with torch.no_grad():
        assert module() is module()
    with torch.inference_mode():
        module()
    assert module.times == 1


def test_with_gradients_on_it_is_made_anew_and_in_the_graph() -> None:
    module = _Twice()
    with torch.no_grad():
        module()
    module().sum().backward()
    assert module.weight.grad is not None
    assert module.weight.grad.eq(2).all()
    module.weight.data.fill_(5.0)  # past the version counter, as an optimiser of old would
    with torch.no_grad():
        assert module().eq(10).all()


def _step(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(module.parameters(), lr=0.5).step()


def _load(module: nn.Module) -> None:
    module.load_state_dict({name: value + 1.0 for name, value in module.state_dict().items()})


def _swap(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data = parameter.data + 1.0


def _replace(module: nn.Module) -> None:
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            setattr(child, name, nn.Parameter(parameter.detach() + 1.0))


def _round_trip(module: nn.Module) -> None:
    # The allocator may well give the first address again.
    module.to(torch.bfloat16).to(torch.float32)


def _in_inference_mode(module: nn.Module) -> None:
    with torch.inference_mode():
        for parameter in module.parameters():
            parameter.mul_(3.0)


@pytest.mark.parametrize("change", [_step, _load, _swap, _replace, _round_trip, _in_inference_mode])
@pytest.mark.parametrize("kind", ["prime", "quaternion"])
def test_a_change_is_seen(
    draw: Draw, generator: Generator, kind: str, change: Callable[[nn.Module], None]
) -> None:
    module: nn.Module = (
        PrimeProjection(12, 7, generator=generator)
        if kind == "prime"
        else QuaternionAttention(12, 3, generator=generator)
    )
    x = draw(1, 4, 12)
    with torch.inference_mode():
        before = module(x)
    change(module)
    expected = module(x).detach()
    assert not torch.equal(expected, before)
    with torch.inference_mode():
        assert torch.equal(module(x), expected)


def test_a_change_right_after_a_remembered_call_is_seen() -> None:
    """Without a call with gradients in between, which would forget by itself."""
    for change in (_step, _load, _swap, _replace, _round_trip, _in_inference_mode):
        module = _Twice()
        with torch.no_grad():
            module.weight.fill_(1.001)
            module()
            change(module)
            assert torch.equal(module(), 2.0 * module.weight), change.__name__


def test_copies_are_of_their_own() -> None:
    module = _Twice()
    with torch.no_grad():
        module()
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            twin.weight.fill_(4.0)
            assert twin().eq(8).all()
            assert module().eq(2).all()


def test_stand_ins_for_parameters_are_not_remembered() -> None:
    module = _Twice()
    with torch.no_grad():
        module()
        stand_in = {"weight": torch.full((3,), 7.0)}
        assert torch.func.functional_call(module, stand_in, ()).eq(14).all()
        stand_in["weight"].data.fill_(1.0)
        assert torch.func.functional_call(module, stand_in, ()).eq(2).all()
        many = torch.arange(6.0).view(2, 3)
        mapped = torch.vmap(lambda weight: torch.func.functional_call(module, {"weight": weight}, ()))(many)
        assert torch.equal(mapped, 2.0 * many)


def test_parameters_without_versions_are_not_remembered() -> None:
    with torch.inference_mode():
        module = _Twice()
        module()
        module.weight.fill_(3.0)
        assert module().eq(6).all()


def test_what_autocast_made_does_not_outlive_it(draw: Draw, generator: Generator) -> None:
    projection, x = PrimeProjection(12, 7, generator=generator), draw(4, 12)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert projection(x).dtype == torch.bfloat16
        assert projection(x).dtype == torch.float32
