"""Can a judge be taught to read candidates whose KV is reused?

    python -m analyses.repair [--judge NAME ...] [--arm NAME ...]

Asks: adapters on a few computed tokens, trained on dense's choices over slots, beside reuse with its slot offsets taken
away, the null edit's floor, blind arms of equal cost, a placebo teacher and another question's KV. Arms, questions and
measures stand in repair.yaml beside this file. Trainings and runs lie in runs/figures and go on where they stopped.
Found: docs/repair.md. Overturned by: a blind arm, the placebo or foreign KV that does as well as a seeing arm.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import yaml

from analyses import kit
from kvattn import questions as data
from kvattn import stats
from kvattn.judge.judge import load
from kvattn.plots import theme
from kvattn.questions import labels
from kvattn.questions.orders import assign
from kvattn.questions.prompt import JudgePrompt
from kvattn.study import repair
from kvattn.study.study import Study

PLAN: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
BESIDE = ("dense", "null-edit", "naive", "slot-offset", "naive-linked", "slot-offset:base=naive-linked", "tail")
GOAL, BUDGET = 0.95, 0.30


def slug(arm: str) -> str:
    """An arm's name as that of a folder."""
    return "-".join(arm.replace(",", "").lower().split())


def recipe(judge: str, arm: str) -> repair.Recipe:
    """How an arm is trained for a judge."""
    how, told = PLAN["judges"][judge], PLAN["arms"][arm]
    return repair.Recipe(**{**told, "reach": tuple(told["reach"])}, steps=how["steps"], questions=how["questions"])


def taught(name: str, arm: str, folder: Path = kit.RUNS) -> Path:
    """A judge's arm, trained as far as it is not yet."""
    source, train, out = PLAN["judges"][name]["data"], PLAN["train"], folder / f"repair-{name}-arms"
    asked = list(data.load(source, train["limit"], train["seed"]))
    told, teacher = kit.teller(f"repair-{name}"), out / "teacher.json"
    return repair.train(load(name), asked, recipe(name, arm), out / slug(arm), told, source, teacher=teacher)


def untaught(name: str, count: int, seed: int) -> list[JudgePrompt]:
    """So many questions of a judge's kind, by a seed, of which no arm was taught any."""
    source, train = PLAN["judges"][name]["data"], PLAN["train"]
    known = {repair.question_sha256(p) for p in data.load(source, train["limit"], train["seed"])}
    return [p for p in data.load(source, 2 * count, seed) if repair.question_sha256(p) not in known][:count]


def made(name: str, arms: Sequence[str], folder: Path = kit.RUNS) -> Path:
    """The run of a judge under its arms, trained and judged as far as they are not yet."""
    judge, source = load(name), PLAN["judges"][name]["data"]
    test, told = PLAN["test"], kit.teller(f"repair-{name}")
    methods = [*BESIDE, *(f"repaired:{taught(name, arm, folder)}" for arm in arms)]
    fresh = untaught(name, test["limit"] + test["heldout"], test["seed"])
    study = Study(
        judge, assign(fresh[: test["limit"]], test["seed"]), methods, heldout=fresh[test["limit"] :], capture=False,
        seed=test["seed"], source=source, extra={"repair": {k: PLAN[k] for k in ("primary", "co_primary", "kill")}},
    )  # fmt: skip
    return study.run(folder / f"repair-{name}", told)


def arm_of(method: str, arms: Sequence[str] = tuple(PLAN["arms"])) -> str:
    """The arm that a method's folder is of, or the method."""
    name, parameters = labels.read(method)
    folders = {slug(a): a for a in arms}
    return folders.get(Path(parameters[0]).name, method) if name == "repaired" else method


def numbers(run: kit.Held) -> pd.DataFrame:
    """One row a method: cost as a share of dense's, JCR raw and less own offsets with intervals and chance, accuracy,
    and for an arm what `kvattn.study.repair.verdict` says of it."""
    judged: Any = run.judgements
    share = judged.assign(share=judged.token_layers / (judged.tokens * judged.layers)).groupby("method")["share"].mean()
    table: Any = stats.jcr(judged, run.questions).rename(columns={"low": "jcr_low", "high": "jcr_high"})
    content: Any = stats.measures(judged, run.questions).set_index("method")
    content = content[["jcr_c", "jcr_c_low", "jcr_c_high", "chance_c", "p_c"]]
    right = stats.accuracy(judged, run.questions).set_index("method")["accuracy"]
    rows: list[Mapping[str, Any]] = []
    for row in table.to_dict("records"):
        method = str(row["method"])
        row |= {"share": share[method], "accuracy": right.get(method), **content.loc[method]}
        row |= {"arm": arm_of(method), "run": run.title.removeprefix("repair-")}
        if row["arm"] != method:
            found = repair.verdict(judged, run.questions, method)
            row |= {"gain": found.gain.value, "gain_low": found.gain.low, "gain_high": found.gain.high, "p": found.p}
            row |= {"deficit": found.deficit.value, "deficit_high": found.deficit.high, "at floor": found.at_floor}
        rows.append(row)
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame) -> go.Figure:
    """JCR, raw and less own offsets, against cost: a column a judge, a mark an arm; the goal as a box."""
    titles = list(dict.fromkeys(frame["run"]))
    fig = theme.panels(2, len(titles), subplot_titles=titles, horizontal_spacing=0.03, vertical_spacing=0.06)
    look: Any = {"color": "#009E73", "width": 1, "dash": "dot"}
    for (row, name), (at, title) in product(enumerate(("jcr", "jcr_c"), 1), enumerate(titles, 1)):
        for i, arm in enumerate(dict.fromkeys(frame["arm"])):
            style, part = theme.series_style(i), frame[(frame["run"] == title) & (frame["arm"] == arm)]
            ends = {"array": part[f"{name}_high"] - part[name], "arrayminus": part[name] - part[f"{name}_low"]}
            fig.add_scatter(
                x=part["share"], y=part[name], mode="markers", name=theme.inert(arm), legendgroup=arm, error_y=ends,
                showlegend=row == at == 1, marker={"color": style.colour, "symbol": style.symbol, "size": 9},
                row=row, col=at,
            )  # fmt: skip
        fig.add_shape(type="rect", x0=0, x1=BUDGET, y0=GOAL, y1=1.03, line=look, row=row, col=at)  # type: ignore[arg-type]
    fig.update_xaxes(range=[-0.03, 1.08], tickvals=[0, 0.5, 1]).update_xaxes(title_text="share of dense's cost", row=2)
    fig.update_yaxes(range=[-0.03, 1.06], dtick=0.25).update_yaxes(title_text="JCR", row=1, col=1)
    fig.update_yaxes(title_text="less own offsets", row=2, col=1)
    theme.dress(fig, "", height=740, width=kit.TWO_COLUMNS, margin_l=64)
    legend = {"orientation": "h", "y": 0, "yref": "container", "x": 0, "font": {"size": 10}}
    return fig.update_layout(legend=legend, margin_b=170, margin_t=30)


TABLE: dict[str, kit.Cell] = {
    "judge": "run",
    "arm": "arm",
    "token-layers": lambda r: f"{r['share']:.0%}",
    "JCR": kit.ci("jcr"),
    "chance": "chance",
    "less own offsets": kit.ci("jcr_c"),
    "chance there": "chance_c",
    "gain over slot-offset": kit.ci("gain"),
    "p": lambda r: "" if r.get("p") is None or r["p"] != r["p"] else f"{r['p']:.2g}",
    "at the floor": lambda r: {True: "yes", False: "no"}.get(r.get("at floor"), ""),
    "accuracy": "accuracy",
    "questions": "questions",
}


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--judge", action="append", choices=list(PLAN["judges"]), help="this judge alone; repeatable")
    parser.add_argument("--arm", action="append", choices=list(PLAN["arms"]), help="this arm alone; repeatable")
    args = kit.parsed(parser, given)
    arms = args.arm or list(PLAN["arms"])
    runs = [kit.Held(made(name, arms)) for name in args.judge or PLAN["judges"]]
    frame = pd.concat([numbers(r) for r in runs], ignore_index=True)
    caption = f"Consistency against cost under every arm; goal: {GOAL} at no more than {BUDGET:.0%} of dense (dotted)."
    kit.publish("repair", draw(frame), kit.shown(frame, TABLE), args, runs, frame, kit.warned(caption, runs))


if __name__ == "__main__":
    main()
