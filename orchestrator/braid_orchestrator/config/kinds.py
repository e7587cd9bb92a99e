"""The kinds of values that keys of a configuration and fields of a request take. Knows no section.

A validator's own message is what was expected; `messages` and the HTTP API say where and what was got.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictInt, StrictStr
from pydantic_core import PydanticCustomError

from braid_services.shard.config import ALIASES

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*$")
_DEVICE = re.compile(r"^(cpu|mps|cuda(:\d+)?)$")
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")


def parse_size(value: object) -> object:
    """Bytes from a number or from text such as ``256MiB`` or ``1.5 GB``; anything else passes as it is."""
    if not isinstance(value, str):
        return value
    match = _SIZE.match(value)
    if match is None or match[2].upper() not in _UNITS:
        raise PydanticCustomError("size", "a size such as 256MiB, 2GB or a number of bytes")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _check_name(value: str) -> str:
    if not _NAME.match(value):
        raise PydanticCustomError(
            "name", "letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )
    return value


def _check_device(value: str) -> str:
    if not _DEVICE.match(value):
        raise PydanticCustomError("device", "cpu, mps, cuda or cuda:N")
    return value


Size = Annotated[int, BeforeValidator(parse_size), Field(strict=True, ge=1)]
SizeOrNothing = Annotated[int, BeforeValidator(parse_size), Field(strict=True, ge=0)]
Count = Annotated[StrictInt, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[StrictStr, AfterValidator(_check_name)]
Device = Annotated[StrictStr, AfterValidator(_check_device)]


def _quantization_name(value: object) -> object:
    """The guide's names, 8bit and 4bit, stand for ours; anything else passes as it is."""
    return ALIASES.get(value, value) if isinstance(value, str) else value


Quantization = Annotated[Literal["int8", "nf4"] | None, BeforeValidator(_quantization_name)]
Frames = Literal["float32", "bfloat16", "float16", "int8"] | None


def check_braided(value: object) -> object:
    """Who answers, as a configuration or a request says it: so that nothing else passes, such as 1 or "true"."""
    if not isinstance(value, bool) and value != "auto":
        raise PydanticCustomError("braided", "true, false or 'auto'")
    return value


Braided = Annotated[bool | Literal["auto"], BeforeValidator(check_braided)]
