"""`braid bench step`: what a decode step of the braid costs, beside the same models without exchange.

Sides, measured in turns: (a) each model alone by plain transformers, (b) one after the other in one process,
(c) at the same time in two processes that don't talk, (d) the braid in one process, (e) the braid over gRPC with
the fusion modules in the orchestrator, (f) with a fusion service.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

from braid_orchestrator.bench.baselines import Decoded, PlainModels
from braid_orchestrator.bench.braids import BraidDecoded, EngineHost, FusionHost, ShardHost, Variant
from braid_orchestrator.bench.breakdown import fusion_hop_ms, recording_to_dict, span_hop_ms, span_table
from braid_orchestrator.bench.interleaving import interleave, median_ratio, spread
from braid_orchestrator.bench.machine import describe_machine
from braid_orchestrator.bench.pair import GPT2_SMALL, NAMES, QUICK, ModelSize, make_prompt
from braid_orchestrator.bench.report import Cell, Report, Table, Target
from braid_orchestrator.bench.surroundings import Surroundings
from braid_orchestrator.bench.workers import Crew, Worker, barrier
from braid_orchestrator.engine.trace import Recording

MS = 1e3

LIMIT_EMBEDDED = 1.15
LIMIT_SERVICE = 1.25
LIMIT_IN_TURN = 0.9
LIMIT_HOP_MS = 0.35

_LABELS = {
    "a-left": "(a) left alone, plain",
    "a-right": "(a) right alone, plain",
    "b": "(b) both in turn",
    "c": "(c) both at once, no exchange",
    "d": "(d) braid in one process",
    "e": "(e) gRPC, fusion embedded",
    "f": "(f) gRPC, fusion service",
    "e-anchor": "(e) with readout anchor",
    "f-anchor": "(f) with readout anchor",
    "e-mixture": "(e) with readout mixture",
    "e-wide": "(e) with full-width fusion",
}


@dataclass(frozen=True, slots=True)
class StepOptions:
    """What is run. ``rounds`` count after one that warms up; ``tokens`` are decoded per side and round."""

    tokens: int = 24
    rounds: int = 7
    prompt_tokens: int = 64
    strategy: str = "mlp"
    fusion_width: int = 128
    readout: str = "gate"
    size: ModelSize = GPT2_SMALL

    @classmethod
    def quick(cls) -> StepOptions:
        """Small models and few rounds: shows that everything works, not how fast."""
        return cls(tokens=6, rounds=2, prompt_tokens=16, fusion_width=32, size=QUICK)


@dataclass(frozen=True, slots=True)
class Measured:
    """One side in one round: seconds of all its decode steps; per sequence of tokens these and each step's time;
    where the time went, if it is a braid."""

    seconds: float
    token_ids: list[list[int]]
    steps_ms: list[list[float]]
    recording: Recording | None = None


Progress = Callable[[str, int, int], None]


def run_step(options: StepOptions, progress: Progress = lambda what, done, total: None) -> Report:
    """Start everything, measure, stop everything. ``progress`` is told what is done, and how much of how much.

    Raises: BraidError if a process fails.
    """
    variants = _variants(options)
    with tempfile.TemporaryDirectory(prefix="braid-bench-") as folder, Crew() as crew:
        sides = _hire(crew, options, variants, folder, progress)
        total = len(sides) * (options.rounds + 1)
        done = 0

        def on_measured(name: str) -> None:
            nonlocal done
            done += 1
            progress(_LABELS[name], done, total)

        idle = crew.idle_share()
        surroundings = Surroundings(crew.cpu_s)
        results = interleave(sides, options.rounds, on_measured)
        around = {**surroundings.to_dict(), "idle_share_of_a_core": idle}
    return _report(options, variants, results, around)


def _variants(options: StepOptions) -> dict[str, Variant]:
    base = Variant("embedded", options.readout, options.strategy, options.fusion_width)  # type: ignore[arg-type]
    return {
        "d": replace(base, placement="in process"),
        "e": base,
        "f": replace(base, placement="service"),
        "e-anchor": replace(base, readout="anchor"),
        "f-anchor": replace(base, readout="anchor", placement="service"),
        "e-mixture": replace(base, readout="mixture"),
        "e-wide": replace(base, fusion_width=options.size.width),
    }


def _hire(
    crew: Crew, options: StepOptions, variants: dict[str, Variant], folder: str, progress: Progress
) -> dict[str, Callable[[], Measured]]:
    """All processes, ready. Returns: how each side is measured."""
    size, prompt = options.size, make_prompt(options.prompt_tokens, options.size.vocab_size)
    shard_targets = {name: f"unix:{folder}/{name}.sock" for name in NAMES}
    services = [key for key, variant in variants.items() if variant.placement == "service"]
    fusion_targets = {key: f"unix:{folder}/fusion-{key}.sock" for key in services}
    meet = barrier(2)
    both = crew.hire("both models", PlainModels, (0, 1), size, 1, meet)
    second = crew.hire("second model", PlainModels, (1,), size, 1, meet)
    shards = [
        crew.hire(f"shard {name}", ShardHost, index, size, target)
        for index, (name, target) in enumerate(shard_targets.items())
    ]
    fusion = crew.hire("fusion", FusionHost, list(fusion_targets.values()))
    local = {key: variant for key, variant in variants.items() if variant.placement == "in process"}
    braid = crew.hire("braid in one process", EngineHost, local, size, {}, {})
    first = [both, second, *shards, fusion, braid]
    started = 0

    def on_ready(worker: Worker) -> None:
        nonlocal started
        started += 1
        progress(f"starting: {worker.name}", started, len(first) + 1)

    crew.wait_ready(first, on_ready)
    remote = {key: variant for key, variant in variants.items() if key not in local}
    orchestrator = crew.hire("orchestrator", EngineHost, remote, size, shard_targets, fusion_targets)
    crew.wait_ready([orchestrator], on_ready)
    sides: dict[str, Callable[[], Measured]] = {
        "a-left": partial(_alone, both, 0, prompt, options.tokens),
        "a-right": partial(_alone, both, 1, prompt, options.tokens),
        "b": partial(_in_turn, both, prompt, options.tokens),
        "c": partial(_at_once, both, second, prompt, options.tokens),
    }
    for key in variants:
        sides[key] = partial(_braided, braid if key in local else orchestrator, key, prompt, options.tokens)
    return sides


def _alone(worker: Worker, index: int, prompt: tuple[int, ...], num_tokens: int) -> Measured:
    decoded: Decoded = worker.call("decode", index, prompt, num_tokens)
    return Measured(decoded.seconds, [decoded.token_ids], [_steps_ms(decoded)])


def _in_turn(worker: Worker, prompt: tuple[int, ...], num_tokens: int) -> Measured:
    decoded: list[Decoded] = worker.call("decode_in_turn", prompt, num_tokens)
    return Measured(
        sum(d.seconds for d in decoded), [d.token_ids for d in decoded], [_steps_ms(d) for d in decoded]
    )


def _at_once(first: Worker, second: Worker, prompt: tuple[int, ...], num_tokens: int) -> Measured:
    """From the moment both begin until both have made all their tokens."""
    first.ask("decode", 0, prompt, num_tokens, True)
    second.ask("decode", 1, prompt, num_tokens, True)
    decoded: list[Decoded] = [first.result(), second.result()]
    seconds = max(d.end_s for d in decoded) - min(d.start_s for d in decoded)
    return Measured(seconds, [d.token_ids for d in decoded], [_steps_ms(d) for d in decoded])


def _braided(worker: Worker, key: str, prompt: tuple[int, ...], num_tokens: int) -> Measured:
    decoded: BraidDecoded = worker.call("decode", key, prompt, num_tokens)
    return Measured(decoded.seconds, [decoded.token_ids], [_steps_ms(decoded)], decoded.recording)


def _steps_ms(decoded: Decoded | BraidDecoded) -> list[float]:
    times = [decoded.start_s, *decoded.picked_s]
    return [(after - before) * MS for before, after in pairwise(times)]


def _report(
    options: StepOptions,
    variants: dict[str, Variant],
    results: dict[str, list[Measured]],
    surroundings: dict[str, Any],
) -> Report:
    ms = {key: [m.seconds / options.tokens * MS for m in runs] for key, runs in results.items()}
    recordings = {key: [m.recording for m in results[key] if m.recording is not None] for key in variants}
    targets = (
        Target("(e) / (c)", median_ratio(ms["e"], ms["c"]), LIMIT_EMBEDDED),
        Target("(f) / (c)", median_ratio(ms["f"], ms["c"]), LIMIT_SERVICE),
        Target("(f) / (b)", median_ratio(ms["f"], ms["b"]), LIMIT_IN_TURN, "<"),
        Target("serialise and wire per hop, (e)", span_hop_ms(recordings["e"]), LIMIT_HOP_MS, unit="ms"),
        Target("serialise and wire per hop, (f)", span_hop_ms(recordings["f"]), LIMIT_HOP_MS, unit="ms"),
        Target(
            "the same to and from the fusion service",
            fusion_hop_ms(recordings["f"]),
            LIMIT_HOP_MS,
            unit="ms",
        ),
    )
    braided = {key: [tuple(m.token_ids[0]) for m in results[key]] for key in ("d", "e", "f")}
    agree = len({tokens for runs in braided.values() for tokens in runs}) == 1
    sides_table = Table(
        "Decode time per token",
        ("side", "ms", "± quartiles, %", "× (c)", "× (b)"),
        tuple(_side_row(key, ms) for key in results),
        f"Readout {options.readout}, four fusion points, strategy {options.strategy}, fusion width "
        f"{options.fusion_width} (full-width: {options.size.width}). (d), (e) and (f) gave the same tokens: "
        f"{'yes' if agree else 'NO'}.",
    )
    settings = {
        **{name: value for name, value in asdict(options).items() if name != "size"},
        "layers": options.size.num_layers,
        "width": options.size.width,
        "vocabulary": options.size.vocab_size,
    }
    return Report(
        benchmark="step",
        settings=settings,
        machine={**describe_machine(), "busy_otherwise": surroundings["cores_busy_otherwise"]},
        tables=(
            sides_table,
            *(span_table(_LABELS[key], recordings[key], [one / MS for one in ms[key]]) for key in ("e", "f")),
        ),
        targets=targets,
        raw={
            "ms_per_token": ms,
            "ms_of_each_step": {key: [m.steps_ms for m in runs] for key, runs in results.items()},
            "median_ms_per_token": {key: median(values) for key, values in ms.items()},
            "same_tokens": agree,
            "recordings": {key: [recording_to_dict(one) for one in recordings[key]] for key in variants},
            **surroundings,
        },
    )


def _side_row(key: str, ms: dict[str, list[float]]) -> tuple[Cell, ...]:
    return (
        _LABELS[key],
        median(ms[key]),
        spread(ms[key]) * 100,
        median_ratio(ms[key], ms["c"]),
        median_ratio(ms[key], ms["b"]),
    )
