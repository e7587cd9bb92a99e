"""Two workers that share a source take the steps that one worker takes with twice the accumulation."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from braid_fusion.errors import TrainingDivergedError, TrainingError
from braid_fusion.training import (
    EarlyStopping,
    OptimiserConfig,
    ProcessPeers,
    ScheduleConfig,
    Trainer,
    TrainerConfig,
    read_log,
)
from braid_fusion.training.checkpoint import steps_in

# Sums over workers are taken in another order.
TOLERANCE = 1e-6
STEPS = 8


class Batches:
    """Every ``num_workers``-th batch of one endless sequence, of different sizes; some are empty."""

    def __init__(self, rank: int, num_workers: int) -> None:
        self.rank, self.num_workers, self.taken = rank, num_workers, 0
        self.number = -1  # of the batch that was given last

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            self.number = self.taken * self.num_workers + self.rank
            self.taken += 1
            generator = torch.Generator().manual_seed(self.number)
            yield torch.randn(self.number % 4, 3, generator=generator)

    def state_dict(self) -> dict[str, Any]:
        return {"taken_by_all": self.taken * self.num_workers, "order": torch.arange(3)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken_by_all"] // self.num_workers


def train(
    folder: Path,
    rank: int = 0,
    num_workers: int = 1,
    peers: ProcessPeers | None = None,
    bad: tuple[int, ...] = (),
    seed: int = 0,
    **how: Any,
) -> nn.Module:
    torch.manual_seed(seed)
    module = nn.Linear(3, 3)
    torch.manual_seed(rank)
    batches = Batches(rank, num_workers)

    def loss_of(rows: Tensor) -> dict[str, Tensor]:
        seen = functional.dropout(rows, 0.3, module.training)
        loss = (module(seen) - rows.flip(-1)).square().sum(-1).mean()
        if batches.number in bad:
            loss = loss * float("nan" if batches.number % 2 else "inf")
        return {
            "loss": loss,
            "tokens": torch.tensor(rows.shape[0]),
            "rows": torch.tensor(float(rows.shape[0])),
        }

    config = TrainerConfig(
        max_steps=STEPS,
        accumulate=4 // num_workers,
        optimiser=OptimiserConfig(learning_rate=0.05),
        schedule=ScheduleConfig(warmup=0.1, shape="cosine"),
        log_every=1,
        evaluate_every=2,
        checkpoint_every=3,
        early_stopping=EarlyStopping(patience=None),
    )
    trainer = Trainer(
        module,
        loss_of,
        batches,
        config,
        evaluate=lambda: {"loss": float(module.weight.detach().square().sum())},
        log_path=folder / "log.jsonl",
        checkpoint_folder=folder / "checkpoints",
        peers=peers,
        **{name: value for name, value in how.items() if name != "resume_from"},
    )
    trainer.run(resume_from=how.get("resume_from"))
    return module


def work(folder: Path, rank: int, results: Any, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        own = options.pop("own", {}).get(rank, {})
        module = train(folder, rank, 2, ProcessPeers(), **options, **own)
        results.put((rank, module.state_dict()["weight"].tolist()))
    except TrainingError as error:
        results.put((rank, str(error)))
    finally:
        torch.distributed.destroy_process_group()


def two_workers(folder: Path, **options: Any) -> dict[int, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "meet").unlink(missing_ok=True)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=work, args=(folder, rank, results, options)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = dict(results.get(timeout=300) for _ in workers)
    for worker in workers:
        worker.join(60)
    return found


def first_checkpoint(folder: Path) -> Path:
    step, path = steps_in(folder / "checkpoints")[0]
    assert step < STEPS
    return path


def test_two_workers_are_one_with_twice_the_accumulation(tmp_path: Path) -> None:
    alone = train(tmp_path / "alone")
    found = two_workers(tmp_path / "two")
    assert found[0] == found[1], "workers must not drift apart"
    torch.testing.assert_close(torch.tensor(found[0]), alone.weight.detach(), atol=TOLERANCE, rtol=TOLERANCE)
    one, two = (read_log(tmp_path / name / "log.jsonl") for name in ("alone", "two"))
    assert [line.keys() for line in one] == [line.keys() for line in two]
    for left, right in zip(one, two, strict=True):
        for name in ("loss", "rows", "tokens", "gradient_norm"):
            assert left.get(name) == pytest.approx(right.get(name), abs=TOLERANCE), name
    assert {path.name for path in (tmp_path / "two" / "checkpoints").iterdir()} == {
        path.name for path in (tmp_path / "alone" / "checkpoints").iterdir()
    }


def test_workers_begin_with_the_first_ones_parameters(tmp_path: Path) -> None:
    """Those that another processor, or a strategy that draws numbers of its own, has made otherwise."""
    same = two_workers(tmp_path / "same")
    assert two_workers(tmp_path / "other", own={1: {"seed": 7}}) == same
    assert two_workers(tmp_path / "first", own={0: {"seed": 7}}) != same


def test_workers_resume_together(tmp_path: Path) -> None:
    whole = two_workers(tmp_path / "whole")
    first = first_checkpoint(tmp_path / "whole")
    assert two_workers(tmp_path / "again", resume_from=first) == whole


def test_another_number_of_workers_goes_on(tmp_path: Path) -> None:
    """With as many batches per step: what two began one ends, and the other way round."""
    whole = torch.tensor(two_workers(tmp_path / "two")[0])
    by_one = train(tmp_path / "by-one", resume_from=first_checkpoint(tmp_path / "two")).weight.detach()
    torch.testing.assert_close(by_one, whole, atol=TOLERANCE, rtol=TOLERANCE)
    train(tmp_path / "one")
    by_two = two_workers(tmp_path / "by-two", resume_from=first_checkpoint(tmp_path / "one"))
    torch.testing.assert_close(torch.tensor(by_two[0]), whole, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize(
    ("bad", "told"), [((9, 10, 11), "nan at step 2, batch 9"), ((10, 11), "inf at step 2, batch 10")]
)
def test_a_loss_that_is_no_number_ends_all_workers_with_the_first_such_batch(
    tmp_path: Path, bad: tuple[int, ...], told: str
) -> None:
    message = f"loss: got {told}, expected a finite number"
    assert two_workers(tmp_path / "bad", bad=bad) == {0: message, 1: message}
    with pytest.raises(TrainingDivergedError, match=f"^{message}$"):
        train(tmp_path / "alone", bad=bad)


def test_workers_of_different_runs_are_refused_at_all_of_them(tmp_path: Path) -> None:
    own = {rank: {"settings": {"dtype": dtype}} for rank, dtype in enumerate(["float32", "bfloat16"])}
    found = two_workers(tmp_path / "different", own=own)
    told = "settings.dtype: worker 0 has 'float32', worker 1 has 'bfloat16'"
    assert found[0] == found[1] == f"workers: got different runs, expected one: {told}"
    assert not steps_in(tmp_path / "different" / "checkpoints")


def test_alone_nothing_is_shared() -> None:
    from braid_fusion.training.peers import NoPeers

    tensor = torch.ones(2)
    NoPeers().sum_([tensor])
    assert tensor.tolist() == [1.0, 1.0] and NoPeers().from_first(3) == 3 and NoPeers().from_all(3) == [3]
