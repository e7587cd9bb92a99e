"""In which fields two descriptions differ, said field by field. Knows not what they describe."""

from __future__ import annotations

from typing import Any

_ABSENT = object()


def differences(saved: Any, running: Any, here: str, there: str = "the weights have") -> list[str]:
    """Each field, by its path, in which two plain values (of JSON's kinds) differ, with both values.

    Args:
        saved: what stands with weights, or with what the sentences' beginning ``there`` names.
        running: what they shall be loaded into; ``here`` is its name in the sentences.
    """
    left, right = _flatten(saved), _flatten(running)
    return [
        f"{key}: {there} {left.get(key, 'nothing')!r}, {here} has {right.get(key, 'nothing')!r}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key, _ABSENT) != right.get(key, _ABSENT)
    ]


def _flatten(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            k: v for name in value for k, v in _flatten(value[name], f"{key}.{name}" if key else name).items()
        }
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {k: v for i, item in enumerate(value) for k, v in _flatten(item, f"{key}[{i}]").items()}
    return {key: value}
