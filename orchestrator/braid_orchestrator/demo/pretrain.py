"""Trains one specialist: a small Llama in the Hugging Face layout, on one core.

Run as a process of its own (`python -m braid_orchestrator.demo.pretrain JOB`), it reads a job file and writes
its progress to standard output, one JSON object per line; so two train at once on two cores.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from braid_fusion.training import (
    OptimiserConfig,
    Progress,
    ScheduleConfig,
    TokenWindows,
    Trainer,
    TrainerConfig,
    TrainingRecord,
)
from braid_fusion.training.losses import linear_cross_entropy
from braid_orchestrator.demo.recipe import SpecialistRecipe

TRAINING_RECORD_FILE = "training.json"


@dataclass(frozen=True, slots=True)
class PretrainJob:
    """What a training process needs. ``tokens`` is a safetensors file with the training text under the
    specialist's name, ``tokenizer`` a folder whose files go beside the weights, ``folder`` where all goes."""

    specialist: SpecialistRecipe
    vocab_size: int
    tokens: str
    tokenizer: str
    folder: str

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> PretrainJob:
        """What `write` wrote."""
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        specialist = {**raw["specialist"], "reads": tuple(raw["specialist"]["reads"])}
        return cls(**{**raw, "specialist": SpecialistRecipe(**specialist)})


def make_model(specialist: SpecialistRecipe, vocab_size: int) -> LlamaForCausalLM:
    """An untrained specialist; the same each time. Token 0 ends a text."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=specialist.width,
        intermediate_size=specialist.mlp_width,
        num_hidden_layers=specialist.num_layers,
        num_attention_heads=specialist.num_heads,
        num_key_value_heads=specialist.num_heads,
        max_position_embeddings=specialist.context_length,
        rope_parameters={"rope_type": "default", "rope_theta": specialist.rotary_base},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(specialist.seed)
        return LlamaForCausalLM(config)


def training_config(specialist: SpecialistRecipe) -> TrainerConfig:
    """Muon for the matrices, AdamW for embeddings and norms."""
    return TrainerConfig(
        max_steps=specialist.num_steps,
        max_seconds=specialist.max_seconds,
        optimiser=OptimiserConfig(
            learning_rate=specialist.learning_rate,
            matrix_learning_rate=specialist.matrix_learning_rate,
        ),
        schedule=ScheduleConfig(warmup=0.02, shape="linear", decay_from=0.3),
        seed=specialist.seed,
    )


def pretrain(
    specialist: SpecialistRecipe,
    model: LlamaForCausalLM,
    tokens: Tensor,
    on_progress: Callable[[Progress], None] | None = None,
    log_path: Path | None = None,
) -> TrainingRecord:
    """Train a model on (N,) tokens, in place. Raises: TrainingDivergedError, ValueError for too short a text."""
    done = 0.0

    def note(progress: Progress) -> None:
        nonlocal done
        done = progress.fraction
        if on_progress is not None:
            on_progress(progress)

    trainer = Trainer(
        model,
        lambda window: next_token_loss(model, window),
        _short_then_long(specialist, tokens, lambda: done),
        training_config(specialist),
        on_progress=note,
        log_path=log_path,
    )
    return trainer.run()


def next_token_loss(model: LlamaForCausalLM, windows: Tensor) -> Tensor:
    """Mean loss in nats of (B, L + 1) tokens, each but the first predicted from those before it."""
    hidden: Tensor = model.model(input_ids=windows[:, :-1], use_cache=False).last_hidden_state
    return linear_cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, windows[:, 1:].flatten())


def _short_then_long(
    specialist: SpecialistRecipe, tokens: Tensor, done: Callable[[], float]
) -> Iterator[Tensor]:
    """Many short windows teach faster; a last stretch of long ones teaches the far positions."""
    lengths = (specialist.window, specialist.long_window)
    short, long = (
        iter(TokenWindows(tokens, length, max(1, specialist.step_tokens // length), specialist.seed))
        for length in lengths
    )
    while True:
        yield next(short if done() < 1.0 - specialist.long_share else long)


def run_job(job: PretrainJob, on_progress: Callable[[Progress], None]) -> None:
    """Train and save; the folder appears complete or not at all."""
    specialist = job.specialist
    tokens = load_file(job.tokens)[specialist.name]
    model = make_model(specialist, job.vocab_size)
    folder = Path(job.folder)
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    shutil.copytree(job.tokenizer, building)
    record = pretrain(specialist, model, tokens, on_progress, building / "training_log.jsonl")
    model.save_pretrained(building, safe_serialization=True)
    (building / TRAINING_RECORD_FILE).write_text(json.dumps(record.to_dict(), indent=2), encoding="utf-8")
    for path in building.iterdir():
        path.chmod(0o644)  # weights are saved for their owner only; a service often runs as somebody else
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


def main() -> None:
    """The body of a training process."""
    torch.set_num_threads(1)
    job = PretrainJob.read(Path(sys.argv[1]))
    run_job(job, lambda progress: print(json.dumps(asdict(progress)), flush=True))


if __name__ == "__main__":
    main()
