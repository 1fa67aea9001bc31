"""Numbers, intervals and JSON values as text: the one place that says how they look."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kvattn import text

NOTHING = (None, float("nan"), np.nan, np.float64("nan"), pd.NA, pd.NaT)


@pytest.mark.parametrize("nothing", NOTHING)
def test_what_is_missing_is_shown_as_nothing(nothing) -> None:
    assert text.missing(nothing)
    assert text.number(nothing) == text.percent(nothing) == text.between(nothing, 1) == text.between(0, nothing) == ""
    assert text.interval(nothing, 0.1, 0.2) == ""
    assert (
        text.number(nothing, none="–")
        == text.percent(nothing, none="–")
        == text.interval(nothing, 0, 1, none="–")
        == "–"
    )
    assert text.interval(0.5, nothing, nothing) == "0.50"


def test_numbers_and_intervals() -> None:
    assert not any(map(text.missing, (0, 0.0, "", False, np.int64(0), float("inf"))))
    assert (text.number(0), text.number(np.float32(0.375), 1)) == ("0.00", "0.4")
    assert (text.percent(0.123), text.percent(1, 0)) == ("12.3%", "100%")
    assert text.between(0.25, 0.5) == "0.25 to 0.50"
    assert text.between(0.25, 0.5, 0, as_percent=True) == "25 to 50%"
    assert text.interval(0.38, 0.25, 0.52) == "0.38 (0.25-0.52)"
    assert text.interval(0.38, -0.1, 0.52) == "0.38 (-0.10 to 0.52)"
    assert text.interval(0.38, 0.25, 0.52, 3) == "0.380 (0.250-0.520)"


def test_plain_values_are_strict_json() -> None:
    value = {1: (np.float32(0.5), float("inf"), np.array([1.0, np.nan]), np.bool_(True)), "p": Path("a/b"), "n": None}
    plain = text.plain(value)
    assert plain == {"1": [0.5, None, [1.0, None], True], "p": "a/b", "n": None}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    with pytest.raises(TypeError, match="set"):
        text.plain({"x": {1}})


def test_a_factor_is_written_out() -> None:
    assert [text.factor(x) for x in (0.0123, 0.85, 1.0, 2.13, 100.0, 1234.0)] == [
        *("0.012", "0.85", "1", "2.1", "100", "1,200"),
    ]
