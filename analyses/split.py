"""How much of what reuse loses is a shift of slots, and how much is content?

    python -m analyses.split [RUN ...]

Asks: a method's scores may differ from dense's by offsets that are the same on every question (a shift, which N numbers
give back) or in what they say of the candidates (content). Content kept (JCR less the method's own offsets, which are
fitted on the other questions) against the shift, for every method. Found: docs/findings.md. Overturned by: a judge that
reads, on which reuse without sight of the others keeps as much content as the null edit.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from analyses import kit
from kvattn import stats
from kvattn.plots import method_style, theme

LEFT_OUT = ("mismatched-order",)  # the scores are naive's; they are read in another order


def numbers(run: kit.Held) -> pd.DataFrame:
    """One row a method (`kvattn.stats.measures`), the null edits among them; calls that fell back to dense left out."""
    table = stats.measures(run.judgements, run.questions, column=run.column)
    table = table[~table["method"].str.startswith(LEFT_OUT) & ~table["calls"].str.endswith("fallback")]
    return table.assign(run=run.title, reads=run.reads)


def figure(frame: pd.DataFrame) -> go.Figure:
    """A panel a run: content kept over shift, a mark a method with both intervals; dashed: chance, dotted: the null
    edit's, where it was judged."""
    known = frame.dropna(subset=["jcr_c"])
    runs = list(dict.fromkeys(known["run"]))
    fig = theme.panels(1, len(runs), subplot_titles=runs, horizontal_spacing=0.03, shared_xaxes=False)
    shown: set[str] = set()
    for col, run in enumerate(runs, 1):
        part = known[known["run"] == run]
        for r in part.to_dict("records"):
            style = method_style(r["method"])
            fig.add_scatter(
                x=[r["shift"]],
                y=[r["jcr_c"]],
                error_x=_whisker(r, "shift"),
                error_y=_whisker(r, "jcr_c"),
                mode="markers",
                marker={"symbol": style.symbol, "color": style.colour, "size": 9},
                name=theme.inert(r["method"], 44),
                legendgroup=r["method"],
                showlegend=r["method"] not in shown,
                hovertemplate="shift %{x:.2f} nats, content kept %{y:.2f}<extra>%{fullData.name}</extra>",
                row=1,
                col=col,
            )
            shown.add(r["method"])
        fig.add_hline(
            y=part["chance_c"].mean(), line={"color": theme.ALARM, "dash": "dash", "width": 1}, row=1, col=col
        )
        floor = part["jcr_c_floor"].max()
        if floor == floor:  # a run without a null edit has none
            fig.add_hline(y=floor, line={"color": theme.NEUTRAL, "dash": "dot"}, row=1, col=col)
        fig.update_xaxes(title_text="shift (nats)", rangemode="tozero", row=1, col=col)
    fig.update_yaxes(range=[-0.03, 1.03])
    fig.update_yaxes(title_text="JCR less own offsets", row=1, col=1)
    rows = -(-len(shown) // 3)
    theme.dress(fig, "", height=330 + 19 * rows, width=kit.TWO_COLUMNS)
    fig.update_annotations(font_size=12)
    return fig.update_layout(
        legend={"orientation": "h", "y": 0, "yref": "container", "x": 0}, margin_t=30, margin_b=70 + 19 * rows
    )


def _whisker(row: dict, name: str) -> dict:
    ends = {"array": [row[f"{name}_high"] - row[name]], "arrayminus": [row[name] - row[f"{name}_low"]]}
    return {"type": "data", "symmetric": False, "width": 2, "thickness": 1, "color": theme.NEUTRAL, **ends}


TABLE: dict[str, kit.Cell] = {
    "run": "run",
    "method": "method",
    "JCR": kit.ci("jcr"),
    "chance": "chance",
    "less own offsets": kit.ci("jcr_c"),
    "chance there": "chance_c",
    "p": lambda r: "" if r["p_c"] != r["p_c"] else f"{r['p_c']:.2g}",
    "null edit": "jcr_c_floor",
    "content lost": kit.ci("content_loss"),
    "shift (nats)": kit.ci("shift"),
    "correlation": kit.ci("corr"),
    "accuracy": kit.ci("accuracy"),
    "less own offsets, accuracy": kit.ci("accuracy_c"),
    "locked": lambda r: "locked" if r["locked"] else "",
    "questions": "questions",
}


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    args = kit.arguments(__doc__, given)
    runs = kit.held(args.runs)
    frame = pd.concat([numbers(r) for r in runs], ignore_index=True)
    caption = (
        "Content kept (share of dense's picks, the method's own slot offsets taken away, leave-one-question-out) and "
        "shift of its slots against dense (root mean square), with 95 % intervals over questions; of KVCOMM and PAL-KV "
        "the calls that reused."
    )
    kit.publish("split", figure(frame), kit.shown(frame, TABLE), args, runs, frame, kit.warned(caption, runs))


if __name__ == "__main__":
    main()
