"""What can be wrong with a plan, with states, or with saved weights. Knows no transport.

FusionError
├── PlanError             a plan that no modules can be built from; names the point, the option and the value
├── GraftConfigError      resonance layers that are configured wrongly, or not for this model; names the key
├── NonFiniteStateError   NaN or infinity in a model's states; names the layer, the sequence and the position
├── GraftCacheError       a key-value cache that grafted layers can't go on with
├── FusionShapeError      states that are not what the plan and the context say
├── WeightMismatch        weights that were saved for another plan; both sides are named, field by field
├── CorruptWeights        a weight file that is damaged or not what its card says
├── UnknownWeights        no weights of that version
├── StabilityError        options of a watched generation that make no sense, or figures it can't take
├── DeciderError          a way to decide who answers that cannot be found or built, or examples it can't learn from
├── UnreadableTokenizer   a text that is no tokenizer of the `tokenizers` library
├── TrainingError         a training run that cannot go on
│   ├── TrainingConfigError      a setting out of range; names the key
│   ├── TrainingDataError        data that end early, are too short, or lack what a run needs
│   ├── TrainingDivergedError    a loss or gradient that is no longer a finite number
│   ├── CheckpointMismatchError  a checkpoint of another run; both sides are named
│   ├── NoCheckpointError        no checkpoint to go on from
│   └── CorruptCheckpointError   a checkpoint that is damaged
└── NotAVersion           a place that holds something else, which saving would destroy
"""

from __future__ import annotations


class FusionError(Exception):
    """Base of what this package raises. The message says what was got, what was expected, and where."""


class PlanError(FusionError):
    """A plan that no modules can be built from."""


class GraftConfigError(FusionError):
    """A configuration of resonance layers that is wrong in itself, or that does not fit the model."""


class NonFiniteStateError(FusionError):
    """NaN or infinity in the states behind a grafted layer. The call left nothing behind.

    Attributes:
        layer_idx: the decoder layer.
        sequence: the row of the batch.
        position: in that sequence, padding and what a cache held before counted.
    """

    def __init__(self, layer_idx: int, sequence: int, position: int, num_positions: int) -> None:
        super().__init__(
            f"states behind layer {layer_idx}: got NaN or infinity at position {position} of sequence {sequence} "
            f"({num_positions} position(s) in all), expected finite numbers"
        )
        self.layer_idx, self.sequence, self.position = layer_idx, sequence, position


class GraftCacheError(FusionError):
    """A key-value cache that lacks the rows which grafted layers look back at, or has others."""


class FusionShapeError(FusionError):
    """States that are not what the plan and the context say."""


class WeightMismatch(FusionError):  # noqa: N818 - its counterpart on the wire is WeightMismatchError
    """Weights that were saved for another plan or other shards."""


class CorruptWeights(FusionError):  # noqa: N818 - its counterpart on the wire is CorruptWeightsError
    """A weight file that is damaged or not what its card says."""


class UnknownWeights(FusionError):  # noqa: N818 - its counterpart on the wire is UnknownVersionError
    """No weights of that version."""


class NotAVersion(FusionError):  # noqa: N818 - beside UnknownWeights
    """A place that holds something else than a version of weights, so none is written there."""


class StabilityError(FusionError):
    """Options of a watched generation that make no sense, or figures that its monitor can't take."""


class DeciderError(FusionError):
    """A way to decide who answers that cannot be found or built, or examples that it cannot learn from."""


class UnreadableTokenizer(FusionError):  # noqa: N818 - beside CorruptWeights
    """A text that is no tokenizer of the `tokenizers` library."""


class TrainingError(FusionError):
    """A training run that cannot go on."""


class TrainingConfigError(TrainingError, ValueError):
    """A setting out of range. The message names the key, what it got and what was expected."""


class TrainingDataError(TrainingError, ValueError):
    """Data that end early, are too short, or lack what a run needs of them."""


class TrainingDivergedError(TrainingError, ArithmeticError):
    """The loss or its gradient is no longer a finite number. The parameters are those before the step, or, behind the
    last one, what this has made of them."""


class CheckpointMismatchError(TrainingError):
    """A checkpoint of another configuration, module or data."""


class NoCheckpointError(TrainingError):
    """A place where no run has left a checkpoint."""


class CorruptCheckpointError(TrainingError):
    """A file that is no checkpoint, or a damaged one."""
