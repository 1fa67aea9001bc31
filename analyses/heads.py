"""Which heads carry what candidates do to each other, and is it the pattern or the content that is stale?

    python -m analyses.heads [MODEL ...]

Asks: three things, on dense and naive reuse of the same prompts. (1) Break: cutting, before the softmax, the edges
between candidates at some query heads, which heads' cuts move the choice? They are ranked on one half of the
questions and tested on the other, against random sets and against sets that remove as much attention mass. (2)
Restore and break with the cache: naive reuse with the dense KV of some heads grafted in, and dense with the stale KV
of those heads. (3) Pattern or content: candidates with dense keys (so that they are looked at as in dense) and stale
values, and the other way round. Found: docs/findings.md. Overturned by: random heads that matter as much as chosen
ones; or values that repair what keys do not.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analyses import kit
from analyses.organism import across
from kvattn import questions as data
from kvattn.engine.blocks import Blocks
from kvattn.engine.capture import Wanted
from kvattn.engine.plan import KVBlock, KVPlan, Visibility, dense_plan, keep
from kvattn.judge.judge import Judge, load
from kvattn.questions import orders
from kvattn.questions.prompt import JudgePrompt
from kvattn.stats.intervals import rate_of_sums
from kvattn.text import csv

# What `--model qwen2.5-coder-1.5b-instruct-q4_k_m.gguf=gsm8k_candidates.jsonl --save` found, in most of an hour.
FURTHER = Path("figures/runs/heads-1.5b.csv")
Heads = frozenset[tuple[int, int]]


@dataclass
class Case:
    """One question: its layout, naive-linked plan, dense and stale candidate blocks, and the slot that dense picks."""

    judge: Judge
    prompt: JudgePrompt

    def __post_init__(self) -> None:
        engine, self.layout = self.judge.engine, self.judge.compile(self.prompt)
        self.blocks = Blocks(engine, self.prompt)
        dense = engine.execute([dense_plan(self.layout, engine.layers)], Wanted(), keep_cache=True)[0]
        self.dense = {s.slot: dense.block(s) for s in self.layout.each("candidate")}
        rotary = engine.rotary
        self.stale = {
            s.slot: self.blocks.execution(c).moved(self.layout.positions[s.start : s.stop], rotary)
            for s, c in self.layout.shown()
        }
        self.picked = self.pick(dense.logits)

    def pick(self, logits: Any) -> int:
        """The slot with the best score, less the judge's prior."""
        scores, _ = self.layout.scores(logits)
        return int(np.argmax(self.judge.prior.apply(scores) if self.judge.prior else scores))

    def kept(self, make: Callable[[KVBlock, KVBlock], KVBlock]) -> KVPlan:
        """Candidates kept, each made of its dense and its stale block."""
        placed = [(s, make(self.dense[s.slot], self.stale[s.slot])) for s in self.layout.each("candidate")]
        return keep(self.layout, self.judge.engine.layers, placed)

    def cut(self, heads: Iterable[tuple[int, int]]) -> KVPlan:
        """Dense, the edges between candidates cut at those query heads."""
        g = self.judge.engine.geometry
        rules = Visibility.full(self.layout).cut(across(self.layout), g.layers, g.heads, list(heads))
        return dense_plan(self.layout, g.layers, rules)


def same_picks(cases: Sequence[Case], plan: Callable[[Case], KVPlan]) -> list[bool]:
    """Whether that plan picks what dense picks, case by case; plans of equal shape run together."""
    runs = cases[0].judge.engine.execute([plan(c) for c in cases], max_batch=32)
    return [c.pick(r.logits) == c.picked for c, r in zip(cases, runs, strict=True)]


def grafted(base: KVBlock, other: KVBlock, heads: Heads) -> KVBlock:
    """`base` with keys and values of those (layer, kv head) taken from `other`."""
    keys, values = base.keys.clone(), base.values.clone()
    for layer, head in heads:
        keys[layer, head], values[layer, head] = other.keys[layer, head], other.values[layer, head]
    return replace(base, keys=keys, values=values)


def rate(hits: Sequence[bool]) -> dict[str, float]:
    """JCR with its interval; a question each."""
    x = np.asarray(hits, dtype=float)
    low, high = rate_of_sums(x, np.ones_like(x))[1:3]
    return {"jcr": x.mean(), "jcr_low": low, "jcr_high": high, "questions": len(x)}


def pattern_or_content(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Keys from one side, values from the other."""
    ways = {
        "dense keys, dense values": lambda d, s: d,
        "dense keys, stale values": lambda d, s: replace(d, values=s.values),
        "stale keys, dense values": lambda d, s: replace(s, values=d.values),
        "stale keys, stale values": lambda d, s: s,
    }
    return [
        {"what": "keys or values", "which": n, **rate(same_picks(cases, lambda c, f=f: c.kept(f)))}
        for n, f in ways.items()
    ]


def layers(cases: Sequence[Case], bands: int) -> list[dict[str, Any]]:
    """Bands of layers: dense KV grafted into naive reuse (restore), stale KV grafted into dense (break)."""
    g, rows = cases[0].judge.engine.geometry, []
    edges = np.linspace(0, g.layers, bands + 1).round().astype(int)
    for low, high in itertools.pairwise(edges):
        some = frozenset((x, h) for x in range(low, high) for h in range(g.kv_heads))
        name = f"layers {low + 1}-{high}" if high > low + 1 else f"layer {high}"

        def restored(d: KVBlock, s: KVBlock, some: Heads = some) -> KVBlock:
            return grafted(s, d, some)

        def staled(d: KVBlock, s: KVBlock, some: Heads = some) -> KVBlock:
            return grafted(d, s, some)

        restore, broken = (rate(same_picks(cases, lambda c, f=f: c.kept(f))) for f in (restored, staled))
        rows += [{"what": "dense KV into reuse", "which": name, **restore}]
        rows += [{"what": "stale KV into dense", "which": name, **broken}]
    return rows


def mass_across(case: Case) -> np.ndarray:
    """[layers, query heads], attention that the last tokens of candidates give to other candidates in dense."""
    asked = tuple(s.stop - 1 for s in case.layout.each("candidate") if s.slot)
    run = case.judge.engine.execute(
        [dense_plan(case.layout, case.judge.engine.layers)], Wanted(queries=asked), logits=False
    )[0]
    assert run.captured is not None
    names, out = case.layout.names, 0.0
    for q, token in enumerate(asked):
        own = case.layout.segments[int(case.layout.segment_of[token])].slot
        others = [i for i, n in enumerate(names) if n.startswith("candidate:") and n != f"candidate:{(own or 0) + 1}"]
        out = out + run.captured.mass[q][..., others].sum(-1)
    return (out / len(asked)).numpy()  # type: ignore[union-attr, operator]


def chosen_heads(cases: Sequence[Case], sizes: Sequence[int], draws: int, seed: int = 0) -> list[dict[str, Any]]:
    """Heads ranked on the first half by what cutting each alone loses, cut together on the second; beside sets drawn at
    random, and drawn to remove as much mass between candidates."""
    g = cases[0].judge.engine.geometry
    first, second = cases[::2], cases[1::2]
    every = [(x, h) for x in range(g.layers) for h in range(g.heads)]
    kept = {at: float(np.mean(same_picks(first, lambda c, at=at: c.cut([at])))) for at in every}
    mass = np.mean([mass_across(c) for c in first], axis=0)
    ranked = sorted(every, key=lambda at: (kept[at], -mass[at]))
    rng, rows = np.random.default_rng(seed), []
    for size in sizes:
        top = ranked[:size]
        rows.append(
            {
                "what": "heads cut",
                "which": f"the {size} chosen",
                **rate(same_picks(second, lambda c, top=top: c.cut(top))),
            }
        )
        rest = [at for at in every if at not in top]
        for name, weigh in (("random", False), ("matched on mass", True)):
            hits = []
            for _ in range(draws):
                some = [rest[i] for i in rng.permutation(len(rest))[:size]]
                if weigh:
                    some = matched(rest, mass, sum(mass[at] for at in top), rng)
                hits.append(same_picks(second, lambda c, some=some: c.cut(some)))
            rows.append({"what": "heads cut", "which": f"{size} {name}", **rate(np.mean(hits, axis=0).tolist())})
    return rows


def matched(rest: Sequence[tuple[int, int]], mass: np.ndarray, wanted: float, rng: np.random.Generator) -> list:
    """Heads drawn at random until they remove that much mass between candidates."""
    out, got = [], 0.0
    for i in rng.permutation(len(rest)):
        if got >= wanted:
            break
        out.append(rest[i])
        got += mass[rest[i]]
    return out


def study(model: str, source: str, questions: int, heldout: int, readout: str, heads: bool, bands: int) -> pd.DataFrame:
    """All rows of one judge."""
    from kvattn.judge.judge import calibrate

    judge = load(model, readout=readout)
    known = data.is_embedded(source)
    prompts = data.load(source, questions + heldout, 3) if known else data.mixed_only(data.load(source))
    prompts = orders.assign(prompts[: questions + heldout], seed=3)
    if heldout:
        judge.prior = calibrate(judge, prompts[questions:])
    cases = [Case(judge, p) for p in prompts[:questions]]
    rows = pattern_or_content(cases) + (layers(cases, bands) if bands else [])
    if heads:
        rows += chosen_heads(cases, (1, 2, 4), draws=6)
    constant = float(np.bincount([c.picked for c in cases]).max() / len(cases))
    return pd.DataFrame(rows).assign(run=Path(model).stem, constant=constant)


STUDIES: dict[str, dict[str, Any]] = {
    "organism-unsafe": {"source": "organism-max", "questions": 80, "heldout": 0, "heads": True, "bands": 6},
    "organism-safe": {"source": "organism-max", "questions": 80, "heldout": 0, "heads": True, "bands": 6},
    "smollm2-135m": {"source": "synthetic", "questions": 16, "heldout": 8, "heads": False, "bands": 5},
}


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="*", help="not used: this analysis needs models, not runs")
    parser.add_argument(
        "--model", action="append", default=[], help="MODEL=CANDIDATES.jsonl, judged by yes/no; repeatable"
    )
    parser.add_argument("--questions", type=int, default=24, help="mixed ones of each --model")
    parser.add_argument("--bands", type=int, default=0, help="bands of layers that are swapped, of each --model")
    parser.add_argument("--save", action="store_true", help=f"keep the last --model's numbers in {FURTHER}")
    args = kit.parsed(parser, given)
    frames = [study(name, readout="label", **spec) for name, spec in STUDIES.items()]
    for said in args.model:
        model, _, source = said.partition("=")
        frames.append(study(model, source, args.questions, 0, "yesno", heads=False, bands=args.bands))
        if args.save:
            FURTHER.write_text(csv(frames[-1]), encoding="utf-8")
    if not args.model and FURTHER.is_file():
        frames.append(pd.read_csv(FURTHER))
    frame = pd.concat(frames, ignore_index=True)
    frame = frame.assign(row=frame["what"] + ": " + frame["which"])
    fig = kit.forest(frame, [kit.Series("jcr", "JCR")], row="row", tick="constant", tick_label="best constant slot")
    table = kit.shown(
        frame,
        {
            "judge": "run",
            "what": "what",
            "which": "which",
            "JCR": kit.ci("jcr"),
            "best constant slot": "constant",
            "questions": "questions",
        },
    )
    caption = "JCR against dense with parts of the candidates' cache swapped, and with edges between candidates cut."
    kit.publish("heads", fig, table, args, (), frame, caption)


if __name__ == "__main__":
    main()
