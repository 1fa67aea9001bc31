"""In which layers, and by which tokens, do candidates take each other's answers?

    python -m analyses.echo_map [--model NAME --data FILE --data FILE --limit N --bands 10]

Asks: the causal echo (`analyses.echo`) under dense, with the sight of candidates cut in one band of layers, from one
on, up to one, or open in one alone; for the tokens of other candidates, for the headers and separators between them,
and for what stands behind them all. Where a cut takes the echo away, it travels there. Found: docs/findings.md.
Overturned by: another band on another judge that reads.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch

from analyses import kit
from analyses.echo import measured
from kvattn import questions as data
from kvattn.engine.blocks import Blocks
from kvattn.engine.engine import Engine
from kvattn.engine.layout import PromptLayout
from kvattn.engine.plan import KVPlan, Visibility, dense_plan
from kvattn.judge.judge import Judge, load
from kvattn.methods import Method
from kvattn.plots import theme
from kvattn.questions.prompt import JudgePrompt

READERS = {"candidates": ("candidate",), "headers": ("header", "separator"), "what follows": ("suffix", "branch")}
WAYS = (
    *(("cut here alone", reader) for reader in READERS),
    ("cut up to here", "candidates"),
    ("cut from here on", "candidates"),
    ("open here alone", "candidates"),
)


@dataclass(frozen=True)
class Sight(Method):
    """Dense, with the readers blind in some layers to the candidates of other slots (what follows: to all).

    way, reader: of `WAYS`; band: from 0, of `bands` equal parts of the layers
    """

    way: str = "cut here alone"
    reader: str = "candidates"
    band: int = 0
    bands: int = 10

    name = "sight"
    source = "control"

    def plan(self, layout: PromptLayout, blocks: Blocks, engine: Engine) -> KVPlan:
        """Dense's plan under a rule of its own at every layer."""
        seen = Visibility.full(layout).allowed
        blind = seen.clone()
        for i, a in enumerate(layout.segments):
            for j, b in enumerate(layout.segments):
                if a.role in READERS[self.reader] and b.role == "candidate" and a.slot != b.slot:
                    blind[i, j] = False
        bands = [layer * self.bands // engine.layers for layer in range(engine.layers)]
        cut = {
            "cut here alone": lambda x: x == self.band,
            "cut up to here": lambda x: x <= self.band,
            "cut from here on": lambda x: x >= self.band,
            "open here alone": lambda x: x != self.band,
        }[self.way]
        return dense_plan(layout, engine.layers, Visibility(torch.stack([blind if cut(x) else seen for x in bands])))


def numbers(judge: Judge, prompts: Sequence[JudgePrompt], name: str, bands: int) -> pd.DataFrame:
    """One row a way, reader and band: the echo in nats with its 95 % interval over questions, dense's among them."""
    methods = {m.label: m for way, reader in WAYS for m in (Sight(way, reader, band, bands) for band in range(bands))}
    out = measured(judge, prompts, ["dense", *methods.values()], name)
    told = [methods.get(label) for label in out["method"]]
    layers = judge.engine.layers
    ends = [[y for y in range(layers) if m and y * bands // layers == m.band] for m in told]
    return out.assign(
        way=[m.way if m else "dense" for m in told],
        reader=[m.reader if m else "" for m in told],
        first=[e[0] + 1 if e else 1 for e in ends],
        last=[e[-1] + 1 if e else layers for e in ends],
    ).sort_values(["way", "reader", "first"], ignore_index=True)


def drawn(frame: pd.DataFrame) -> go.Figure:
    """A panel a set of questions, a line a way: the echo against the layers that are cut or open."""
    names = list(dict.fromkeys(frame["run"]))
    fig = theme.panels(1, len(names), subplot_titles=names, horizontal_spacing=0.04, shared_yaxes=False)
    for col, name in enumerate(names, 1):
        part: Any = frame[frame["run"] == name]
        for i, (way, reader) in enumerate(WAYS):
            line = part[(part["way"] == way) & (part["reader"] == reader)].sort_values("first")
            line = line.rename(columns={"echo_low": "low", "echo_high": "high"})
            line = line.assign(layer=(line["first"] + line["last"]) / 2)
            theme.curve(
                fig, line, "layer", "echo", f"{way}: {reader}", theme.series_style(i), ": %{y:.2f} nats",
                shift=0.2 * i - 0.5, showlegend=col == 1, where={"row": 1, "col": col},
            )  # fmt: skip
        dense = float(part.loc[part["way"] == "dense", "echo"].iloc[0])
        fig.add_hline(dense, line_dash="dot", line_color=theme.NEUTRAL, row=1, col=col)  # type: ignore[arg-type]
    fig.update_xaxes(title_text="layer").update_yaxes(title_text="echo, nats", col=1)
    return theme.dress(fig, height=430, width=kit.TWO_COLUMNS, legend={"orientation": "h", "y": -0.2})


TABLE: dict[str, kit.Cell] = {
    "questions of": "run",
    "what": "way",
    "for": "reader",
    "layers": lambda r: f"{r['first']} to {r['last']}",
    "echo, nats": kit.ci("echo"),
    "n": "n",
}


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-judge")
    parser.add_argument("--data", action="append", help="a candidates file, or an embedded set (default: plurality)")
    parser.add_argument("--limit", type=int, default=24, help="questions of each; those without an edit count too")
    parser.add_argument("--bands", type=int, default=10, help="equal parts of the layers")
    args = kit.arguments(__doc__, given, parser)
    judge = load(args.model)
    if not 1 <= args.bands <= judge.engine.layers:
        parser.error(f"--bands is 1 to {judge.engine.layers}, the layers of {args.model}, not {args.bands}")
    asked = {d: list(data.load(d, limit=args.limit)) for d in args.data or ["plurality"]}
    frame = pd.concat([numbers(judge, p, Path(d).stem, args.bands) for d, p in asked.items()], ignore_index=True)
    caption = (
        f"Causal echo on {args.model} under dense, with the sight of other slots' candidates cut in some layers: "
        "minimal edits, 95 % intervals over questions."
    )
    kit.publish("echo_map", drawn(frame), kit.shown(frame, TABLE), args, (), frame, caption)


if __name__ == "__main__":
    main()
