"""Whether gradients through a model's spans are right: tried once, when it is loaded, on its last layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from braid_rpc.training import HeadInputs, SpanInputs
from braid_services.shard.spans import SpanModel
from braid_services.shard.training.span import run_span

# Largest difference of gradients allowed, relative to the largest. Kernels differ in the order of their sums.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 2e-1}

_LENGTH = 5


def why_not_backward(spans: SpanModel) -> str:
    """Compare logits and gradients of the last span by itself with those of the plain forward.

    Returns: what is wrong, for humans; empty if nothing is.
    """
    generator = torch.Generator().manual_seed(0)
    ids_T = torch.randint(spans.input_vocab, (_LENGTH,), generator=generator)
    wanted_TV = torch.randn(_LENGTH, spans.vocab_size, generator=generator).to(spans.device)
    try:
        with spans.lock, torch.enable_grad():
            entering_TD, expected = _plain(spans, ids_T, wanted_TV)
            got = _alone(spans, ids_T, entering_TD, wanted_TV)
    except Exception as error:  # noqa: BLE001 - whatever a foreign model's backward raises
        return f"its backward fails: {error}"
    for what, one, other in zip(("logits", "gradients"), got, expected, strict=True):
        scale = max(float(other.abs().max()), 1e-6)
        difference = float((one - other).abs().max()) / scale
        if not difference <= TOLERANCE[spans.dtype]:  # NaN is refused too
            return (
                f"{what} of its last layer run alone differ from the plain forward's by {difference:.1e} of the "
                f"largest, expected at most {TOLERANCE[spans.dtype]:.0e} in {spans.dtype}"
            )
    return ""


def _plain(spans: SpanModel, ids_T: Tensor, wanted_TV: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The states that enter the last layer, and logits and gradient behind it."""
    entering: list[Tensor] = []

    def enter(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        entering.append(hidden.detach().requires_grad_())
        if args:
            return (entering[0], *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": entering[0]}

    handle = spans.layers[-1].register_forward_pre_hook(enter, with_kwargs=True)
    try:
        with spans.attention("eager"):
            logits_TV = spans.model(input_ids=ids_T[None].to(spans.device), use_cache=False).logits[0]
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad((logits_TV.float() * wanted_TV).sum(), entering)
    return entering[0].detach()[0], (logits_TV.detach().float(), gradient[0].float())


def _alone(spans: SpanModel, ids_T: Tensor, entering_TD: Tensor, wanted_TV: Tensor) -> tuple[Tensor, Tensor]:
    leaf_TD = entering_TD.requires_grad_()
    head: HeadInputs[Tensor] = HeadInputs(want_logits=True)
    inputs = SpanInputs(spans.num_layers - 1, spans.num_layers, (_LENGTH,), ids_T, leaf_TD, head)
    logits_TV = run_span(spans, inputs, leaf_TD).logits
    if logits_TV is None:
        raise RuntimeError("the span gave no logits")
    (gradient_TD,) = torch.autograd.grad((logits_TV.float() * wanted_TV).sum(), [leaf_TD])
    return logits_TV.detach().float(), gradient_TD.float()
