"""Does a candidate gain when an earlier one states the same final answer, where does that travel, and what is left of
it under reuse?

    python -m analyses.echo [--model NAME --data FILE --data FILE --limit N --map N --bands 6 --readout yesno]

Asks: the final answer of one earlier candidate is edited to that of a later one, and in the control to an answer that
nobody states; nothing else changes. What does that do to the later candidate's score, less that of candidates that
state something else? Under methods whose candidates do not see each other only the instruction and the question at the
end can carry it. Tails recomputed seeing the others, two tokens or eight, and blind to them tell whether their sight
brings it back. Then, in dense, the sight of candidates is cut in one band of layers, or open in one alone, for the
other candidates, the headers and separators between them, and what stands behind them all; and it is cut or left open
for one pair of candidates alone: the edited one and the one that it is held against, or another pair.
Found: docs/findings.md. Overturned by: a judge whose dense echo is 0, reuse that keeps it, or another pair that carries
it as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch

from analyses import kit
from kvattn.engine.blocks import Blocks
from kvattn.engine.engine import Engine
from kvattn.engine.layout import PromptLayout
from kvattn.engine.plan import KVPlan, Visibility, dense_plan
from kvattn.judge.edits import echo
from kvattn.judge.judge import Judge, load
from kvattn.methods import Method
from kvattn.plots import theme
from kvattn.questions.prompt import JudgePrompt
from kvattn.stats import over_questions
from kvattn.text import missing

METHODS = ("dense", "tail:tokens=8", "tail", "tail:tokens=8,sight=blind", "naive-linked", "naive", "true-mask")
SHARE = [[0, "#ffffff"], [1, "#93add6"]]  # none of dense's echo, all of it; dark ink is legible on both
READERS = {"candidates": ("candidate",), "headers": ("header", "separator"), "what follows": ("suffix", "branch")}


@dataclass(frozen=True)
class Sight(Method):
    """Dense, with readers blind to the candidates of other slots (what follows: to all).

    reader: of `READERS`
    where:  "but": blind in this band, for this pair, alone; "only": blind everywhere else
    band:   from 0, of `bands` equal parts of the layers; -1: all of them
    later, earlier: the pair of slots (from 0) that is meant; -1: every pair
    """

    reader: str = "candidates"
    where: str = "but"
    band: int = -1
    bands: int = 6
    later: int = -1
    earlier: int = -1

    name = "sight"
    source = "control"

    def plan(self, layout: PromptLayout, blocks: Blocks, engine: Engine) -> KVPlan:
        """Dense's plan under a rule of its own at every layer."""
        seen = Visibility.full(layout).allowed
        apart = [
            (i, j)
            for i, a in enumerate(layout.segments)
            for j, b in enumerate(layout.segments)
            if a.role in READERS[self.reader] and b.role == "candidate" and a.slot != b.slot
        ]
        meant = [
            (i, j)
            for i, j in apart
            if self.later < 0 or (layout.segments[i].slot, layout.segments[j].slot) == (self.later, self.earlier)
        ]
        rules = []
        for layer in range(engine.layers):
            here = self.band < 0 or layer * self.bands // engine.layers == self.band
            inside = meant if here else []
            rule = seen.clone()
            for i, j in inside if self.where == "but" else set(apart) - set(inside):
                rule[i, j] = False
            rules.append(rule)
        return dense_plan(layout, engine.layers, Visibility(torch.stack(rules)))

    def told(self, engine: Engine) -> dict[str, Any]:
        """Its row of the map: what is cut or open, for whom, in which layers (from 1)."""
        layers = [y for y in range(engine.layers) if self.band < 0 or y * self.bands // engine.layers == self.band]
        way = {"but": "cut here alone", "only": "open here alone"}[self.where]
        return {"way": way, "reader": self.reader, "first": layers[0] + 1, "last": layers[-1] + 1}


def raw(
    judge: Judge, prompts: Sequence[JudgePrompt], methods: Sequence[str | Method], name: str, per_question: int = 1
) -> pd.DataFrame:
    """One row an edit and method (`kvattn.judge.edits.echo`). Exits where no question can be edited."""
    found = echo(judge, prompts, methods, per_question)
    if found.empty:
        raise SystemExit(
            f"{name}: in none of {len(prompts)} questions can an earlier candidate be given a later one's final answer "
            "(a number) beside a third that states another; give more (--limit) or other questions (--data)"
        )
    return found


def means(found: pd.DataFrame, name: str) -> pd.DataFrame:
    """One row a method, in the order in which they first appear: the causal echo in nats with its 95 % interval over
    questions, and from how many."""
    table = found.groupby(["question_id", "method"], as_index=False)["value"].mean()
    out = over_questions(table).rename(columns={"value": "echo", "low": "echo_low", "high": "echo_high"})
    order = {m: i for i, m in enumerate(dict.fromkeys(found["method"]))}
    return out.sort_values("method", key=lambda c: c.map(order), ignore_index=True).assign(run=name)


def mapped(judge: Judge, prompts: Sequence[JudgePrompt], name: str, bands: int) -> pd.DataFrame:
    """One row a rule of sight, as `means`, with `Sight.told`: dense, a band cut for each reader, a band open for
    candidates, and by pairs - the edited pair, and the mean of the others - cut or open in every layer."""
    places = [("but", reader) for reader in READERS] + [("only", "candidates")]
    banded = [Sight(reader, where, band, bands) for where, reader in places for band in range(bands)]
    slots = range(max(p.n for p in prompts))
    paired = [Sight(where=w, later=b, earlier=a) for w in ("but", "only") for b in slots for a in slots if a < b]
    by_label = {m.label: m for m in (*banded, *paired)}
    found = raw(judge, prompts, ["dense", *by_label.values()], name)
    sizes = {p.id: p.n for p in prompts}
    there = [
        m not in by_label or by_label[m].later < sizes[q]
        for m, q in zip(found["method"], found["question_id"], strict=True)
    ]
    found = found[there]  # a pair that a question does not have is no pair that was cut
    shown, rows = [], {"dense": {"way": "dense", "reader": "", "first": 1, "last": judge.engine.layers}}
    for r in found.itertuples():
        m = by_label.get(str(r.method))
        line = rows["dense"] if m is None else m.told(judge.engine)
        if m is not None and m.later >= 0:
            pair = "the edited pair" if (m.later, m.earlier) == (r.later, r.earlier) else "another pair"
            line = {**line, "reader": pair}
        key = " ".join(map(str, line.values())) if m else "dense"
        rows[key] = line
        shown.append(key)
    out = means(found.assign(method=shown), name)
    return out.assign(**{c: [rows[m][c] for m in out["method"]] for c in ("way", "reader", "first", "last")})


def drawn(methods: pd.DataFrame, places: pd.DataFrame) -> go.Figure:
    """Left the echo by method, a mark a set of questions, and by pair; right the share of dense's that is left where a
    band of layers is cut or alone open, of the first set."""
    fig = theme.panels(
        1, 2, column_widths=[0.48, 0.52], horizontal_spacing=0.19, shared_yaxes=False, shared_xaxes=False
    )
    pairs = places[places["reader"].str.endswith("pair")]
    pairs = pairs.assign(
        method=pairs["reader"] + pairs["way"].map({"cut here alone": " cut", "open here alone": " alone open"})
    )
    every = pd.concat([methods, pairs], ignore_index=True)
    rows = list(dict.fromkeys(every["method"]))[::-1]
    names = list(dict.fromkeys(every["run"]))
    for i, name in enumerate(names):
        part: Any = every[every["run"] == name].rename(columns={"echo_low": "low", "echo_high": "high"})
        style = theme.series_style(i)
        fig.add_scatter(
            x=part["echo"], y=[rows.index(m) + 0.15 - 0.3 * i for m in part["method"]], mode="markers", name=name,
            error_x=theme.whiskers(part, "echo", color=style.colour),
            marker={"color": style.colour, "symbol": style.symbol, "size": 8}, text=part["method"],
            hovertemplate="%{text}: %{x:.2f} nats<extra></extra>", row=1, col=1,
        )  # fmt: skip
    fig.add_vline(x=0, line={"color": theme.NEUTRAL, "dash": "dot", "width": 1}, row=1, col=1)  # type: ignore[arg-type]
    fig.update_yaxes(tickvals=list(range(len(rows))), ticktext=rows, range=[-0.6, len(rows) - 0.4], row=1, col=1)
    fig.update_xaxes(title_text="echo, nats", row=1, col=1)
    places = places[places["run"] == names[0]]
    whole: Any = places[places["way"] == "dense"].iloc[0]
    told = whole["echo_low"] * whole["echo_high"] > 0  # of an echo that may be none there are no shares
    dense, left = (float(whole["echo"]), "share of dense's echo left") if told else (1.0, "echo, nats")
    bands: Any = places[~places["reader"].isin(["", "the edited pair", "another pair"])]
    bands = bands.assign(line=bands["way"].str.split().str[0] + " for<br>" + bands["reader"])
    lines = list(dict.fromkeys(bands["line"]))[::-1]
    spans = dict.fromkeys(f"{a}-{b}" for a, b in zip(bands["first"], bands["last"], strict=True))
    grid = [[float(e) / dense for e in bands.loc[bands["line"] == y].sort_values("first")["echo"]] for y in lines]
    fig.add_heatmap(
        z=grid, x=list(spans), y=lines, zmin=0, zmax=1, colorscale=SHARE, showscale=False, xgap=2, ygap=2,
        texttemplate="%{z:.2f}", hovertemplate="%{y}, layers %{x}: %{z:.2f}<extra></extra>", row=1, col=2,
    )  # fmt: skip
    fig.update_xaxes(title_text=f"layers: {left}", type="category", tickangle=0, row=1, col=2)
    fig.update_xaxes(showgrid=False, tickfont_size=10, col=2).update_yaxes(showgrid=False, col=2)
    fig.update_annotations(font_size=12)
    return theme.dress(
        fig, height=150 + 26 * len(rows), width=kit.TWO_COLUMNS, legend={"orientation": "h", "y": -0.2}, margin_l=190
    )


TABLE: dict[str, kit.Cell] = {
    "questions of": "run",
    "method, or what is cut of dense": lambda r: r["method"] if missing(r["way"]) else r["way"],
    "for": lambda r: "" if missing(r["reader"]) else r["reader"],
    "layers": lambda r: "" if missing(r["first"]) else f"{r['first']:.0f} to {r['last']:.0f}",
    "echo, nats": kit.ci("echo"),
    "n": "n",
}


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-judge")
    parser.add_argument("--data", action="append", help="a candidates file, or an embedded set (default: plurality)")
    parser.add_argument("--limit", type=int, default=24, help="questions of each; those without an edit count too")
    parser.add_argument(
        "--map", type=int, default=24, help="questions of the first set for the map of layers and pairs"
    )
    parser.add_argument("--bands", type=int, default=6, help="equal parts of the layers")
    parser.add_argument("--readout", default="label")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--per-question", type=int, default=1, help="edits of each question")
    args = kit.arguments(__doc__, given, parser)
    sources = args.data or ["plurality"]
    asked = kit.asked(sources, args.limit)
    judge = load(args.model, args.readout, args.dtype)
    if not 1 <= args.bands <= judge.engine.layers:
        parser.error(f"--bands is 1 to {judge.engine.layers}, the layers of {args.model}, not {args.bands}")
    methods = pd.concat(
        [means(raw(judge, p, METHODS, d, args.per_question), d) for d, p in asked.items()], ignore_index=True
    )
    [(first, prompts)] = kit.asked(sources[:1], args.map).items()
    places = mapped(judge, prompts, first, args.bands)
    caption = (
        f"Causal echo on {args.model} ({args.readout}): score of a candidate when an earlier one states "
        "its final answer, less when that one states another; minimal edits, 95 % intervals over questions. Right: the "
        f"share of it that dense keeps on {first} with sight cut, or open, in these layers alone."
    )
    frame = pd.concat([methods, places], ignore_index=True)
    kit.publish("echo", drawn(methods, places), kit.shown(frame, TABLE), args, (), frame, caption)


if __name__ == "__main__":
    main()
