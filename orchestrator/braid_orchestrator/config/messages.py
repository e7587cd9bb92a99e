"""What pydantic finds wrong with a configuration, said as ``key: got …, expected …``. Knows no braid."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_MISSING = {
    "anchor": "the name of the shard whose text drives the session",
    "shards": "a list of shards, each with name and model",
    "model": "a local folder or a hub name",
    "at": "a relative depth in (0, 1) or a layer index",
}


def explain(
    error: ValidationError, settings: object, root: type[BaseModel], sections: Mapping[str, type[BaseModel]]
) -> str:
    """All findings in one line. ``sections`` says which model stands under each key of ``root``."""
    return "; ".join(
        dict.fromkeys(
            _explain(detail, settings, root, sections) for detail in error.errors(include_url=False)
        )
    )


def show(value: object) -> str:
    """A value as it may stand in a message: never longer than a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _explain(
    detail: ErrorDetails, settings: object, root: type[BaseModel], sections: Mapping[str, type[BaseModel]]
) -> str:
    location = list(detail["loc"])
    kind, context = detail["type"], detail.get("ctx", {})
    key = _key(location, settings)
    if kind == "extra_forbidden":
        model = sections.get(str(location[0]), root) if len(location) > 1 else root
        allowed = sorted(model.model_fields)
        close = difflib.get_close_matches(str(location[-1]), allowed, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of: {', '.join(allowed)}"
        return f"{key}: unknown key, {hint}"
    if kind == "missing":
        return f"{key}: missing, expected {_MISSING.get(str(location[-1]), 'a value')}"
    expected = {
        "literal_error": f"one of: {context.get('expected', '')}",
        "greater_than_equal": f"at least {context.get('ge')}",
        "greater_than": f"more than {context.get('gt')}",
        "less_than_equal": f"at most {context.get('le')}",
        "less_than": f"less than {context.get('lt')}",
        "int_type": "a whole number",
        "float_type": "a number",
        "float_parsing": "a number",
        "finite_number": "a finite number",
        "string_type": "text",
        "string_too_short": "text that is not empty",
        "too_short": "at least one entry",
        "list_type": "a list",
        "dict_type": "a mapping",
        "model_type": "a mapping",
    }.get(kind, detail["msg"])
    return f"{key}: got {show(detail['input'])}, expected {expected}"


def _key(location: list[int | str], settings: object) -> str:
    """``shards.code.dtype`` for an entry that has a name, ``points[1].at`` for one that has none."""
    text, node = "", settings
    for part in location:
        node = _descend(node, part)
        name = node.get("name") if isinstance(part, int) and isinstance(node, Mapping) else None
        if isinstance(name, str) and name:
            text += f".{name}"
        elif isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text or "configuration"


def _descend(node: object, part: int | str) -> object:
    if isinstance(node, Mapping):
        return node.get(part)
    if isinstance(node, list) and isinstance(part, int) and part < len(node):
        return node[part]
    return None
