"""What a configuration leaves open, told by the model's width and depth: which layers, how wide, how many heads.

Letters: D model width, F fusion width.
"""

from __future__ import annotations

from braid_fusion.errors import GraftConfigError

# F at width 768 keeps the presets to their budgets; narrower models get as many parameters per layer.
_DEFAULT_WIDTH, _FULL_SIZE = 56, 56 * 768
_DEFAULT_COMPONENT_WIDTH = 32


def spread(count: int, num_layers: int) -> tuple[int, ...]:
    """``count`` of ``num_layers`` indices at equal distances up to the last: 3, 6, 9, 11 of 12 for four. One alone
    stands in the middle, where the layers behind it can still use it; no more than there are."""
    if count >= num_layers:
        return tuple(range(num_layers))
    if count == 1:
        return (num_layers // 2,)
    return tuple(min((i + 1) * num_layers // count, num_layers - 1) for i in range(count))


def default_width(hidden_dim: int) -> int:
    """Twice the width of a narrow model, 56 from width 768 on; between, what makes layers of the same size."""
    affordable = max(_DEFAULT_WIDTH, _FULL_SIZE // hidden_dim)
    return max(4, min(2 * hidden_dim, affordable - affordable % 4))


def default_component_width(hidden_dim: int) -> int:
    """A quarter of the model's width in whole quaternions, 4 to 32."""
    return max(4, min(_DEFAULT_COMPONENT_WIDTH, hidden_dim // 4 - hidden_dim // 4 % 4))


def check_heads(num_heads: int | None, width: int) -> int:
    """How many heads attention has in a component width: each takes whole quaternions. Raises: GraftConfigError."""
    if width % 4:
        raise GraftConfigError(
            f"component_width: got {width}, expected a multiple of 4: quaternions have four parts"
        )
    if num_heads is None:
        return next(count for count in (8, 4, 2, 1) if width % (4 * count) == 0)
    if width % (4 * num_heads):
        raise GraftConfigError(
            f"quaternion.num_heads: got {num_heads}, expected a divisor of the {width // 4} quaternions that "
            f"the component width {width} holds"
        )
    return num_heads
