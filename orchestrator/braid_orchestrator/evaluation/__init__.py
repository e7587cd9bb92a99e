"""How well shards, mixes of their outputs, and their braid predict texts, with intervals. Trains no braid.

| module | owns |
|---|---|
| `texts` | texts as every tokenizer reads them, on one axis of bytes |
| `mixes` | weights that need no training, from what each shard gives each token |
| `scoring` | who is compared, and what each gives the tokens of packed windows |
| `measuring` | whole texts through everybody, in windows |
| `tally` | what each gave, summed up by windows or documents |
| `intervals` | the bootstrap over these |
| `report` | figures, differences and their intervals, as plain values |
| `fitting` | the baselines that are learned |
| `job` | all of it for a command: reach shards, find weights, read texts, measure |
| `weights` | which version of the fusion weights is evaluated |
| `table`, `plot` | a report for people |

A program that has shards and texts of its own goes the same way: `LaneReaders.read`, `measure_text`, `make_report`.
What is no shard is measured by `measure_scores`.
"""

from braid_orchestrator.evaluation.fitting import FitOptions, Fitted, fit_readouts
from braid_orchestrator.evaluation.intervals import Estimate, Resampling
from braid_orchestrator.evaluation.measuring import (
    Cut,
    MeasuredText,
    measure_scores,
    measure_shard,
    measure_text,
    sum_by_windows,
    token_logprobs,
)
from braid_orchestrator.evaluation.report import Report, TextReport, make_report
from braid_orchestrator.evaluation.scoring import (
    BRAID,
    GATE,
    GLOBAL,
    ORACLE,
    POSTERIOR,
    UNIFORM,
    Lineup,
    Predictor,
)
from braid_orchestrator.evaluation.tally import UnitSums
from braid_orchestrator.evaluation.texts import EvaluationText, LaneReader, LaneReaders, read_texts

__all__ = [
    "BRAID",
    "GATE",
    "GLOBAL",
    "ORACLE",
    "POSTERIOR",
    "UNIFORM",
    "Cut",
    "Estimate",
    "EvaluationText",
    "FitOptions",
    "Fitted",
    "LaneReader",
    "LaneReaders",
    "Lineup",
    "MeasuredText",
    "Predictor",
    "Report",
    "Resampling",
    "TextReport",
    "UnitSums",
    "fit_readouts",
    "make_report",
    "measure_scores",
    "measure_shard",
    "measure_text",
    "read_texts",
    "sum_by_windows",
    "token_logprobs",
]
