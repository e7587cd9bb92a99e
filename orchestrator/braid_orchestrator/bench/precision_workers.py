"""What `braid bench precision` measures, each in a process of its own: a model held in one precision, and an
engine over shards whose frames have one format."""

from __future__ import annotations

import gc
import os
import queue
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from braid_fusion.stack import FusionStack
from braid_fusion.weights import save_stack
from braid_orchestrator.assembly import assemble_remote, resolve_plan
from braid_orchestrator.bench.braids import DECODE_TIMEOUT_S, BraidDecoded, EngineHost, Variant
from braid_orchestrator.bench.pair import ModelSize, make_model, make_tokenizer, settle_memory
from braid_orchestrator.engine.requests import Event, ScoreRequest, ScoreResult
from braid_orchestrator.evaluation import Cut, LaneReader, measure_shard
from braid_orchestrator.training.data import Document, MemorySource
from braid_orchestrator.training.local import LocalTrainingShard
from braid_rpc.errors import BraidError
from braid_rpc.shard_client import ShardClient
from braid_rpc.steps import OpenSession, Segment, SpanStep
from braid_services.shard.backend import ShardBackend
from braid_services.shard.config import ShardConfig

DTYPES = ("float32", "bfloat16", "float16")


def make_precise(model: str | ModelSize, precision: str) -> ShardBackend:
    """A shard of a folder, or of random weights of that size, in a dtype or quantized out of float32."""
    dtype, quantization = (precision, None) if precision in DTYPES else ("float32", precision)
    if isinstance(model, str):
        return ShardBackend.load(
            ShardConfig(Path(model).name, model, dtype, threads=1, quantization=quantization)
        )
    config = ShardConfig("random", "random", dtype, quantization=quantization)
    random = make_model(0, model).to(getattr(torch, dtype))
    return ShardBackend.from_model(random, make_tokenizer(model.vocab_size), config)


def weight_bytes(model: torch.nn.Module) -> int:
    """Of all parameters and buffers, shared ones once, and what 4-bit weights need beside them."""
    tensors: dict[int, Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        tensors[tensor.data_ptr()] = tensor
        absmax = getattr(getattr(tensor, "quant_state", None), "absmax", None)
        if isinstance(absmax, Tensor):
            tensors[absmax.data_ptr()] = absmax
    return sum(tensor.nbytes for tensor in tensors.values())


class PreciseModel:
    """One model in one precision at a time, with one thread."""

    def __init__(self, precision: str) -> None:
        torch.set_num_threads(1)
        self._precision = precision
        self._step_ids = count(1)

    def load(self, model: str | ModelSize) -> None:
        """Take this model in place of the one before. Raises: BraidError."""
        before = _resident_bytes()
        self._backend = make_precise(model, self._precision)
        gc.collect()
        self._resident_bytes = _resident_bytes() - before
        self._stream = self._backend.stream()
        settle_memory(1)

    def memory(self) -> tuple[int, int]:
        """Bytes of the weights, and by how much the process grew with the model (what loading left included)."""
        return weight_bytes(self._backend.model), self._resident_bytes

    def prefill(self, prompt: Sequence[int]) -> float:
        """Seconds to read a prompt, in one span."""
        self._stream.open([OpenSession("p", len(prompt))])
        started = time.perf_counter()
        self._run("p", 0, prompt)
        seconds = time.perf_counter() - started
        self._stream.close(["p"])
        return seconds

    def decode(self, prompt: Sequence[int], num_tokens: int) -> float:
        """Seconds per token of a greedy decode, the prompt's reading not counted."""
        self._stream.open([OpenSession("d", len(prompt) + num_tokens)])
        token = self._run("d", 0, prompt)
        started = time.perf_counter()
        for index in range(num_tokens):
            token = self._run("d", len(prompt) + index, [token])
        seconds = (time.perf_counter() - started) / num_tokens
        self._stream.close(["d"])
        return seconds

    def bits_per_byte(self, text: str, window: int, max_windows: int) -> float:
        """Of the first windows of a text."""
        source = MemorySource("text", [Document("text", text[: max_windows * window * 8])])
        lane = LaneReader(self._backend).read(source, window)
        shard = LocalTrainingShard(self._backend)
        try:
            return measure_shard(shard, lane, Cut(window), max_windows).bits_per_byte
        finally:
            shard.shutdown()

    def _run(self, session: str, position: int, ids: Sequence[int]) -> int:
        num_layers = self._backend.spans.num_layers
        segment = Segment(session, position, len(ids))
        step = SpanStep(
            next(self._step_ids), 0, num_layers, True, (segment,), torch.tensor(ids), (len(ids) - 1,)
        )
        logits = self._stream.step(step).logits
        return 0 if logits is None else int(logits[0].argmax())


@dataclass(frozen=True, slots=True)
class FramesDecoded:
    """A decode, and the bytes that went between engine and shards per token, logits left out."""

    run: BraidDecoded
    bytes_per_token: float


class FramesHost(EngineHost):
    """Engines over the pair's shards, one per frame format, all with the same random fusion modules."""

    def __init__(self, formats: Sequence[str], size: ModelSize, shard_targets: Mapping[str, str]) -> None:
        torch.set_num_threads(1)
        self._services = {}
        self._size = size
        variant = Variant("embedded", "anchor", "mlp", min(128, size.width))
        config = variant.config()
        try:
            with tempfile.TemporaryDirectory(prefix="braid-bench-") as folder:
                cards = []
                for target in shard_targets.values():
                    with ShardClient(target) as client:
                        cards.append(client.describe())
                stack = FusionStack(resolve_plan(config, cards))
                _shake(stack)
                save_stack(stack, Path(folder) / "shaken", {})
                config = replace(config, fusion=replace(config.fusion, weights=folder))
                for name in formats:
                    shards = tuple(replace(shard, frames=name) for shard in config.shards)
                    self._services[name] = assemble_remote(
                        replace(config, shards=shards),
                        {shard: partial(str, target) for shard, target in shard_targets.items()},
                        None,
                    )
        except BaseException:
            self.stop()
            raise
        settle_memory(1)

    def decode_counted(self, key: str, prompt: tuple[int, ...], num_tokens: int) -> FramesDecoded:
        """As `decode`, with the states' bytes. The prompt's are taken off: a decode of one token has them too."""
        one = self._counted(key, prompt, 1)
        many = self._counted(key, prompt, num_tokens)
        return FramesDecoded(many[0], (many[1] - one[1]) / (num_tokens - 1))

    def _counted(self, key: str, prompt: tuple[int, ...], num_tokens: int) -> tuple[BraidDecoded, int]:
        shards = [s for s in self._services[key].engine.shards if hasattr(s, "num_bytes")]
        before = sum(shard.num_bytes for shard in shards)
        run = self.decode(key, prompt, num_tokens)
        logits = (num_tokens + 1) * self._size.vocab_size * 4  # the anchor's alone
        return run, sum(shard.num_bytes for shard in shards) - before - logits

    def score(self, key: str, text: tuple[int, ...]) -> list[float]:
        """Natural log-probabilities of a text's tokens but the first. Raises: BraidError."""
        answers: queue.SimpleQueue[Event | ScoreResult | BraidError] = queue.SimpleQueue()
        self._services[key].engine.submit_score(ScoreRequest(text), answers.put)
        answer = answers.get(timeout=DECODE_TIMEOUT_S)
        if isinstance(answer, BraidError):
            raise answer
        return [value for value in getattr(answer, "logprobs", ()) if value is not None]


def _shake(stack: FusionStack) -> None:
    """Modules that do something: every parameter is moved off its start."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def _resident_bytes() -> int:
    """Of this process; 0 where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
