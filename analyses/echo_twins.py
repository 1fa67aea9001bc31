"""The two prompts of a minimal edit, what a cache holds of the later candidate in both, and marks on a stale cache.

The parts of `analyses.echo_probe`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kvattn.engine import sharing
from kvattn.engine.blocks import Blocks
from kvattn.engine.engine import Engine
from kvattn.engine.execution import Execution
from kvattn.engine.layout import PromptLayout
from kvattn.engine.plan import KVBlock, KVPlan, dense_plan, keep
from kvattn.judge.edits import Edit, minimal_edits
from kvattn.judge.judge import Judge
from kvattn.methods import Method
from kvattn.questions.answers import final_answer
from kvattn.questions.prompt import JudgePrompt

PLACES = ("answer", "end", "behind")
Way = Literal["along", "against", "random", "dense's own"]


def tokens(engine: Engine, layout: PromptLayout, slot: int) -> tuple[int, int, int]:
    """Where a slot's `PLACES` are: the last token with a digit (else the next), its last, that of what is behind."""
    s, behind = layout.find("candidate", slot), layout.find("separator", slot)
    texts = [engine.tokenizer.decode([t]) for t in layout.token_ids[s.start : s.stop].tolist()]
    answer = max((i for i, text in enumerate(texts) if any(x.isdigit() for x in text)), default=s.length - 1)
    return s.start + answer, s.stop - 1, behind.stop - 1


def repeating(texts: Sequence[str], template: str) -> list[bool]:
    """Which texts, in the order in which they are shown, state what an earlier one states."""
    said = [final_answer(t, template) for t in texts]
    return [a is not None and a in said[:i] for i, a in enumerate(said)]


def twins(judge: Judge, prompts: Sequence[JudgePrompt], limit: int) -> list[tuple[JudgePrompt, Twins]]:
    """The first questions with an edit after which the later candidate repeats an earlier one in `same` and nobody in
    `other`, both of as many tokens; with the question as it was."""
    found = []
    for prompt in prompts:
        for edit in minimal_edits(prompt):
            said = [repeating([p.shown(s).text for s in range(p.n)], p.template.name) for p in edit[2:4]]
            pair = Twins(judge, edit)
            if [x[edit.later] for x in said] == [True, False] and len({len(x) for x in pair.layouts}) == 1:
                found.append((prompt, pair))
                break
        if len(found) == limit:
            break
    return found


@dataclass
class Twins:
    """The two prompts of an edit, and their blocks."""

    judge: Judge
    edit: Edit

    @cached_property
    def layouts(self) -> list[PromptLayout]:
        """Of `same` and `other`."""
        return [self.judge.compile(p) for p in self.edit[2:4]]

    @cached_property
    def blocks(self) -> list[Blocks]:
        """Of `same` and `other`."""
        return [Blocks(self.judge.engine, p, self.judge.regime) for p in self.edit[2:4]]

    def _runs(self, some: Sequence[Method], layouts: Sequence[PromptLayout], keeps: bool) -> list[list[Execution]]:
        """By method, `same` and `other`. They share no pass: then equal tokens are equal to the last bit."""
        engine, out = self.judge.engine, []
        for layout, blocks in zip(layouts, self.blocks, strict=True):
            plans = [m.plan(layout, blocks, engine) for m in some]
            out.append(sharing.execute(engine, plans, keep_cache=keeps, max_batch=1))
        return [list(pair) for pair in zip(*out, strict=True)]

    @property
    def dense(self) -> list[Execution]:
        """Both, judged densely."""
        return [fresh(x, b, self.judge.engine) for x, b in zip(self.layouts, self.blocks, strict=True)]

    def read(self, some: Sequence[Method]) -> np.ndarray:
        """[dense and methods, same and other, places, layers, keys and values], of the later candidate; keys are turned
        to position 0. What stands behind it cannot change them, and is left out where the separator is computed."""
        behind = self.layouts[0].find("separator", self.edit.later)
        stop = behind.stop if behind.length else len(self.layouts[0])
        cut = [x.select(lambda s: s.stop <= stop) for x in self.layouts]
        engine, at = self.judge.engine, [tokens(self.judge.engine, x, self.edit.later) for x in cut]
        pairs = [self.dense, *self._runs(some, cut, True)]
        return np.stack([[[token(r, i, engine) for i in p] for r, p in zip(x, at, strict=True)] for x in pairs])

    def echoes(self, some: Sequence[Method]) -> list[float]:
        """The causal echo under dense and each method, in nats (`kvattn.judge.edits.echo`)."""
        out, apart = [], list(self.edit.apart)
        for pair in [self.dense, *self._runs(some, self.layouts, False)]:
            same, other = (x[self.edit.later] - x[apart].mean() for x in map(scores, pair))
            out.append(float(same - other))
        return out


def scores(run: Execution) -> np.ndarray:
    """Of every slot."""
    assert run.logits is not None
    return run.plan.layout.scores(run.logits)[0]


def fresh(layout: PromptLayout, blocks: Blocks, engine: Engine) -> Execution:
    """Dense's judgement with its cache, made once."""
    key = ("fresh", layout.candidates)
    if key not in blocks.memo:
        blocks.memo[key] = engine.execute([dense_plan(layout, engine.layers)], keep_cache=True)[0]
    return blocks.memo[key]


def token(run: Execution, at: int, engine: Engine) -> np.ndarray:
    """[layers, keys and values] of one token, keys turned to position 0."""
    block = run.span(at, at + 1).moved(torch.zeros(1, dtype=torch.long), engine.rotary)
    return torch.cat([block.keys.flatten(1), block.values.flatten(1)], 1).float().numpy()


@dataclass(frozen=True)
class Marked(Method):
    """Naive-linked reuse with something added to the cache, at the last token of the answer and that of the candidate.

    Parameters
    ----------
    way : "along" adds the mark to every candidate that states what an earlier one states, "against" subtracts it,
        "random" adds as much in a direction that is drawn for each question; "dense's own" puts what dense has at these
        two tokens of every candidate.
    dose : how often the mark is added.
    layer : at this layer alone, from 1; 0: at all.
    """

    way: Way = "along"
    dose: float = 1.0
    layer: int = 0
    mark: np.ndarray | None = field(default=None, compare=False, repr=False)  # [two places, layers, keys and values]

    name = "marked"
    source = "control"

    def plan(self, layout: PromptLayout, blocks: Blocks, engine: Engine) -> KVPlan:
        texts = {c.id: c.text for c in blocks.prompt.candidates}
        again = repeating([texts[c] for c in layout.candidates], blocks.prompt.template.name)
        dense = fresh(layout, blocks, engine) if self.way == "dense's own" else None
        placed = []
        for (s, candidate), repeats in zip(layout.shown(), again, strict=True):
            there = layout.positions[s.start : s.stop]
            block = blocks.execution(candidate).moved(there, engine.rotary)
            answer, end, _ = tokens(engine, layout, s.slot or 0)
            at = torch.tensor([answer, end] if answer < end else [end]) - s.start
            if dense is not None or repeats:
                own = None if dense is None else dense.block(s)
                more = self._added(block, own, at, there, engine, blocks.prompt.id)
                block = replace(block.corrected(*more), source=f"{block.source}, {self.way}")
            placed.append((s, block))
        return keep(layout, engine.layers, placed)

    def _added(
        self, block: KVBlock, own: KVBlock | None, at: Tensor, there: Tensor, engine: Engine, question: str
    ) -> list[Tensor]:
        """What keys and values get, zero but at these tokens of the block."""
        zeros = [torch.zeros_like(x) for x in (block.keys, block.values)]
        if own is not None:
            new = [(x - y)[:, :, at] for x, y in ((own.keys, block.keys), (own.values, block.values))]
        else:
            assert self.mark is not None
            mark = torch.from_numpy(self.mark[-len(at) :])
            if self.way == "random":
                rng = np.random.default_rng([*question.encode()])
                drawn = torch.from_numpy(rng.normal(size=mark.shape)).to(mark)
                mark = torch.cat(
                    [_as_long(d, m) for d, m in zip(drawn.chunk(2, -1), mark.chunk(2, -1), strict=True)], -1
                )
            mark = mark * (-self.dose if self.way == "against" else self.dose)
            heads = block.keys.shape[1]
            keys, values = (x.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3).to(block.keys) for x in mark.chunk(2, -1))
            new = [engine.rotary.turn(keys.contiguous(), torch.zeros_like(at), there[at]), values]
        layers = slice(None) if not self.layer else slice(self.layer - 1, self.layer)
        for zero, x in zip(zeros, new, strict=True):
            zero[layers, :, at] = x[layers]
        return zeros


def _as_long(drawn: Tensor, as_this: Tensor) -> Tensor:
    return drawn * (as_this.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))
