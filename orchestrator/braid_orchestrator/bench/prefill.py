"""`braid bench prefill`: reading a long prompt by the braid, beside the same models reading it without exchange.

Sides, measured in turns: (a) each model alone by plain transformers, (c) both at the same time in two processes
that don't talk, (d) the braid in one process, (e) the braid over gRPC with the fusion modules in the orchestrator,
(f) with a fusion service. Each side's time is from the prompt to the first token after it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from braid_orchestrator.bench.baselines import PlainModels
from braid_orchestrator.bench.braids import BraidPrefilled, EngineHost, FusionHost, ShardHost, Variant
from braid_orchestrator.bench.breakdown import recording_to_dict, span_table, summed
from braid_orchestrator.bench.interleaving import interleave, median_ratio, spread
from braid_orchestrator.bench.machine import describe_machine
from braid_orchestrator.bench.pair import NAMES, QUICK, ModelSize, make_prompt
from braid_orchestrator.bench.report import Report, Table, Target
from braid_orchestrator.bench.step import Progress
from braid_orchestrator.bench.surroundings import Surroundings
from braid_orchestrator.bench.workers import Crew, Worker, barrier
from braid_orchestrator.engine.trace import Recording

MS = 1e3
LIMIT_EMBEDDED = 1.15

_LABELS = {
    "a-left": "(a) left alone, plain",
    "a-right": "(a) right alone, plain",
    "c": "(c) both at once, no exchange",
    "d": "(d) braid in one process",
    "e": "(e) gRPC, fusion embedded",
    "f": "(f) gRPC, fusion service",
    "e-anchor": "(e) with readout anchor",
}


_SIZE = ModelSize(context=1152)  # a token behind 1,024 wants a place too


@dataclass(frozen=True, slots=True)
class PrefillOptions:
    """What is run. ``rounds`` count after one that warms up."""

    prompt_tokens: int = 1024
    rounds: int = 5
    strategy: str = "mlp"
    fusion_width: int = 128
    readout: str = "gate"
    size: ModelSize = _SIZE

    @classmethod
    def quick(cls) -> PrefillOptions:
        """Small models and few rounds: shows that everything works, not how fast."""
        return cls(prompt_tokens=400, rounds=1, fusion_width=32, size=QUICK)


@dataclass(frozen=True, slots=True)
class Measured:
    """One side in one round; where the time went, if it is a braid."""

    seconds: float
    recording: Recording | None = None


def run_prefill(options: PrefillOptions, progress: Progress = lambda what, done, total: None) -> Report:
    """Start everything, measure, stop everything. Raises: BraidError if a process fails."""
    base = Variant("embedded", options.readout, options.strategy, options.fusion_width)  # type: ignore[arg-type]
    variants = {
        "d": replace(base, placement="in process"),
        "e": base,
        "f": replace(base, placement="service"),
        "e-anchor": replace(base, readout="anchor"),
    }
    with tempfile.TemporaryDirectory(prefix="braid-bench-") as folder, Crew() as crew:
        sides = _hire(crew, options, variants, folder, progress)
        total, done = len(sides) * (options.rounds + 1), 0

        def on_measured(name: str) -> None:
            nonlocal done
            done += 1
            progress(_LABELS[name], done, total)

        surroundings = Surroundings(crew.cpu_s)
        results = interleave(sides, options.rounds, on_measured)
        around = surroundings.to_dict()
    return _report(options, variants, results, around)


def _hire(
    crew: Crew, options: PrefillOptions, variants: dict[str, Variant], folder: str, progress: Progress
) -> dict[str, Callable[[], Measured]]:
    """All processes, ready. Returns: how each side is measured."""
    size, prompt = options.size, make_prompt(options.prompt_tokens, options.size.vocab_size)
    shard_targets = {name: f"unix:{folder}/{name}.sock" for name in NAMES}
    fusion_target = f"unix:{folder}/fusion.sock"
    meet = barrier(2)
    first = crew.hire("both models", PlainModels, (0, 1), size, 1, meet)
    second = crew.hire("second model", PlainModels, (1,), size, 1, meet)
    local = {key: variant for key, variant in variants.items() if variant.placement == "in process"}
    remote = {key: variant for key, variant in variants.items() if key not in local}
    braid = crew.hire("braid in one process", EngineHost, local, size, {}, {})
    parts = [
        first,
        second,
        braid,
        *(
            crew.hire(f"shard {name}", ShardHost, index, size, target)
            for index, (name, target) in enumerate(shard_targets.items())
        ),
        crew.hire("fusion", FusionHost, [fusion_target]),
    ]
    ready = 0

    def on_ready(worker: Worker) -> None:
        nonlocal ready
        ready += 1
        progress(f"starting: {worker.name}", ready, len(parts) + 1)

    crew.wait_ready(parts, on_ready)
    services = {key: fusion_target for key, variant in remote.items() if variant.placement == "service"}
    orchestrator = crew.hire("orchestrator", EngineHost, remote, size, shard_targets, services)
    crew.wait_ready([orchestrator], on_ready)
    sides: dict[str, Callable[[], Measured]] = {
        "a-left": partial(_alone, first, 0, prompt),
        "a-right": partial(_alone, first, 1, prompt),
        "c": partial(_at_once, first, second, prompt),
    }
    for key in variants:
        sides[key] = partial(_braided, braid if key in local else orchestrator, key, prompt)
    return sides


def _alone(worker: Worker, index: int, prompt: tuple[int, ...]) -> Measured:
    start_s, end_s = worker.call("prefill", index, prompt)
    return Measured(end_s - start_s)


def _at_once(first: Worker, second: Worker, prompt: tuple[int, ...]) -> Measured:
    """From the moment both begin until both are done."""
    first.ask("prefill", 0, prompt, True)
    second.ask("prefill", 1, prompt, True)
    both = [first.result(), second.result()]
    return Measured(max(end_s for _, end_s in both) - min(start_s for start_s, _ in both))


def _braided(worker: Worker, key: str, prompt: tuple[int, ...]) -> Measured:
    prefilled: BraidPrefilled = worker.call("prefill", key, prompt)
    return Measured(prefilled.seconds, prefilled.recording)


def _report(
    options: PrefillOptions,
    variants: dict[str, Variant],
    results: dict[str, list[Measured]],
    surroundings: dict[str, Any],
) -> Report:
    ms = {key: [m.seconds * MS for m in runs] for key, runs in results.items()}
    recordings = {key: [m.recording for m in results[key] if m.recording is not None] for key in variants}
    chunks = len(recordings["e"][0].spans[0])
    sides = Table(
        f"Reading {options.prompt_tokens} tokens",
        ("side", "ms", "± quartiles, %", "tokens/s", "× (c)"),
        tuple(
            (
                _LABELS[key],
                median(values),
                spread(values) * 100,
                options.prompt_tokens / median(values) * MS,
                median_ratio(values, ms["c"]),
            )
            for key, values in ms.items()
        ),
        f"From the prompt to the first token. The braid reads in {chunks} chunks. Readout {options.readout}, four "
        f"fusion points, strategy {options.strategy}, fusion width {options.fusion_width}.",
    )
    return Report(
        benchmark="prefill",
        settings={
            **{name: value for name, value in asdict(options).items() if name != "size"},
            "layers": options.size.num_layers,
            "width": options.size.width,
            "vocabulary": options.size.vocab_size,
        },
        machine={**describe_machine(), "busy_otherwise": surroundings["cores_busy_otherwise"]},
        tables=(
            sides,
            span_table(
                _LABELS["e"],
                [summed(one) for one in recordings["e"]],
                [one / MS for one in ms["e"]],
                ("rest: opening, sampling, text", "prompt"),
            ),
        ),
        targets=(Target("(e) / (c)", median_ratio(ms["e"], ms["c"]), LIMIT_EMBEDDED),),
        raw={
            "ms": ms,
            "recordings": {key: [recording_to_dict(one) for one in recordings[key]] for key in variants},
            **surroundings,
        },
    )
