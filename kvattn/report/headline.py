"""What a view shows, in one sentence that is computed from its data. Report and app say the same.

Method and run names in a sentence are as the manifest has them: untrusted, for the caller to make inert.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from kvattn.questions.labels import name_of
from kvattn.stats.slot_views import ranked_heads
from kvattn.text import between, factor, percent

NAIVE = ("naive", "naive-linked")
CONTROLS = ("foreign-kv", "null-edit", "mismatched-order")


def telling(methods: Sequence[str], same: Any = None) -> str | None:
    """The method that a view opens with: naive reuse, else the one that agrees least with dense (`kvattn.stats.jcr`),
    else the first; a control only where there is no other, and None where there is dense alone."""
    others = [m for m in methods if m != "dense"]
    told = [m for m in others if name_of(m) not in CONTROLS] or others
    if naive := next((m for m in NAIVE if m in told), None):
        return naive
    if same is not None and len(known := same[same["method"].isin(told)].dropna(subset=["jcr"])):
        return str(known.loc[known["jcr"].idxmin(), "method"])
    return next(iter(told), None)


def consistency(same: Any, method: str) -> str:
    """How often a method picks dense's candidate, beside chance, floor and the null of foreign blocks.

    same: `kvattn.stats.jcr`
    """
    by_name = same.set_index("method")
    if method not in by_name.index or pd.isna(by_name.loc[method, "jcr"]):
        return ""
    row = by_name.loc[method]
    said = (
        f"{method} picks the same candidate as dense in {_share(row['jcr'])} of {int(row['pairs']):,} judgements "
        f"({_ends(row['low'], row['high'])}); a judge that picks slots as often, but reads nothing, would in "
        f"{_share(row['chance'])}"
    )
    if pd.notna(row["floor"]) and name_of(method) != "null-edit":
        said += f", and dense itself after an edit that changes no meaning does in {_share(row['floor'])}"
    said += "."
    if "foreign-kv" in by_name.index and method != "foreign-kv":
        null = by_name.loc["foreign-kv"]
        said += (
            f" With another question's candidates in the cache (foreign-kv) it is {_share(null['jcr'])} "
            f"({_ends(null['low'], null['high'])}): only what lies above that measures reading."
        )
    return said


def slots(picked: Any, method: str) -> str:
    """Which slot a method picks most, beside dense. picked: `kvattn.stats.slot_histogram`, slots from 0."""
    shares = picked.pivot_table(index="slot", columns="method", values="share", aggfunc="sum", fill_value=0.0)
    if method not in shares or "dense" not in shares:
        return ""
    slot = shares[method].idxmax()
    return (
        f"{method} picks slot {slot + 1} in {_share(shares.loc[slot, method])}, dense in "
        f"{_share(shares.loc[slot, 'dense'])}."
    )


def accuracy(right: Any, method: str) -> str:
    """How often a method is right, beside dense and a slot at random. right: `kvattn.stats.accuracy.of_methods`."""
    rows = right.set_index("method")
    if not {method, "dense"} <= set(rows.index) or rows.loc[[method, "dense"], "accuracy"].isna().any():
        return ""
    return (
        f"{method} is right in {_share(rows.loc[method, 'accuracy'])}, dense in "
        f"{_share(rows.loc['dense', 'accuracy'])}, a slot at random in {_share(rows.loc[method, 'random'])}."
    )


def content(measured: Any, method: str) -> str:
    """What is lost of the content, and how far slots shifted. measured: `kvattn.stats.measures`."""
    rows = measured[(measured["method"] == method) & measured["jcr_c"].notna()]
    if rows.empty:
        return ""
    r = rows.iloc[0]
    return (
        f"Less the offsets of its slots (shift {r['shift']:.2f} nats) it keeps {_share(r['jcr_c'])} of dense's picks "
        f"({_ends(r['jcr_c_low'], r['jcr_c_high'])}; by chance {_share(r['chance_c'])}): the rest is lost content."
    )


def dilution(changes: Any, method: str) -> str:
    """Which slot gains and which loses attention. changes: columns method, slot (from 1), value (log of a factor)."""
    rows = changes[changes["method"] == method].dropna(subset=["value"]).set_index("slot")["value"]
    rows = rows[np.isfinite(rows)]
    if rows.empty:
        return ""
    most, least = rows.idxmax(), rows.idxmin()
    said = f"Under {method} slot {most} gets {_times(rows[most])} dense's attention"
    return f"{said}, and slot {least} gets {_times(rows[least])}." if most != least else f"{said}."


def heads(own: Any, other: Any, method: str, base: str) -> str:
    """The head that moves most of its attention to or from a slot. own, other: of the two methods, columns layer, head,
    slot (from 1), value (share of the row)."""
    rows = ranked_heads(own, other)
    if rows.empty:
        return ""
    r = rows.iloc[0]
    return (
        f"Head {r['where']} moves most: slot {r['slot']} gets {percent(r['mass'])} of its attention under {method}, "
        f"{percent(r['mass_base'])} under {base}."
    )


def lens(read: Any, method: str, base: str) -> str:
    """In which layer two methods come to their picks, as the logit lens reads it. read: `Comparison.lens`."""
    picks = {m: _settled(read[read["method"] == m]) for m in (base, method)}
    (before, since), (after, then) = picks[base], picks[method]
    said = f"The logit lens has {base} settle on slot {before} {_since(since)}"
    if before == after:
        return f"{said}, and {method} on the same slot {_since(then)}."
    return f"{said}, {method} on slot {after} {_since(then)}: there the flip is made."


def _settled(read: Any) -> tuple[int, int]:
    """The slot (from 1) that is ahead in the end, and the layer from which on it is (0: from the start)."""
    ahead = read[read["ahead"]].drop_duplicates("layer").sort_values("layer")
    slots = ahead["slot"].to_numpy()
    others = np.flatnonzero(slots != slots[-1])
    return int(slots[-1]), int(others[-1]) + 1 if len(others) else 0


def _since(layer: int) -> str:
    return f"after layer {layer - 1}" if layer else "from the start"


def runs(same: Any, method: str) -> str:
    """How a method fares run by run. same: `kvattn.stats.jcr` with a column run."""
    rows = same[same["method"] == method].dropna(subset=["jcr"])
    told = [f"{_share(r.jcr)} in {r.run} (by chance {_share(r.chance)})" for r in rows.itertuples()]
    return f"{method} picks the same candidate as dense in {', '.join(told)}." if told else ""


def shuffling(bias: Any, method: str) -> str:
    """Whether picks follow candidates through the orders. bias: `kvattn.stats.position_bias`."""
    rows = bias.set_index("method")["order_consistency"].dropna()
    if method not in rows or "dense" not in rows:
        return ""
    return (
        f"Shown in two orders, dense picks the same candidate in {_share(rows['dense'])} of pairs, {method} in "
        f"{_share(rows[method])}."
    )


def frontier(table: Any) -> str:
    """The cheapest method that is as consistent as dense with itself. table: columns method, share (of dense's
    token-layers), jcr, low, high; null edits among the rows give the floor."""
    floor = table[table["method"].map(name_of) == "null-edit"]["low"]
    others = table[~table["method"].map(name_of).isin([*CONTROLS, "dense"])]
    if floor.empty or others.empty or floor.isna().all():
        return ""
    kept = others[others["jcr"] >= floor.min()]
    if kept.empty:
        best = others.loc[others["jcr"].idxmax()]
        return (
            f"No method is as consistent as dense after an edit without meaning; the nearest is {best['method']} "
            f"with {_share(best['jcr'])} at {_share(best['share'])} of dense's token-layers."
        )
    best = kept.loc[kept["share"].idxmin()]
    return (
        f"The cheapest method within the interval of dense's own floor is {best['method']}: {_share(best['jcr'])} at "
        f"{_share(best['share'])} of dense's token-layers."
    )


def _share(value: float) -> str:
    return percent(value, 0)


def _ends(low: float, high: float) -> str:
    ends = between(low, high, 0, True)
    return f"95% {ends}" if ends else "interval unknown"


def _times(log: float) -> str:
    return f"{factor(np.exp(log))} times"
