"""The hooks that put resonance layers into a model's forward, whoever calls it. Knows no files and no generation.

Letters: B sequences, T positions, N packed rows, D model width.
"""

from __future__ import annotations

import inspect
from functools import partial
from itertools import count
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from braid_fusion.errors import FusionShapeError, GraftConfigError, NonFiniteStateError
from braid_fusion.grafting.cache import GraftRows, cache_in, rows_of
from braid_fusion.grafting.forward_pass import ForwardPass

_owners = count(1)
# Arguments that tell where texts begin within a row.
_PACKED = ("cu_seq_lens_q", "cu_seqlens", "block_table", "seq_idx")


class Grafts:
    """Resonance layers behind decoder layers of one model.

    The hooks sit on the decoder layers and on the module that runs them, so nothing that uses the model can leave
    the grafts out: not its own ``generate``, nor a call of the part without the head.

    Args:
        stack: the module that runs the decoder layers.
        layers: these.
        fusion_layers: by the index of the decoder layer, as text.

    Raises: GraftConfigError if the model has grafts already.
    """

    def __init__(self, stack: nn.Module, layers: nn.ModuleList, fusion_layers: nn.ModuleDict) -> None:
        if any(isinstance(getattr(hook, "__self__", None), Grafts) for hook in stack._forward_hooks.values()):
            raise GraftConfigError(
                f"base_model: got a {type(stack).__name__} that is wrapped already, expected a bare model: "
                "unwrap() the other wrapper first"
            )
        self.fusion_layers = fusion_layers
        self.collect_metrics = True
        self.check_finite = True
        self.last: ForwardPass | None = None
        self._owner = next(_owners)
        self._running: dict[int, ForwardPass] = {}
        self._argument_names = tuple(inspect.signature(stack.forward).parameters)
        self._handles: list[RemovableHandle] = [
            stack.register_forward_pre_hook(self.begin, with_kwargs=True),
            stack.register_forward_hook(self.end, always_call=True),
        ]
        for key in fusion_layers:
            # First of all hooks, so that whoever records hidden states records the changed ones.
            hook = partial(self.behind, int(key), key)
            self._handles.append(layers[int(key)].register_forward_hook(hook, prepend=True))

    def remove(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.last = None

    def begin(self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model's layers are about to run. Raises: GraftCacheError, FusionShapeError."""
        given = {**dict(zip(self._argument_names, args, strict=False)), **kwargs} if len(args) > 1 else kwargs
        packed = next((name for name in _PACKED if given.get(name) is not None), None)
        if packed is not None:
            raise FusionShapeError(
                f"{packed}: got several texts packed into one row, as generate_batch and flattening collators do, "
                "expected one text per row: grafted layers look back along it"
            )
        cache = cache_in(given)
        rows = None
        left_over = self._running.pop(get_ident(), None)
        if left_over is not None:  # interrupted, which torch tells no hook
            left_over.give_up()
        if any(getattr(layer, "keeps_rows", True) for layer in self.fusion_layers.values()):
            if cache is not None:
                rows = rows_of(cache, self._owner)
            elif not stack.training and _uses_cache(stack, given):
                rows = GraftRows(self._owner)
        self._running[get_ident()] = ForwardPass(
            given.get("attention_mask"), cache, rows, self.collect_metrics
        )

    def behind(self, layer_idx: int, key: str, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """A decoder layer has run: change its output."""
        hidden_BTD: Tensor = output[0] if isinstance(output, tuple) else output
        running = self._running.get(get_ident())
        if running is None:  # a decoder layer called by itself: whole sequences
            running = ForwardPass(None, None, None, False)
        if running.shape is None:
            running.fit(hidden_BTD)
        if not running.present:
            return None
        grafted: Any = self.fusion_layers[key]
        packed_ND = running.pack(hidden_BTD)
        fused = grafted.fuse(packed_ND, running.context(layer_idx))
        if fused.row_metrics:
            running.row_metrics[layer_idx] = fused.row_metrics
        if self.check_finite:
            # What comes in as well: a layer that looks back may carry NaN to earlier rows, as 0 · NaN is NaN.
            running.sums_N[layer_idx] = (_row_sums(packed_ND), _row_sums(fused.hidden_TD))
        changed_BTD = running.unpack(hidden_BTD, fused.hidden_TD)
        return (changed_BTD, *output[1:]) if isinstance(output, tuple) else changed_BTD

    def end(self, stack: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The model's layers have run, or failed where ``output`` is None. Raises: NonFiniteStateError."""
        running = self._running.pop(get_ident(), None)
        if running is None:
            return
        if output is None:
            running.give_up()
            return
        cache = running.cache if running.cache is not None else cache_in(output)
        try:
            if running.sums_N:
                self._refuse_non_finite(running)
            running.commit()
        finally:
            rows = running.rows
            if rows is not None and cache is not None and all(layer is not rows for layer in cache.layers):
                cache.layers.append(rows)
            running.release()
        self.last = running

    def forget_caches(self) -> None:
        """Refuse from now on the caches that were filled so far: the layers are no longer the same."""
        self._owner = next(_owners)

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to calls: a copy has made none."""
        return {**self.__dict__, "last": None, "_running": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.forget_caches()

    def _refuse_non_finite(self, running: ForwardPass) -> None:
        behind = [after_N for _, after_N in running.sums_N.values()]
        total_N = behind[0]
        for after_N in behind[1:]:
            total_N = total_N + after_N.to(total_N.device)
        if bool(total_N.isfinite().all()):
            return
        for layer_idx, sums in running.sums_N.items():
            for sums_N in sums:
                wrong = (~sums_N.isfinite()).nonzero().flatten().tolist()
                if wrong:
                    sequence, position = running.place(wrong[0])
                    running.give_up_all()
                    raise NonFiniteStateError(layer_idx, sequence, position, len(wrong))


def _row_sums(hidden_ND: Tensor) -> Tensor:
    """(N,) finite where the whole row is; half precision is summed in float32, which it cannot exceed."""
    wide = torch.float32 if hidden_ND.dtype in (torch.float16, torch.bfloat16) else None
    return hidden_ND.detach().sum(-1, dtype=wide)


def _uses_cache(stack: Any, given: dict[str, Any]) -> bool:
    use_cache = given.get("use_cache")
    return bool(getattr(stack.config, "use_cache", False) if use_cache is None else use_cache)
