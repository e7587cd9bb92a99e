"""Who is to answer a prompt: the braid, or one of its shards alone. Knows no requests and no engine."""

from __future__ import annotations

from braid_fusion.deciding.classifier import DecisionClassifier, train_classifier
from braid_fusion.deciding.files import check_classifier_folder, load_classifier, save_classifier
from braid_fusion.deciding.labels import cheapest_answers
from braid_fusion.deciding.predicates import (
    Answerer,
    Predicate,
    find_predicate,
    predicate_names,
    register_predicate,
)

__all__ = [
    "Answerer",
    "DecisionClassifier",
    "Predicate",
    "cheapest_answers",
    "check_classifier_folder",
    "find_predicate",
    "load_classifier",
    "predicate_names",
    "register_predicate",
    "save_classifier",
    "train_classifier",
]
