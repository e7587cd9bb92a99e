"""A version of trained modules as bytes: a card, and safetensors. No pickle. Knows no files and no network.

The card says which plan, shards and tokenizers the weights belong to; putting them into others is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors

from braid_fusion.differences import differences
from braid_fusion.errors import CorruptWeights, WeightMismatch
from braid_fusion.plan import BraidPlan
from braid_fusion.stack import FusionStack
from braid_fusion.strict_json import dump_json
from braid_fusion.tensor_match import check_same_tensors

CARD_FORMAT = 1
_YEAR_10000_S = 253_402_300_800.0


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """What makes a version: ``card_json`` in UTF-8's characters, and ``data``, a safetensors file's bytes."""

    card_json: str
    data: bytes


@dataclass(frozen=True)
class WeightCard:
    """What a version of weights was made for and from. ``raw`` is the whole card."""

    version: str
    plan: BraidPlan
    weights_sha256: str
    created_unix_s: float
    raw: Mapping[str, Any]


def pack_stack(stack: FusionStack, training_record: Mapping[str, Any] | None = None) -> PackedWeights:
    """A stack as it is now. ``training_record`` is anything that JSON can hold; figures that are not finite are null
    in the card."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in stack.state_dict().items()}
    data = dump_tensors(tensors)
    plan = stack.plan
    raw = {
        "format": CARD_FORMAT,
        "braid_version": _braid_version(),
        "created_unix_s": time.time(),
        "plan_hash": plan.hash(),
        "plan": json.loads(plan.to_json()),
        "shard_hashes": {shard.name: shard.model_hash for shard in plan.shards},
        "tokenizer_hashes": {shard.name: shard.tokenizer_hash for shard in plan.shards},
        "num_parameters": stack.num_parameters(),
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "training": dict(training_record or {}),
    }
    return PackedWeights(dump_json(raw, indent=2, sort_keys=True) + "\n", data)


def parse_card(version: str, text: str, where: str) -> WeightCard:
    """The card of a version from its JSON. Raises: CorruptWeights, saying ``where`` it stands and what is wrong."""
    try:
        raw = json.loads(text)
        if raw["format"] != CARD_FORMAT:
            raise CorruptWeights(f"{where}: got card format {raw['format']!r}, expected {CARD_FORMAT}")
        plan = BraidPlan.from_json(json.dumps(raw["plan"]))
        created_unix_s = float(raw["created_unix_s"])
        if not 0.0 <= created_unix_s < _YEAR_10000_S:  # versions are ordered by it
            raise CorruptWeights(
                f"{where}: created_unix_s: got {created_unix_s}, expected seconds since 1970, before the year 10000"
            )
        return WeightCard(version, plan, str(raw["weights_sha256"]), created_unix_s, raw)
    except (OverflowError, RecursionError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptWeights(f"{where}: not a weight card: {type(error).__name__}: {error}") from error


def version_name(card_json: str) -> str:
    """A name for weights that were given none: when they were made, in UTC, and a hash of their card.

    The same weights get the same name everywhere and every time, others another one; names sort by time.
    Raises: CorruptWeights for a card that is none.
    """
    made = time.gmtime(math.floor(parse_card("", card_json, "card").created_unix_s))
    digest = hashlib.sha256(card_json.encode()).hexdigest()  # the card has the hash of the weights in it
    return f"{time.strftime('%Y%m%d-%H%M%S', made)}-{digest[:8]}"


def check_plan(card: WeightCard, running: BraidPlan) -> None:
    """Whether these weights were made for that plan. Raises: WeightMismatch, naming each field that differs."""
    unlike = plan_differences(card.plan, running)
    if unlike:
        raise WeightMismatch(f"weights {card.version!r} were made for another braid: {'; '.join(unlike)}")


def plan_differences(
    saved: BraidPlan, running: BraidPlan, here: str = "this braid", there: str = "the weights have"
) -> list[str]:
    """Each field in which two plans differ, with both values; ``here`` and ``there`` as for `differences`. The seed
    doesn't count."""
    return differences(_plain(saved), _plain(running), here, there)


def unpack_into(stack: FusionStack, card: WeightCard, data: bytes, where: str) -> None:
    """Put weights into modules that exist; after an error these are unchanged.

    Args:
        data: a safetensors file's bytes.
        where: what messages call it.

    Raises: WeightMismatch, naming each field that differs; CorruptWeights for bytes that are not what the card says.
    """
    check_plan(card, stack.plan)
    found = hashlib.sha256(data).hexdigest()
    if found != card.weights_sha256:
        raise CorruptWeights(
            f"{where}: got SHA-256 {found[:16]}…, expected {card.weights_sha256[:16]}… as its card says"
        )
    try:
        tensors = load_tensors(data)
    except (SafetensorError, ValueError) as error:
        raise CorruptWeights(f"{where}: not a safetensors file: {error}") from error
    check_same_tensors(where, tensors, stack.state_dict())
    stack.load_state_dict(tensors)


def max_packed_bytes(stack: FusionStack) -> int:
    """The most bytes that weights of these modules can have as a file: every number in twice its width, and a header
    of a kilobyte for each tensor."""
    sizes = [tensor.numel() * tensor.element_size() for tensor in stack.state_dict().values()]
    most: int = 2 * sum(sizes) + 1024 * (len(sizes) + 1)
    return most


def _plain(plan: BraidPlan) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(json.dumps(asdict(plan)))
    del raw["seed"]
    return raw


def _braid_version() -> str:
    try:
        return metadata.version("braid")
    except metadata.PackageNotFoundError:
        return "not installed"
