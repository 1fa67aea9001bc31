"""Why does reuse pick one slot, whatever the candidates say?

    python -m analyses.lock [--model NAME --data FILE --limit N]

Asks: all candidates of a question say the same, so that nothing but their place tells them apart. How far is each
slot's score from their mean under dense and under naive-linked reuse, and does the difference come with the keys or
with the values of the candidates (dense keys with stale values, and the other way round)? What do heads write straight
into the score of the slot that reuse lifts most, less the mean of the others, and from which part of the prompt do they
bring it; how much is left to what they write into later layers? The slot is chosen on one half of the questions, and
reported on the other. Found: docs/findings.md. Overturned by: offsets that dense has as well, or another share of keys
and values on another judge that reads.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses import kit
from analyses.heads import Case
from kvattn import questions as data
from kvattn.engine import readings
from kvattn.engine.capture import Wanted
from kvattn.engine.plan import KVPlan, dense_plan
from kvattn.judge.inside import by_slot
from kvattn.judge.judge import Judge, load
from kvattn.plots import theme
from kvattn.questions.prompt import JudgePrompt
from kvattn.stats import over_questions

WAYS = {
    "dense": None,
    "all stale": lambda d, s: s,
    "values stale": lambda d, s: replace(d, values=s.values),
    "keys stale": lambda d, s: replace(s, values=d.values),
}
SOURCES = {"header": "headers", "separator": "headers", "suffix": "what follows"}
ROWS = (
    *("headers", "what follows", "prefix and question", "its candidate", "other candidates"),
    *("all heads", "all else", "score"),
)


def content_free(prompt: JudgePrompt) -> JudgePrompt:
    """The prompt with the text that is shown first in every slot."""
    text = prompt.shown(0).text
    return replace(
        prompt,
        candidates=tuple(replace(c, text=text, correct=None, token_ids=None) for c in prompt.candidates),
    )


def plans(case: Case) -> dict[str, KVPlan]:
    """By way, the plan of the case."""
    engine = case.judge.engine
    return {w: dense_plan(case.layout, engine.layers) if m is None else case.kept(m) for w, m in WAYS.items()}


def offsets(cases: Sequence[Case]) -> pd.DataFrame:
    """One row a question, way and slot (from 1): value, the slot's score less the mean of the slots, nats."""
    rows = []
    for case in cases:
        made = plans(case)
        for way, run in zip(made, case.judge.engine.execute(list(made.values())), strict=True):
            scores, _ = case.layout.scores(run.logits)
            lead = np.asarray(scores, dtype=float) - np.mean(scores)
            rows += [
                {"question_id": case.prompt.id, "way": way, "slot": slot + 1, "value": float(value)}
                for slot, value in enumerate(lead)
            ]
    return pd.DataFrame(rows)


def written(cases: Sequence[Case], slot: int) -> pd.DataFrame:
    """One row a question, way and source: value, what the heads bring from there straight into the logit of the slot's
    label less the mean of the others' ("all heads": their sum; "all else": the rest of the logit)."""
    rows = []
    for case in cases:
        engine, layout = case.judge.engine, case.layout
        names = [_source(s.role, s.slot, slot) for s in layout.segments]
        for way in ("dense", "all stale"):
            got = engine.execute([plans(case)[way]], Wanted(residual=True, moved=True))[0].captured
            assert got is not None
            parts = _lead(by_slot(readings.attribution(engine, got, layout.answer_ids), layout).numpy(), slot)
            whole = float(
                _lead(by_slot(readings.logit_lens(engine, got, layout.answer_ids)[:, -1], layout).numpy(), slot)
            )
            by_source = pd.Series(parts.sum((0, 1))).groupby(names).sum()
            found = {
                **by_source,
                "all heads": by_source.sum(),
                "all else": whole - by_source.sum(),
                "score": whole,
            }
            rows += [
                {"question_id": case.prompt.id, "way": way, "source": n, "value": float(v)} for n, v in found.items()
            ]
    return pd.DataFrame(rows)


def _source(role: str, own: int | None, slot: int) -> str:
    if role == "candidate":
        return "its candidate" if own == slot else "other candidates"
    return SOURCES.get(role, "prefix and question")


def _lead(of_slots: np.ndarray, slot: int) -> np.ndarray:
    """[..., slots] to the slot's value less the mean of the others'."""
    return of_slots[..., slot] - np.delete(of_slots, slot, -1).mean(-1)


def numbers(judge: Judge, prompts: Sequence[JudgePrompt]) -> pd.DataFrame:
    """One row for each way and slot, and for each way and source of the lifted slot, means with 95 % intervals over the
    half of the questions on which that slot was not chosen."""
    cases = [Case(judge, content_free(p)) for p in prompts]
    half = len(cases) // 2
    first = offsets(cases[:half]).groupby(["way", "slot"])["value"].mean()
    lifted = int((first["all stale"] - first["dense"]).idxmax())
    slots = over_questions(offsets(cases[half:]))
    sources = over_questions(written(cases[half:], lifted - 1)).assign(slot=lifted)
    both = pd.concat([slots, sources], ignore_index=True).assign(lifted=lifted)
    for column, order in (("way", WAYS), ("source", ROWS)):
        both[column] = pd.Categorical(both[column], list(order))
    both = both.sort_values(["source", "way", "slot"], na_position="first", ignore_index=True)
    return both.astype({"way": object, "source": object})


def drawn(frame: pd.DataFrame) -> go.Figure:
    """Left the offset of each slot by way; right what is written into the lifted slot's score, by source."""
    fig = theme.panels(1, 2, column_widths=[0.5, 0.5], horizontal_spacing=0.22, shared_yaxes=False, shared_xaxes=False)
    slots: Any = frame[frame["source"].isna()]
    for i, way in enumerate(WAYS):
        part = slots[slots["way"] == way]
        theme.curve(
            fig, part, "slot", "value", way, theme.series_style(i), ": %{y:.2f} nats", shift=0.06 * i - 0.1,
            where={"row": 1, "col": 1},
        )  # fmt: skip
    fig.update_xaxes(title_text="slot", **theme.slot_axis(sorted(slots["slot"].unique())), row=1, col=1)
    fig.update_yaxes(title_text="score less the slots' mean, nats", row=1, col=1)
    sources: Any = frame[frame["source"].notna()]
    names = [n for n in ROWS if n in set(sources["source"])][::-1]
    for way in ("dense", "all stale"):
        i = list(WAYS).index(way)
        part, style = sources[sources["way"] == way], theme.series_style(i)
        fig.add_scatter(
            x=part["value"], y=[names.index(s) + 0.12 - 0.24 * (way != "dense") for s in part["source"]],
            mode="markers", showlegend=False, error_x=theme.whiskers(part, "value", color=style.colour),
            marker={"color": style.colour, "symbol": style.symbol, "size": 8},
            hovertemplate="%{x:.2f} nats<extra></extra>", row=1, col=2,
        )  # fmt: skip
    fig.add_vline(x=0, line={"color": theme.NEUTRAL, "dash": "dot", "width": 1}, row=1, col=2)  # type: ignore[arg-type]
    fig.update_yaxes(tickvals=list(range(len(names))), ticktext=names, row=1, col=2)
    fig.update_xaxes(title_text=f"written into slot {frame['lifted'].iloc[0]}'s lead, nats", row=1, col=2)
    return theme.dress(fig, height=380, width=kit.TWO_COLUMNS, legend={"orientation": "h", "y": -0.2})


TABLE: dict[str, kit.Cell] = {
    "candidates' KV": "way",
    "slot": "slot",
    "written from": lambda r: r["source"] if isinstance(r["source"], str) else "",
    "nats": lambda r: kit.ci("value")({"value": r["value"], "value_low": r["low"], "value_high": r["high"]}),
    "n": "n",
}


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-judge")
    parser.add_argument("--data", default="odd-one-out", help="a candidates file, or an embedded set")
    parser.add_argument("--limit", type=int, default=48, help="questions, half of them to choose the slot on")
    args = kit.arguments(__doc__, given, parser)
    prompts = list(data.load(args.data, limit=args.limit))
    if len(prompts) < 4:
        parser.error(f"{args.data} has {len(prompts)} questions; give 4 or more, half of them choose the slot")
    frame = numbers(load(args.model), prompts)
    caption = (
        f"{args.model}, all candidates of a question saying the same ({args.data}): scores by slot under dense and "
        "naive-linked reuse with stale keys, values or both, and what heads write straight into the lifted slot's "
        "score less the others'; 95 % intervals over questions."
    )
    kit.publish("lock", drawn(frame), kit.shown(frame, TABLE), args, (), frame, caption)


if __name__ == "__main__":
    main()
