"""Texts to train a braid with: from what a user names to batches of the anchor's token ids. Knows no model.

| module | owns |
|---|---|
| `documents` | one text, or a prompt with its completion, and which fields of a record say which |
| `files`, `json_lines`, `hub` | documents out of text files, of JSON lines, of data sets of the `datasets` library |
| `origins` | where a text comes from, so that none is taken twice |
| `sources` | which of these a user's word for a text means |
| `long_text` | a text too long to be tokenized at once |
| `encoding` | documents as the anchor's token ids |
| `corpus` | those ids, held compactly |
| `held_out` | a share of a corpus that is kept from training |
| `windows` | where a corpus is cut |
| `batch` | several windows, packed, and what is to be predicted in them |
| `batches` | the order of windows: endless and resumable for training, once through for evaluation |
| `loading` | all of it up to the corpora, for a command |
"""

from braid_orchestrator.training.data.batch import TrainingBatch
from braid_orchestrator.training.data.batches import EvaluationBatches, TextBatches
from braid_orchestrator.training.data.corpus import TokenCorpus
from braid_orchestrator.training.data.documents import Document
from braid_orchestrator.training.data.encoding import DocumentEncoder, encode_source
from braid_orchestrator.training.data.files import TEXT_SUFFIXES
from braid_orchestrator.training.data.loading import FoundTexts, TrainingTexts, find_texts, load_texts
from braid_orchestrator.training.data.sources import MemorySource, ReadingOptions
from braid_orchestrator.training.data.windows import Packing

__all__ = [
    "TEXT_SUFFIXES",
    "Document",
    "DocumentEncoder",
    "EvaluationBatches",
    "FoundTexts",
    "MemorySource",
    "Packing",
    "ReadingOptions",
    "TextBatches",
    "TokenCorpus",
    "TrainingBatch",
    "TrainingTexts",
    "encode_source",
    "find_texts",
    "load_texts",
]
