"""What reuse does to the judge of a run, in words and two pictures; what its numbers may be taken for; all runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from kvattn import plots
from kvattn.errors import KvattnError
from kvattn.report import findings as health
from kvattn.report import headline
from kvattn.report.facts import Facts
from kvattn.stats import ContentTest
from kvattn.stats.accuracy import of_methods
from kvattn.stats.agreement import jcr
from kvattn.stats.picks import RAW
from kvattn.stats.slots import slot_histogram
from kvattn.study.run_folder import Run, picks, read_manifest
from kvattn.study.run_folder.side_by_side import measured
from kvattn_app import controls, library, pick_views, show, words

BADGES = {  # of several findings on one topic the one furthest down
    "note": ("blue", ":material/info:"),
    "good": ("green", ":material/check:"),
    "warn": ("orange", ":material/warning:"),
    "bad": ("red", ":material/error:"),
}
READS = {"reads": "yes", "does not read": "no"}
MOST_MEASURED = 2000  # judgements of a method whose content is measured while a page waits


def page() -> None:
    """The page."""
    st.caption(
        "Does reusing a KV cache change what the judge decides? A run judged the same prompts densely, and under ways "
        "of building the cache from parts that exist."
    )
    name, path = controls.run()
    manifest = read_manifest(path)
    try:
        opened = library.opened(path)
        size, told = library.ask(opened, picks.size), library.ask(opened, health.findings)
    except KvattnError as error:
        show.trouble(error)
        with st.expander("All that is damaged", expanded=True):
            for line in Run(path).check():
                show.verbatim(line)
    else:
        if size["judgements"]:
            _telling(opened, size)
        _health(told)
        if size["judgements"]:
            _methods(opened)
            _ladder(opened)
    _runs(name)
    _manifest(name, manifest)


def _telling(opened: Run, size: dict[str, Any]) -> None:
    model = opened.manifest.get("model") or {}
    show.headline(
        f"{model.get('name') or 'A judge'}: {size['questions']:,} questions with "
        f"{', '.join(map(str, size['n']))} candidates, up to {size['orders']} orders each, "
        f"{size['judgements']:,} judgements."
    )
    same = library.ask(opened, jcr)
    method = headline.telling(library.ask(opened, picks.methods), same)
    if method is None:
        show.empty("This run has dense alone; give it a method to compare with, e.g.:", controls.again(opened))
        return
    why = picks.meaningless(opened, False)
    content, unmeasured = "", ""
    if not why:
        try:
            told = library.ask(opened, measured, ("dense", "null-edit", method), MOST_MEASURED)
            content = headline.content(told, method)
        except KvattnError as error:
            unmeasured = f"How much is shift and how much is lost content is not told: {error}."
    show.headline(
        f"Not meaningful: {why}." if why else headline.consistency(same, method),
        headline.slots(library.ask(opened, slot_histogram), method),
        headline.accuracy(library.ask(opened, of_methods), method),
        content,
    )
    if unmeasured:
        st.caption(show.plain(unmeasured, 400))
    pick_views.moves(opened, RAW, method)


def _health(told: list[health.Finding]) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="health"):
        for topic in dict.fromkeys(f.topic for f in told):
            same = [f for f in told if f.topic == topic]
            colour, icon = BADGES[max((f.level for f in same), key=list(BADGES).index)]
            with st.popover(f":{colour}-badge[{icon} {topic}]", type="tertiary"):
                for finding in same:
                    st.markdown(f"{show.plain(finding.sentence, 600)} {show.plain(finding.advice, 400)}")


def _methods(opened: Run) -> None:
    st.subheader("Methods", anchor=False)
    show.explain("What was run, how it agreed with dense, how often it was right, and what it computed.", words.COST)
    table = methods(opened)
    shares = ("JCR", "low", "high", "chance", "accuracy", "token-layers", "candidates kept")
    show.table(table, column_config=show.share_columns(shares))
    show.exports("methods", None, table)


def methods(opened: Run) -> pd.DataFrame:
    """A row a method: parameters, consistency, accuracy, cost."""
    listed: list[Any] = [m for m in opened.manifest.get("methods", []) if isinstance(m, dict)]
    parameters = {m.get("name"): ", ".join(f"{k}={v}" for k, v in (m.get("parameters") or {}).items()) for m in listed}
    names = library.ask(opened, picks.methods)
    same, right, cost = (
        library.ask(opened, f).set_index("method").reindex(names) for f in (jcr, of_methods, picks.cost)
    )
    return pd.DataFrame(
        {
            "method": names,
            "JCR": same["jcr"].to_numpy(),
            "low": same["low"].to_numpy(),
            "high": same["high"].to_numpy(),
            "chance": same["chance"].to_numpy(),
            "accuracy": right["accuracy"].to_numpy(),
            "token-layers": cost["share"].to_numpy(),
            "candidates kept": cost["kept"].to_numpy(),
            "seconds a batch": cost["seconds"].round(3).to_numpy(),
            "parameters": [parameters.get(n, "") for n in names],
        }
    )


def _ladder(opened: Run) -> None:
    facts = Facts(opened)
    rungs = facts.rungs()
    if len(rungs) < 2:
        return
    st.subheader("What each change costs", anchor=False)
    show.explain("From dense's own noise floor down to naive reuse, one change a step.", words.JCR)
    same = library.ask(opened, jcr)
    show.figure(plots.ladder(same, list(rungs), steps=rungs, meaningless=facts.meaningless()), "ladder", same)


def _runs(name: str) -> None:
    st.subheader("Runs", anchor=False)
    show.explain(
        "All runs here; choose a row to open it on all pages.",
        "Numbers are those of naive reuse, or else of the method that agrees least with dense, and stand where the "
        "content test passed: a judge that does not read its candidates has no consistency to lose.\n\n" + words.JCR,
    )
    rows = [_run_row(run, path) for run, path in library.runs().items()]
    key = show.short_key("runs", name)  # another table once another run is chosen: its selection was obeyed

    def choose() -> None:
        if chosen := st.session_state[key]["selection"]["rows"]:
            st.session_state["run"] = rows[chosen[0]]["run"]

    shares = show.share_columns(("JCR", "by chance", "dense right", "right"))
    show.table(
        pd.DataFrame(rows),
        key=key,
        on_select=choose,
        selection_mode="single-row",
        column_config={
            "run": st.column_config.Column(width=170),
            "judge": st.column_config.Column(width=130),
            **shares,
        },
    )


def _run_row(name: str, path: Path) -> dict[str, Any]:
    """What the table of runs says of one."""
    empty = dict.fromkeys(("method", "JCR", "by chance", "right", "dense right"))
    try:
        manifest = read_manifest(path)
        model, data = manifest.get("model") or {}, manifest.get("data") or {}
        test = ContentTest.stored(manifest)
        row = {"run": name, "judge": str(model.get("name") or model.get("id") or "")}
        row |= {"reads": READS.get(test.verdict, "cannot tell") if test else "not tested", **empty}
        row |= {
            "questions": data.get("questions"),
            "candidates": str(manifest.get("n_candidates", "")).strip("[]"),
        }
        run = library.opened(path)
        if test and test.verdict == "reads" and library.ask(run, picks.size)["judgements"]:
            same, right = (library.ask(run, f) for f in (jcr, of_methods))
            method = headline.telling(library.ask(run, picks.methods), same)
            same, right = same.set_index("method"), right.set_index("method")
            row |= {"method": method, "JCR": same["jcr"].get(method), "by chance": same["chance"].get(method)}
            row |= {"right": right["accuracy"].get(method), "dense right": right["accuracy"].get("dense")}
    except KvattnError:
        return {"run": name, "judge": "", "reads": "damaged", **empty, "questions": None, "candidates": ""}
    return row


def _manifest(name: str, manifest: dict[str, Any]) -> None:
    st.subheader("How it was judged", anchor=False)
    model, data = manifest.get("model") or {}, manifest.get("data") or {}
    rows: dict[str, object] = {
        "run": name,
        "model": model.get("id") or model.get("name") or "unknown",
        "revision": model.get("revision") or "",
        "template, readout": f"{manifest.get('template')}, {manifest.get('readout')}",
        "candidates made": manifest.get("regime", ""),
        "orders": json.dumps(manifest.get("orders")),
        "layers, heads": f"{manifest.get('layers')}, {manifest.get('heads')}",
        "numbers": f"{manifest.get('dtype')} on {manifest.get('device')}, threads: {manifest.get('threads')}",
        "data": f"{data.get('source')} {str(data.get('sha256', ''))[:16]}",
        "begun": manifest.get("created"),
        "kvattn": manifest.get("kvattn"),
        "versions": json.dumps(manifest.get("versions")),
    }
    show.facts(rows)
    text = json.dumps(manifest, indent=1, ensure_ascii=True)
    show.download("Manifest as JSON", text, "manifest.json", "manifest")
