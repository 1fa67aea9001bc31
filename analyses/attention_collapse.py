"""Where does the decision row go under reuse: which slots lose attention, and what gains it?

    python -m analyses.attention_collapse [RUN ...]

Asks: the paper reports that reuse weakens attention to later slots ("collapse onto slot 1"). Mass of the decision row
by slot and by every other part of the prompt, method against dense, with and without what falls on attention sinks
(tokens that dense gives much mass although their values are short). If a gain of a slot vanishes without sinks, it
was block-start sinks; if it grows with the slot's place for foreign content too (foreign-kv), it is recency; what is
left is real. Found: docs/findings.md. Overturned by: later slots that lose mass, sinks out, under naive reuse on a
judge that reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses import kit
from kvattn.plots import method_style, theme

SHOWN = ("dense", "true-mask", "isolated", "naive-linked", "foreign-kv")


def parts(run: kit.Held) -> pd.DataFrame | None:
    """By method and part of the prompt (slots apart): share of the row, the same without sinks, and for slots the
    log of both over dense's; means over layers and heads. None for a run without slot mass."""
    means = run.means()
    if means is None:
        return None
    means = means[means["method"].isin(SHOWN)]
    named: Any = means["name"].str.partition(":")
    part = np.where(named[0] == "candidate", "slot " + named[2], named[0])
    heads = means.groupby("method")[["layer", "head"]].max().iloc[0] + 1
    frame = means.assign(part=part).groupby(["method", "part"], as_index=False)[["mass", "free"]].sum()
    frame[["mass", "free"]] /= float(heads["layer"] * heads["head"])
    dense = frame[frame["method"] == "dense"].set_index("part").loc[frame["part"]]
    for name, of in (("change", "mass"), ("free_change", "free")):
        change = np.log(frame[of].to_numpy()) - np.log(dense[of].to_numpy())
        frame[name] = np.where(frame["part"].str.startswith("slot "), change, np.nan)
    count = int(means["count"].max())
    return frame.assign(run=run.title, judgements=count, sinks=lambda t: t["mass"] - t["free"])


def draw(frame: pd.DataFrame) -> go.Figure:
    """Slot mass by slot: sinks kept (above), sinks out (below); a column a run."""
    runs = list(dict.fromkeys(frame["run"]))
    fig = theme.panels(2, len(runs), subplot_titles=runs, horizontal_spacing=0.09, vertical_spacing=0.08,
                       shared_yaxes=False)  # fmt: skip
    slots = frame[frame["part"].str.startswith("slot ")].assign(slot=lambda t: t["part"].str[5:].astype(int))
    for i, run in enumerate(runs, 1):
        for k, value in enumerate(("mass", "free"), 1):
            for method in SHOWN:
                p = slots[(slots["run"] == run) & (slots["method"] == method)].sort_values("slot")
                style = method_style(method)
                fig.add_scatter(
                    x=p["slot"], y=p[value], mode="lines+markers", name=method, legendgroup=method,
                    showlegend=i == 1 and k == 1, line={"color": style.colour, "dash": style.dash},
                    marker={"symbol": style.symbol, "size": 7}, row=k, col=i,
                )  # fmt: skip
    fig.update_yaxes(tickformat=".0%", rangemode="tozero")
    fig.update_yaxes(title_text="share of the row", row=1, col=1).update_yaxes(title_text="sinks out", row=2, col=1)
    fig.update_xaxes(title_text="slot", dtick=1, row=2)
    theme.dress(fig, "", height=460, width=kit.TWO_COLUMNS, margin_l=64)
    fig.update_annotations(font_size=12)
    return fig.update_layout(legend={"orientation": "h", "y": 0, "yref": "container", "x": 0}, margin_b=84, margin_t=30)


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a (run, method): share of the row on each part; of slots also the change against dense, sinks out."""
    rows = []
    slots = sorted({p for p in frame["part"] if p.startswith("slot ")})
    others = [p for p in ("prefix", "question", "header", "separator", "suffix", "branch") if p in set(frame["part"])]
    for (run, method), part in frame.groupby(["run", "method"], sort=False):
        by = part.set_index("part")
        row: dict[str, Any] = {"run": run, "method": method}
        for s in (s for s in slots if s in by.index):
            shown = f"{by.loc[s, 'mass']:.3f}"
            row[s] = shown if method == "dense" else f"{shown} ({by.loc[s, 'free_change']:+.2f})"
        row |= {o: f"{by.loc[o, 'mass']:.3f}" if o in by.index else "" for o in others}
        row["sinks"] = f"{part['sinks'].sum():.3f}"
        rows.append({**row, "judgements": int(part["judgements"].iloc[0])})
    return pd.DataFrame(rows)


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    args = kit.arguments(__doc__, given)
    found = [(r, parts(r)) for r in kit.held(args.runs)]
    runs = [r for r, p in found if p is not None]
    frame = pd.concat([p for _, p in found if p is not None], ignore_index=True)
    caption = (
        "Share of the last prompt token's row by part of the prompt, mean over layers, heads, judgements; in brackets "
        "its log over dense's, sinks out; 'sinks': the share of the row on sink tokens, wherever."
    )
    said = frame.round(5)  # rows are of single precision
    kit.publish("attention_collapse", draw(frame), readable(frame), args, runs, said, kit.warned(caption, runs))


if __name__ == "__main__":
    main()
