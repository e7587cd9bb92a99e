"""What `braid train` was asked for, as plain values, and doing it: reach the shards, read the texts, train.

Every worker of a run is given the same job. Knows neither a command line nor what starts workers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from braid_fusion.stack import FusionStack
from braid_fusion.training import Progress
from braid_fusion.training.peers import NoPeers, Peers
from braid_fusion.training.trainer import never
from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.config.values import BraidConfig
from braid_orchestrator.training.data import DocumentEncoder, ReadingOptions, find_texts, load_texts
from braid_orchestrator.training.publishing import PublishTarget
from braid_orchestrator.training.reaching import Way
from braid_orchestrator.training.run import Outcome, RunOptions, check_place, check_run, train_braid
from braid_orchestrator.training.storing import check_writable, only_run, storage_errors
from braid_services.fusion.main import import_strategies

# What is being read, how far it is, and how much there is.
OnReading = Callable[[str, int, int], None]
OnLeftOut = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """``texts`` and ``held_out`` as `find_source` takes them; ``held_out_share`` of the texts where none are held out
    by name. ``folder`` is the run's; ``tensorboard`` as for `train_braid`. ``publish_to``: who will get the version,
    which is only compared here: workers may not reach it."""

    config: BraidConfig
    way: Way
    texts: tuple[str, ...]
    folder: Path
    held_out: tuple[str, ...] = ()
    held_out_share: float = 0.05
    reading: ReadingOptions = field(default_factory=ReadingOptions)
    options: RunOptions = field(default_factory=RunOptions)
    version: str = "trained"
    resume: bool = False
    tensorboard: Path | None = None
    publish_to: PublishTarget | None = None


def do_job(
    job: TrainingJob,
    peers: Peers | None = None,
    *,
    on_reading: OnReading | None = None,
    on_read: Callable[[], None] = lambda: None,
    on_left_out: OnLeftOut = lambda line: None,
    on_progress: Callable[[Progress], None] | None = None,
    progress_bar: bool | None = None,
    stop_wanted: Callable[[], bool] = never,
) -> Outcome:
    """Do a job, or a worker's part of it, until ``stop_wanted``, which is asked before every step. ``on_read`` is
    called when all texts are read, before anything is trained.

    Raises: BraidError and TrainingError of each kind, ConflictError where a run is under way in the run's folder,
        StorageError if it cannot be written.
    """
    peers = peers or NoPeers()
    # Before the models, which may take minutes to load.
    job.options.trainer_config(has_held_out=False)  # for what it checks
    writes = peers.rank == 0
    with only_run(job.folder) if writes else nullcontext():
        with storage_errors(job.folder):
            check_place(job.folder, version=job.version, resume=job.resume)
        if writes:
            check_writable(job.folder, job.tensorboard)
        found = find_texts(
            job.texts,
            held_out=job.held_out,
            held_out_share=0.0 if job.held_out else job.held_out_share,
            options=job.reading,
        )
        import_strategies(job.config.fusion.imports)
        with job.way.reach(job.config, peers.rank) as reached:
            plan = resolve_plan(job.config, [shard.card for shard in reached.shards])
            stack = FusionStack(plan)
            # Texts may take minutes to read.
            check_run(reached.shards, stack, job.options, job.folder, version=job.version, resume=job.resume)
            if job.publish_to is not None:
                job.publish_to.check(stack)
            anchor = reached.shards[plan.anchor]
            texts = load_texts(
                found,
                DocumentEncoder(anchor.tokenizer_json(), anchor.card.eos_token_ids),
                window=job.options.window,
                on_progress=on_reading,
            )
            on_read()
            for line in texts.skipped:
                on_left_out(line)
            with storage_errors(job.folder):
                return train_braid(
                    reached.shards,
                    stack,
                    texts,
                    job.options,
                    job.folder,
                    version=job.version,
                    resume=job.resume,
                    tensorboard=job.tensorboard,
                    peers=peers,
                    on_progress=on_progress,
                    progress_bar=progress_bar,
                    stop_wanted=stop_wanted,
                )
