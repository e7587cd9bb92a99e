from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "text", "tokens", "sampling", "n", "use_braiding", "shard", "timeout_s", "model", "timings", "stability", "auto_braiding")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    USE_BRAIDING_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    STABILITY_FIELD_NUMBER: _ClassVar[int]
    AUTO_BRAIDING_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    text: str
    tokens: TokenIds
    sampling: SamplingOptions
    n: int
    use_braiding: bool
    shard: str
    timeout_s: float
    model: str
    timings: bool
    stability: StabilityOptions
    auto_braiding: bool
    def __init__(self, request_id: _Optional[str] = ..., text: _Optional[str] = ..., tokens: _Optional[_Union[TokenIds, _Mapping]] = ..., sampling: _Optional[_Union[SamplingOptions, _Mapping]] = ..., n: _Optional[int] = ..., use_braiding: _Optional[bool] = ..., shard: _Optional[str] = ..., timeout_s: _Optional[float] = ..., model: _Optional[str] = ..., timings: _Optional[bool] = ..., stability: _Optional[_Union[StabilityOptions, _Mapping]] = ..., auto_braiding: _Optional[bool] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class SamplingOptions(_message.Message):
    __slots__ = ("max_tokens", "min_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "seed", "stop", "stop_token_ids", "ignore_eos", "logprobs")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    logprobs: int
    def __init__(self, max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: _Optional[bool] = ..., logprobs: _Optional[int] = ...) -> None: ...

class StabilityOptions(_message.Message):
    __slots__ = ("stop", "auto_temperature", "threshold", "window", "min_tokens")
    STOP_FIELD_NUMBER: _ClassVar[int]
    AUTO_TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    stop: bool
    auto_temperature: bool
    threshold: float
    window: int
    min_tokens: int
    def __init__(self, stop: _Optional[bool] = ..., auto_temperature: _Optional[bool] = ..., threshold: _Optional[float] = ..., window: _Optional[int] = ..., min_tokens: _Optional[int] = ...) -> None: ...

class GenerateEvent(_message.Message):
    __slots__ = ("started", "token", "choice_finished", "finished")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FINISHED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    started: Started
    token: Token
    choice_finished: ChoiceFinished
    finished: Finished
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., token: _Optional[_Union[Token, _Mapping]] = ..., choice_finished: _Optional[_Union[ChoiceFinished, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("request_id", "model", "prompt_tokens", "weights_version", "braided", "answered_by")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    BRAIDED_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_BY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    prompt_tokens: int
    weights_version: str
    braided: bool
    answered_by: str
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., weights_version: _Optional[str] = ..., braided: _Optional[bool] = ..., answered_by: _Optional[str] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("index", "token_id", "text", "logprob", "top_logprobs", "weights", "stability")
    class WeightsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    STABILITY_FIELD_NUMBER: _ClassVar[int]
    index: int
    token_id: int
    text: str
    logprob: float
    top_logprobs: _containers.RepeatedCompositeFieldContainer[TopLogprob]
    weights: _containers.ScalarMap[str, float]
    stability: TokenStability
    def __init__(self, index: _Optional[int] = ..., token_id: _Optional[int] = ..., text: _Optional[str] = ..., logprob: _Optional[float] = ..., top_logprobs: _Optional[_Iterable[_Union[TopLogprob, _Mapping]]] = ..., weights: _Optional[_Mapping[str, float]] = ..., stability: _Optional[_Union[TokenStability, _Mapping]] = ...) -> None: ...

class TokenStability(_message.Message):
    __slots__ = ("entropy", "lyapunov_estimate", "temperature", "coherence", "kuramoto_order")
    ENTROPY_FIELD_NUMBER: _ClassVar[int]
    LYAPUNOV_ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    COHERENCE_FIELD_NUMBER: _ClassVar[int]
    KURAMOTO_ORDER_FIELD_NUMBER: _ClassVar[int]
    entropy: float
    lyapunov_estimate: float
    temperature: float
    coherence: float
    kuramoto_order: float
    def __init__(self, entropy: _Optional[float] = ..., lyapunov_estimate: _Optional[float] = ..., temperature: _Optional[float] = ..., coherence: _Optional[float] = ..., kuramoto_order: _Optional[float] = ...) -> None: ...

class TopLogprob(_message.Message):
    __slots__ = ("token_id", "token", "logprob")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    token: str
    logprob: float
    def __init__(self, token_id: _Optional[int] = ..., token: _Optional[str] = ..., logprob: _Optional[float] = ...) -> None: ...

class ChoiceFinished(_message.Message):
    __slots__ = ("index", "finish_reason", "stop_reason", "text", "stability")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    STABILITY_FIELD_NUMBER: _ClassVar[int]
    index: int
    finish_reason: str
    stop_reason: str
    text: str
    stability: ChoiceStability
    def __init__(self, index: _Optional[int] = ..., finish_reason: _Optional[str] = ..., stop_reason: _Optional[str] = ..., text: _Optional[str] = ..., stability: _Optional[_Union[ChoiceStability, _Mapping]] = ...) -> None: ...

class ChoiceStability(_message.Message):
    __slots__ = ("mean_entropy", "mean_coherence", "mean_kuramoto_order", "lyapunov_estimate", "is_stable")
    MEAN_ENTROPY_FIELD_NUMBER: _ClassVar[int]
    MEAN_COHERENCE_FIELD_NUMBER: _ClassVar[int]
    MEAN_KURAMOTO_ORDER_FIELD_NUMBER: _ClassVar[int]
    LYAPUNOV_ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    IS_STABLE_FIELD_NUMBER: _ClassVar[int]
    mean_entropy: float
    mean_coherence: float
    mean_kuramoto_order: float
    lyapunov_estimate: float
    is_stable: bool
    def __init__(self, mean_entropy: _Optional[float] = ..., mean_coherence: _Optional[float] = ..., mean_kuramoto_order: _Optional[float] = ..., lyapunov_estimate: _Optional[float] = ..., is_stable: _Optional[bool] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens", "timings")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    timings: Timings
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_s", "time_to_first_token_s", "total_s", "time_per_output_token_s", "steps")
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_FIRST_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    TOTAL_S_FIELD_NUMBER: _ClassVar[int]
    TIME_PER_OUTPUT_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    time_to_first_token_s: float
    total_s: float
    time_per_output_token_s: float
    steps: StepTimes
    def __init__(self, queue_s: _Optional[float] = ..., time_to_first_token_s: _Optional[float] = ..., total_s: _Optional[float] = ..., time_per_output_token_s: _Optional[float] = ..., steps: _Optional[_Union[StepTimes, _Mapping]] = ...) -> None: ...

class StepTimes(_message.Message):
    __slots__ = ("count", "wall_s", "readout_s", "shards", "points")
    class ShardsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: PartTimes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[PartTimes, _Mapping]] = ...) -> None: ...
    class PointsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: PartTimes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[PartTimes, _Mapping]] = ...) -> None: ...
    COUNT_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    READOUT_S_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    count: int
    wall_s: float
    readout_s: float
    shards: _containers.MessageMap[str, PartTimes]
    points: _containers.MessageMap[str, PartTimes]
    def __init__(self, count: _Optional[int] = ..., wall_s: _Optional[float] = ..., readout_s: _Optional[float] = ..., shards: _Optional[_Mapping[str, PartTimes]] = ..., points: _Optional[_Mapping[str, PartTimes]] = ...) -> None: ...

class PartTimes(_message.Message):
    __slots__ = ("count", "compute_s", "wire_s", "wait_s", "serialize_s")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    WIRE_S_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    SERIALIZE_S_FIELD_NUMBER: _ClassVar[int]
    count: int
    compute_s: float
    wire_s: float
    wait_s: float
    serialize_s: float
    def __init__(self, count: _Optional[int] = ..., compute_s: _Optional[float] = ..., wire_s: _Optional[float] = ..., wait_s: _Optional[float] = ..., serialize_s: _Optional[float] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("text", "tokens", "use_braiding", "shard", "timeout_s", "auto_braiding")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    USE_BRAIDING_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    AUTO_BRAIDING_FIELD_NUMBER: _ClassVar[int]
    text: str
    tokens: TokenIds
    use_braiding: bool
    shard: str
    timeout_s: float
    auto_braiding: bool
    def __init__(self, text: _Optional[str] = ..., tokens: _Optional[_Union[TokenIds, _Mapping]] = ..., use_braiding: _Optional[bool] = ..., shard: _Optional[str] = ..., timeout_s: _Optional[float] = ..., auto_braiding: _Optional[bool] = ...) -> None: ...

class ScoreReply(_message.Message):
    __slots__ = ("token_ids", "logprobs", "tokens", "num_bytes", "braided", "answered_by")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    BRAIDED_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_BY_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    num_bytes: int
    braided: bool
    answered_by: str
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ..., tokens: _Optional[_Iterable[str]] = ..., num_bytes: _Optional[int] = ..., braided: _Optional[bool] = ..., answered_by: _Optional[str] = ...) -> None: ...

class DescribeBraidRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BraidCard(_message.Message):
    __slots__ = ("protocol_version", "name", "anchor", "shards", "points", "readout", "weights_version", "context_length")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ANCHOR_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    READOUT_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    name: str
    anchor: str
    shards: _containers.RepeatedCompositeFieldContainer[BraidShard]
    points: _containers.RepeatedCompositeFieldContainer[BraidPoint]
    readout: str
    weights_version: str
    context_length: int
    def __init__(self, protocol_version: _Optional[int] = ..., name: _Optional[str] = ..., anchor: _Optional[str] = ..., shards: _Optional[_Iterable[_Union[BraidShard, _Mapping]]] = ..., points: _Optional[_Iterable[_Union[BraidPoint, _Mapping]]] = ..., readout: _Optional[str] = ..., weights_version: _Optional[str] = ..., context_length: _Optional[int] = ...) -> None: ...

class BraidShard(_message.Message):
    __slots__ = ("name", "model_id", "model_hash", "family", "num_layers", "width", "num_parameters", "dtype", "tokenizer_hash")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_HASH_FIELD_NUMBER: _ClassVar[int]
    name: str
    model_id: str
    model_hash: str
    family: str
    num_layers: int
    width: int
    num_parameters: int
    dtype: str
    tokenizer_hash: str
    def __init__(self, name: _Optional[str] = ..., model_id: _Optional[str] = ..., model_hash: _Optional[str] = ..., family: _Optional[str] = ..., num_layers: _Optional[int] = ..., width: _Optional[int] = ..., num_parameters: _Optional[int] = ..., dtype: _Optional[str] = ..., tokenizer_hash: _Optional[str] = ...) -> None: ...

class BraidPoint(_message.Message):
    __slots__ = ("name", "strategy", "injection", "layers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    INJECTION_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    strategy: str
    injection: str
    layers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., strategy: _Optional[str] = ..., injection: _Optional[str] = ..., layers: _Optional[_Iterable[int]] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class CancelReply(_message.Message):
    __slots__ = ("cancelled",)
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    cancelled: bool
    def __init__(self, cancelled: _Optional[bool] = ...) -> None: ...
