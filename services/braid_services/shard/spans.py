"""Running a model's own forward in pieces: suspended before any layer, gone on with from a state given back.

Shapes: T packed rows, D width, R logit rows, V vocabulary. Embedding, rotary tables, final norm and head stay
the model's own code; a greenlet holds its forward still while others work. Knows no sessions, no wire.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from braid_fusion.grafting.layers import layer_lists
from braid_rpc.errors import (
    ConflictError,
    InvalidRequestError,
    ShapeMismatchError,
    StepOrderError,
    UnsupportedModelError,
)
from braid_services.shard.attention import PACKED_ATTENTION, PackedAttention
from braid_services.shard.turns import ComputeLock, TrainingTurns
from braid_services.trimming import trim

_NO_STOP = -1
_ATTENTION_KEY = "_attn_implementation_internal"


class SpanModel:
    """A causal language model whose layers can be run span by span.

    The model is put into eval mode with gradients of its parameters off. Its attention is ours only while a
    run is under way, so between runs it may be called as usual, under ``lock``. There is one per model at a
    time (`of`), since runs of the same model must share the lock, and whoever trains through it the time for that.
    """

    @classmethod
    def of(cls, model: Any) -> SpanModel:
        """The one that wraps ``model`` already, or else a new one."""
        with _WRAPPED_LOCK:
            found = _WRAPPED.get(id(model))
            if found is None:
                found = _WRAPPED[id(model)] = cls(model)
            return found

    def __init__(self, model: Any) -> None:
        """Use `of`. Raises: UnsupportedModelError."""
        self.model = model
        self.lock = ComputeLock()
        self.training_turns = TrainingTurns(self.lock)
        self.family: str = model.config.model_type
        self.layers = find_layers(model)
        self.num_layers = len(self.layers)
        self.width: int = model.config.get_text_config().hidden_size
        self.input_vocab: int = model.get_input_embeddings().weight.shape[0]
        head = model.get_output_embeddings()
        if head is None:
            raise UnsupportedModelError(
                f"{self.family}: the model has no output head, expected a causal language model"
            )
        self.vocab_size: int = head.weight.shape[0]
        self.dtype: torch.dtype = model.get_input_embeddings().weight.dtype
        self.device: torch.device = model.get_input_embeddings().weight.device
        self._configs = _attention_configs(model)
        model.eval()
        model.requires_grad_(False)
        trim(model)
        if _pick_logit_rows not in head._forward_pre_hooks.values():  # left by one that is gone
            head.register_forward_pre_hook(_pick_logit_rows)

    @contextmanager
    def attention(self, implementation: str) -> Iterator[None]:
        """Use an attention implementation within the block. The caller holds ``lock``."""
        before = self.set_attention(implementation)
        try:
            yield
        finally:
            self.set_attention(before)

    def set_attention(self, implementation: str) -> str:
        """Use an attention implementation from now on; returns the one before. The caller holds ``lock``."""
        before: str = self._configs[0][_ATTENTION_KEY]
        for config in self._configs:
            config[_ATTENTION_KEY] = implementation
        return before


# By the id of the model, which the value keeps alive.
_WRAPPED: WeakValueDictionary[int, SpanModel] = WeakValueDictionary()
_WRAPPED_LOCK = threading.Lock()


class SpanRun(greenlet):  # type: ignore[misc]
    """One forward of a model over T packed rows, suspended wherever it is told to stop.

    Belongs to the thread that made it. A run that is dropped unwinds the model's forward and leaves nothing.
    """

    def __init__(
        self,
        model: SpanModel,
        token_ids_T: Tensor,
        positions_T: Tensor,
        logit_rows: Tensor | None,
        attention: PackedAttention,
    ) -> None:
        # Nothing inside the forward may refer to this object: then dropping it frees all at once, without the
        # cycle collector.
        super().__init__(partial(_logits, model.model, token_ids_T[None], positions_T[None]))
        self.layer = 0
        self.attention = attention
        self.stop_layer = _NO_STOP
        self.logit_rows = logit_rows
        self.head_input_RD: Tensor | None = None
        self.is_done = False
        self._model = model
        self._first_layer = 0
        self._thread = threading.get_ident()

    def begin_at(self, layer: int) -> None:
        """Pass over the layers before ``layer``: what is given at the start goes into that one. Before any span.

        The caller holds the model's lock.
        """
        if self.stop_layer != _NO_STOP or self.is_done:
            raise StepOrderError(f"begin_at: got layer {layer} for a run under way, expected a new one")
        self._first_layer = layer
        self.advance(0, None)

    def advance(self, end_layer: int, hidden_TD: Tensor | None) -> Tensor:
        """Run up to ``end_layer`` from ``hidden_TD``; None at the start, or to leave the states as they are.

        Returns: (T, D) states entering ``end_layer``. The caller holds the model's lock.
        """
        if end_layer == self.layer and self.stop_layer != _NO_STOP:
            if hidden_TD is None:
                raise StepOrderError(f"an empty span at layer {end_layer} needs the states to go on with")
            return hidden_TD
        self.stop_layer = end_layer
        out: Tensor = self._switch(hidden_TD)
        if self.dead:
            raise UnsupportedModelError(f"{self._model.family}: the forward ended before layer {end_layer}")
        self.layer = end_layer
        return out

    def finish(self, hidden_TD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run to the end: the head's input (R, D) and the logits (R, V). The caller holds the lock."""
        self.stop_layer = _NO_STOP
        logits_RV: Tensor = self._switch(hidden_TD)
        self.layer = self._model.num_layers
        self.is_done = True
        if self.head_input_RD is None:
            raise UnsupportedModelError(
                f"{self._model.family}: the forward did not call the model's output head"
            )
        return self.head_input_RD, logits_RV

    def drop(self) -> None:
        """Give the forward up. Harmless at any time; on another thread it is left to the collector."""
        if self and threading.get_ident() == self._thread:
            self.parent = getcurrent()
            self.throw()

    def _switch(self, hidden_TD: Tensor | None) -> Any:
        if threading.get_ident() != self._thread:
            raise ConflictError(
                "a span run was started on another thread; one caller's steps stay on one thread"
            )
        self.parent = getcurrent()
        model = self._model
        # For as long as they are wanted, around the layers' forwards: a module with hooks is slower to call.
        replaced: list[tuple[dict[str, Any], Any]] = []
        before = model.set_attention(PACKED_ATTENTION)
        try:
            for index in range(self._first_layer):
                _replace_forward(model.layers[index], _pass_over, replaced)
            if self.stop_layer != _NO_STOP:
                layer = model.layers[self.stop_layer]
                _replace_forward(layer, partial(_pause_before, layer.forward), replaced)
            return self.switch(hidden_TD)
        finally:
            model.set_attention(before)
            for attributes, forward in reversed(replaced):
                del attributes["forward"]
                if forward is not None:
                    attributes["forward"] = forward


def _replace_forward(
    layer: nn.Module, forward: Callable[..., Any], replaced: list[tuple[dict[str, Any], Any]]
) -> None:
    """Put ``forward`` in a layer's place, and note what an instance had of its own there."""
    attributes = vars(layer)
    replaced.append((attributes, attributes.get("forward")))
    attributes["forward"] = forward


def _pass_over(*args: Any, **kwargs: Any) -> Any:
    """A layer that changes nothing."""
    return args[0] if args else kwargs["hidden_states"]


def _logits(model: Any, input_ids: Tensor, position_ids: Tensor, _: None) -> Tensor:
    """The body of a run: the model's own forward. Returns: logits (R, V)."""
    logits: Tensor = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
    return logits[0]


def _pause_before(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Suspend the run before a layer, then let the layer go on with whatever state comes back."""
    if not isinstance(getcurrent(), SpanRun):
        return forward(*args, **kwargs)
    hidden = args[0] if args else kwargs["hidden_states"]
    # No reference to the run may stay here while it is suspended, see SpanRun.
    given = getcurrent().parent.switch(hidden[0])
    if given is None:
        return forward(*args, **kwargs)
    given = given[None]
    return forward(given, *args[1:], **kwargs) if args else forward(**{**kwargs, "hidden_states": given})


def _pick_logit_rows(module: nn.Module, args: tuple[Any, ...]) -> Any:
    """The hook that lets the head see only the rows whose logits are wanted, and notes its input."""
    run = getcurrent()
    if not isinstance(run, SpanRun):
        return None
    hidden = args[0]
    if run.logit_rows is not None:
        hidden = hidden.index_select(1, run.logit_rows)
    run.head_input_RD = hidden[0]
    return (hidden, *args[1:])


def find_layers(model: Any) -> nn.ModuleList:
    """The model's decoder layers. Raises: UnsupportedModelError if there is not exactly one such list."""
    lists = [layers for _, layers in layer_lists(model)]
    if len(lists) != 1:
        num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
        raise UnsupportedModelError(
            f"{model.config.model_type}: cannot be run span by span: found {len(lists)} lists of {num_layers} "
            "decoder layers whose attention knows its index, expected one"
        )
    return lists[0]


def _attention_configs(model: Any) -> list[dict[str, Any]]:
    """The contents of all configurations that the model's layers read their attention implementation from.

    Written to directly: this happens twice per span, and a configuration's own setter costs more than a layer's
    arithmetic on one token of a small model.
    """
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    return [vars(config) for config in configs.values() if _ATTENTION_KEY in vars(config)]


def check_packed(token_ids_T: Tensor, lengths: Sequence[int], vocab_size: int) -> int:
    """The number of packed rows T. Raises: ShapeMismatchError, InvalidRequestError, naming what is wrong."""
    num_rows = sum(lengths)
    if not lengths or min(lengths) < 1:
        raise InvalidRequestError(
            f"rows of the sequences: got {list(lengths)}, expected at least one row each"
        )
    if token_ids_T.shape != (num_rows,):
        raise ShapeMismatchError(f"token_ids: got shape {tuple(token_ids_T.shape)}, expected ({num_rows},)")
    if token_ids_T.dtype not in (torch.int64, torch.int32):
        raise InvalidRequestError(f"token_ids: got dtype {token_ids_T.dtype}, expected int64 or int32")
    low, high = (int(bound) for bound in torch.aminmax(token_ids_T))
    if low < 0 or high >= vocab_size:
        raise InvalidRequestError(f"token_ids: got ids from {low} to {high}, expected [0, {vocab_size})")
    return num_rows
