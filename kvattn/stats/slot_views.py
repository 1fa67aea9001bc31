"""Views of slot mass: from means of segment mass (`Run.mass_means`) to one number per slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from kvattn.errors import KvattnError

View = Literal["raw", "among", "per_token"]
Sinks = Literal["kept", "out"]

MEASURED = {"name", "count", "pairs", "tokens", "mass", "free", "change", "free_change"}
"""Columns of a table of means that it is not split by."""

VIEW_NAMES = {"raw": "share of the row", "among": "share among slots", "per_token": "share of the row per token"}


def view_name(view: View = "raw", sinks: Sinks = "kept") -> str:
    """What a view's numbers are, for an axis."""
    return VIEW_NAMES[view] + (", sinks taken out" if sinks == "out" else "")


def slot_values(
    means: pd.DataFrame, view: View = "raw", sinks: Sinks = "kept", roles: Sequence[str] = ("candidate",)
) -> pd.DataFrame:
    """One row per slot and whatever else `means` is split by: its columns, `slot` (from 1) and `value`.

    means: columns name, mass, free, tokens, and those to split by, such as method; all segments of a row, as
           `Run.mass_means` gives them
    view:  "raw": the slot's share of the row. "among": its share of what falls on all slots. "per_token": its share of
           the row over its length in tokens. All are ratios of means, so a head that looks away weighs little
    sinks: "out" leaves out what falls on sink tokens, in the slot and in the row
    roles: the segments that make up a slot
    """
    if view not in VIEW_NAMES or sinks not in ("kept", "out"):
        raise KvattnError(f"unknown view {view!r} with sinks {sinks!r}; views are {', '.join(VIEW_NAMES)}")
    table: Any = means
    by = [c for c in table.columns if c not in MEASURED]
    weight = "mass" if sinks == "kept" else "free"
    parts = table["name"].str.extract(r"^(?P<role>[^:]+)(?::(?P<slot>\d+))?$")
    frame = table.assign(role=parts["role"], slot=pd.to_numeric(parts["slot"]), weight=table[weight])
    row = frame.groupby(by)["weight"].sum()
    slots = frame[frame["role"].isin(roles) & frame["slot"].notna()]
    slots = slots.astype({"slot": int}).groupby([*by, "slot"], as_index=False)[["weight", "tokens"]].sum()
    if view == "among":
        whole = slots.groupby(by)["weight"].transform("sum")
    else:
        whole = slots.set_index(by).index.map(row).to_numpy()
    value = slots["weight"] / np.where(np.asarray(whole) > 0, whole, np.nan)
    if view == "per_token":
        value = value / slots["tokens"].where(slots["tokens"] > 0)
    return slots[[*by, "slot"]].assign(value=value)


def ranked_heads(own: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """A row a head: the slot whose mass differs most between two methods, those first that differ most.

    own, base: of the two methods, columns layer, head, slot (from 1), value (share of the row)

    where ("L12H3"), layer, head, slot, mass_base, mass, change (a difference), as `Comparison.heads` has them.
    """
    table: Any = base
    rows = table.merge(own, on=["layer", "head", "slot"], suffixes=("_base", "")).dropna(subset=["value", "value_base"])
    rows = rows.assign(change=rows["value"] - rows["value_base"])
    rows = rows.assign(size=rows["change"].abs()).sort_values("size", ascending=False, kind="stable")
    rows = rows.drop_duplicates(["layer", "head"]).reset_index(drop=True)
    where = [f"L{a}H{b}" for a, b in zip(rows["layer"], rows["head"], strict=True)]
    rows = rows.assign(where=where).rename(columns={"value": "mass", "value_base": "mass_base"})
    return rows[["where", "layer", "head", "slot", "mass_base", "mass", "change"]]


def over_questions(values: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Means over questions with a t interval: the columns beside `question_id` and `value`, then value, low, high, n.

    The question is the unit: orders of one question are not independent. With one question the interval is NaN.
    """
    from scipy.stats import t

    table: Any = values
    by = [c for c in table.columns if c not in ("question_id", "value")]
    grouped = table.groupby(by)["value"].agg(["mean", "std", "count"]).reset_index()
    half = t.ppf(0.5 + level / 2, np.maximum(grouped["count"] - 1, 1)) * grouped["std"] / np.sqrt(grouped["count"])
    return grouped[by].assign(
        value=grouped["mean"], low=grouped["mean"] - half, high=grouped["mean"] + half, n=grouped["count"]
    )


def factor(change: pd.Series) -> np.ndarray:
    """Differences of natural log mass as factors."""
    return np.exp(change.to_numpy(dtype=float))
