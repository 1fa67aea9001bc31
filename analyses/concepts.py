"""Draws the pictures of docs/concepts.md: `python analyses/concepts.py [--model smollm2-135m] [--out docs/concepts]`.

Asks: what do a plan, a decision row, slot mass and JCR look like on one problem (the fourth synthetic one of seed 0)
and on one run (figures/runs/gsm8k-1.5b)? Illustrations: they prove nothing, and another problem looks different.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from kvattn import load, methods, plots, stats
from kvattn.engine.capture import Wanted
from kvattn.engine.compiler import token_texts
from kvattn.engine.influence import explain
from kvattn.plots.text import ShadedText
from kvattn.plots.theme import ALARM, NEUTRAL, ROLE_COLOURS, dress
from kvattn.questions import synthetic
from kvattn.study.run_folder import Run

PLANS = ("dense", "true-mask", "isolated", "naive-linked", "last-k:budget=0.3")
RUN = Path("figures/runs/gsm8k-1.5b")


def plans_figure(plans: dict[str, Any]) -> go.Figure:
    """A row a method, a bar a segment as wide as it has tokens; what is kept is pale and hatched."""
    fig = dress(go.Figure(), height=110 + 46 * len(plans), width=900)
    names = list(plans)[::-1]
    shown: set[str] = set()
    for y, name in enumerate(names):
        plan = plans[name]
        for s in plan.layout.segments:
            depth = plan.depth[s.start : s.stop]
            edges = [0, *(i for i in range(1, len(depth)) if depth[i] != depth[i - 1]), len(depth)]
            for a, b in pairwise(edges):
                kept = b > a and int(depth[a]) == 0
                look = {"color": ROLE_COLOURS[s.role], "opacity": 0.35 if kept else 1.0, "line": {"width": 0}}
                hatch = {"pattern": {"shape": "/", "size": 6, "solidity": 0.3}} if kept else {}
                fig.add_bar(
                    y=[y],
                    x=[b - a],
                    base=[s.start + a],
                    orientation="h",
                    width=0.62,
                    marker={**look, **hatch},
                    name=s.role,
                    legendgroup=s.role,
                    showlegend=s.role not in shown and not kept,
                )
                if not kept:
                    shown.add(s.role)
    layout = plans[names[0]].layout
    for s in layout.segments:
        if s.role == "candidate":
            middle = (s.start + s.stop) / 2
            fig.add_annotation(
                text=f"slot {s.slot + 1}", x=middle, y=len(names) - 0.45, showarrow=False, yanchor="bottom"
            )
    fig.update_layout(barmode="overlay", legend={"orientation": "h", "y": -0.25}, margin_t=36)
    fig.update_xaxes(title_text="token of the judge's prompt", showgrid=False)
    fig.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, range=[-0.5, len(names) - 0.1], showgrid=False, ticks=""
    )
    return fig


def slot_mass(decisions: list[Any]) -> pd.DataFrame:
    """Columns method, slot, layer, head, value."""
    rows = []
    for d in decisions:
        for slot in range(1, len(d.order) + 1):
            cells = d.mass.mass[:, :, d.mass.names.index(f"candidate:{slot}")]
            rows += [
                (d.method, slot, *at, float(v))
                for at, v in zip(pd.DataFrame(cells).stack().index, cells.ravel(), strict=True)
            ]
    return pd.DataFrame(rows, columns=["method", "slot", "layer", "head", "value"])


def split_figure() -> go.Figure:
    """Made-up scores of one question by slot: dense's, moved by offsets alone, and with their content gone."""
    dense, offsets, lost = [0.9, 1.3, 0.4, 0.2], [-0.6, -0.2, 0.0, 1.0], [0.55, 0.6, 0.65, 0.7]
    panels = {"a shift": [d + o for d, o in zip(dense, offsets, strict=True)], "content lost": lost}
    slots = [f"slot {i}" for i in range(1, 5)]
    fig = dress(make_subplots(1, 2, subplot_titles=list(panels), shared_yaxes=True), height=300, width=900)
    for column, scores in enumerate(panels.values(), 1):
        for name, values, colour in (("dense", dense, NEUTRAL), ("reuse", scores, ALARM)):
            look = {"color": colour, "opacity": [1.0 if v == max(values) else 0.35 for v in values]}
            fig.add_bar(x=slots, y=values, marker=look, name=name, showlegend=column == 1, row=1, col=column)
    fig.update_layout(barmode="group", legend={"orientation": "h", "y": -0.2}, margin_t=36)
    return fig.update_yaxes(title_text="score, nats", col=1)


def flip() -> ShadedText:
    """One prompt under dense and naive: who disagrees, and whom the judge that ships picks."""
    question = "All agents but one agree. Which agent disagrees?"
    said = ["I am sure that it is blue.", "I get blue.", "So the result is pink.", "The answer is blue."]
    return load().compare(question, said, ["dense", "naive"], template="relational").text()


def main() -> None:
    """Writes the SVGs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, default=Path("docs/concepts"))
    given = parser.parse_args()
    judge = load(given.model)
    engine, prompt = judge.engine, list(synthetic(4, seed=0))[-1]
    runs: list[Any] = []
    chosen = methods.parse(list(PLANS))
    decisions = judge.judge(prompt, chosen, wanted=Wanted(rows=True), keep=runs)
    by_name = {m.label: r for m, r in zip(chosen, runs, strict=True)}
    figures: dict[str, go.Figure] = {"split": split_figure()}
    figures["plans"] = plans_figure({n: r.plan for n, r in by_name.items()})
    for name in ("dense", "true-mask"):
        graph = explain(by_name[name].plan, engine.geometry.windows)
        fig = plots.influence_graph(graph.names, graph.reaches.numpy(), graph.decision.numpy())
        figures[f"influence-{name}"] = fig.update_layout(width=440, height=240)
    layout = by_name["naive-linked"].plan.layout
    tokens = token_texts(engine.tokenizer, layout.token_ids.tolist())
    row = plots.decision_row(tokens, by_name["naive-linked"].rows()[0].numpy(), layout.segments)
    figures["row"] = row.update_layout(width=900)
    two = [d for d in decisions if d.method in ("dense", "naive-linked")]
    figures["mass"] = plots.slot_mass_grid(slot_mass(two), ["dense", "naive-linked"]).update_layout(width=900)
    run = Run(RUN)
    table: Any = stats.jcr(run.judgements(), run.questions())
    floor = table[table["method"].str.startswith("null-edit")]
    others = table[~table["method"].str.startswith("null-edit")].sort_values("jcr", ascending=False)
    figures["jcr"] = plots.jcr_bars(others, tuple(floor[["low", "high"]].iloc[0]) if len(floor) else None)
    print(flip().save(given.out / "flip.svg"))
    for name, fig in figures.items():
        (given.out / name).parent.mkdir(parents=True, exist_ok=True)
        (given.out / f"{name}.svg").write_bytes(plots.export.render(fig, "svg"))
        print(given.out / f"{name}.svg")


if __name__ == "__main__":
    main()
