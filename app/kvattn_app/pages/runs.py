"""What runs there are, how each was judged, and what its numbers may be taken for."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import streamlit as st

from kvattn.errors import KvattnError
from kvattn.report import findings as health
from kvattn.stats.accuracy import of_methods
from kvattn.stats.agreement import jcr
from kvattn.study.run_folder import Run, picks, read_manifest
from kvattn_app import controls, library, show, words

LEVELS = {"good": st.success, "warn": st.warning, "bad": st.error, "note": st.info}


def page() -> None:
    """The page."""
    name, path = controls.run()
    st.caption("The run that all pages are about is chosen in the sidebar.")
    manifest = read_manifest(path)
    try:
        opened = library.opened(path)
        size, told = library.ask(opened, picks.size), library.ask(opened, health.findings)
    except KvattnError as error:
        show.trouble(error)
        with st.expander("All that is damaged", expanded=True):
            for line in Run(path).check():
                show.verbatim(line)
        _manifest(name, manifest)
        return
    for column, (label, value) in zip(
        st.columns(4),
        (
            ("Questions", f"{size['questions']:,}"),
            ("Judgements", f"{size['judgements']:,}"),
            ("Orders a question", f"{size['orders']}"),
            ("Candidates", ", ".join(map(str, size["n"])) or "0"),
        ),
        strict=True,
    ):
        column.metric(label, value, border=True)
    _health(told)
    if size["judgements"]:
        _methods(opened)
    _manifest(name, manifest)


def _health(told: list[health.Finding]) -> None:
    st.subheader("Health", anchor=False)
    show.explain("What this run's numbers may be taken for, in plain language.", words.JCR)
    for finding in told:
        box = LEVELS[finding.level]
        box(f"**{finding.topic.capitalize()}** {show.plain(finding.sentence, 600)} {show.plain(finding.advice, 400)}")


def _methods(opened: Run) -> None:
    st.subheader("Methods", anchor=False)
    show.explain("What was run, how it agreed with dense, how often it was right, and what it computed.", words.COST)
    table = overview(opened)
    shares = ("JCR", "low", "high", "chance", "accuracy", "token-layers", "candidates kept")
    st.dataframe(table, hide_index=True, placeholder="", width="stretch", column_config=show.share_columns(shares))
    show.exports("methods", None, table)  # type: ignore[arg-type]


def overview(opened: Run) -> pd.DataFrame:
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
