"""Consistency against cost, and the gate that says when reuse is safe."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from kvattn import plots
from kvattn.errors import KvattnError
from kvattn.plots import gates
from kvattn.report import gate as gate_page
from kvattn.report import headline
from kvattn.stats.agreement import jcr
from kvattn.stats.picks import Scope
from kvattn.study.run_folder import Run, picks
from kvattn_app import controls, library, show, words

GATE = {
    "auc": "AUC",
    "auc_low": "AUC low",
    "auc_high": "AUC high",
    "ap": "AP",
    "ap_chance": "AP by chance",
    "questions": "calibration questions",
}
COLUMNS = {"share": "token-layers", "kept": "candidates kept", "jcr": "JCR"}


def page() -> None:
    """The page."""
    opened = controls.opened()
    row = st.columns([2, 3, 6])
    scope = controls.scope(opened, row)
    _frontier(opened, scope)
    _gate(opened.folder)


def _frontier(opened: Run, scope: Scope) -> None:
    st.subheader("Consistency against cost", anchor=False)
    show.explain(
        "What a method computes, and how often it picks dense's candidate: up and left is better. Red bars: chance.",
        words.COST,
    )
    table = numbers(opened, scope)
    if len(table) < 2:
        show.empty("This run has dense alone; a frontier needs methods beside it, e.g.:", controls.again(opened))
        return
    why = picks.meaningless(opened, scope.calibrated)
    show.headline("" if why else headline.frontier(table))
    show.figure(plots.frontier(table, why), "frontier", table)
    shown = table[["method", *COLUMNS, "low", "high", "chance", "floor", "kappa", "score"]].rename(columns=COLUMNS)
    show.table(
        shown,
        column_config=show.share_columns([*COLUMNS.values(), "low", "high", "chance", "floor"]),
    )


def numbers(opened: Run, scope: Scope) -> pd.DataFrame:
    """A row a method: share of dense's token-layers, JCR with its interval; dense agrees with itself."""
    same: Any = library.ask(opened, jcr, scope=scope)
    cost: Any = library.ask(opened, picks.cost, scope)
    table: Any = cost[["method", "share", "kept"]].merge(same, how="left", on="method")
    dense = table["method"] == "dense"
    for column in ("jcr", "low", "high"):
        table.loc[dense, column] = 1.0
    return table.dropna(subset=["jcr"]).sort_values("share").reset_index(drop=True)


def _gate(folder: Path) -> None:
    st.subheader("Gate", anchor=False)
    show.explain("When is reuse safe? A gate accepts a reused decision or falls back to dense.", words.GATE)
    path = folder / gate_page.JSON_NAME
    if not path.is_file():
        show.empty(
            "No gate was evaluated on this run. This command does it:", f"kvattn gate report {shlex.quote(str(folder))}"
        )
        return
    try:
        report = gate_page.read(path)
    except KvattnError as error:
        show.trouble(error)
        return
    looks, head, said = gate_page.verdict(report)
    {"good": st.success, "bad": st.error}.get(looks, st.warning)(f"**{show.plain(head)}** {show.plain(said, 600)}")
    recipe = report["recipe"]
    looked = [recipe["reuse"], *recipe["probes"], *([f"{recipe['votes']} votes"] if recipe["votes"] else [])]
    st.caption(show.plain(f"{report['questions']} questions; passes looked at: {', '.join(looked)}", 400))
    table = pd.DataFrame(gate_page.gate_rows(report)).rename(columns=GATE)
    show.table(table, column_config=show.share_columns(("bound",)))
    curves = {kind: g["curve"] for kind, g in report["gates"].items() if kind != "dg-jkr"}
    points: Any = pd.DataFrame([{"gate": kind, **p} for kind, curve in curves.items() for p in curve])
    show.figure(gates.risk_coverage(curves, report["promise"]["risk"]), "gate-risk", points)
    show.figure(gates.gate_cost(curves), "gate-cost", points)
