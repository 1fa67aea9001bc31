"""Measure the model organisms and draw figures/organism/: `python analyses/organism.py --out figures/organism`.

Every number is a share of problems with a Wilson interval; every figure carries the best-constant baseline. The CSV
files hold what the figures show.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Int
from statsmodels.stats.proportion import proportion_confint
from torch import Tensor

import kvattn
from analyses.organism_tasks import TASKS
from kvattn import methods
from kvattn.engine.blocks import Blocks
from kvattn.engine.capture import Wanted
from kvattn.engine.layout import PromptLayout
from kvattn.engine.plan import KVPlan, Visibility, dense_plan, keep
from kvattn.questions.organism import ALIASES
from kvattn.questions.prompt import JudgePrompt
from kvattn.text import csv

METHODS = (
    "dense",
    "true-mask",
    "isolated",
    "isolated:labelled=false",
    "naive-linked:headers=isolated",
    "naive-linked",
    "foreign-kv",
)


@dataclass
class Bench:
    """One organism with its problems; plans are run in batches over problems."""

    name: str
    judge: kvattn.judge.judge.Judge  # type: ignore[name-defined]
    prompts: list[JudgePrompt]

    @cached_property
    def layouts(self) -> list[PromptLayout]:
        """One layout a problem."""
        return [self.judge.compile(p) for p in self.prompts]

    @cached_property
    def blocks(self) -> list[Blocks]:
        """Blocks of every problem; foreign ones come from the next problem."""
        donors = [*self.prompts[1:], self.prompts[0]]
        return [Blocks(self.judge.engine, p, "parallel", d) for p, d in zip(self.prompts, donors, strict=True)]

    @cached_property
    def truth(self) -> Int[Tensor, " problems"]:
        """Slot of the right candidate."""
        return torch.tensor([next(s for s in range(p.n) if p.shown(s).correct) for p in self.prompts])

    @cached_property
    def dense(self) -> Int[Tensor, " problems"]:
        """Slots chosen under dense prefill."""
        return self.choices(self.plans(lambda x, b: dense_plan(x, self.layers)))[0]

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.judge.engine.layers

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.judge.engine.geometry.heads

    def plans(self, make: Callable[[PromptLayout, Blocks], KVPlan]) -> list[KVPlan]:
        """One plan a problem."""
        return [make(x, b) for x, b in zip(self.layouts, self.blocks, strict=True)]

    def method(self, spec: str) -> list[KVPlan]:
        """One plan a problem, by a method of the zoo."""
        m = methods.get(spec)
        return self.plans(lambda x, b: m.plan(x, b, self.judge.engine))

    def choices(self, plans: Sequence[KVPlan]) -> tuple[Int[Tensor, " problems"], float]:
        """Slots chosen, and the mean label coverage."""
        runs = self.judge.engine.execute(plans, max_batch=50)
        read = [r.plan.layout.scores(r.logits) for r in runs]
        return torch.tensor([int(s.argmax()) for s, _ in read]), sum(c for _, c in read) / len(read)

    def row(self, plans: Sequence[KVPlan], **facts) -> dict:
        """Accuracy and JCR of plans, with 95 % Wilson intervals, the best constant answer's shares and the cost."""
        chosen, coverage = self.choices(plans)
        n = len(chosen)
        out = {"organism": self.name, **facts, "n": n}
        for label, reference in (("accuracy", self.truth), ("jcr", self.dense)):
            hits = int((chosen == reference).sum())
            low, high = proportion_confint(hits, n, method="wilson")
            constant = int(torch.bincount(reference).max()) / n
            out |= {label: hits / n, f"{label}_low": low, f"{label}_high": high, f"{label}_constant": constant}
        share = sum(p.token_layers for p in plans) / sum(len(p.layout) * p.layers for p in plans)
        return {**out, "coverage": coverage, "share": share}


def across(layout: PromptLayout) -> list[tuple[int, int]]:
    """Edges (from, to) between headers and candidates of different slots."""
    s = layout.segments
    return [
        (a, b)
        for a in range(len(s))
        for b in range(len(s))
        if s[a].slot is not None and s[b].slot is not None and s[a].slot > s[b].slot  # type: ignore[operator]
    ]


def zoo(bench: Bench) -> pd.DataFrame:
    """Accuracy and JCR by method."""
    return pd.DataFrame([bench.row(bench.method(m), method=methods.get(m).label) for m in METHODS])


def swapped(bench: Bench) -> pd.DataFrame:
    """Everything dense, except that the candidates of some slots are stale: one slot, or slots 1 to k."""
    sets = {f"slot {k + 1} alone": [k] for k in range(4)} | {
        f"slots 1 to {k + 1}": list(range(k + 1)) for k in (1, 2, 3)
    }

    def plan(slots: list[int]):
        return lambda x, b: keep(
            x,
            bench.layers,
            [(s, b.execution(x.candidates[s.slot])) for s in x.each("candidate") if s.slot in slots],
        )

    return pd.DataFrame([bench.row(bench.plans(plan(slots)), stale=name) for name, slots in sets.items()])


def recomputed(bench: Bench) -> pd.DataFrame:
    """Naive reuse with more and more candidate tokens recomputed, by four ways of choosing them."""
    base = bench.method("naive-linked")
    length = next(bench.layouts[0].each("candidate")).length

    def chosen(x: PromptLayout, way: str, count: int, seed: int) -> Bool[Tensor, " tokens"]:
        out = torch.zeros(len(x), dtype=torch.bool)
        rng = torch.Generator().manual_seed(seed)
        for s in x.each("candidate"):
            span = torch.arange(s.start, s.stop)
            if way == "last tokens of every candidate":
                out[span[len(span) - count :]] = True
            elif way == "random tokens of every candidate":
                out[span[torch.randperm(len(span), generator=rng)[:count]]] = True
            elif way == "whole candidates, first slots first":
                out[span] = s.slot < count  # type: ignore[operator]
            else:
                out[span] = s.slot >= x.slots - count  # type: ignore[operator]
        return out

    rows = []
    for way, top in (
        ("last tokens of every candidate", length),
        ("random tokens of every candidate", length),
        ("whole candidates, first slots first", 4),
        ("whole candidates, last slots first", 4),
    ):
        for count in range(top + 1):
            plans = [p.recompute(chosen(p.layout, way, count, i)) for i, p in enumerate(base)]
            rows.append(bench.row(plans, way=way, recomputed=count / top))
    return pd.DataFrame(rows)


def cuts(bench: Bench) -> pd.DataFrame:
    """Dense, with the edges between candidates (and headers) cut at one (layer, head)."""
    rows = []
    for layer in range(bench.layers):
        for head in range(bench.heads):
            plans = bench.plans(lambda x, b, at=(layer, head): dense_plan(x, bench.layers, _cut(bench, x, [at])))
            rows.append(bench.row(plans, layer=layer + 1, head=head + 1))
    return pd.DataFrame(rows)


def _cut(bench: Bench, layout: PromptLayout, where: list[tuple[int, int]]) -> Visibility:
    return Visibility.full(layout).cut(across(layout), bench.layers, bench.heads, where)


def restored(bench: Bench) -> pd.DataFrame:
    """Edges between candidates cut at some layers: one, all but one, from one on, up to one."""
    every = range(bench.layers)
    sets = {
        "cut at this layer alone": lambda x: [x],
        "open at this layer alone": lambda x: [y for y in every if y != x],
        "cut from this layer on": lambda x: [y for y in every if y >= x],
        "cut up to this layer": lambda x: [y for y in every if y <= x],
    }
    rows = []
    for way, layers in sets.items():
        for layer in every:
            where = [(y, h) for y in layers(layer) for h in range(bench.heads)]
            plans = bench.plans(lambda x, b, at=where: dense_plan(x, bench.layers, _cut(bench, x, at)))
            rows.append(bench.row(plans, way=way, layer=layer + 1))
    return pd.DataFrame(rows)


def masses(bench: Bench, count: int = 100) -> pd.DataFrame:
    """Mean slot mass of the decision row, by method, layer, head and segment."""
    small = replace(bench, prompts=bench.prompts[:count])
    rows = []
    for spec in ("dense", "true-mask", "naive-linked"):
        runs = bench.judge.engine.execute(small.method(spec), Wanted(), max_batch=50)
        mean = torch.stack([r.captured.mass[0] for r in runs]).mean(0)  # type: ignore[union-attr]
        for layer in range(bench.layers):
            for head in range(bench.heads):
                for i, name in enumerate(runs[0].plan.layout.names):
                    mass = float(mean[layer, head, i])
                    rows.append((bench.name, spec, layer + 1, head + 1, name, mass))
    return pd.DataFrame(rows, columns=["organism", "method", "layer", "head", "segment", "mass"])


def drift(bench: Bench, count: int = 100) -> pd.DataFrame:
    """How far kept candidates are from what dense computes in their place: |stale - dense| / |dense| over a slot."""
    small = replace(bench, prompts=bench.prompts[:count])
    fresh = bench.judge.engine.execute(small.method("dense"), keep_cache=True, logits=False, max_batch=50)
    stale = bench.judge.engine.execute(small.method("naive-linked"), keep_cache=True, logits=False, max_batch=50)
    rows = []
    for s in small.layouts[0].each("candidate"):
        for layer in range(bench.layers):
            for kind in ("keys", "values"):
                away, size = 0.0, 0.0
                for f, g, x in zip(fresh, stale, small.layouts, strict=True):
                    span = x.find("candidate", s.slot)
                    a = getattr(f, kind)[layer, :, span.start : span.stop]
                    b = getattr(g, kind)[layer, :, span.start : span.stop]
                    away, size = away + float((a - b).square().sum()), size + float(a.square().sum())
                rows.append((bench.name, kind, layer + 1, s.slot + 1, (away / size) ** 0.5))  # type: ignore[operator]
    return pd.DataFrame(rows, columns=["organism", "kind", "layer", "slot", "drift"])


def decodable(bench: Bench, count: int = 400) -> pd.DataFrame:
    """How often a candidate's own content is read off its stale keys and values by a linear probe (ridge regression
    onto the words it may hold, three quarters of the candidates for fitting, the rest for the number given)."""
    small = replace(bench, prompts=bench.prompts[:count])
    blocks = [b.execution(c.id) for b in small.blocks for c in b.prompt.candidates]
    content = torch.stack([b.token_ids for b in blocks])
    words = content.unique()
    filler = torch.isin(
        words, torch.tensor(bench.judge.engine.compiler.text(" ".join(kvattn.questions.organism.words.FILLERS)))
    )  # type: ignore[attr-defined]
    held = (content[:, :, None] == words[~filler]).any(1).float()
    split, rows = len(blocks) * 3 // 4, []
    for layer in range(bench.layers):
        x = torch.stack([torch.cat([b.keys[layer].flatten(), b.values[layer].flatten()]) for b in blocks])
        x = torch.cat([(x - x[:split].mean(0)) / (x[:split].std(0) + 1e-6), torch.ones(len(x), 1)], 1)
        gram = x[:split].T @ x[:split] + 30.0 * torch.eye(x.shape[1])
        guess = x[split:] @ torch.linalg.solve(gram, x[:split].T @ held[:split])
        k = int(held[0].sum())
        top = torch.zeros_like(guess).scatter(1, guess.topk(k, 1).indices, 1.0)
        right = float((top * held[split:]).sum() / held[split:].sum())
        chance = float(held[:split].mean(0).topk(k).values.sum() / k)
        rows.append((bench.name, layer + 1, len(blocks) - split, right, chance))
    return pd.DataFrame(rows, columns=["organism", "layer", "n", "decoded", "constant"])


STUDIES: dict[str, Callable[[Bench], pd.DataFrame]] = {
    "methods": zoo,
    "stale_slots": swapped,
    "recomputed": recomputed,
    "cuts": cuts,
    "layers": restored,
    "mass": masses,
    "drift": drift,
    "decodable": decodable,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the model organisms.")
    parser.add_argument("organisms", nargs="*", default=["organism-unsafe", "organism-safe"])
    parser.add_argument("--out", type=Path, default=Path("figures/organism"))
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--studies", default=",".join(STUDIES))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    benches = []
    for item in args.organisms:  # NAME, or NAME=FOLDER for weights that do not ship
        name, _, folder = item.partition("=")
        benches.append(
            Bench(name, kvattn.load(folder or name), TASKS[ALIASES.get(name, name)].problems(args.problems, args.seed))
        )
    for study in args.studies.split(","):
        table = pd.concat([STUDIES[study](b) for b in benches], ignore_index=True)
        (args.out / f"{study}.csv").write_text(csv(table.round(5)), encoding="utf-8")
        print(f"-- {study}\n{table.round(3).to_string(index=False, max_rows=60)}", flush=True)


if __name__ == "__main__":
    main()
