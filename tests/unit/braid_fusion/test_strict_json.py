"""What is written is what was given, and JSON to the letter: NaN and infinities are null, wherever they stand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strict_parsing import parse_strictly

from braid_fusion.strict_json import dump_json

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(PLAIN)
def test_finite_values_come_back_as_they_were(value: Any) -> None:
    assert parse_strictly(dump_json(value)) == value
    assert dump_json(value) == json.dumps(value)


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_is_null_at_any_depth(figure: float) -> None:
    value = {"own": figure, "deep": [{"pair": (1, figure)}, [figure, 0.5]], "nan": "NaN"}
    expected = {"own": None, "deep": [{"pair": [1, None]}, [None, 0.5]], "nan": "NaN"}
    assert parse_strictly(dump_json(value, indent=2)) == expected
    assert math.isnan(value["own"]) or math.isinf(value["own"])  # what was given is as it was


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError):
        dump_json({"set": {1}})
