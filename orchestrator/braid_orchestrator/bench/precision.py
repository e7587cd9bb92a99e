"""`braid bench precision`: models in every precision their weights can have, and a braid in every frame format.

Each precision has a process of its own, with one thread; they take turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median

from braid_orchestrator.bench.braids import ShardHost
from braid_orchestrator.bench.interleaving import interleave
from braid_orchestrator.bench.machine import describe_machine
from braid_orchestrator.bench.pair import GPT2_SMALL, NAMES, QUICK, ModelSize, make_prompt, same_tokens
from braid_orchestrator.bench.precision_workers import DTYPES, FramesDecoded, FramesHost, PreciseModel
from braid_orchestrator.bench.report import Report, Table
from braid_orchestrator.bench.step import Progress
from braid_orchestrator.bench.workers import Crew, Worker
from braid_rpc.errors import InvalidRequestError
from braid_rpc.frames import FRAME_FORMATS
from braid_services.shard.quantization import QUANTIZATIONS

MS, MB, KB = 1e3, 1e6, 1e3
PRECISIONS = (*DTYPES, *QUANTIZATIONS)
RANDOM = "random"
DEMO = Path(".braid/demo")


@dataclass(frozen=True, slots=True)
class PrecisionOptions:
    """``models`` are folders, measured beside random weights of ``size``. ``text`` is what bits per byte are taken
    of: ``windows`` windows of ``window`` tokens."""

    models: tuple[str, ...] = ()
    text: str = ""
    tokens: int = 12
    prompt_tokens: int = 64
    rounds: int = 3
    window: int = 128
    windows: int = 8
    frame_text_tokens: int = 192
    size: ModelSize = GPT2_SMALL
    precisions: tuple[str, ...] = PRECISIONS
    formats: tuple[str, ...] = FRAME_FORMATS

    @classmethod
    def quick(cls) -> PrecisionOptions:
        """Small models and few rounds: shows that everything works, not how fast."""
        return cls(
            tokens=3,
            prompt_tokens=32,
            rounds=1,
            window=16,
            windows=2,
            frame_text_tokens=32,
            size=QUICK,
            precisions=("float32", "int8"),
            formats=("float32", "int8"),
        )


def demo_models() -> tuple[str, ...]:
    """The demo's models, if they are built."""
    return tuple(str(DEMO / name) for name in ("code", "prose") if (DEMO / name / "config.json").is_file())


def held_out_text() -> str:
    """Prose of the installation that the demo's models have not seen."""
    from braid_orchestrator.demo.corpus import read_corpus

    return "\n\n".join(read_corpus(share=0.2).texts("held_out", "prose"))


def read_text(path: Path) -> str:
    """The first 64 KiB of a text file. Raises: InvalidRequestError."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(2**16)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path}: expected a text file in UTF-8: {error}") from error


def run_precision(options: PrecisionOptions, progress: Progress = lambda what, done, total: None) -> Report:
    """Start everything, measure, stop everything. Raises: BraidError if a process fails."""
    weights, raw_weights = _measure_weights(options, progress)
    frames, raw_frames = _measure_frames(options, progress)
    return Report(
        benchmark="precision",
        settings={
            **{n: v for n, v in asdict(options).items() if isinstance(v, int)},
            "layers": options.size.num_layers,
            "width": options.size.width,
            "vocabulary": options.size.vocab_size,
        },
        machine=describe_machine(),
        tables=(*weights, frames),
        targets=(),
        raw={"weights": raw_weights, "frames": raw_frames},
    )


def _measure_weights(
    options: PrecisionOptions, progress: Progress
) -> tuple[list[Table], Mapping[str, object]]:
    tables: list[Table] = []
    raw: dict[str, object] = {}
    with Crew() as crew:
        workers = {one: crew.hire(one, PreciseModel, one) for one in options.precisions}
        crew.wait_ready(list(workers.values()), lambda worker: progress("starting", 0, 1))
        for name in (RANDOM, *options.models):
            table, raw[name] = _measure_model(name, workers, options, progress)
            tables.append(table)
    return tables, raw


def _measure_model(
    name: str, workers: Mapping[str, Worker], options: PrecisionOptions, progress: Progress
) -> tuple[Table, Mapping[str, object]]:
    ids = make_prompt(options.prompt_tokens, 256)  # every vocabulary has these
    for done, worker in enumerate(workers.values()):
        progress(f"loading {name}: {worker.name}", done, len(workers))
        worker.call("load", options.size if name == RANDOM else name)
    sides: dict[str, Callable[[], float]] = {}
    for precision, worker in workers.items():
        sides[f"{precision} prefill"] = partial(_prefill, worker, ids)
        sides[f"{precision} decode"] = partial(_decode, worker, ids[:32], options.tokens)
    seconds = interleave(sides, options.rounds, _telling(progress, name, len(sides), options.rounds))
    memory = {precision: worker.call("memory") for precision, worker in workers.items()}
    bits: dict[str, float] = {}
    if name != RANDOM:
        for precision, worker in workers.items():
            bits[precision] = worker.call("bits_per_byte", options.text, options.window, options.windows)
    rows = tuple(
        (
            precision,
            memory[precision][0] / MB,
            memory[precision][1] / MB,
            median(seconds[f"{precision} decode"]) * MS,
            len(ids) / median(seconds[f"{precision} prefill"]),
            f"{bits[precision]:.4f}" if bits else None,
        )
        for precision in workers
    )
    table = Table(
        f"Weights: {_title(name, options)}",
        ("held in", "weights, MB", "process grew, MB", "decode, ms", "prefill, tokens/s", "bits per byte"),
        rows,
        "int8 and nf4 out of float32: embedding, head and states are float32. What a process grew by includes "
        "what loading left behind, and libraries that it loaded.",
    )
    return table, {"seconds": seconds, "memory": memory, "bits_per_byte": bits}


def _measure_frames(options: PrecisionOptions, progress: Progress) -> tuple[Table, Mapping[str, object]]:
    size = options.size
    prompt = make_prompt(32, size.vocab_size)
    text = make_prompt(options.frame_text_tokens, size.vocab_size)
    with tempfile.TemporaryDirectory(prefix="braid-bench-") as folder, Crew() as crew:
        targets = {name: f"unix:{folder}/{name}.sock" for name in NAMES}
        hosts = [
            crew.hire(f"shard {name}", ShardHost, index, size, targets[name])
            for index, name in enumerate(NAMES)
        ]
        crew.wait_ready(hosts, lambda worker: None)
        engine = crew.hire("orchestrator", FramesHost, options.formats, size, targets)
        crew.wait_ready([engine], lambda worker: None)
        sides = {
            name: partial(_frames_decode, engine, name, prompt, options.tokens) for name in options.formats
        }
        decoded = interleave(sides, options.rounds, _telling(progress, "frames", len(sides), options.rounds))
        scores = {name: engine.call("score", name, text) for name in options.formats}
    exact_tokens = decoded["float32"][0].run.token_ids
    rows = []
    for name in options.formats:
        runs = decoded[name]
        differences = [abs(a - b) for a, b in zip(scores[name], scores["float32"], strict=True)]
        rows.append(
            (
                name,
                runs[0].bytes_per_token / KB,
                median(one.run.seconds / options.tokens for one in runs) * MS,
                f"{fmean(differences):.1e}",
                f"{max(differences):.1e}",
                same_tokens([exact_tokens, runs[0].run.token_ids]),
            )
        )
    table = Table(
        "Frames between engine and shards",
        ("format", "kB per token", "decode, ms", "mean error, nats", "largest error", "same tokens"),
        tuple(rows),
        "Two shards of random weights, four fusion points with random modules, readout anchor. Bytes are those of "
        "all messages to and from both shards, logits left out. Errors are of the log-probabilities of a text, "
        "against float32 frames.",
    )
    raw = {
        name: {
            "ms_per_token": [one.run.seconds / options.tokens * MS for one in runs],
            "bytes_per_token": [one.bytes_per_token for one in runs],
            "logprobs": scores[name],
        }
        for name, runs in decoded.items()
    }
    return table, raw


def _prefill(worker: Worker, ids: tuple[int, ...]) -> float:
    return float(worker.call("prefill", ids))


def _decode(worker: Worker, ids: tuple[int, ...], num_tokens: int) -> float:
    return float(worker.call("decode", ids, num_tokens))


def _frames_decode(worker: Worker, name: str, prompt: tuple[int, ...], num_tokens: int) -> FramesDecoded:
    decoded: FramesDecoded = worker.call("decode_counted", name, prompt, num_tokens)
    return decoded


def _telling(progress: Progress, what: str, num_sides: int, num_rounds: int) -> Callable[[str], None]:
    total, done = num_sides * (num_rounds + 1), 0

    def on_measured(side: str) -> None:
        nonlocal done
        done += 1
        progress(f"{what}: {side}", done, total)

    return on_measured


def _title(name: str, options: PrecisionOptions) -> str:
    if name != RANDOM:
        return Path(name).name
    size = options.size
    return f"GPT-2 with random weights, {size.num_layers} layers of width {size.width}"
