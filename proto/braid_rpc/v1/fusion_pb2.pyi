from braid_rpc.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PrepareRequest(_message.Message):
    __slots__ = ("plan_json",)
    PLAN_JSON_FIELD_NUMBER: _ClassVar[int]
    plan_json: str
    def __init__(self, plan_json: _Optional[str] = ...) -> None: ...

class DescribeFusionRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FusionCard(_message.Message):
    __slots__ = ("protocol_version", "plan_hash", "active_version", "loaded_versions", "num_sessions", "num_parameters", "frames", "instance_id", "max_publish_bytes", "plan_json")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PLAN_HASH_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_VERSION_FIELD_NUMBER: _ClassVar[int]
    LOADED_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_PUBLISH_BYTES_FIELD_NUMBER: _ClassVar[int]
    PLAN_JSON_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    plan_hash: str
    active_version: str
    loaded_versions: _containers.RepeatedScalarFieldContainer[str]
    num_sessions: int
    num_parameters: int
    frames: _containers.RepeatedScalarFieldContainer[str]
    instance_id: str
    max_publish_bytes: int
    plan_json: str
    def __init__(self, protocol_version: _Optional[int] = ..., plan_hash: _Optional[str] = ..., active_version: _Optional[str] = ..., loaded_versions: _Optional[_Iterable[str]] = ..., num_sessions: _Optional[int] = ..., num_parameters: _Optional[int] = ..., frames: _Optional[_Iterable[str]] = ..., instance_id: _Optional[str] = ..., max_publish_bytes: _Optional[int] = ..., plan_json: _Optional[str] = ...) -> None: ...

class LoadVersionRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: str
    def __init__(self, version: _Optional[str] = ...) -> None: ...

class ListVersionsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListVersionsReply(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[VersionCard]
    def __init__(self, versions: _Optional[_Iterable[_Union[VersionCard, _Mapping]]] = ...) -> None: ...

class VersionCard(_message.Message):
    __slots__ = ("version", "card_json", "loaded", "active", "in_memory_only")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CARD_JSON_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    IN_MEMORY_ONLY_FIELD_NUMBER: _ClassVar[int]
    version: str
    card_json: str
    loaded: bool
    active: bool
    in_memory_only: bool
    def __init__(self, version: _Optional[str] = ..., card_json: _Optional[str] = ..., loaded: _Optional[bool] = ..., active: _Optional[bool] = ..., in_memory_only: _Optional[bool] = ...) -> None: ...

class ActivateVersionRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: str
    def __init__(self, version: _Optional[str] = ...) -> None: ...

class PublishPart(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: PublishHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[PublishHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class PublishHeader(_message.Message):
    __slots__ = ("version", "card_json", "num_bytes", "sha256", "activate")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CARD_JSON_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ACTIVATE_FIELD_NUMBER: _ClassVar[int]
    version: str
    card_json: str
    num_bytes: int
    sha256: str
    activate: bool
    def __init__(self, version: _Optional[str] = ..., card_json: _Optional[str] = ..., num_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., activate: _Optional[bool] = ...) -> None: ...

class PublishReply(_message.Message):
    __slots__ = ("version", "in_memory_only", "card")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IN_MEMORY_ONLY_FIELD_NUMBER: _ClassVar[int]
    CARD_FIELD_NUMBER: _ClassVar[int]
    version: str
    in_memory_only: bool
    card: FusionCard
    def __init__(self, version: _Optional[str] = ..., in_memory_only: _Optional[bool] = ..., card: _Optional[_Union[FusionCard, _Mapping]] = ...) -> None: ...

class GetMetricsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PointMetrics(_message.Message):
    __slots__ = ("point", "strategy", "rows", "mean")
    class MeanEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    POINT_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    point: str
    strategy: str
    rows: int
    mean: _containers.ScalarMap[str, float]
    def __init__(self, point: _Optional[str] = ..., strategy: _Optional[str] = ..., rows: _Optional[int] = ..., mean: _Optional[_Mapping[str, float]] = ...) -> None: ...

class FusionMetrics(_message.Message):
    __slots__ = ("points",)
    POINTS_FIELD_NUMBER: _ClassVar[int]
    points: _containers.RepeatedCompositeFieldContainer[PointMetrics]
    def __init__(self, points: _Optional[_Iterable[_Union[PointMetrics, _Mapping]]] = ...) -> None: ...

class FusionRequest(_message.Message):
    __slots__ = ("id", "open", "fuse", "read_out", "crop", "close")
    ID_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    FUSE_FIELD_NUMBER: _ClassVar[int]
    READ_OUT_FIELD_NUMBER: _ClassVar[int]
    CROP_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    id: int
    open: OpenFusionSessions
    fuse: Fuse
    read_out: ReadOut
    crop: CropFusion
    close: CloseFusionSessions
    def __init__(self, id: _Optional[int] = ..., open: _Optional[_Union[OpenFusionSessions, _Mapping]] = ..., fuse: _Optional[_Union[Fuse, _Mapping]] = ..., read_out: _Optional[_Union[ReadOut, _Mapping]] = ..., crop: _Optional[_Union[CropFusion, _Mapping]] = ..., close: _Optional[_Union[CloseFusionSessions, _Mapping]] = ...) -> None: ...

class FusionReply(_message.Message):
    __slots__ = ("id", "opened", "fused", "weights", "cropped", "closed", "error", "timings")
    ID_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    FUSED_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    CROPPED_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    id: int
    opened: FusionOpened
    fused: Fused
    weights: ReadOutWeights
    cropped: FusionCropped
    closed: FusionClosed
    error: _tensor_pb2.Error
    timings: _tensor_pb2.StepTimings
    def __init__(self, id: _Optional[int] = ..., opened: _Optional[_Union[FusionOpened, _Mapping]] = ..., fused: _Optional[_Union[Fused, _Mapping]] = ..., weights: _Optional[_Union[ReadOutWeights, _Mapping]] = ..., cropped: _Optional[_Union[FusionCropped, _Mapping]] = ..., closed: _Optional[_Union[FusionClosed, _Mapping]] = ..., error: _Optional[_Union[_tensor_pb2.Error, _Mapping]] = ..., timings: _Optional[_Union[_tensor_pb2.StepTimings, _Mapping]] = ...) -> None: ...

class OpenFusionSessions(_message.Message):
    __slots__ = ("session_ids", "version")
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    session_ids: _containers.RepeatedScalarFieldContainer[str]
    version: str
    def __init__(self, session_ids: _Optional[_Iterable[str]] = ..., version: _Optional[str] = ...) -> None: ...

class FusionOpened(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: str
    def __init__(self, version: _Optional[str] = ...) -> None: ...

class Fuse(_message.Message):
    __slots__ = ("step_id", "point", "segments", "states", "lanes", "frames", "metric_rows")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    POINT_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    METRIC_ROWS_FIELD_NUMBER: _ClassVar[int]
    step_id: int
    point: int
    segments: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Segment]
    states: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    lanes: _containers.RepeatedCompositeFieldContainer[Lane]
    frames: _tensor_pb2.DType
    metric_rows: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, step_id: _Optional[int] = ..., point: _Optional[int] = ..., segments: _Optional[_Iterable[_Union[_tensor_pb2.Segment, _Mapping]]] = ..., states: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., lanes: _Optional[_Iterable[_Union[Lane, _Mapping]]] = ..., frames: _Optional[_Union[_tensor_pb2.DType, str]] = ..., metric_rows: _Optional[_Iterable[int]] = ...) -> None: ...

class Lane(_message.Message):
    __slots__ = ("segments", "seen")
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    segments: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Segment]
    seen: _containers.RepeatedCompositeFieldContainer[Seen]
    def __init__(self, segments: _Optional[_Iterable[_Union[_tensor_pb2.Segment, _Mapping]]] = ..., seen: _Optional[_Iterable[_Union[Seen, _Mapping]]] = ...) -> None: ...

class Seen(_message.Message):
    __slots__ = ("positions",)
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    positions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, positions: _Optional[_Iterable[int]] = ...) -> None: ...

class Fused(_message.Message):
    __slots__ = ("states", "row_metrics")
    class RowMetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: RowMetrics
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[RowMetrics, _Mapping]] = ...) -> None: ...
    STATES_FIELD_NUMBER: _ClassVar[int]
    ROW_METRICS_FIELD_NUMBER: _ClassVar[int]
    states: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    row_metrics: _containers.MessageMap[str, RowMetrics]
    def __init__(self, states: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., row_metrics: _Optional[_Mapping[str, RowMetrics]] = ...) -> None: ...

class RowMetrics(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class ReadOut(_message.Message):
    __slots__ = ("step_id", "session_ids", "hidden", "features")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    step_id: int
    session_ids: _containers.RepeatedScalarFieldContainer[str]
    hidden: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    features: _tensor_pb2.Tensor
    def __init__(self, step_id: _Optional[int] = ..., session_ids: _Optional[_Iterable[str]] = ..., hidden: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., features: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class ReadOutWeights(_message.Message):
    __slots__ = ("log_weights",)
    LOG_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    log_weights: _tensor_pb2.Tensor
    def __init__(self, log_weights: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class CropFusion(_message.Message):
    __slots__ = ("session_id", "length", "lane_lengths")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    LANE_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    length: int
    lane_lengths: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session_id: _Optional[str] = ..., length: _Optional[int] = ..., lane_lengths: _Optional[_Iterable[int]] = ...) -> None: ...

class FusionCropped(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CloseFusionSessions(_message.Message):
    __slots__ = ("session_ids",)
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    session_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, session_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class FusionClosed(_message.Message):
    __slots__ = ("active_version",)
    ACTIVE_VERSION_FIELD_NUMBER: _ClassVar[int]
    active_version: str
    def __init__(self, active_version: _Optional[str] = ...) -> None: ...
