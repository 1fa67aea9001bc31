"""The same statistics of all runs at hand, by relative depth.

    python -m analyses.models [RUN ...]

Asks: does naive reuse move attention between slots in the same way, and at the same depth, in every model? Change of
slot mass against dense, in quarters of the depth, slot by slot, beside each run's consistency and content test; the
numbers of `kvattn compare`. Found: docs/findings.md. Overturned by: a model that reads and whose later slots lose
mass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses import kit
from kvattn import stats
from kvattn.plots import theme
from kvattn.study.run_folder.mass import band_of
from kvattn.text import interval

BANDS = 4


def bands(run: kit.Held, method: str = "naive-linked") -> pd.DataFrame | None:
    """Mean slot mass over dense's (factor) by slot and quarter of the depth (from 1), as `side_by_side.by_band`
    has it; None without mass."""
    means = run.means()
    if means is None or method not in set(means["method"]):
        return None
    slots: Any = means[means["method"].isin([method, "dense"]) & means["name"].str.startswith("candidate:")]
    layers = int(means["layer"].max()) + 1
    quarters = [band_of(layer, layers, BANDS) + 1 for layer in slots["layer"]]
    slots = slots.assign(slot=slots["name"].str.removeprefix("candidate:").astype(int), band=quarters)
    mass = slots.groupby(["slot", "band", "method"])["mass"].mean().unstack()
    out = (mass[method] / mass["dense"]).rename("factor").reset_index()
    return out.assign(run=run.title)


def facts(run: kit.Held, method: str = "naive-linked") -> dict[str, Any]:
    """One row: what the judge is, whether it reads, and what naive reuse does to it."""
    m = run.run.manifest
    agree = stats.jcr(run.judgements, run.questions, column=run.column).set_index("method").loc[method]
    right = stats.accuracy(run.judgements, run.questions, column=run.column).set_index("method")
    return {
        "run": run.title,
        "layers": m["layers"],
        "readout": m["readout"] + (", calibrated" if run.calibrated else ""),
        "content test": {True: "reads", False: "does not read", None: "not told"}[run.reads],
        "JCR of naive-linked": interval(agree["jcr"], agree["low"], agree["high"]),
        "chance": agree["chance"],
        "right, dense": interval(*(right.loc["dense", c] for c in ("accuracy", "low", "high"))),
        "right, naive-linked": interval(*(right.loc[method, c] for c in ("accuracy", "low", "high"))),
        "random": right.loc["random pick", "accuracy"],
        "questions": int(agree["questions"]),
    }


def draw(frame: pd.DataFrame) -> go.Figure:
    """A panel a run, a line a slot, over the quarters of the depth."""
    titles = list(dict.fromkeys(frame["run"]))
    fig = theme.panels(1, len(titles), subplot_titles=titles, horizontal_spacing=0.03)
    for i, title in enumerate(titles, 1):
        for slot, part in frame[frame["run"] == title].groupby("slot"):
            fig.add_scatter(
                x=part["band"], y=part["factor"], mode="lines+markers", name=f"slot {slot}", legendgroup=str(slot),
                showlegend=i == 1, line={"color": theme.slot_colour(int(slot))}, row=1, col=i,
            )  # fmt: skip
        fig.add_hline(y=1, line={"color": theme.NEUTRAL, "dash": "dot", "width": 1}, row=1, col=i)  # type: ignore[arg-type]
    fig.update_yaxes(type="log", dtick="D2", minor={"dtick": "D1"})
    fig.update_yaxes(title_text="slot mass over dense's", col=1)
    fig.update_xaxes(title_text="quarter of the depth", dtick=1)
    theme.dress(fig, "", height=320, width=kit.TWO_COLUMNS, margin_l=64)
    fig.update_annotations(font_size=12)
    return fig.update_layout(legend={"orientation": "h", "y": 0, "yref": "container", "x": 0}, margin_b=84, margin_t=30)


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    args = kit.arguments(__doc__, given)
    runs = kit.held(args.runs)
    found = [b for b in map(bands, runs) if b is not None]
    frame = pd.concat(found, ignore_index=True)
    fig = draw(frame)
    caption = "Naive-linked reuse: slot mass of the last prompt token over dense's, each the mean over heads."
    table = pd.DataFrame([facts(r) for r in runs])
    said = frame.round(4)  # rows are of single precision
    kit.publish("models", fig, table, args, runs, said, kit.warned(caption, runs))


if __name__ == "__main__":
    main()
