"""`braid bench throughput`: tokens per second of a whole service, beside its models in plain transformers.

The service runs as `braid serve` starts it, in processes of its own, and is asked over HTTP by 1, 4, 16 and 32
clients at once, each of which takes its tokens one by one from a stream. Beside it, in turns: each model alone
decoding a static batch of 32, and both at the same time without exchange. Then how long a new request's first token
takes while nothing else runs, and while 31 others decode.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from braid_orchestrator.bench.baselines import StaticBatch
from braid_orchestrator.bench.braids import Placement, Variant
from braid_orchestrator.bench.clients import Stream, StreamingClient, tokens_per_s
from braid_orchestrator.bench.interleaving import interleave, median_ratio, spread
from braid_orchestrator.bench.machine import describe_machine
from braid_orchestrator.bench.pair import GPT2_SMALL, NAMES, QUICK, ModelSize, make_prompt
from braid_orchestrator.bench.report import Report, Table, Target
from braid_orchestrator.bench.service import RunningService, running_service, save_pair, service_file
from braid_orchestrator.bench.step import Progress
from braid_orchestrator.bench.surroundings import Surroundings
from braid_orchestrator.bench.workers import Crew, Worker, barrier
from braid_rpc.errors import BraidError

MS = 1e3
LIMIT_OF_ALONE = 0.8
LIMIT_TIMES_IDLE = 3.0


@dataclass(frozen=True, slots=True)
class ThroughputOptions:
    """What is run. ``rounds`` count after one that warms up; ``tokens`` are decoded per session and round, and
    ``probes`` requests of each length in ``new_prompts`` are made of which only the first token counts."""

    sessions: tuple[int, ...] = (1, 4, 16, 32)
    tokens: int = 16
    prompt_tokens: int = 32
    new_prompts: tuple[int, ...] = (32, 128)
    probes: int = 3
    rounds: int = 3
    strategy: str = "mlp"
    fusion_width: int = 128
    readout: str = "gate"
    placement: Placement = "embedded"
    size: ModelSize = GPT2_SMALL

    @classmethod
    def quick(cls) -> ThroughputOptions:
        """Small models and few rounds: shows that everything works, not how fast."""
        return cls(
            sessions=(1, 4),
            tokens=12,
            prompt_tokens=8,
            new_prompts=(8, 32),
            probes=1,
            rounds=1,
            fusion_width=32,
            size=QUICK,
        )


def run_throughput(options: ThroughputOptions, progress: Progress = lambda what, done, total: None) -> Report:
    """Start everything, measure, stop everything. Raises: BraidError if a process fails."""
    most = max(options.sessions)
    variant = Variant(options.placement, options.readout, options.strategy, options.fusion_width)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory(prefix="braid-bench-") as name, Crew() as crew:
        folder, meet = Path(name), barrier(2)
        progress("saving the models", 0, 4)
        save_pair(folder, options.size)
        batch = tuple(_prompts(options, most))
        plain = [
            crew.hire(f"{shard}, static batch", StaticBatch, index, options.size, batch, meet)
            for index, shard in enumerate(NAMES)
        ]
        started = 1

        def on_ready(worker: Worker) -> None:
            nonlocal started
            started += 1
            progress(f"starting: {worker.name}", started, 4)

        crew.wait_ready(plain, on_ready)
        with running_service(service_file(folder, variant, 2 * most)) as service:
            progress("started: the service", 4, 4)
            sides = _sides(options, plain, service)
            total, done = len(sides) * (options.rounds + 1), 0

            def on_measured(side: str) -> None:
                nonlocal done
                done += 1
                progress(side, done, total)

            own = os.times()
            service_cpu_s = service.cpu_s()

            def own_cpu_s() -> float:
                used = os.times()
                return crew.cpu_s() + service.cpu_s() + used.user + used.system

            surroundings = Surroundings(own_cpu_s)
            results = interleave(sides, options.rounds, on_measured)
            used = os.times()
            around = {
                **surroundings.to_dict(),
                "clients_cpu_s": used.user + used.system - own.user - own.system,
                "service_cpu_s": service.cpu_s() - service_cpu_s,
            }
    return _report(options, results, around)


def _prompts(options: ThroughputOptions, count: int) -> list[tuple[int, ...]]:
    """Different ones, of one length."""
    whole = make_prompt(count * options.prompt_tokens, options.size.vocab_size)
    return [whole[i : i + options.prompt_tokens] for i in range(0, len(whole), options.prompt_tokens)]


def _sides(
    options: ThroughputOptions, plain: list[Worker], service: RunningService
) -> dict[str, Callable[[], float]]:
    """How each is measured: tokens per second, or seconds to the first token."""
    most = max(options.sessions)
    client = StreamingClient(service.host, service.port)
    sides: dict[str, Callable[[], float]] = {
        worker.name: partial(_static, [worker], most, options.tokens) for worker in plain
    }
    sides["both at once, static batches"] = partial(_static, plain, most, options.tokens)
    for sessions in options.sessions:
        sides[_label(sessions)] = partial(
            _serve_at_once, client, _prompts(options, sessions), options.tokens + 1
        )
    others = _prompts(options, most - 1)
    for length in options.new_prompts:
        new = make_prompt(length, options.size.vocab_size)
        sides[_first(length, 0)] = partial(_first_token, client, [], new, options)
        sides[_first(length, most - 1)] = partial(_first_token, client, others, new, options)
    return sides


def _first(length: int, others: int) -> str:
    return f"first token after {length}, {others} others"


def _label(sessions: int) -> str:
    return f"service, {sessions} session{'s' if sessions > 1 else ''}"


def _static(workers: list[Worker], batch: int, num_tokens: int) -> float:
    """Tokens per second of each worker."""
    for worker in workers:
        worker.ask("decode", num_tokens, len(workers) > 1)
    times: list[tuple[float, float]] = [worker.result() for worker in workers]
    return batch * num_tokens / (max(end for _, end in times) - min(start for start, _ in times))


def _serve_at_once(client: StreamingClient, prompts: list[tuple[int, ...]], num_tokens: int) -> float:
    """The prompts are read at the same rate that the sessions write, so the first may write long before the last
    one begins: each writes that much longer."""
    return tokens_per_s(asyncio.run(client.at_once(prompts, num_tokens + len(prompts) // 4)))


def _first_token(
    client: StreamingClient,
    others: list[tuple[int, ...]],
    prompt: tuple[int, ...],
    options: ThroughputOptions,
) -> float:
    return asyncio.run(_first_token_beside(client, others, prompt, options))


async def _first_token_beside(
    client: StreamingClient,
    others: list[tuple[int, ...]],
    prompt: tuple[int, ...],
    options: ThroughputOptions,
) -> float:
    """The median over the probes, made one after the other while all of ``others`` decode."""
    endless = options.size.context - options.prompt_tokens
    written = [asyncio.Event() for _ in others]
    decoding = [
        asyncio.create_task(client.generate(other, endless, event))
        for other, event in zip(others, written, strict=True)
    ]
    try:
        for task, event in zip(decoding, written, strict=True):
            waiting = asyncio.create_task(event.wait())
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        probes: list[Stream] = []
        for probe in range(options.probes):
            # Not in step with the rounds of the others.
            await asyncio.sleep((0.5 + probe) / options.probes * _round_s(probes))
            probes.append(await client.generate(prompt, 1))
        ended = [task for task in decoding if task.done()]
        if ended:
            await ended[0]
            raise BraidError("a stream ended before the others were measured beside it")
        return median(stream.first_token_s for stream in probes)
    finally:
        for task in decoding:
            task.cancel()
        await asyncio.gather(*decoding, return_exceptions=True)


def _round_s(probes: list[Stream]) -> float:
    """About how long a round of the service takes."""
    return probes[-1].first_token_s if probes else 0.1


def _report(
    options: ThroughputOptions, results: dict[str, list[float]], surroundings: dict[str, Any]
) -> Report:
    alone = [f"{name}, static batch" for name in NAMES]
    slower = min(alone, key=lambda side: median(results[side]))
    most = max(options.sessions)
    pairs = {
        length: (results[_first(length, 0)], results[_first(length, most - 1)])
        for length in options.new_prompts
    }
    first = {side for length in pairs for side in (_first(length, 0), _first(length, most - 1))}
    rates = {side: values for side, values in results.items() if side not in first}
    of_alone = median_ratio(results[_label(most)], results[slower])
    return Report(
        benchmark="throughput",
        settings={
            **{
                name: value
                for name, value in asdict(options).items()
                if name not in ("size", "sessions", "new_prompts")
            },
            "layers": options.size.num_layers,
            "width": options.size.width,
            "vocabulary": options.size.vocab_size,
        },
        machine={**describe_machine(), "busy_otherwise": surroundings["cores_busy_otherwise"]},
        tables=(
            Table(
                "Tokens per second, all sessions together",
                ("side", "tokens/s", "± quartiles, %", "ms per round", f"× {slower}"),
                tuple(
                    (
                        side,
                        median(values),
                        spread(values) * 100,
                        _batch(side, options) / median(values) * MS,
                        median_ratio(values, results[slower]),
                    )
                    for side, values in rates.items()
                ),
                f"Static batches: {most} sequences in plain transformers, one torch thread. Both at once: of each. "
                f"The service: `braid serve`, fusion {options.placement}, readout {options.readout}, four fusion "
                f"points, strategy {options.strategy}, fusion width {options.fusion_width}; its clients run beside "
                "it on the same cores.",
            ),
            Table(
                "Time to the first token of a new request",
                (
                    "tokens of its prompt",
                    "idle, ms",
                    "± quartiles, %",
                    f"beside {most - 1} that decode, ms",
                    "± quartiles, %",
                    "× idle",
                ),
                tuple(
                    (
                        length,
                        median(idle) * MS,
                        spread(idle) * 100,
                        median(busy) * MS,
                        spread(busy) * 100,
                        median_ratio(busy, idle),
                    )
                    for length, (idle, busy) in pairs.items()
                ),
            ),
        ),
        targets=(
            Target(f"{most} sessions: × {slower}", of_alone, LIMIT_OF_ALONE, ">="),
            *(
                Target(
                    f"first token after {length} tokens: × that of an idle service",
                    median_ratio(busy, idle),
                    LIMIT_TIMES_IDLE,
                )
                for length, (idle, busy) in pairs.items()
            ),
        ),
        raw={
            "tokens_per_s": rates,
            "first_token_s": {side: results[side] for side in results if side in first},
            **surroundings,
        },
    )


def _batch(side: str, options: ThroughputOptions) -> int:
    by_label = {_label(sessions): sessions for sessions in options.sessions}
    return by_label.get(side, max(options.sessions))
