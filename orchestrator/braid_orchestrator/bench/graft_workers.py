"""What `braid bench graft` measures: one model in a process of its own, bare or with the layers of one preset."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from braid_fusion import FusionConfig, ResonanceWrapper
from braid_orchestrator.bench.pair import QUICK, ModelSize, make_model, settle_memory

BARE = "bare"
# glibc's malloc.h: blocks from this many bytes on are mapped one by one.
_M_MMAP_THRESHOLD, _LARGE = -3, 2**16
PRESETS = ("minimal", "standard", "full")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by which the process had grown, against before the model was made: when it stood, and at the peak
    within a forward."""

    built_bytes: int
    peak_bytes: int


class GraftedModel:
    """``side`` is `BARE` or a preset. The layers have random weights throughout, as trained ones would.

    With ``hoards_nothing`` memory that tensors give up goes back to the system at once, so that what the process
    holds is what the tensors need, to the megabyte. That costs time: such a process is for `memory` alone.
    """

    def __init__(self, side: str, size: ModelSize, threads: int, hoards_nothing: bool = False) -> None:
        torch.set_num_threads(threads)
        if hoards_nothing:
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
        _make(side, QUICK)(input_ids=torch.tensor([[1, 2, 3]]))  # what libraries load and allocate once
        gc.collect()
        self._before = _status_bytes("VmRSS")
        self._model = _make(side, size)
        settle_memory(threads)
        self._built = _status_bytes("VmRSS") - self._before

    def num_parameters(self) -> tuple[int, int]:
        """Of the model, and of what is grafted onto it."""
        total = sum(parameter.numel() for parameter in self._model.parameters())
        grafted = sum(p.numel() for p in getattr(self._model, "fusion_parameters", tuple)())
        return total - grafted, grafted

    @torch.inference_mode()
    def memory(self, text: Sequence[int]) -> Memory:
        """See `Memory`."""
        ids = torch.tensor([text])
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        self._model(input_ids=ids, use_cache=False)
        return Memory(self._built, _status_bytes("VmHWM") - self._before)

    @torch.inference_mode()
    def forward(self, text: Sequence[int]) -> float:
        """Seconds of one forward without a cache."""
        ids = torch.tensor([text])
        started = time.perf_counter()
        self._model(input_ids=ids, use_cache=False)
        return time.perf_counter() - started

    @torch.inference_mode()
    def decode(self, prompt: Sequence[int], num_tokens: int) -> float:
        """Seconds per token, greedily, the prompt's reading not counted."""
        step = self._model(input_ids=torch.tensor([prompt]), use_cache=True)
        started = time.perf_counter()
        for _ in range(num_tokens):
            token = step.logits[:, -1:].argmax(-1)
            step = self._model(input_ids=token, past_key_values=step.past_key_values, use_cache=True)
        return (time.perf_counter() - started) / num_tokens


def _make(side: str, size: ModelSize) -> Any:
    base = make_model(0, size)
    if side == BARE:
        return base
    model = ResonanceWrapper(base, getattr(FusionConfig, side)()).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.fusion_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return model


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status: got no {field}, expected a Linux that tells it")
