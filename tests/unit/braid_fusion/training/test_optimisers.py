"""Muon's steps have the right size and direction, and every parameter belongs to exactly one optimiser."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from braid_fusion.errors import TrainingConfigError
from braid_fusion.training import Muon, OptimiserConfig, make_optimisers
from braid_fusion.training.optimisers import orthogonalise


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 32), (2, 32, 8)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = torch.linalg.svd(matrices)
    after = torch.linalg.svd(orthogonalise(matrices))
    assert after.S.min() > 0.3
    assert after.S.max() < 1.3
    # The same singular vectors: it is the polar factor up to the spread of the singular values.
    polar = before.U[..., : after.S.shape[-1]] @ before.Vh[..., : after.S.shape[-1], :]
    cosine = (orthogonalise(matrices) * polar).sum((-2, -1)) / (
        orthogonalise(matrices).norm(dim=(-2, -1)) * polar.norm(dim=(-2, -1))
    )
    assert cosine.min() > 0.95


def test_a_batch_of_matrices_is_each_on_its_own() -> None:
    matrices = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(1))
    alone = torch.stack([orthogonalise(matrix[None])[0] for matrix in matrices])
    torch.testing.assert_close(orthogonalise(matrices), alone, atol=1e-5, rtol=1e-5)


def test_the_step_does_not_depend_on_the_gradients_size() -> None:
    steps = []
    for scale in (1e-3, 1e3):
        weight = nn.Parameter(torch.zeros(8, 8))
        weight.grad = scale * torch.randn(8, 8, generator=torch.Generator().manual_seed(2))
        Muon([weight], lr=0.1).step()
        steps.append(weight.detach())
    torch.testing.assert_close(steps[0], steps[1], atol=1e-4, rtol=1e-3)
    assert torch.linalg.matrix_norm(steps[0], 2) == pytest.approx(0.1, rel=0.3)


def test_muon_minimises() -> None:
    torch.manual_seed(3)
    weight = nn.Parameter(torch.randn(6, 4))
    target = torch.randn(6, 4)
    optimiser = Muon([weight], lr=0.1)
    losses = []
    for step in range(60):
        for group in optimiser.param_groups:
            group["lr"] = 0.1 * (1 - step / 60)
        loss = (weight - target).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_muon_refuses_what_is_no_matrix() -> None:
    with pytest.raises(ValueError, match="expected a matrix"):
        Muon([nn.Parameter(torch.zeros(3))])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.inner = nn.Linear(4, 6)
        self.outer = nn.Linear(6, 4, bias=False)
        self.norm = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 10, bias=False)
        self.lm_head.weight = self.embedding.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def test_every_trainable_parameter_has_one_optimiser() -> None:
    module = Tied()
    optimisers = make_optimisers(module, OptimiserConfig(matrix_learning_rate=0.02, weight_decay=0.1))
    held = [id(p) for optimiser in optimisers for group in optimiser.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in module.parameters() if p.requires_grad)
    muon, adam = optimisers
    assert isinstance(muon, Muon) and isinstance(adam, AdamW)
    matrices = [id(p) for group in muon.param_groups for p in group["params"]]
    assert matrices == [id(module.inner.weight), id(module.outer.weight)]  # not the tied embedding
    decays = {id(p): group["weight_decay"] for group in adam.param_groups for p in group["params"]}
    assert decays[id(module.embedding.weight)] == 0.1
    assert decays[id(module.norm.weight)] == decays[id(module.inner.bias)] == 0.0


def test_names_can_be_kept_from_muon() -> None:
    module = Tied()
    config = OptimiserConfig(matrix_learning_rate=0.02, without_muon=("outer", "inner"))
    assert [type(optimiser) for optimiser in make_optimisers(module, config)] == [AdamW]


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        make_optimisers(Tied().requires_grad_(False), OptimiserConfig())


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({name: bad}, f"optimiser.{name}: got {bad}, expected a number from 0 to 1e+15")
        for name in ("learning_rate", "weight_decay", "matrix_learning_rate", "matrix_weight_decay")
        for bad in (NAN, INF, -1.0)
    ]
    + [
        ({"betas": betas}, f"optimiser.betas: got {betas}, expected two numbers in [0, 1)")
        for betas in ((NAN, 0.9), (0.9, INF), (0.9, 1.0), (-0.1, 0.9), (0.9,))
    ]
    + [
        ({"matrix_momentum": bad}, f"optimiser.matrix_momentum: got {bad}, expected a number in [0, 1)")
        for bad in (NAN, INF, 1.0, -0.1)
    ],
)
def test_numbers_that_no_step_can_be_taken_with_are_named(values: dict[str, object], told: str) -> None:
    with pytest.raises(TrainingConfigError) as refused:
        OptimiserConfig(**values)  # type: ignore[arg-type]
    assert str(refused.value) == told


def test_the_ends_of_what_is_allowed_are_allowed() -> None:
    OptimiserConfig(0.0, (0.0, 0.999), 0.0, matrix_learning_rate=0.0, matrix_momentum=0.0)
    OptimiserConfig(matrix_learning_rate=None)
