"""Scales of slot mass: colour axes of shares and of changes, and ticks of factors that stand apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kvattn.plots.theme import DIVERGING, SEQUENTIAL
from kvattn.text import factor

_BAR = {"thickness": 12, "outlinewidth": 0, "len": 1, "y": 0.5}
# log mass changes are drawn as factors; these are the ticks that read well.
FACTORS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 2.0, 3.0, 5.0, 10.0, 20.0, 100.0, 1000.0)


def mass_scale(values: Any, limit: float | None, unit: str) -> dict[str, Any]:
    """A colour axis of shares from 0 to `limit` (None: as the values need); `unit` is written beside it."""
    # The 99.5th percentile: one head that looks at nothing else must not bleach all others.
    top = limit if limit is not None else float(np.nanquantile(values, 0.995)) if values.notna().any() else 1.0
    return {
        "colorscale": SEQUENTIAL,
        "cmin": 0,
        "cmax": top or 1.0,
        "colorbar": _BAR | {"title": {"text": unit, "side": "right", "font": {"size": 13}}},
    }


def apart(factors: Sequence[float], least: float) -> list[float]:
    """The factors, from 1 outwards, whose logarithms stand at least so far apart that their names do not overlap."""
    kept = [1.0]
    for side in (1, -1):
        last = 0.0
        for f in sorted((f for f in factors if np.log(f) * side > 0), key=lambda f: abs(np.log(f))):
            if abs(np.log(f)) - last >= least:
                kept.append(f)
                last = abs(np.log(f))
    return sorted(kept)


def change_scale(values: Any, limit: float | None) -> dict[str, Any]:
    """A colour axis of differences of natural log mass, even on both sides of 0, its ticks read as factors."""
    end = limit if limit is not None else float(np.nanquantile(values.abs(), 0.99)) if values.notna().any() else 0.0
    end = max(end, 0.05)
    ticks = apart([f for f in FACTORS if abs(np.log(f)) <= end * 1.001], end / 7)
    ticks = ticks if len(ticks) > 2 else [float(np.exp(-end)), 1.0, float(np.exp(end))]
    return {
        "colorscale": DIVERGING,
        "cmin": -end,
        "cmax": end,
        "cmid": 0,
        "colorbar": _BAR
        | {
            "title": {"text": "slot mass over dense's", "side": "right", "font": {"size": 13}},
            "tickvals": [float(np.log(f)) for f in ticks],
            "ticktext": [f"×{factor(f)}" for f in ticks],
        },
    }


def as_factors(table: Any) -> Any:
    """The table with its differences of natural log mass, and the bounds of their intervals, as factors."""
    return table.assign(**{c: np.exp(table[c]) for c in ("value", "low", "high") if c in table})


def factor_axis(table: Any) -> dict[str, Any]:
    """Layout of a logarithmic axis of the factors in a table, bounds of intervals included: ticks that read well, as
    many as have room."""
    logs = np.abs(np.log(np.asarray(table[[c for c in ("value", "low", "high") if c in table]], dtype=float)))
    ticks = apart(FACTORS, float(np.nanmax(logs, initial=0.2)) / 7)
    return {"type": "log", "tickvals": ticks, "ticktext": [f"×{factor(f)}" for f in ticks]}
