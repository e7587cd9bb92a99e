"""What `braid eval` was asked for, as plain values, and doing it. Knows no command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from braid_orchestrator.assembly import resolve_plan
from braid_orchestrator.config.values import BraidConfig
from braid_orchestrator.evaluation.fitting import FitOptions, Fitted, fit_readouts
from braid_orchestrator.evaluation.intervals import Resampling
from braid_orchestrator.evaluation.measuring import Cut, ShardLimit, check_window, measure_text, rows_at_once
from braid_orchestrator.evaluation.mixes import check_forgetting
from braid_orchestrator.evaluation.report import Report, make_report
from braid_orchestrator.evaluation.scoring import Lineup
from braid_orchestrator.evaluation.texts import LaneReaders, find_texts, read_texts
from braid_orchestrator.evaluation.weights import weights_to_evaluate
from braid_orchestrator.training.data import FoundTexts, ReadingOptions, load_texts
from braid_orchestrator.training.data import find_texts as find_texts_to_fit_on
from braid_orchestrator.training.data.documents import Skipped
from braid_orchestrator.training.data.origins import in_common
from braid_orchestrator.training.data.sources import TextSource
from braid_orchestrator.training.reaching import Way
from braid_rpc.errors import InvalidRequestError
from braid_services.fusion.main import import_strategies

# What is being done, how far it is, and how much there is.
OnProgress = Callable[[str, int, int], None]
OnLeftOut = Callable[[str], None]

# Of the texts to fit on: the weights that are best on it count.
_FIT_HELD_OUT = 0.1
# Of a message, for all that is in it beside a span's results.
_MESSAGE_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class EvaluationJob:
    """``texts`` and ``fit`` as `find_source` takes them; without ``fit`` there are no learned baselines. ``weights``
    as `weights_to_evaluate` takes it."""

    config: BraidConfig
    way: Way
    texts: tuple[str, ...]
    fit: tuple[str, ...] = ()
    weights: Path | None = None
    reading: ReadingOptions = field(default_factory=ReadingOptions)
    cut: Cut = field(default_factory=Cut)
    resampling: Resampling = field(default_factory=Resampling)
    fitting: FitOptions = field(default_factory=FitOptions)
    forgetting: float = 1.0
    accuracy: bool = True


def do_evaluation(
    job: EvaluationJob,
    *,
    on_progress: OnProgress = lambda what, done, total: None,
    on_left_out: OnLeftOut = lambda line: None,
) -> Report:
    """Do a job. What can be refused is refused before any text is run.

    Raises: BraidError of every kind.
    """
    check_forgetting(job.forgetting)
    # Before the models, which may take minutes to load.
    evaluated = find_texts(job.texts, job.reading)
    fitted_on = _find_fit(job, evaluated)
    import_strategies(job.config.fusion.imports)
    with job.way.reach(job.config) as reached:
        shards = reached.shards
        check_window(shards, job.cut.window)
        plan = resolve_plan(job.config, [shard.card for shard in shards])
        stack, version = weights_to_evaluate(plan, job.config.fusion, job.weights, reached.store)
        readers = LaneReaders(shards, plan)
        skipped = Skipped()
        texts = read_texts(evaluated, readers, job.cut.window, skipped)
        for line in skipped.lines():
            on_left_out(line)
        lineup = Lineup(shards, stack, {}, job.forgetting, job.accuracy)
        logits_travel = not job.way.loads_here and (job.accuracy or bool(lineup.foreign))
        cut = replace(job.cut, limits=_shard_limits(job, logits_travel=logits_travel))
        fitted = None
        if fitted_on is not None:
            fitted = _fit(job, fitted_on, lineup, cut, readers, on_progress, on_left_out)
            lineup = replace(lineup, learned=fitted.stacks)
        measured = []
        for text in texts:
            name = text.name
            measured.append(
                measure_text(lineup, text, cut, lambda done, total, name=name: on_progress(name, done, total))  # type: ignore[misc]
            )
    return make_report(
        measured,
        job.resampling,
        {
            "braid": job.config.name,
            "anchor": job.config.anchor,
            "weights_version": version,
            "plan_hash": plan.hash(),
            "window": job.cut.window,
            "forgetting": job.forgetting,
            **asdict(job.resampling),
        },
        None if fitted is None else {"texts": list(job.fit), **fitted.record},
    )


def _fit(
    job: EvaluationJob,
    found: FoundTexts,
    lineup: Lineup,
    cut: Cut,
    readers: LaneReaders,
    on_progress: OnProgress,
    on_left_out: OnLeftOut,
) -> Fitted:
    texts = load_texts(found, readers.anchor.encoder, window=job.fitting.window)
    for line in texts.skipped:
        on_left_out(line)
    rows = rows_at_once(lineup.shards, replace(cut, window=job.fitting.window))
    return fit_readouts(
        lineup.shards,
        lineup.plan,
        texts,
        replace(job.fitting, windows_at_once=max(1, rows // job.fitting.window)),
        lambda progress: on_progress("fitting the learned mixes", progress.step, job.fitting.steps),
    )


def _find_fit(job: EvaluationJob, evaluated: Sequence[TextSource]) -> FoundTexts | None:
    if not job.fit:
        return None
    if len(job.config.shards) < 2:
        raise InvalidRequestError(
            f"fit: got {job.fit[0]} to fit mixes on and one shard, {job.config.shards[0].name!r}, expected several"
        )
    found = find_texts_to_fit_on(job.fit, held_out_share=_FIT_HELD_OUT, options=job.reading)
    common = in_common(
        *([origin for one in many for origin in one.origins] for many in (evaluated, found.training))
    )
    if common is not None:
        raise InvalidRequestError(
            f"{common}: got a text that is to be fitted on and evaluated on, expected one of them"
        )
    return found


def _shard_limits(job: EvaluationJob, *, logits_travel: bool) -> dict[str, ShardLimit]:
    return {
        shard.name: ShardLimit(
            shard.training_bytes,
            shard.training_turn_rows,
            int(shard.max_message_bytes * _MESSAGE_SHARE) if logits_travel else None,
        )
        for shard in job.config.shards
    }
