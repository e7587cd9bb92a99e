"""`braid bench graft`: what grafted resonance layers cost, beside the same model without them.

Every side is a process of its own that holds a GPT-2 of the same random weights: bare, and with the layers of one
preset. They take turns, so that only one of them runs at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median

from braid_orchestrator.bench.graft_workers import BARE, PRESETS, GraftedModel, Memory
from braid_orchestrator.bench.interleaving import interleave, median_ratio, spread
from braid_orchestrator.bench.machine import describe_machine, usable_cores
from braid_orchestrator.bench.pair import GPT2_SMALL, QUICK, ModelSize, make_prompt
from braid_orchestrator.bench.report import Report, Table, Target
from braid_orchestrator.bench.step import Progress
from braid_orchestrator.bench.surroundings import Surroundings
from braid_orchestrator.bench.workers import Crew, Worker

MS, MB, PERCENT = 1e3, 1e6, 100.0

SIDES = (BARE, *PRESETS)
TIME_LIMITS = {"minimal": 2.0, "standard": 6.0, "full": 10.0}
MEMORY_LIMITS = {"minimal": 2.0, "standard": 3.0, "full": 5.0}


@dataclass(frozen=True, slots=True)
class GraftOptions:
    """``text_tokens`` are read at once; ``decode_tokens`` are written with a cache after ``prompt_tokens``."""

    text_tokens: int = 256
    prompt_tokens: int = 32
    decode_tokens: int = 16
    rounds: int = 15
    threads: int = 1
    size: ModelSize = GPT2_SMALL

    @classmethod
    def quick(cls) -> GraftOptions:
        """A small model and one round: shows that everything works, not how fast."""
        return cls(text_tokens=32, prompt_tokens=8, decode_tokens=3, rounds=1, size=QUICK)


def run_graft(options: GraftOptions, progress: Progress = lambda what, done, total: None) -> Report:
    """Start everything, measure, stop everything. Raises: BraidError if a process fails."""
    text = make_prompt(options.text_tokens, options.size.vocab_size)
    prompt = make_prompt(options.prompt_tokens, options.size.vocab_size)
    threads = min(options.threads, usable_cores())
    memory, parameters = _memory(text, options, threads, progress)
    with Crew() as crew:
        workers = {side: crew.hire(side, GraftedModel, side, options.size, threads) for side in SIDES}
        crew.wait_ready(list(workers.values()), lambda worker: None)
        surroundings = Surroundings(crew.cpu_s)
        seconds = _measure(workers, text, prompt, options, progress)
        around = surroundings.to_dict()
    return Report(
        benchmark="graft",
        settings={
            **{name: value for name, value in asdict(options).items() if isinstance(value, int)},
            "layers": options.size.num_layers,
            "width": options.size.width,
            "vocabulary": options.size.vocab_size,
        },
        machine={**describe_machine(), "busy_otherwise": around["cores_busy_otherwise"]},
        tables=(_table(seconds, memory, parameters, options),),
        targets=_targets(seconds, memory, options),
        raw={
            "seconds": seconds,
            "memory": {side: asdict(one) for side, one in memory.items()},
            "parameters": parameters,
            "surroundings": around,
        },
    )


def _memory(
    text: tuple[int, ...], options: GraftOptions, threads: int, progress: Progress
) -> tuple[dict[str, Memory], dict[str, tuple[int, int]]]:
    """Of each side, and its numbers of parameters; in processes of their own, one at a time."""
    memory, parameters = {}, {}
    for done, side in enumerate(SIDES):
        progress(f"memory of {side}", done, len(SIDES))
        with Crew() as crew:
            worker = crew.hire(side, GraftedModel, side, options.size, threads, True)
            crew.wait_ready([worker], lambda worker: None)
            memory[side] = worker.call("memory", text)
            parameters[side] = worker.call("num_parameters")
    return memory, parameters


def _measure(
    workers: Mapping[str, Worker],
    text: tuple[int, ...],
    prompt: tuple[int, ...],
    options: GraftOptions,
    progress: Progress,
) -> dict[str, list[float]]:
    num_sides, done = 2 * len(workers), 0

    def on_measured(side: str) -> None:
        nonlocal done
        done += 1
        progress(side, done, num_sides * (options.rounds + 1))

    forward = {f"{side} forward": partial(worker.call, "forward", text) for side, worker in workers.items()}
    decode = {
        f"{side} decode": partial(worker.call, "decode", prompt, options.decode_tokens)
        for side, worker in workers.items()
    }
    return interleave(forward, options.rounds, on_measured) | interleave(decode, options.rounds, on_measured)


def _table(
    seconds: Mapping[str, list[float]],
    memory: Mapping[str, Memory],
    parameters: Mapping[str, tuple[int, int]],
    options: GraftOptions,
) -> Table:
    rows = []
    for side in SIDES:
        forward, decode = seconds[f"{side} forward"], seconds[f"{side} decode"]
        rows.append(
            (
                side,
                parameters[side][1],
                median(forward) * MS,
                _more(seconds, side, "forward"),
                spread(forward) * PERCENT,
                median(decode) * MS,
                _more(seconds, side, "decode"),
                spread(decode) * PERCENT,
                memory[side].peak_bytes / MB,
                _more_memory(memory, side),
            )
        )
    return Table(
        f"GPT-2 with random weights, {options.size.num_layers} layers of width {options.size.width}",
        (
            "layers grafted",
            "trained parameters",
            "forward, ms",
            "more, %",
            "spread, ± %",
            "decode, ms/token",
            "more, %",
            "spread, ± %",
            "memory, MB",
            "more, %",
        ),
        tuple(rows),
        f"Forward: 1 × {options.text_tokens} tokens, logits of all. Decode: with a cache, after "
        f"{options.prompt_tokens} tokens. Times are medians, what is more the median of the rounds' ratios. Memory: "
        "by how much the process grew from before the model was made to the peak within a forward.",
    )


def _targets(
    seconds: Mapping[str, list[float]], memory: Mapping[str, Memory], options: GraftOptions
) -> tuple[Target, ...]:
    times = [
        Target(f"{preset}: time of a forward, more", _more(seconds, preset, "forward"), limit, "<=", "%")
        for preset, limit in TIME_LIMITS.items()
    ]
    sizes = [
        Target(f"{preset}: memory, more", _more_memory(memory, preset), limit, "<=", "%")
        for preset, limit in MEMORY_LIMITS.items()
    ]
    return (*times, *sizes)


def _more(seconds: Mapping[str, list[float]], side: str, what: str) -> float:
    return (median_ratio(seconds[f"{side} {what}"], seconds[f"{BARE} {what}"]) - 1.0) * PERCENT


def _more_memory(memory: Mapping[str, Memory], side: str) -> float:
    return (memory[side].peak_bytes / memory[BARE].peak_bytes - 1.0) * PERCENT
