from braid_rpc.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeShardRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ShardCard(_message.Message):
    __slots__ = ("protocol_version", "name", "model_id", "model_hash", "family", "num_layers", "width", "vocab_size", "tokenizer_hash", "dtype", "quantization", "context_length", "cache_bytes_total", "cache_bytes_free", "block_tokens", "supports_backward", "num_sessions", "eos_token_ids", "num_parameters", "frames")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_HASH_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CACHE_BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    CACHE_BYTES_FREE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SUPPORTS_BACKWARD_FIELD_NUMBER: _ClassVar[int]
    NUM_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    name: str
    model_id: str
    model_hash: str
    family: str
    num_layers: int
    width: int
    vocab_size: int
    tokenizer_hash: str
    dtype: str
    quantization: str
    context_length: int
    cache_bytes_total: int
    cache_bytes_free: int
    block_tokens: int
    supports_backward: bool
    num_sessions: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    num_parameters: int
    frames: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, protocol_version: _Optional[int] = ..., name: _Optional[str] = ..., model_id: _Optional[str] = ..., model_hash: _Optional[str] = ..., family: _Optional[str] = ..., num_layers: _Optional[int] = ..., width: _Optional[int] = ..., vocab_size: _Optional[int] = ..., tokenizer_hash: _Optional[str] = ..., dtype: _Optional[str] = ..., quantization: _Optional[str] = ..., context_length: _Optional[int] = ..., cache_bytes_total: _Optional[int] = ..., cache_bytes_free: _Optional[int] = ..., block_tokens: _Optional[int] = ..., supports_backward: _Optional[bool] = ..., num_sessions: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., num_parameters: _Optional[int] = ..., frames: _Optional[_Iterable[str]] = ...) -> None: ...

class FetchTokenizerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TokenizerFile(_message.Message):
    __slots__ = ("tokenizer_json", "hash", "eos_token_ids", "chat_template", "special_tokens")
    class SpecialTokensEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TOKENIZER_JSON_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokenizer_json: str
    hash: str
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    chat_template: str
    special_tokens: _containers.ScalarMap[str, str]
    def __init__(self, tokenizer_json: _Optional[str] = ..., hash: _Optional[str] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., chat_template: _Optional[str] = ..., special_tokens: _Optional[_Mapping[str, str]] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("text", "add_special_tokens")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ADD_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    text: str
    add_special_tokens: bool
    def __init__(self, text: _Optional[str] = ..., add_special_tokens: _Optional[bool] = ...) -> None: ...

class TokenizeReply(_message.Message):
    __slots__ = ("token_ids", "starts", "ends")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    STARTS_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    starts: _containers.RepeatedScalarFieldContainer[int]
    ends: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., starts: _Optional[_Iterable[int]] = ..., ends: _Optional[_Iterable[int]] = ...) -> None: ...

class DetokenizeRequest(_message.Message):
    __slots__ = ("token_ids", "keep_special_tokens")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    KEEP_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    keep_special_tokens: bool
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., keep_special_tokens: _Optional[bool] = ...) -> None: ...

class DetokenizeReply(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class ShardRequest(_message.Message):
    __slots__ = ("id", "open", "step", "crop", "close")
    ID_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    CROP_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    id: int
    open: OpenSessions
    step: Step
    crop: Crop
    close: CloseSessions
    def __init__(self, id: _Optional[int] = ..., open: _Optional[_Union[OpenSessions, _Mapping]] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., crop: _Optional[_Union[Crop, _Mapping]] = ..., close: _Optional[_Union[CloseSessions, _Mapping]] = ...) -> None: ...

class ShardReply(_message.Message):
    __slots__ = ("id", "opened", "frame", "cropped", "closed", "error", "timings")
    ID_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    CROPPED_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    id: int
    opened: Opened
    frame: Frame
    cropped: Cropped
    closed: Closed
    error: _tensor_pb2.Error
    timings: _tensor_pb2.StepTimings
    def __init__(self, id: _Optional[int] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., cropped: _Optional[_Union[Cropped, _Mapping]] = ..., closed: _Optional[_Union[Closed, _Mapping]] = ..., error: _Optional[_Union[_tensor_pb2.Error, _Mapping]] = ..., timings: _Optional[_Union[_tensor_pb2.StepTimings, _Mapping]] = ...) -> None: ...

class OpenSessions(_message.Message):
    __slots__ = ("sessions",)
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[OpenSession]
    def __init__(self, sessions: _Optional[_Iterable[_Union[OpenSession, _Mapping]]] = ...) -> None: ...

class OpenSession(_message.Message):
    __slots__ = ("session_id", "num_tokens", "end_layer")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    num_tokens: int
    end_layer: int
    def __init__(self, session_id: _Optional[str] = ..., num_tokens: _Optional[int] = ..., end_layer: _Optional[int] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("cache_bytes_free",)
    CACHE_BYTES_FREE_FIELD_NUMBER: _ClassVar[int]
    cache_bytes_free: int
    def __init__(self, cache_bytes_free: _Optional[int] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("step_id", "start_layer", "end_layer", "final", "segments", "token_ids", "logit_rows", "hidden", "update", "unchanged", "frames")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    START_LAYER_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGIT_ROWS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    step_id: int
    start_layer: int
    end_layer: int
    final: bool
    segments: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Segment]
    token_ids: _tensor_pb2.Tensor
    logit_rows: _containers.RepeatedScalarFieldContainer[int]
    hidden: _tensor_pb2.Tensor
    update: _tensor_pb2.Tensor
    unchanged: bool
    frames: _tensor_pb2.DType
    def __init__(self, step_id: _Optional[int] = ..., start_layer: _Optional[int] = ..., end_layer: _Optional[int] = ..., final: _Optional[bool] = ..., segments: _Optional[_Iterable[_Union[_tensor_pb2.Segment, _Mapping]]] = ..., token_ids: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., logit_rows: _Optional[_Iterable[int]] = ..., hidden: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., update: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., unchanged: _Optional[bool] = ..., frames: _Optional[_Union[_tensor_pb2.DType, str]] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("hidden", "logits", "cache_bytes_free")
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    CACHE_BYTES_FREE_FIELD_NUMBER: _ClassVar[int]
    hidden: _tensor_pb2.Tensor
    logits: _tensor_pb2.Tensor
    cache_bytes_free: int
    def __init__(self, hidden: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., logits: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., cache_bytes_free: _Optional[int] = ...) -> None: ...

class Crop(_message.Message):
    __slots__ = ("session_id", "length")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    length: int
    def __init__(self, session_id: _Optional[str] = ..., length: _Optional[int] = ...) -> None: ...

class Cropped(_message.Message):
    __slots__ = ("cache_bytes_free",)
    CACHE_BYTES_FREE_FIELD_NUMBER: _ClassVar[int]
    cache_bytes_free: int
    def __init__(self, cache_bytes_free: _Optional[int] = ...) -> None: ...

class CloseSessions(_message.Message):
    __slots__ = ("session_ids",)
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    session_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, session_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class Closed(_message.Message):
    __slots__ = ("cache_bytes_free",)
    CACHE_BYTES_FREE_FIELD_NUMBER: _ClassVar[int]
    cache_bytes_free: int
    def __init__(self, cache_bytes_free: _Optional[int] = ...) -> None: ...

class SpanInputs(_message.Message):
    __slots__ = ("start_layer", "end_layer", "lengths", "token_ids", "hidden", "head")
    START_LAYER_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    start_layer: int
    end_layer: int
    lengths: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _tensor_pb2.Tensor
    hidden: _tensor_pb2.Tensor
    head: HeadInputs
    def __init__(self, start_layer: _Optional[int] = ..., end_layer: _Optional[int] = ..., lengths: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., hidden: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., head: _Optional[_Union[HeadInputs, _Mapping]] = ...) -> None: ...

class HeadInputs(_message.Message):
    __slots__ = ("logit_rows", "targets", "vocab_size", "want_features", "want_logits")
    LOGIT_ROWS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    WANT_FEATURES_FIELD_NUMBER: _ClassVar[int]
    WANT_LOGITS_FIELD_NUMBER: _ClassVar[int]
    logit_rows: _tensor_pb2.Tensor
    targets: _tensor_pb2.Tensor
    vocab_size: int
    want_features: bool
    want_logits: bool
    def __init__(self, logit_rows: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., targets: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., vocab_size: _Optional[int] = ..., want_features: _Optional[bool] = ..., want_logits: _Optional[bool] = ...) -> None: ...

class SpanOutputs(_message.Message):
    __slots__ = ("hidden", "target_logprobs", "features", "logits")
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    TARGET_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    hidden: _tensor_pb2.Tensor
    target_logprobs: _tensor_pb2.Tensor
    features: _tensor_pb2.Tensor
    logits: _tensor_pb2.Tensor
    def __init__(self, hidden: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., target_logprobs: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., features: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., logits: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class ForwardRequest(_message.Message):
    __slots__ = ("inputs", "graph_id")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    GRAPH_ID_FIELD_NUMBER: _ClassVar[int]
    inputs: SpanInputs
    graph_id: str
    def __init__(self, inputs: _Optional[_Union[SpanInputs, _Mapping]] = ..., graph_id: _Optional[str] = ...) -> None: ...

class ForwardReply(_message.Message):
    __slots__ = ("outputs", "model_hash", "timings")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    outputs: SpanOutputs
    model_hash: str
    timings: _tensor_pb2.StepTimings
    def __init__(self, outputs: _Optional[_Union[SpanOutputs, _Mapping]] = ..., model_hash: _Optional[str] = ..., timings: _Optional[_Union[_tensor_pb2.StepTimings, _Mapping]] = ...) -> None: ...

class BackwardRequest(_message.Message):
    __slots__ = ("graph_id", "gradients", "inputs")
    GRAPH_ID_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    graph_id: str
    gradients: SpanOutputs
    inputs: SpanInputs
    def __init__(self, graph_id: _Optional[str] = ..., gradients: _Optional[_Union[SpanOutputs, _Mapping]] = ..., inputs: _Optional[_Union[SpanInputs, _Mapping]] = ...) -> None: ...

class BackwardReply(_message.Message):
    __slots__ = ("hidden", "is_gone", "model_hash", "timings")
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    IS_GONE_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    hidden: _tensor_pb2.Tensor
    is_gone: bool
    model_hash: str
    timings: _tensor_pb2.StepTimings
    def __init__(self, hidden: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., is_gone: _Optional[bool] = ..., model_hash: _Optional[str] = ..., timings: _Optional[_Union[_tensor_pb2.StepTimings, _Mapping]] = ...) -> None: ...
