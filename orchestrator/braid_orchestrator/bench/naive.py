"""`braid bench naive`: the braid beside the simplest way: every model reads everything again.

There, every model reads the whole text again for every token, all hidden states and all logits are kept, and the
logits are averaged. It gets as many torch threads as there are cores; the braid's shards have one each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median

from braid_orchestrator.bench.baselines import RereadingPair
from braid_orchestrator.bench.braids import EngineHost, ShardHost, Variant
from braid_orchestrator.bench.interleaving import interleave, median_ratio
from braid_orchestrator.bench.machine import describe_machine, usable_cores
from braid_orchestrator.bench.pair import GPT2_SMALL, NAMES, QUICK, ModelSize, make_prompt
from braid_orchestrator.bench.report import Report, Table, Target
from braid_orchestrator.bench.step import Progress
from braid_orchestrator.bench.workers import Crew, Worker

MS = 1e3
LIMIT_TIMES = 10.0


@dataclass(frozen=True, slots=True)
class NaiveOptions:
    """``lengths`` are those of the text that is added to; targets are judged at ``judged_length``."""

    lengths: tuple[int, ...] = (64, 128, 256)
    judged_length: int = 256
    naive_tokens: int = 2
    braid_tokens: int = 12
    rounds: int = 3
    size: ModelSize = GPT2_SMALL

    @classmethod
    def quick(cls) -> NaiveOptions:
        """Small models and few rounds: shows that everything works, not how fast."""
        return cls(lengths=(16, 48), judged_length=48, naive_tokens=2, braid_tokens=4, rounds=1, size=QUICK)


_WAYS = {
    "naive": "everything again",
    "local": "braid in one process",
    "remote": "braid over gRPC",
}


def run_naive(options: NaiveOptions, progress: Progress = lambda what, done, total: None) -> Report:
    """Start everything, measure, stop everything. Raises: BraidError if a process fails."""
    size, cores = options.size, usable_cores()
    local = Variant("in process", "mixture", "weighted", size.width)
    with tempfile.TemporaryDirectory(prefix="braid-bench-") as folder, Crew() as crew:
        targets = {name: f"unix:{folder}/{name}.sock" for name in NAMES}
        shards = [
            crew.hire(f"shard {name}", ShardHost, index, size, targets[name])
            for index, name in enumerate(NAMES)
        ]
        naive = crew.hire("everything again", RereadingPair, size, cores)
        braid = crew.hire("braid in one process", EngineHost, {"local": local}, size, {}, {})
        ready = 0

        def on_ready(worker: Worker) -> None:
            nonlocal ready
            ready += 1
            progress(f"starting: {worker.name}", ready, len(shards) + 3)

        crew.wait_ready([*shards, naive, braid], on_ready)
        remote = crew.hire(
            "orchestrator", EngineHost, {"remote": replace(local, placement="embedded")}, size, targets, {}
        )
        crew.wait_ready([remote], on_ready)
        sides: dict[str, Callable[[], float]] = {}
        for length in options.lengths:
            sides[f"naive {length}"] = partial(_naive, naive, length, options)
            sides[f"local {length}"] = partial(_braided, braid, "local", length, options)
            sides[f"remote {length}"] = partial(_braided, remote, "remote", length, options)
        total, done = len(sides) * (options.rounds + 1), 0

        def on_measured(name: str) -> None:
            nonlocal done
            done += 1
            way, _, length = name.partition(" ")
            progress(f"{_WAYS[way]}, {length} tokens", done, total)

        seconds = interleave(sides, options.rounds, on_measured)
    return _report(options, {name: [s * MS for s in runs] for name, runs in seconds.items()}, cores)


def _naive(worker: Worker, length: int, options: NaiveOptions) -> float:
    text = make_prompt(length - options.naive_tokens // 2, options.size.vocab_size)
    return float(worker.call("seconds_per_token", text, options.naive_tokens))


def _braided(worker: Worker, key: str, length: int, options: NaiveOptions) -> float:
    """Per token while the text grows around ``length``, the prompt's own reading not counted."""
    text = make_prompt(length - options.braid_tokens // 2, options.size.vocab_size)
    return float(worker.call("decode", key, text, options.braid_tokens).seconds / options.braid_tokens)


def _report(options: NaiveOptions, ms: dict[str, list[float]], cores: int) -> Report:
    def times(way: str, length: int) -> float:
        return median_ratio(ms[f"naive {length}"], ms[f"{way} {length}"])

    rows = tuple(
        (
            length,
            median(ms[f"naive {length}"]),
            median(ms[f"local {length}"]),
            median(ms[f"remote {length}"]),
            times("local", length),
            times("remote", length),
        )
        for length in options.lengths
    )
    judged = options.judged_length
    return Report(
        benchmark="naive",
        settings={
            **{name: value for name, value in asdict(options).items() if name not in ("size", "lengths")},
            "layers": options.size.num_layers,
            "width": options.size.width,
            "vocabulary": options.size.vocab_size,
            "naive_threads": cores,
        },
        machine=describe_machine(),
        tables=(
            Table(
                "Decode time per token",
                (
                    "tokens of text",
                    "everything again, ms",
                    "in process, ms",
                    "gRPC, ms",
                    "× in process",
                    "× gRPC",
                ),
                rows,
                f"Reading everything again has {cores} torch threads, each shard has one. Four fusion points, "
                "strategy weighted, readout mixture.",
            ),
        ),
        targets=(
            Target(f"in process, {judged} tokens: times faster", times("local", judged), LIMIT_TIMES, ">="),
            Target(f"gRPC, {judged} tokens: times faster", times("remote", judged), LIMIT_TIMES, ">="),
        ),
        raw={"ms_per_token": ms},
    )
