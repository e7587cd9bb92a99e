"""`braid bench train`: one optimisation step of fusion modules over gRPC, beside the same step in process.

A trainer of its own for each side, in turns. Also: what the trainer's memory grows by with base models of half and
of the whole depth, and what shards keep for gradients under a bound.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median

from braid_orchestrator.bench.braids import Variant
from braid_orchestrator.bench.interleaving import interleave, median_ratio, spread
from braid_orchestrator.bench.machine import describe_machine
from braid_orchestrator.bench.pair import GPT2_SMALL, NAMES, QUICK, ModelSize
from braid_orchestrator.bench.report import Report, Table, Target
from braid_orchestrator.bench.step import Progress
from braid_orchestrator.bench.surroundings import Surroundings
from braid_orchestrator.bench.train_workers import TrainerHost, TrainingShardHost
from braid_orchestrator.bench.workers import Crew, Worker

MS, MB = 1e3, 1e6
LOCAL, REMOTE = "in process", "gRPC"
TIME_LIMIT, MEMORY_LIMIT = 1.3, 1.1


# Deep enough for four points at half its depth.
_QUICK = replace(QUICK, num_layers=12)


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """A step takes ``texts`` texts of ``length`` tokens. ``training_bytes`` bounds what a shard keeps."""

    texts: int = 2
    length: int = 128
    rounds: int = 7
    strategy: str = "mlp"
    fusion_width: int = 128
    readout: str = "gate"
    training_bytes: int = 256 * 2**20
    size: ModelSize = GPT2_SMALL

    @classmethod
    def quick(cls) -> TrainOptions:
        """Small models and one round: shows that everything works, not how fast."""
        return cls(length=32, rounds=1, fusion_width=32, training_bytes=2**21, size=_QUICK)


@dataclass(frozen=True, slots=True)
class Memory:
    """With base models of ``num_layers``: by how much the trainer grew, and the most that the shards kept."""

    num_layers: int
    trainer_bytes: int
    kept_bytes: tuple[int, ...]


def run_train(options: TrainOptions, progress: Progress = lambda what, done, total: None) -> Report:
    """Start everything, measure, stop everything. Raises: BraidError if a process fails."""
    variant = Variant("embedded", options.readout, options.strategy, options.fusion_width)  # type: ignore[arg-type]
    shallow = replace(options.size, num_layers=options.size.num_layers // 2)
    memory = [_memory(options, variant, size, progress) for size in (shallow, options.size)]
    with tempfile.TemporaryDirectory(prefix="braid-bench-") as folder, Crew() as crew:
        targets = _serve(crew, options, options.size, folder)
        trainers = {
            LOCAL: crew.hire("trainer, all in process", TrainerHost, variant, options.size, {}),
            REMOTE: crew.hire("trainer over gRPC", TrainerHost, variant, options.size, targets),
        }
        crew.wait_ready(list(trainers.values()), lambda worker: None)
        done, total = 0, len(trainers) * (options.rounds + 1)

        def on_measured(name: str) -> None:
            nonlocal done
            done += 1
            progress(f"a step {name}", done, total)

        surroundings = Surroundings(crew.cpu_s)
        sides: dict[str, Callable[[], tuple[float, float]]] = {
            name: _Steps(worker, options) for name, worker in trainers.items()
        }
        results = interleave(sides, options.rounds, on_measured)
        around = surroundings.to_dict()
    return _report(options, results, memory, around)


class _Steps:
    """A trainer's steps, each on texts of its own; the same for all trainers."""

    def __init__(self, worker: Worker, options: TrainOptions) -> None:
        self._step = partial(worker.call, "step", options.texts, options.length)
        self._seed = 0

    def __call__(self) -> tuple[float, float]:
        self._seed += 1
        result: tuple[float, float] = self._step(self._seed)
        return result


def _serve(crew: Crew, options: TrainOptions, size: ModelSize, folder: str) -> dict[str, str]:
    targets = {name: f"unix:{folder}/{name}.sock" for name in NAMES}
    shards = [
        crew.hire(f"shard {name}", TrainingShardHost, index, size, target, options.training_bytes)
        for index, (name, target) in enumerate(targets.items())
    ]
    crew.wait_ready(shards, lambda worker: None)
    return targets


def _memory(options: TrainOptions, variant: Variant, size: ModelSize, progress: Progress) -> Memory:
    progress(f"memory with {size.num_layers} layers", 0, 1)
    with tempfile.TemporaryDirectory(prefix="braid-bench-") as folder, Crew() as crew:
        targets = _serve(crew, options, size, folder)
        shards = list(crew.workers)
        trainer = crew.hire("trainer", TrainerHost, variant, size, targets)
        crew.wait_ready([trainer], lambda worker: None)
        for seed in range(2):
            trainer.call("step", options.texts, options.length, seed)
        kept = tuple(shard.call("kept_bytes") for shard in shards)
        return Memory(size.num_layers, trainer.call("grown_bytes"), kept)


def _report(
    options: TrainOptions,
    results: Mapping[str, list[tuple[float, float]]],
    memory: list[Memory],
    surroundings: Mapping[str, float | None],
) -> Report:
    seconds = {name: [one for one, _ in runs] for name, runs in results.items()}
    losses = {name: [loss for _, loss in runs] for name, runs in results.items()}
    tokens = options.texts * options.length
    ratio = median_ratio(seconds[REMOTE], seconds[LOCAL])
    difference = max(abs(a - b) for a, b in zip(losses[LOCAL], losses[REMOTE], strict=True))
    steps = Table(
        f"One optimisation step on {tokens} tokens",
        ("shards", "ms", "± quartiles, %", "tokens/s", "× in process"),
        tuple(
            (
                name,
                median(values) * MS,
                spread(values) * 100,
                tokens / median(values),
                median_ratio(values, seconds[LOCAL]),
            )
            for name, values in seconds.items()
        ),
        f"Two GPT-2 of {options.size.num_layers} layers and width {options.size.width}, random weights. Strategy "
        f"{options.strategy} at four points, fusion width {options.fusion_width}, readout {options.readout}. The "
        f"losses of both differ by at most {difference:.1e}.",
    )
    room = Table(
        "Memory",
        (
            "layers of each model",
            "trainer grew by, MB",
            *(f"shard {name} kept, MB" for name in NAMES),
            "bound, MB",
        ),
        tuple(
            (
                one.num_layers,
                one.trainer_bytes / MB,
                *(kept / MB for kept in one.kept_bytes),
                options.training_bytes / MB,
            )
            for one in memory
        ),
        "The trainer: by how much its peak grew from before it connected. Shards: the most that waited for "
        "gradients.",
    )
    return Report(
        benchmark="train",
        settings={
            **{name: value for name, value in asdict(options).items() if name != "size"},
            "layers": options.size.num_layers,
            "width": options.size.width,
            "vocabulary": options.size.vocab_size,
        },
        machine={**describe_machine(), "busy_otherwise": surroundings["cores_busy_otherwise"]},
        tables=(steps, room),
        targets=(
            Target("a step through gRPC / in process", ratio, TIME_LIMIT),
            Target(
                "the trainer's growth with deep / with shallow models",
                memory[1].trainer_bytes / memory[0].trainer_bytes,
                MEMORY_LIMIT,
            ),
            Target(
                "kept for gradients / the bound",
                max(kept for one in memory for kept in one.kept_bytes) / options.training_bytes,
                1.0,
            ),
        ),
        raw={"seconds": seconds, "losses": losses, "memory": [asdict(one) for one in memory], **surroundings},
    )
