"""Every error Braid raises, and what it becomes on gRPC and HTTP. Knows no transport calls.

BraidError                      INTERNAL             500
├── InvalidRequestError         INVALID_ARGUMENT     400   a value outside what is allowed
│   ├── ConfigError                                        a key of the configuration
│   ├── ShapeMismatchError                                 a tensor's shape
│   ├── NoDeciderError                                     a decision was asked for, and nothing can decide
│   ├── FrameError                                         bytes that are not the tensor they claim to be
│   └── ContextLengthError                                 more tokens than some shard can hold
├── NotFoundError               NOT_FOUND            404
│   ├── UnknownModelError, UnknownShardError, UnknownSessionError, UnknownVersionError
├── ConflictError               FAILED_PRECONDITION  409   valid in itself, not in this state
│   ├── StepOrderError                                     a step that does not follow the one before
│   ├── WeightMismatchError                                weights made for other shards
│   ├── UnsupportedModelError                              a model that cannot be run span by span
│   └── ProtocolVersionError                               client and server speak different versions
├── CorruptWeightsError         DATA_LOSS            500
├── CorruptStateError           DATA_LOSS            500   something foreign in the state store
├── CapacityError               RESOURCE_EXHAUSTED   429   try later; `retry_after_s` says when
│   ├── QueueFullError
│   ├── RateLimitError                                     more requests than one caller may send
│   └── CacheFullError                                     no room for keys and values
├── StorageError                RESOURCE_EXHAUSTED   507   what was to be kept could not be written: a full disk
├── UnavailableError            UNAVAILABLE          503   try again; `retry_after_s` says when
├── DeadlineError               DEADLINE_EXCEEDED    504
├── AuthenticationError         UNAUTHENTICATED      401   no API key, or one that is not known
└── RequestCancelledError       CANCELLED            499
"""

from __future__ import annotations

from typing import ClassVar


class BraidError(Exception):
    """Base of all errors of this project. The message says what was got, what was expected, and where."""

    grpc_status: ClassVar[str] = "INTERNAL"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class InvalidRequestError(BraidError):
    """A value outside what is allowed."""

    grpc_status, http_status = "INVALID_ARGUMENT", 400


class ConfigError(InvalidRequestError):
    """A key of the configuration; the message names it."""


class ShapeMismatchError(InvalidRequestError):
    """A tensor of another shape than was agreed."""


class NoDeciderError(InvalidRequestError):
    """A decision who is to answer was asked for, and nothing is configured that could decide."""


class FrameError(InvalidRequestError):
    """Bytes that are not the tensor or the packed batch they claim to be, or too many for one message."""


class ContextLengthError(InvalidRequestError):
    """More tokens than some shard's context can hold."""


class NotFoundError(BraidError):
    """Something named that is not there."""

    grpc_status, http_status = "NOT_FOUND", 404


class UnknownModelError(NotFoundError):
    """No such model, here or on a hub."""


class UnknownShardError(NotFoundError):
    """No shard of that name in this braid."""


class UnknownSessionError(NotFoundError):
    """No such session: never opened, closed, or evicted."""


class UnknownVersionError(NotFoundError):
    """No such version of fusion weights."""


class ConflictError(BraidError):
    """Valid in itself, but not in the present state."""

    grpc_status, http_status = "FAILED_PRECONDITION", 409


class StepOrderError(ConflictError):
    """A step that does not follow the one before."""


class WeightMismatchError(ConflictError):
    """Weights that were made for other shards or another plan."""


class UnsupportedModelError(ConflictError):
    """A model that cannot be run span by span with right numbers."""


class ProtocolVersionError(ConflictError):
    """Client and server speak different versions of the protocol."""


class CorruptWeightsError(BraidError):
    """A weight file that is damaged or not what its card says."""

    grpc_status, http_status = "DATA_LOSS", 500


class CorruptStateError(BraidError):
    """A value in the state store that is damaged or was written by something else."""

    grpc_status, http_status = "DATA_LOSS", 500


class CapacityError(BraidError):
    """No room now; trying later may help."""

    grpc_status, http_status = "RESOURCE_EXHAUSTED", 429


class QueueFullError(CapacityError):
    """The queue of waiting requests is full."""


class RateLimitError(CapacityError):
    """More requests than one caller may send in a while."""


class CacheFullError(CapacityError):
    """No room for the keys and values of a session."""


class StorageError(BraidError):
    """What was to be kept could not be written, such as on a full disk. Nothing has changed."""

    grpc_status, http_status = "RESOURCE_EXHAUSTED", 507


class UnavailableError(BraidError):
    """A part of the braid does not answer."""

    grpc_status, http_status = "UNAVAILABLE", 503


class DeadlineError(BraidError):
    """Not done in the time allowed."""

    grpc_status, http_status = "DEADLINE_EXCEEDED", 504


class AuthenticationError(BraidError):
    """No API key, or one that is not known."""

    grpc_status, http_status = "UNAUTHENTICATED", 401


class RequestCancelledError(BraidError):
    """Cancelled by the client."""

    grpc_status, http_status = "CANCELLED", 499


def _all_subclasses(cls: type[BraidError]) -> list[type[BraidError]]:
    return [cls, *(sub for child in cls.__subclasses__() for sub in _all_subclasses(child))]


ERROR_TYPES: dict[str, type[BraidError]] = {cls.__name__: cls for cls in _all_subclasses(BraidError)}

# For errors that carry no type of ours: what a bare gRPC status becomes.
STATUS_TYPES: dict[str, type[BraidError]] = {
    "INVALID_ARGUMENT": InvalidRequestError,
    "OUT_OF_RANGE": InvalidRequestError,
    "NOT_FOUND": NotFoundError,
    "FAILED_PRECONDITION": ConflictError,
    "ABORTED": ConflictError,
    "DATA_LOSS": CorruptWeightsError,
    "RESOURCE_EXHAUSTED": CapacityError,
    "UNAVAILABLE": UnavailableError,
    "DEADLINE_EXCEEDED": DeadlineError,
    "UNAUTHENTICATED": AuthenticationError,
    "CANCELLED": RequestCancelledError,
}


def error_from_wire(type_name: str, status: str, message: str, retry_after_s: float = 0.0) -> BraidError:
    """The error of that type name; failing that, the one that stands for the gRPC status."""
    cls = ERROR_TYPES.get(type_name) or STATUS_TYPES.get(status, BraidError)
    return cls(message, retry_after_s=retry_after_s)
