"""Which policy of recomputation keeps the choice at the least cost?

    python -m analyses.frontier [RUN ...]

Asks: chance-corrected consistency, kappa over null-edit's kappa, against the token-layers computed (probes
included, as a share of dense's), one curve a policy. The policy and its parameters are chosen on one half of the
questions and reported once on the other. The goal is 0.95 at no more than 30 %. It makes runs of its own, on
organisms and the embedded judge (calibrated), and takes given ones: several of one judge, on the same questions and
orders, may be given as RUN+RUN. Found: docs/findings.md. Overturned by: a policy that reaches the goal on the
reporting half of a judge that reads.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses import kit
from kvattn import stats
from kvattn.plots import method_style, theme
from kvattn.questions import labels
from kvattn.text import interval

GOAL, BUDGET = 0.95, 0.30
FURTHER = Path("figures/runs/frontier-1.5b")  # policies on the first questions of kit.LARGER
CONTROLS = ("dense", "null-edit", "true-mask", "isolated", "foreign-kv", "mismatched-order", "oracle", "random")
_BUDGETS = (0.05, 0.1, 0.2, 0.3, 0.5)
_PROBED = ("last-k", "first-k", "query-attention", "kv-deviation", "cross-candidate", "random")
POLICIES = (
    *("dense", "null-edit", "naive-linked", "naive-linked:prefix=kept", "naive"),
    *(f"{p}:budget={b},prefix=kept" for p in _PROBED for b in _BUDGETS),
    *(f"last-k:budget={b},prefix=kept,per=ramp" for b in _BUDGETS),
    *(f"last-k:budget={b},prefix=kept,shrink=0.3" for b in _BUDGETS),
    *(f"progressive:k={k}" for k in (1, 2, 3)),
    *("low-rank-patch", "hybrid:k=1"),
)
RUNS = {
    "frontier-organism-unsafe": kit.Made("organism-unsafe", "organism-max", 160, 24, "fixed", POLICIES),
    "frontier-organism-safe": kit.Made("organism-safe", "organism-max", 160, 24, "fixed", POLICIES),
}


@dataclass(frozen=True)
class Joined(kit.Held):
    """Runs of one judge on the same questions and orders, as one."""

    others: tuple[kit.Held, ...] = ()

    @property
    def parts(self) -> tuple[kit.Held, ...]:
        """All of them."""
        return (kit.Held(self.folder), *self.others)

    @property
    def judgements(self) -> pd.DataFrame:  # type: ignore[override]
        """All methods of all of them; of a method that several ran, the first run's."""
        tables = [super().judgements, *(o.judgements for o in self.others)]
        whole = pd.concat(tables, ignore_index=True)
        whole = whole.assign(key=whole["order"].map(tuple)).drop_duplicates(["question_id", "key", "method"])
        both = set.intersection(*(set(t["question_id"]) for t in tables))
        return whole[whole["question_id"].isin(both)].drop(columns="key")


def opened(words: Sequence[str]) -> list[kit.Held]:
    """Runs, or RUN+RUN."""
    out: list[kit.Held] = []
    for word in words:
        first, *rest = (Path(w) for w in word.split("+"))
        if first == kit.LARGER and not rest and FURTHER.is_dir():
            rest = [FURTHER]
        out.append(Joined(first, tuple(map(kit.Held, rest))) if rest else kit.Held(first))
    return out


def halves(run: kit.Held) -> dict[str, int]:
    """Question id to 0 (chosen on) or 1 (reported on): every other one."""
    return {q: i % 2 for i, q in enumerate(sorted(set(run.judgements["question_id"])))}


def points(run: kit.Held) -> pd.DataFrame:
    """One row a (method, half; and `all` questions): share of token-layers, JCR, chance, corrected score with interval,
    accuracy."""
    half, out = halves(run), []
    judged: Any = run.judgements
    spent = judged.assign(share=(judged.token_layers + judged.probe_token_layers) / (judged.tokens * judged.layers))
    share: Any = spent.groupby("method")["share"].mean()
    for h in (0, 1, "all"):
        part = judged if h == "all" else judged[judged["question_id"].map(half) == h]
        table = stats.jcr(part, run.questions, column=run.column)
        right = stats.accuracy(part, run.questions, column=run.column).set_index("method")["accuracy"]
        table = table.assign(accuracy=table["method"].map(right), share=table["method"].map(share))
        out.append(table.assign(half=h, run=run.title, reads=run.reads))
    return pd.concat(out, ignore_index=True)


def chosen(frame: pd.DataFrame) -> pd.DataFrame:
    """For every run: the policy that is best on the first half within each cost, and what it is worth on the second."""
    rows = []
    for run, part in frame.groupby("run", sort=False):
        policies = part[~part["method"].str.startswith(CONTROLS)]
        tuned, reported = (policies[policies["half"] == h].set_index("method") for h in (0, 1))
        for limit in (BUDGET, 0.5, 0.7):
            within = tuned[(tuned["share"] <= limit) & tuned["score"].notna()]
            row: dict[str, Any] = {"run": run, "at most": f"{limit:.0%}"}
            if within.empty:
                least = tuned["share"].min()
                rows.append({**row, "policy": f"none: the cheapest costs {least:.0%}" if len(tuned) else "none"})
                continue
            best = within["score"].idxmax()
            r = reported.loc[best]
            row |= {"policy": best, "token-layers": f"{r['share']:.0%}"}
            row["score, chosen on"] = within.loc[best, "score"]
            row["score, reported"] = interval(r["score"], r["score_low"], r["score_high"])
            row |= {"JCR": interval(r["jcr"], r["low"], r["high"]), "chance": r["chance"], "floor": r["floor"]}
            reached = r["score"] >= GOAL and r["share"] <= BUDGET
            rows.append({**row, "questions": int(r["questions"]), "goal": "reached" if reached else ""})
    return pd.DataFrame(rows)


def curve(method: str) -> str:
    """The policy that a method belongs to, its budget left out."""
    name, parameters = labels.read(method)
    kept = [p for p in parameters if not p.startswith(("budget=", "k=", "prefix="))]
    return f"{name}({','.join(kept)})" if kept else name


def draw(frame: pd.DataFrame) -> go.Figure:
    """Score of the reporting half against cost, a curve a policy, a panel a run; the goal as a box."""
    frame = frame[(frame["half"] == 1) & frame["score"].notna()]
    frame = frame[~frame["method"].str.startswith(tuple(c for c in CONTROLS if c != "random"))]
    titles = list(dict.fromkeys(frame["run"]))
    names = [t.removeprefix("frontier-") for t in titles]
    fig = theme.panels(1, len(titles), subplot_titles=names, horizontal_spacing=0.03)
    seen = set()
    for i, title in enumerate(titles, 1):
        part = frame[frame["run"] == title].assign(curve=lambda t: t["method"].map(curve))
        for name, p in part.groupby("curve"):
            p, style = p.sort_values("share"), method_style(str(name))
            fig.add_scatter(
                x=p["share"], y=p["score"].clip(-0.3, 1.2), mode="lines+markers", name=name, legendgroup=name,
                showlegend=name not in seen, line={"color": style.colour, "dash": style.dash, "width": 1.5},
                marker={"symbol": style.symbol, "size": 7}, customdata=p["method"], row=1, col=i,
                hovertemplate="%{customdata}<br>%{x:.0%} of dense's token-layers<br>score %{y:.2f}<extra></extra>",
            )  # fmt: skip
            seen.add(name)
        look = {"color": "#009E73", "width": 1, "dash": "dot"}
        fig.add_shape(type="rect", x0=0, x1=BUDGET, y0=GOAL, y1=1.25, line=look, row=1, col=i)  # type: ignore[arg-type]
    fig.update_xaxes(range=[0, max(1.1, 1.05 * frame["share"].max())], tickvals=[0, 0.5, 1])
    fig.update_xaxes(title_text="share of dense's cost")
    fig.update_yaxes(range=[-0.35, 1.25], dtick=0.5).update_yaxes(title_text="kappa over null-edit's", col=1)
    theme.dress(fig, "", height=440, width=kit.TWO_COLUMNS, margin_l=64)
    fig.update_annotations(font_size=12)
    legend = {"orientation": "h", "y": 0, "yref": "container", "x": 0, "font": {"size": 10}}
    return fig.update_layout(legend=legend, margin_b=140, margin_t=30)


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="*", help="further runs, or RUN+RUN of one judge")
    args = kit.parsed(parser, given)
    runs = [kit.Held(kit.made(name, spec)) for name, spec in RUNS.items()] + opened(
        [r for r in args.runs if Path(r).parent != kit.RUNS]
    )
    frame = pd.concat([points(r) for r in runs if "null-edit" in set(r.judgements["method"])], ignore_index=True)
    caption = (
        f"Chance-corrected consistency against cost. Chosen on one half of the questions, reported on the other. Goal: "
        f"{GOAL} at no more than {BUDGET:.0%} of dense's token-layers (dotted)."
    )
    kit.publish("frontier", draw(frame), chosen(frame), args, runs, frame, kit.warned(caption, runs))


if __name__ == "__main__":
    main()
