"""A call's sequences in groups, which are run one after the other: packed sequences know nothing of each other.

Groups are made by rows alone, never by time, so that the same call always gives the same, to the bit. Knows no model.

Shapes: T packed rows, R rows of what a call gives, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from braid_rpc.training import HeadInputs, SpanInputs, SpanOutputs


@dataclass(frozen=True, slots=True)
class Group:
    """Some of a call's sequences. ``rows``: an index, which of the R rows that the call gives come from them."""

    inputs: SpanInputs[Tensor]
    rows: slice | Tensor


def make_groups(inputs: SpanInputs[Tensor], max_rows: int) -> list[Group]:
    """As many whole sequences each, in order, as make ``max_rows`` packed rows, and one at least."""
    groups: list[Group] = []
    start = 0
    for lengths in _cut(inputs.lengths, max_rows):
        packed = slice(start, start + sum(lengths))
        head, rows = _head_within(inputs.head, packed)
        own = replace(
            inputs,
            lengths=lengths,
            token_ids=inputs.token_ids[packed],
            hidden=None if inputs.hidden is None else inputs.hidden[packed],
            head=head,
        )
        groups.append(Group(own, rows))
        start = packed.stop
    return groups


def num_rows_given(inputs: SpanInputs[Tensor]) -> int:
    """R of a call."""
    if inputs.head is None or inputs.head.logit_rows is None:
        return inputs.token_ids.shape[0]
    return inputs.head.logit_rows.shape[0]


def join(parts: Sequence[SpanOutputs[Tensor]], groups: Sequence[Group], num_rows: int) -> SpanOutputs[Tensor]:
    """What the call gives, from what its groups gave."""
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Tensor] = {}
    for name, value in parts[0].items():
        joined[name] = value.new_empty(num_rows, *value.shape[1:])
        for part, group in zip(parts, groups, strict=True):
            joined[name][group.rows] = getattr(part, name)
    return SpanOutputs(**joined)


def _cut(lengths: Sequence[int], max_rows: int) -> Iterator[tuple[int, ...]]:
    start = num_rows = 0
    for index, length in enumerate(lengths):
        if index > start and num_rows + length > max_rows:
            yield tuple(lengths[start:index])
            start, num_rows = index, 0
        num_rows += length
    yield tuple(lengths[start:])


def _head_within(
    head: HeadInputs[Tensor] | None, packed: slice
) -> tuple[HeadInputs[Tensor] | None, slice | Tensor]:
    """What is wanted of the head at these packed rows, and where that belongs."""
    if head is None:
        return None, packed
    rows: slice | Tensor = packed
    logit_rows = None
    if head.logit_rows is not None:
        is_within = (head.logit_rows >= packed.start) & (head.logit_rows < packed.stop)
        rows = is_within.nonzero()[:, 0]
        logit_rows = head.logit_rows[rows] - packed.start
    targets = None if head.targets is None else head.targets[rows]
    return replace(head, logit_rows=logit_rows, targets=targets), rows
