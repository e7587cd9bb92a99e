"""One training run of `braid bench graft-quality`: a model, what is added to it, and how well it predicts afterwards.

All ways of adding something get the same text in the same order, the same optimiser, schedule and number of steps.

Letters: B windows, L tokens predicted in each, T = B · L, N windows of a text.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from braid_fusion import FusionConfig, ResonanceWrapper
from braid_fusion.training import OptimiserConfig, ScheduleConfig, TokenWindows, Trainer, TrainerConfig
from braid_orchestrator.bench.adapters import WithMlpAdapters, add_lora, num_trainable

PRESETS = ("minimal", "standard", "full")
GRAFT, LORA, MLP = "graft", "lora", "mlp"
METHODS = (GRAFT, LORA, MLP)
WINDOWS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class RunSpec:
    """``method`` None: the bare model. ``without``: a component left out of the preset, with
    those that need it. ``num_parameters``: what LoRA
    and the MLP adapter have to come near to."""

    model: str
    text: str
    method: str | None = None
    preset: str = "standard"
    without: str | None = None
    seed: int = 0
    num_steps: int = 200
    learning_rate: float = 3e-3
    window: int = 128
    windows_per_step: int = 8
    held_out_bytes: int = 50_000


@dataclass(frozen=True, slots=True)
class RunResult:
    """Bits per byte of the validation and of the test text, which no step of training has seen."""

    validation: float
    test: float
    num_parameters: int
    seconds: float


@dataclass(frozen=True, slots=True)
class EncodedSplit:
    """Windows (N, L + 1) that follow each other, sharing one token, and the bytes of all tokens but the first."""

    windows_NL: Tensor  # noqa: N815 - shape letters
    num_bytes: int


class Runner:
    """Lives in a process of its own with one thread; remembers texts that it has tokenized."""

    def __init__(self) -> None:
        torch.set_num_threads(1)

    def run(self, spec: RunSpec) -> RunResult:
        """Train and evaluate."""
        started = time.perf_counter()
        train_ids, validation, test = read_splits(spec.model, spec.text, spec.window, spec.held_out_bytes)
        model = AutoModelForCausalLM.from_pretrained(spec.model, dtype=torch.float32).eval()
        trained, trained_size = extend(model, spec)
        if spec.method is not None:
            train(trained, train_ids, spec)
        return RunResult(
            bits_per_byte(trained, validation),
            bits_per_byte(trained, test),
            trained_size,
            time.perf_counter() - started,
        )

    def num_parameters(self, spec: RunSpec) -> int:
        """What a run would train."""
        model = AutoModelForCausalLM.from_pretrained(spec.model, dtype=torch.float32)
        return extend(model, spec)[1]


def extend(model: Any, spec: RunSpec) -> tuple[nn.Module, int]:
    """The model with what is to be trained, and how many parameters that has."""
    if spec.method is None:
        return model, 0
    preset: FusionConfig = getattr(FusionConfig, spec.preset)()
    if spec.without is not None:
        preset = preset.without(spec.without)
    graft = ResonanceWrapper(model, replace(preset, seed=spec.seed))
    size = graft.num_fusion_parameters()
    if spec.method == GRAFT:
        return graft, size
    positions = [int(key) for key in graft.fusion_layers]
    graft.unwrap()
    model.requires_grad_(False)
    extended: nn.Module
    if spec.method == LORA:
        extended = add_lora(model, size, spec.seed)
    else:
        extended = WithMlpAdapters(model, positions, size, spec.seed)
    return extended, num_trainable(extended)


def train(model: nn.Module, ids: Tensor, spec: RunSpec) -> None:
    """On windows of the text, the same ones for every method."""

    def loss_of(windows_BL: Tensor) -> Tensor:
        logits_BLV = model(input_ids=windows_BL[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits_BLV.flatten(0, 1), windows_BL[:, 1:].flatten())

    config = TrainerConfig(
        max_steps=spec.num_steps,
        optimiser=OptimiserConfig(learning_rate=spec.learning_rate, betas=(0.9, 0.99), weight_decay=0.01),
        schedule=ScheduleConfig(warmup=0.1, shape="cosine"),
        seed=spec.seed,
    )
    windows = TokenWindows(ids, spec.window, spec.windows_per_step, seed=spec.seed)
    Trainer(model, loss_of, windows, config).run()


@torch.inference_mode()
def bits_per_byte(model: nn.Module, text: EncodedSplit) -> float:
    """−log₂ of the text's probability, each window predicted by itself, per byte of it."""
    model.eval()
    nats = 0.0
    for windows_BL in torch.split(text.windows_NL, WINDOWS_AT_ONCE):
        logits_BLV = model(input_ids=windows_BL[:, :-1], use_cache=False).logits
        losses = functional.cross_entropy(
            logits_BLV.float().flatten(0, 1), windows_BL[:, 1:].flatten(), reduction="none"
        )
        nats += float(losses.double().sum())
    return nats / math.log(2) / text.num_bytes


@lru_cache(maxsize=4)
def read_splits(
    model: str, text: str, window: int, held_out_bytes: int
) -> tuple[Tensor, EncodedSplit, EncodedSplit]:
    """Token ids to train on, validation and test text: nine tenths of the text, and half of the rest each."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    whole = Path(text).read_text(encoding="utf-8")
    train, rest = _cut(whole, 0.9)
    validation, test = _cut(rest, 0.5)
    train_ids = torch.tensor(tokenizer(train, add_special_tokens=False)["input_ids"])
    return (
        train_ids,
        _encode(tokenizer, validation[:held_out_bytes], window),
        _encode(tokenizer, test[:held_out_bytes], window),
    )


def _cut(text: str, share: float) -> tuple[str, str]:
    """At the first blank line behind that share."""
    at = text.find("\n\n", int(len(text) * share)) + 2
    return text[:at], text[at:]


def _encode(tokenizer: Any, text: str, window: int) -> EncodedSplit:
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = found["input_ids"], found["offset_mapping"]
    count = (len(ids) - 1) // window
    kept = torch.tensor(ids[: count * window + 1])
    windows_NL = torch.stack([kept[i * window : (i + 1) * window + 1] for i in range(count)])
    num_bytes = len(text[offsets[0][1] : offsets[count * window][1]].encode())
    return EncodedSplit(windows_NL, num_bytes)
