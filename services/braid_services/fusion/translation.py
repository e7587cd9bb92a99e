"""What `braid_fusion` raises becomes what Braid raises. The maths knows nothing of the wire's errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from braid_fusion.errors import (
    CheckpointMismatchError,
    CorruptCheckpointError,
    CorruptWeights,
    DeciderError,
    FusionError,
    FusionShapeError,
    NoCheckpointError,
    NotAVersion,
    PlanError,
    TrainingConfigError,
    TrainingDataError,
    UnknownWeights,
    WeightMismatch,
)
from braid_rpc.errors import (
    BraidError,
    ConfigError,
    ConflictError,
    CorruptWeightsError,
    InvalidRequestError,
    NotFoundError,
    ShapeMismatchError,
    UnknownVersionError,
    WeightMismatchError,
)

_COUNTERPARTS: dict[type[FusionError], type[BraidError]] = {
    PlanError: ConfigError,
    FusionShapeError: ShapeMismatchError,
    WeightMismatch: WeightMismatchError,
    CorruptWeights: CorruptWeightsError,
    UnknownWeights: UnknownVersionError,
    NotAVersion: ConflictError,
    DeciderError: InvalidRequestError,
    TrainingConfigError: InvalidRequestError,
    TrainingDataError: InvalidRequestError,
    CheckpointMismatchError: ConflictError,
    NoCheckpointError: NotFoundError,
    CorruptCheckpointError: CorruptWeightsError,
}


def translated(error: FusionError) -> BraidError:
    """The `BraidError` that says the same."""
    return _COUNTERPARTS.get(type(error), BraidError)(str(error))


@contextmanager
def braid_errors() -> Iterator[None]:
    """Within it, a `FusionError` leaves as its `BraidError`."""
    try:
        yield
    except FusionError as error:
        raise translated(error) from error
