"""Does shuffling the candidates hurt reuse, and how much of a drop could be a mix-up of orders?

    python -m analyses.shuffle_stress [RUN ...]

Asks: JCR by the distance of the display order from the candidates' own; and beside it two controls. "dense, other
order" compares dense with itself under another order of the same candidates: what a perfect method would score if the
order of one side were mixed up. "mismatched-order" is naive reuse under another order than dense's. Published
shuffled figures (arXiv 2601.08343) may contain such a mix-up, since the judge's template was made once while later
calls drew new orders. Found: docs/findings.md. Overturned by: a JCR that falls with distance, other things equal, on
a judge that reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses import kit
from kvattn import stats
from kvattn.plots import method_style, theme

SHOWN = ("naive", "mismatched-order", "kvcomm", "pal-kv", "last-k", "null-edit", "true-mask")


def distances(run: kit.Held) -> pd.DataFrame:
    """JCR by Kendall's tau distance of the order from the candidates' own, one row a (method, distance)."""
    frame = stats.by_permutation_distance(run.judgements, run.questions, column=run.column)
    return frame[frame["method"].str.startswith(SHOWN)].assign(run=run.title)


def controls(run: kit.Held) -> pd.DataFrame:
    """JCR over all orders, and dense against itself under another order."""
    frame = stats.jcr(run.judgements, run.questions, column=run.column)
    rows: list[dict[str, Any]] = [
        {"run": run.title, "method": r["method"], "jcr": r["jcr"], "jcr_low": r["low"], "jcr_high": r["high"],
         "chance": r["chance"], "questions": r["questions"], "pairs": r["pairs"]}
        for r in frame.to_dict("records")
        if str(r["method"]).startswith(SHOWN)
    ]  # fmt: skip
    dense = run.judgements[run.judgements["method"] == "dense"]
    if dense.groupby("question_id").size().max() > 1:
        d = stats.position_bias(dense, run.questions, column=run.column).iloc[0]
        row = {"run": run.title, "method": "dense, other order", "jcr": d["order_consistency"], "chance": np.nan}
        row |= {"jcr_low": d["order_consistency_low"], "jcr_high": d["order_consistency_high"]}
        rows.append({**row, "questions": d["questions"]})
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame) -> go.Figure:
    """JCR against distance, a panel a run."""
    runs = list(dict.fromkeys(frame["run"]))
    fig = theme.panels(1, len(runs), subplot_titles=runs, horizontal_spacing=0.03)
    shown = list(dict.fromkeys(frame["method"]))
    for i, run in enumerate(runs, 1):
        for k, method in enumerate(shown):
            p = frame[(frame["run"] == run) & (frame["method"] == method)].sort_values("distance")
            style = method_style(method)
            fig.add_scatter(
                x=p["distance"] + 0.09 * (k - len(shown) / 2),
                y=p["jcr"],
                error_y=theme.whiskers(p, "jcr", width=2),
                mode="lines+markers" if len(p) > 1 else "markers",
                name=method,
                legendgroup=method,
                showlegend=i == 1,
                line={"color": style.colour, "dash": style.dash},
                marker={"symbol": style.symbol, "size": 7},
                row=1,
                col=i,
            )
    fig.update_yaxes(range=[0, 1.03], tickformat=".0%").update_yaxes(title_text="JCR", col=1)
    fig.update_xaxes(title_text="pairs of candidates the other way round", dtick=1)
    theme.dress(fig, "", height=340, width=kit.TWO_COLUMNS, margin_l=60)
    fig.update_annotations(font_size=12)
    return fig.update_layout(legend={"orientation": "h", "y": 0, "yref": "container", "x": 0}, margin_b=96, margin_t=30)


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """The table."""
    rows = [
        {
            "run": r["run"],
            "method": r["method"],
            "JCR over all orders": kit.interval(r["jcr"], r["jcr_low"], r["jcr_high"]),
            "chance": r["chance"],
            "questions": r["questions"],
        }
        for r in frame.to_dict("records")
    ]
    return pd.DataFrame(rows)


def main() -> None:
    """Figure and table."""
    args = kit.arguments(__doc__)
    runs = kit.held(args.runs)
    frame = pd.concat([distances(r) for r in runs], ignore_index=True)
    table = pd.concat([controls(r) for r in runs], ignore_index=True)
    caption = "JCR by distance of the display order from the candidates' own; 95 % intervals over questions."
    kit.publish("shuffle_stress", draw(frame), readable(table), args.out, runs, frame, kit.warned(caption, runs))


if __name__ == "__main__":
    main()
