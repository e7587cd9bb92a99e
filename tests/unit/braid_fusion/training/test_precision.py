"""Mixed precision: what is computed in less, what stays, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from training_runs import TinyModel, tiny_trainer, windows

from braid_fusion.errors import TrainingConfigError
from braid_fusion.training import Trainer, TrainerConfig
from braid_fusion.training.losses import linear_cross_entropy

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device; this machine has none"
)


def test_bf16_computes_in_bf16_and_keeps_parameters_in_float32() -> None:
    model, dtypes = TinyModel(), []
    model.hidden.register_forward_hook(lambda *states: dtypes.append(states[2].dtype))
    trainer = tiny_trainer(model=model, precision="bf16", max_steps=40)
    record = trainer.run()
    assert set(dtypes) == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert record.final_loss < trainer.history[0]["loss"]


def test_float32_is_untouched() -> None:
    model, dtypes = TinyModel(), []
    model.hidden.register_forward_hook(lambda *states: dtypes.append(states[2].dtype))
    tiny_trainer(model=model, max_steps=1).run()
    assert set(dtypes) == {torch.float32}


def test_a_bf16_run_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    straight = tiny_trainer(tmp_path, precision="bf16")
    straight.run()
    resumed = tiny_trainer(tmp_path, precision="bf16")
    resumed.run(tmp_path / "checkpoints" / "step-00000006.ckpt")
    for name, tensor in straight.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[name], tensor), name


def test_fp16_is_refused_on_the_cpu() -> None:
    with pytest.raises(
        TrainingConfigError, match=r"precision: got 'fp16' for parameters on cpu, expected .* CUDA"
    ):
        tiny_trainer(precision="fp16")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(TrainingConfigError, match="got 'float8', expected one of float32, bf16, fp16"):
        TrainerConfig(1, precision="float8")  # type: ignore[arg-type]


def test_the_heads_loss_works_under_autocast_in_the_weights_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 4, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(7, 4, generator=generator, requires_grad=True)
    targets = torch.randint(7, (9,), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    assert hidden.grad is not None and weight.grad is not None
    expected = functional.cross_entropy(hidden.float() @ weight.T, targets)
    torch.testing.assert_close(loss, expected)


@needs_cuda
def test_fp16_leaves_out_steps_whose_scale_is_too_large_and_learns() -> None:
    model = TinyModel().cuda()

    def loss(batch: Tensor) -> dict[str, Tensor]:
        return model.loss(batch.cuda())

    trainer = Trainer(model, loss, windows(), TrainerConfig(60, precision="fp16", log_every=1))
    scale = trainer._precision.state_dict()
    assert scale is not None
    trainer._precision.load_state_dict({**scale, "scale": 2.0**40})
    record = trainer.run()
    skipped = [line["step"] for line in trainer.history if line.get("skipped")]
    assert skipped and skipped == list(range(1, len(skipped) + 1))
    assert record.final_loss < trainer.history[0]["loss"]
