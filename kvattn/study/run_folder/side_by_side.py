"""Runs beside each other: consistency by run and method, and what reuse does to slot mass by relative depth.

Nothing is pooled over runs, and no run is tested against another: they may have been judged on other questions. The
numbers are those of `kvattn.stats`; `kvattn compare` and the app's page read them here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kvattn.errors import KvattnError
from kvattn.stats.accuracy import of_methods
from kvattn.stats.agreement import jcr
from kvattn.stats.measures import MEASURES, measures
from kvattn.stats.picks import RAW, Scope
from kvattn.stats.reading import ContentTest
from kvattn.stats.slot_views import Sinks, View, factor
from kvattn.study.run_folder import mass, picks
from kvattn.study.run_folder.reader import Run, left_out
from kvattn.text import plain

# Judgements of a method up to which every measure is made at once.
MOST_MEASURED = 4000
RATES = ("jcr", "kappa", "score", "accuracy")


def open_runs(folders: Sequence[str | Path]) -> dict[str, Run]:
    """Runs by name: the folder's own, or its path where two are alike.

    Raises KvattnError for a folder that is no run or is given twice, for damage (every part is checked against its
    hash), and for a run without finished questions or dense judgements, which all others are compared with.
    """
    paths = [Path(f) for f in folders]
    real = [p.resolve() for p in paths]
    if len(set(real)) < len(real):
        twice = next(p for p, r in zip(paths, real, strict=True) if real.count(r) > 1)
        raise KvattnError(f"{twice} is given twice; give each run once")
    out: dict[str, Run] = {}
    for path, whole in zip(paths, real, strict=True):
        run = Run(path)
        run.sound()
        need_dense(run)
        out[whole.name if [r.name for r in real].count(whole.name) == 1 else str(path)] = run
    return out


def need_dense(run: Run) -> None:
    """Raises KvattnError for a run without finished questions, or without dense judgements."""
    if not len(run):
        raise KvattnError(f"{run.folder} has no finished question yet; run its study first")
    if picks.methods(run)[0] != "dense":
        raise KvattnError(f"{run.folder} has no dense judgements, which all others are compared with")


def judge_facts(run: Run, scope: Scope = RAW) -> dict[str, Any]:
    """What a run's numbers are of: model, layers, readout, counts, and the content test of these choices.

    content, content_quality: the test's two verdicts, or "not made"; content_agreement and content_accuracy with _low,
    _high, _null (by chance) and _n (held-out questions) are None where nothing is known
    """
    size = picks.size(run)
    model = run.manifest.get("model") or {}
    test = ContentTest.stored(run.manifest, scope.calibrated)
    facts = {
        "model": str(model.get("name") or model.get("id") or ""),
        "layers": run.manifest.get("layers"),
        "readout": run.manifest.get("readout"),
        "candidates": size["n"],
        "questions": size["questions"],
        "left_out": len(left_out(run.manifest)),
        "orders": size["orders"],
        "choices": "calibrated" if scope.calibrated else "raw",
        "content": test.verdict if test else "not made",
        "content_quality": test.quality.verdict if test else "not made",
    }
    ends = {"": "value", "_low": "low", "_high": "high", "_null": "chance", "_n": "questions"}
    for name, part in (("agreement", test and test.reading), ("accuracy", test and test.quality)):
        told = {} if part is None else plain(asdict(part))
        facts |= {f"content_{name}{end}": told.get(field) for end, field in ends.items()}
    return facts


def numbers(run: Run, scope: Scope = RAW) -> pd.DataFrame:
    """Consistency and accuracy of a run's methods, a row each, dense first.

    method; the columns of `kvattn.stats.jcr` (NaN for dense; where `locked`, kappa and score say nothing); accuracy,
    accuracy_low, accuracy_high, judgements; random (what picking at random reaches on the same rows); token_layers
    (share of dense's)
    """
    right: Any = of_methods(run, scope)
    right = right[["method", "accuracy", "low", "high", "rows", "random"]]
    right = right.rename(columns={"low": "accuracy_low", "high": "accuracy_high", "rows": "judgements"})
    cost: Any = picks.cost(run, scope)
    cost = cost[["method", "share"]].rename(columns={"share": "token_layers"})
    same: Any = jcr(run, scope=scope)
    left_out = ["answer_agreement", "parsed", "jcr_parsed"]
    table: Any = pd.DataFrame({"method": picks.methods(run)})
    for part in (same.drop(columns=left_out), right, cost):
        table = table.merge(part, on="method", how="left")
    return table.assign(note=table["note"].fillna(""), locked=table["locked"].eq(True))


def measured(run: Run, methods: Sequence[str] | None = None, most: int = MOST_MEASURED) -> pd.DataFrame:
    """`kvattn.stats.measures` of a run's raw choices, of all its methods or of some, in the manifest's order. Raises
    KvattnError where a method has more judgements than `most`, which would take long."""
    methods = [m for m in picks.methods(run) if methods is None or m in methods]
    judged = picks.size(run)["judgements"] // max(1, len(picks.methods(run)))
    if judged > most:
        raise KvattnError(
            f"{judged} judgements a method take minutes to measure; ask for it: "
            "kvattn.stats.measures(run.judgements(), run.questions())"
        )
    table: Any = measures(run.judgements(methods), run.questions())
    rank = {m: i for i, m in enumerate(methods)}
    return table.sort_values("method", key=lambda c: c.map(rank), kind="stable", ignore_index=True)


def by_layer(run: Run, view: View | str = "change", query: str | None = None, sinks: Sinks = "kept") -> pd.DataFrame:
    """Slot mass of every layer: method, layer, depth (0: first layer, 1: last), slot, value, low, high.

    view: as in `run_mass.with_intervals`; "change" is the paired change of log mass against dense. Empty where the
    run holds no slot mass.
    """
    query = query or first_query(run)
    if query is None:
        return pd.DataFrame(columns=["method", "layer", "depth", "slot", "value", "low", "high"])
    values: Any = mass.with_intervals(run, query, ("method", "layer"), view, sinks)  # type: ignore[arg-type]
    return values.assign(depth=values["layer"] / max(1, mass.shape(run)[0] - 1))


def by_slot(run: Run, query: str | None = None, sinks: Sinks = "kept") -> pd.DataFrame:
    """Slot mass of every method, over all layers and heads: method, slot (from 1), mass, mass_low, mass_high (share of
    the row), factor, factor_low, factor_high (over dense's; NaN for dense), first_to_last (mass of slot 1 over that of
    the last slot). Empty where the run holds no slot mass."""
    columns = ["method", "slot", "mass", "mass_low", "mass_high", "factor", "factor_low", "factor_high"]
    query = query or first_query(run)
    if query is None:
        return pd.DataFrame(columns=[*columns, "first_to_last"])
    ends = {"value": "", "low": "_low", "high": "_high"}
    raw: Any = mass.with_intervals(run, query, ("method",), "raw", sinks)
    change: Any = mass.with_intervals(run, query, ("method",), "change", sinks)
    change = change.assign(**{c: factor(change[c]) for c in ends})
    table: Any = raw.rename(columns={c: f"mass{end}" for c, end in ends.items()})
    table = table.merge(change.rename(columns={c: f"factor{end}" for c, end in ends.items()}), how="left")
    ranked = table.sort_values("slot").groupby("method")["mass"]
    table["first_to_last"] = table["method"].map(ranked.first() / ranked.last())
    rank = {m: i for i, m in enumerate(picks.methods(run))}
    table = table.sort_values(["method", "slot"], key=lambda c: c.map(rank) if c.name == "method" else c)
    return table[[*columns, "first_to_last"]].reset_index(drop=True)


def apart(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """How much more of dense's mass a slot keeps in one run than in another: method, slot, ratio (of the factors), low,
    high, of what both tables of `by_slot` hold. The runs are taken for independent, on the scale of logarithms: of runs
    that share questions the interval is too wide."""
    table: Any = one.merge(other, on=["method", "slot"], suffixes=("", "_other")).dropna(
        subset=["factor", "factor_other"]
    )
    ratio = np.log(table["factor"]) - np.log(table["factor_other"])
    half = [np.log(table[f"factor_high{end}"]) - np.log(table[f"factor{end}"]) for end in ("", "_other")]
    wide = np.hypot(*half)
    found = table[["method", "slot"]].assign(ratio=np.exp(ratio), low=np.exp(ratio - wide), high=np.exp(ratio + wide))
    return found.reset_index(drop=True)


def by_band(run: Run, bands: int = 4, query: str | None = None, sinks: Sinks = "kept") -> pd.DataFrame:
    """Paired change of slot mass against dense by relative depth: the layers cut into `bands` parts of equal depth.

    One row per (method, band, slot): from_depth, to_depth (0 to 1), layers (how many the band holds), slot (from 1),
    factor, factor_low, factor_high (0.5 is half of dense's mass; the mean log ratio over layers, heads and judgements;
    the interval takes questions, and with more than 24 of them groups of questions, for units: `with_intervals`),
    pairs, questions, query. Empty where the run holds no slot mass. Raises KvattnError for fewer than one band.
    """
    if bands < 1:
        raise KvattnError(f"{bands} bands asked for; give at least one")
    columns = ["method", "from_depth", "to_depth", "layers", "slot", "factor", "factor_low", "factor_high"]
    query = query or first_query(run)
    if query is None:
        return pd.DataFrame(columns=[*columns, "pairs", "questions", "query"])
    values: Any = mass.with_intervals(run, query, ("method", "band"), "change", sinks, bands=bands)
    values = values.dropna(subset=["value"])
    layers, heads = mass.shape(run)
    held = np.bincount([mass.band_of(i, layers, bands) for i in range(layers)], minlength=bands)
    band = values["band"].astype(int).to_numpy()
    table = values.assign(
        from_depth=band / bands,
        to_depth=(band + 1) / bands,
        layers=held[band],
        **{
            f"factor{end}": factor(values[column])
            for end, column in (("", "value"), ("_low", "low"), ("_high", "high"))
        },
    )
    counts: Any = run.sql(
        "SELECT method, CAST(split_part(name, ':', 2) AS INTEGER) AS slot, (sum(pairs) / ?)::BIGINT AS pairs "
        "FROM heads WHERE query = ? AND name LIKE 'candidate:%' GROUP BY ALL",
        [layers * heads, query],
    )
    asked: Any = run.sql(
        "SELECT method, count(DISTINCT question_id)::BIGINT AS questions FROM slots WHERE query = ? GROUP BY method",
        [query],
    )
    table = table.merge(counts, on=["method", "slot"]).merge(asked, on="method").assign(query=query)
    rank = {m: i for i, m in enumerate(picks.methods(run))}
    table = table.sort_values(["method", "from_depth", "slot"], key=lambda c: c.map(rank) if c.name == "method" else c)
    return table[[*columns, "pairs", "questions", "query"]].reset_index(drop=True)


def first_query(run: Run) -> str | None:
    """The query token whose rows are compared, the one that decides; None where its row was not captured."""
    return run.deciding if run.deciding in run.queries() else None


class Comparison:
    """Several runs beside each other.

    runs:        a row a run: run, and `judge_facts`
    consistency: a row a run and method: run, and `numbers`
    measures:    a row a run, method and kind of call: run, and `measured` (raw choices; larger runs have none)
    mass:        a row a run, method, band and slot: run, and `by_band`
    without:     the runs that hold no slot mass
    unmeasured:  why runs have no measures, by run
    """

    def __init__(self, runs: dict[str, Run], scope: Scope = RAW, bands: int = 4) -> None:
        if scope.calibrated:
            for run in runs.values():
                if not picks.size(run)["calibrated"]:
                    raise KvattnError(f"{run.folder} has no calibrated choices; compare the raw ones")
        self.runs: Any = pd.DataFrame([{"run": name, **judge_facts(d, scope)} for name, d in runs.items()])
        self.consistency: Any = _stacked({name: numbers(d, scope) for name, d in runs.items()})
        self.unmeasured: dict[str, str] = {}
        self.measures: Any = _stacked({name: self._measured(name, d) for name, d in runs.items()})
        self.mass: Any = _stacked({name: by_band(d, bands) for name, d in runs.items()})
        self.without = [name for name, d in runs.items() if first_query(d) is None]

    def _measured(self, name: str, run: Run) -> pd.DataFrame:
        try:
            return measured(run)
        except KvattnError as error:
            self.unmeasured[name] = str(error)
            return pd.DataFrame()

    def to_dict(self) -> dict[str, Any]:
        """The four tables as lists of plain records, None for what is not known; and `without`."""
        tables = {k: getattr(self, k) for k in ("runs", "consistency", "measures", "mass")}
        return {**{k: plain(t.to_dict("records")) for k, t in tables.items()}, "without_mass": self.without}

    def long(self) -> pd.DataFrame:
        """One row a number: run, model, method, measure, slot, from_depth, to_depth, value, low, high, chance, floor
        (the null edit's value), n, questions. Content tests are rows without a method."""
        model = dict(zip(self.runs["run"], self.runs["model"], strict=True))
        rows: list[dict[str, Any]] = []
        for r in self.runs.to_dict("records"):
            for name in ("content_agreement", "content_accuracy"):
                value, low, high, chance = (r[f"{name}{end}"] for end in ("", "_low", "_high", "_null"))
                if value is not None:
                    rows.append(_row(r, name, value, low, high, chance, None, r[f"{name}_n"]))
        for r in self.consistency.to_dict("records"):
            for name in RATES:
                low, high = (r[end if name == "jcr" else f"{name}_{end}"] for end in ("low", "high"))
                chance, n = (r["random"], r["judgements"]) if name == "accuracy" else (r["chance"], r["pairs"])
                chance = 0.0 if name in ("kappa", "score") else chance
                if not pd.isna(r[name]):
                    rows.append(_row(r, name, r[name], low, high, chance, n, r["questions"]))
        for r in self.measures.to_dict("records"):
            who = {**r, "method": f"{r['method']} ({r['calls']})" if r["calls"] else r["method"]}
            for name in (m for m in MEASURES if m not in RATES and not pd.isna(r[m])):
                value, low, high, floor = (r[f"{name}{end}"] for end in ("", "_low", "_high", "_floor"))
                rows.append(_row(who, name, value, low, high, None, r["pairs"], r["questions"]) | {"floor": floor})
        for r in self.mass.to_dict("records"):
            row = _row(
                r, "mass_factor", r["factor"], r["factor_low"], r["factor_high"], 1.0, r["pairs"], r["questions"]
            )
            rows.append({**row, **{k: r[k] for k in ("slot", "from_depth", "to_depth")}})
        columns = ["run", "model", "method", "measure", "slot", "from_depth", "to_depth", "value", "low", "high"]
        table: Any = pd.DataFrame(rows).reindex(columns=[*columns, "chance", "floor", "n", "questions"])
        table["model"] = table["run"].map(model)
        return table.astype({"slot": "Int64", "n": "Int64", "questions": "Int64"})


def _row(r: dict[str, Any], measure: str, value: Any, low: Any, high: Any, chance: Any, n: Any, questions: Any) -> dict:
    named = {"run": r["run"], "method": r.get("method"), "measure": measure}
    return {**named, "value": value, "low": low, "high": high, "chance": chance, "n": n, "questions": questions}


def _stacked(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    parts: list[Any] = [t.assign(run=name) for name, t in tables.items() if len(t)]
    if not parts:
        return next(iter(tables.values())).assign(run="")
    table: Any = pd.concat(parts, ignore_index=True)
    return table[["run", *(c for c in table.columns if c != "run")]]
