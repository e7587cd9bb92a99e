"""How stable a text is, in the shapes of the APIs: what may be asked, and what is told of tokens and choices."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from braid_rpc.stability import StabilityOptions


class StabilityFields(BaseModel):
    """Ask that a text is watched. With the defaults it stays the same, and is only told about."""

    model_config = ConfigDict(extra="forbid", strict=True)

    stop: Annotated[bool, Field(description="end a text where it is sure that it diverges")] = False
    auto_temperature: Annotated[
        bool, Field(description="lower the temperature while the text gets less stable")
    ] = False
    threshold: Annotated[
        float, Field(description="nats per token: a slower rise of the entropy is no divergence")
    ] = 0.02
    window: Annotated[int, Field(description="tokens that the running estimate looks back at")] = 32
    min_tokens: Annotated[int, Field(description="before so many nothing is done")] = 16


def stability_options(asked: StabilityFields | None) -> StabilityOptions | None:
    """The same as frozen values. `StabilityOptions.validate` checks the ranges."""
    return None if asked is None else StabilityOptions(**asked.model_dump())


StabilityAsked = Annotated[
    StabilityFields | None, Field(description="watch how stable the text is; {} only tells of it")
]


class TokenStabilityOut(BaseModel):
    """Of one token. ``entropy`` in nats, before any sampling option; ``lyapunov_estimate`` in nats per token."""

    entropy: float
    lyapunov_estimate: float | None
    temperature: float
    coherence: float | None
    kuramoto_order: float | None


class ChoiceStabilityOut(BaseModel):
    """Of a whole text: means over its tokens, and the estimate at its last."""

    mean_entropy: float | None
    mean_coherence: float | None
    mean_kuramoto_order: float | None
    lyapunov_estimate: float | None
    is_stable: bool
