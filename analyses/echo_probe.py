"""Do a candidate's tokens say that somebody before it stated the same, and does writing that into a stale cache help?

    python -m analyses.echo_probe [--model NAME --data SET --data SET --limit N --every 3]

Asks: a minimal edit lets an earlier candidate state the final answer of a later one, or an answer that nobody states.
The later one's text and slot are those of its twin, so neither tells which of the two prompts it is. Can a linear probe
tell it from the keys and values of its answer's last token, of its end and of the separator behind it, where they are
fresh (dense), computed again (tails) or stale (naive-linked reuse)? Stale tokens, and tails blind to the others, are
the same bits in both twins: what they cannot tell needs no probe, what is computed behind them may. And where the mean
difference that dense makes is added to the stale ones of whoever repeats an answer, does the echo (`analyses.echo`)
come back, and dense's choice? Probes are fitted, and layer and dose chosen, on every second question; numbers are of
the others. Found: docs/findings.md. Overturned by: a probe that tells it from stale tokens, or a mark that brings no
more of the echo than a direction drawn at random.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analyses import kit
from analyses.echo_twins import PLACES, Marked, Twins, Way, fresh, scores, twins
from analyses.restored import auc, with_interval
from kvattn import methods, stats
from kvattn.engine import sharing
from kvattn.engine.blocks import Blocks
from kvattn.judge.judge import Judge, load
from kvattn.methods import Method
from kvattn.plots import theme
from kvattn.questions.prompt import JudgePrompt
from kvattn.stats import over_questions

NAIVE = "naive-linked"
REUSE = ("tail:tokens=8", NAIVE)
SHUFFLES, SHUFFLED = 40, "its own, labels shuffled"
DOSES = (1.0, 2.0, 4.0)
CHOOSERS = 8  # questions of the first half that layer and dose are chosen on
SHARE = "share of dense's echo"
CHOICES = (NAIVE, "marked", "dense's own two tokens")  # arms whose choices are looked at, too


def probe(x: np.ndarray, said: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Scores of rows [rows, numbers] by a logistic regression fitted on these; higher where it was said before."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500)).fit(x, said).decision_function


def rows_of(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs [questions, same and other, numbers] as rows, and which of them are `same`."""
    return pairs.reshape(-1, pairs.shape[-1]), np.tile([True, False], len(pairs))


def best_layer(dense: np.ndarray, layers: Sequence[int]) -> int:
    """Of these layers (from 0) the first at which dense's answer tells it best: pairs [questions, 2, places, layers,
    numbers] in two halves, each told by the probe of the other."""
    found = []
    for layer in layers:
        x = dense[:, :, PLACES.index("answer"), layer]
        parts = [rows_of(x[i::2]) for i in (0, 1)]
        found.append(np.mean([auc(probe(*a)(b[0]), b[1]) for a, b in (parts, parts[::-1])]))
    return layers[int(np.argmax(found))]


def told(
    fit: dict[str, np.ndarray], test: dict[str, np.ndarray], other: np.ndarray | None, layers: Sequence[int], seed: int
) -> pd.DataFrame:
    """One row a method, place, layer and probe: AUC on `test`, with its 95 % interval over questions. With `SHUFFLED`
    labels the two of a pair change theirs in half of the pairs: mean and middle 95 % of so many draws.

    fit, test: by method, [questions, same and other, places, layers, numbers]
    other:     dense's of another kind of question, for a probe that was fitted there"""
    rng, found = np.random.default_rng(seed), []
    for method in fit:
        for i, place in enumerate(PLACES):
            for layer in layers:
                x, said = rows_of(fit[method][:, :, i, layer])
                by = {"its own": (x, said)}
                if method == "dense" and other is not None:
                    by["dense's of the other questions"] = rows_of(other[:, :, i, layer])
                if method != "dense":
                    by["dense's"] = rows_of(fit["dense"][:, :, i, layer])
                rows, good = rows_of(test[method][:, :, i, layer])
                questions = pd.Series(np.repeat(np.arange(len(rows) // 2), 2))
                got = {name: with_interval(probe(*known)(rows), good, questions, seed) for name, known in by.items()}
                if method == "dense":
                    halves = (rng.permutation(np.arange(len(x) // 2) % 2 == 0) for _ in range(SHUFFLES))
                    drawn = [float(auc(probe(x, said ^ np.repeat(h, 2))(rows), good)) for h in halves]
                    got[SHUFFLED] = (float(np.mean(drawn)), *map(float, np.quantile(drawn, [0.025, 0.975])))
                for name, ends in got.items():
                    row = dict(zip(("value", "value_low", "value_high"), ends, strict=True))
                    found.append({"method": method, "place": place, "layer": layer + 1, "probe": name, **row})
    return pd.DataFrame(found).assign(what="AUC", n=len(next(iter(test.values()))))


class Chosen(NamedTuple):
    """What the first half of the questions gives: dense's mean difference, and how it is added."""

    mark: np.ndarray
    best: int  # the layer that tells best, from 1
    layer: int
    dose: float


def choose(some: Sequence[Twins], dense: np.ndarray, layers: Sequence[int]) -> Chosen:
    """The mark of dense's pairs [questions, 2, places, layers, numbers], and of the best layer alone and all layers and
    of `DOSES` those whose mean echo is nearest to dense's on these questions."""
    mark = (dense[:, 0] - dense[:, 1]).mean(0)[:2]
    best = best_layer(dense, layers) + 1
    ways = [(layer, dose) for layer in (best, 0) for dose in DOSES]
    marked = [Marked("along", dose, layer, mark) for layer, dose in ways]
    means = np.mean([t.echoes(marked) for t in some], 0)
    tell = [f"layer {layer or 'all'}, dose {dose:g}: {m:.2f}" for (layer, dose), m in zip(ways, means[1:], strict=True)]
    print(f"  chosen on {len(some)}, dense {means[0]:.2f}; {'; '.join(tell)}", file=sys.stderr, flush=True)
    return Chosen(mark, best, *ways[int(np.abs(means[1:] - means[0]).argmin())])


def arms(chosen: Chosen, other: Chosen | None) -> dict[str, Method]:
    """What is compared with dense, by name. other: what was chosen on another kind of question."""

    def marked(way: Way, of: Chosen = chosen) -> Method:
        return Marked(way, of.dose, of.layer, of.mark)

    out = {NAIVE: methods.get(NAIVE), "marked": marked("along"), "dense's own two tokens": Marked("dense's own")}
    out |= {"marked, opposite sign": marked("against"), "marked, random direction": marked("random")}
    return out | ({} if other is None else {"marked by the other questions": marked("along", other)})


def judged(judge: Judge, prompt: JudgePrompt, some: dict[str, Method]) -> list[dict[str, Any]]:
    """A row a judgement of the question as it is, dense's first."""
    layout, blocks = judge.compile(prompt), Blocks(judge.engine, prompt, judge.regime)
    runs = [fresh(layout, blocks, judge.engine)]
    plans = [m.plan(layout, blocks, judge.engine) for m in some.values()]
    runs += sharing.execute(judge.engine, plans, max_batch=1)
    out = []
    for name, found in zip(("dense", *some), map(scores, runs), strict=True):
        slot = int(found.argmax())
        row = {"question_id": prompt.id, "order": prompt.order, "method": name, "choice": prompt.shown(slot).id}
        out.append({**row, "slot": slot, "scores": found})
    return out


def effects(
    names: Sequence[str], nats: np.ndarray, rows: pd.DataFrame, prompts: Sequence[JudgePrompt], seed: int
) -> Any:
    """Per arm, dense first: the echo in nats [questions, arms] and as a share of dense's; JCR of the judgements."""
    n, columns = len(nats), dict(zip(names, nats.T, strict=True))
    columns["marked less random"] = columns["marked"] - columns["marked, random direction"]
    long = [pd.DataFrame({"question_id": range(n), "method": m, "value": x}) for m, x in columns.items()]
    table = over_questions(pd.concat(long)).rename(columns={"low": "value_low", "high": "value_high"})
    drawn = nats[np.random.default_rng(seed).integers(0, n, (2000, n))].mean(1)
    shares = pd.DataFrame({"method": list(names), "value": nats.mean(0) / nats.mean(0)[0], "n": n})
    shares[["value_low", "value_high"]] = np.quantile(drawn / drawn[:, :1], [0.025, 0.975], axis=0).T
    asked = [
        dict(zip(("question_id", "candidate_ids", "texts", "corrects"), (p.id, *columns), strict=True))
        for p in prompts
        for columns in [zip(*((c.id, c.text, c.correct) for c in p.candidates), strict=True)]
    ]
    kept: Any = stats.jcr(rows, pd.DataFrame(asked), floors=())
    kept = kept.rename(columns={"jcr": "value", "low": "value_low", "high": "value_high", "questions": "n"})
    kept = kept[["method", "value", "value_low", "value_high", "chance", "n"]]
    named = {"echo, nats": table, SHARE: shares[1:], "JCR": kept}
    return pd.concat([f.assign(what=what) for what, f in named.items()], ignore_index=True)


def numbers(
    judge: Judge, asked: dict[str, Sequence[JudgePrompt]], limit: int, every: int, seed: int = 0
) -> pd.DataFrame:
    """All of it, by set: `told` and `effects` on every second question, fitted and chosen on the others."""
    reuse = [methods.get(m) for m in REUSE]
    labels = ["dense", *(m.label for m in reuse)]
    layers, tell = range(0, judge.engine.layers, every), kit.teller("echo_probe")
    found: dict[str, list[tuple[JudgePrompt, Twins]]] = {}
    fits: dict[str, dict[str, np.ndarray]] = {}
    ways: dict[str, Chosen] = {}
    for name, prompts in asked.items():
        pairs = found[name] = twins(judge, prompts, limit)
        if len(pairs) < 8:
            raise SystemExit(f"{name}: {len(pairs)} of {len(prompts)} questions have an edit; give more, or other ones")
        read, first = [], [p for _, p in pairs[::2]]
        for i, pair in enumerate(first):
            read.append((pair if i < CHOOSERS else replace(pair)).read(reuse))  # caches are kept where they serve again
            tell(f"{name}: first half", i + 1, len(first))
        fits[name] = dict(zip(labels, np.stack(read, 1), strict=True))
        ways[name] = choose(first[:CHOOSERS], fits[name]["dense"], layers)
        found[name] = [(p, replace(pair)) for p, pair in pairs[1::2]]
    out = []
    for name, pairs in found.items():
        others = [x for x in asked if x != name]
        some = arms(ways[name], ways[others[0]] if others else None)
        read, nats, rows = [], [], []
        for i, (prompt, kept) in enumerate(pairs):
            pair = replace(kept)
            read.append(pair.read(reuse))
            nats.append(pair.echoes(list(some.values())))
            rows += judged(judge, prompt, {m: some[m] for m in CHOICES})
            tell(f"{name}: second half", i + 1, len(pairs))
        test = dict(zip(labels, np.stack(read, 1), strict=True))
        probes = told(fits[name], test, fits[others[0]]["dense"] if others else None, layers, seed)
        rest = effects(("dense", *some), np.array(nats), pd.DataFrame(rows), [p for p, _ in pairs], seed)
        way = ways[name]
        out.append(pd.concat([probes, rest]).assign(run=name, best=way.best, layers=way.layer or "all", dose=way.dose))
    return pd.concat(out, ignore_index=True)


LINES = (
    ("dense", "its own"), ("dense", "dense's of the other questions"), ("dense", SHUFFLED),
    ("tail(tokens=8)", "its own"), ("tail(tokens=8)", "dense's"), (NAIVE, "its own"),
)  # fmt: skip


def drawn(frame: pd.DataFrame) -> go.Figure:
    """A row a set of questions: AUC by layer at the answer and behind the candidate, and the echo of every arm."""
    names = list(dict.fromkeys(frame["run"]))
    titles = [f"{n}: {x}" for n in names for x in ("the answer", "behind the candidate", SHARE)]
    room = {"column_widths": [0.36, 0.36, 0.28], "horizontal_spacing": 0.11, "vertical_spacing": 0.17}
    fig = theme.panels(len(names), 3, subplot_titles=titles, shared_xaxes=False, shared_yaxes=False, **room)
    for row, name in enumerate(names, 1):
        part: Any = frame[frame["run"] == name].rename(columns={"value_low": "low", "value_high": "high"})
        for col, place in ((1, "answer"), (2, "behind")):
            for i, (method, by) in enumerate(LINES):
                line = part[(part["place"] == place) & (part["method"] == method) & (part["probe"] == by)]
                theme.curve(
                    fig, line, "layer", "value", f"{method}: {by}", theme.series_style(i), ": AUC %{y:.2f}",
                    shift=0.25 * i - 0.6, showlegend=row == col == 1, where={"row": row, "col": col},
                )  # fmt: skip
            fig.update_yaxes(range=[-0.04, 1.04], row=row, col=col, title_text="AUC" if col == 1 else None)
            fig.update_xaxes(title_text="layer", row=row, col=col)
        share = part[part["what"] == SHARE][::-1]
        ends = {"array": share["high"] - share["value"], "arrayminus": share["value"] - share["low"]}
        whiskers = {"type": "data", "symmetric": False, **ends}
        fig.add_scatter(
            x=share["value"], y=["<br>".join(wrap(m, 17)) for m in share["method"]], mode="markers", error_x=whiskers,
            marker={"color": theme.NEUTRAL, "size": 8}, showlegend=False, row=row, col=3,
        )  # fmt: skip
        fig.add_vline(0, line_width=1, line_color=theme.NEUTRAL, row=row, col=3)  # type: ignore[arg-type]
    fig = theme.dress(fig, height=130 + 300 * len(names), width=2 * kit.TWO_COLUMNS - 300)
    return fig.update_layout(legend={"orientation": "h", "y": -0.1}).update_annotations(font_size=12)


TABLE: dict[str, kit.Cell] = {
    "questions of": "run",
    "what": "what",
    "method": "method",
    "where": lambda r: "" if r["what"] != "AUC" else f"{r['place']}, layer {r['layer']:.0f}",
    "probe": "probe",
    "value": kit.ci("value"),
    "chance": "chance",
    "n": "n",
}


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-judge")
    parser.add_argument("--data", action="append", help="a set of questions (default: plurality and odd-one-out)")
    parser.add_argument("--limit", type=int, default=32, help="questions of each that have an edit")
    parser.add_argument("--every", type=int, default=3, help="layers from one that is probed to the next")
    args = kit.arguments(__doc__, given, parser)
    asked = kit.asked(args.data or ["plurality", "odd-one-out"], 6 * args.limit, seed=5)
    frame = numbers(load(args.model), asked, args.limit, args.every)
    where = [f"{r}: layer {a}, dose {b:g}" for r, a, b in frame[["run", "layers", "dose"]].drop_duplicates().to_numpy()]
    caption = (
        f"Whether tokens of {args.model} tell that an earlier candidate states the same (AUC of linear probes on keys "
        "and values; twin prompts of equal text in that slot), and the echo and JCR when dense's mean difference is "
        f"added to stale answers that repeat one ({'; '.join(where)}). On questions that nothing was fitted or chosen "
        "on; 95 % intervals over questions (shuffled labels: middle 95 % of the draws)."
    )
    shown = frame[(frame["what"] != "AUC") | (frame["layer"] == frame["best"])]
    kit.publish("echo_probe", drawn(frame), kit.shown(shown, TABLE), args, (), frame, caption)


if __name__ == "__main__":
    main()
