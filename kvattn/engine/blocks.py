"""Where reusable KV comes from: the execution agents' contexts, the judge's own prefix, the bare template, and, as a
null, another question. Made once a question, shared by all methods and orders.

Making them is not the judge's cost: under reuse these caches exist already. The engine's meter counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from kvattn.engine.engine import Engine
from kvattn.engine.given import alike, check, same_ids
from kvattn.engine.layout import PromptLayout, Segment, join
from kvattn.engine.plan import KVBlock, Visibility, dense_plan
from kvattn.errors import KvattnError, unknown
from kvattn.questions.donors import donor_for
from kvattn.questions.prompt import JudgePrompt

TEMPLATE_ROLES = ("prefix", "header", "separator", "suffix")

Via = Callable[[KVBlock, Engine, Engine], KVBlock]
"""What turns a block that agents made into one of the judge's shape, given both engines."""


class Blocks:
    """The reusable KV of one question.

    regime: how the candidates were made, "parallel" or "progressive"; a prompt that says otherwise is refused
    donor:  another question's prompt, which foreign blocks are made from (default: `donors.donor_for` gives one)
    caches: by candidate id, its KV as others made it, in the place of an execution context
    whole:  the KV of the whole prompt as others assembled it, for foreign-cache

    Raises KvattnError, naming candidate and cause, for a cache that cannot be this candidate's under this model.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: JudgePrompt,
        regime: str = "parallel",
        donor: JudgePrompt | None = None,
        caches: Mapping[str, KVBlock] | None = None,
        whole: KVBlock | None = None,
    ) -> None:
        prompt.require_regime(regime)
        self.engine, self.prompt, self.regime, self.donor = engine, prompt, regime, donor
        self.agents, self.caches, self.whole = engine, dict(caches or {}), whole
        self.via: Via | None = None
        self.turned = 0  # tokens that went that way
        ids = [c.id for c in prompt.candidates]
        for name, given in self.caches.items():
            if name not in ids:
                raise unknown(f"candidate in the caches of question {prompt.id!r}", name, ids)
            what = f"question {prompt.id!r}: cache of candidate {name!r}"
            check(given, engine, what)
            same_ids(given, torch.tensor(engine.compiler.candidate_ids(prompt, ids.index(name))), what)
        if whole is not None:
            check(whole, engine, f"question {prompt.id!r}: cache of the whole prompt")
        self.index = {c.id: i for i, c in enumerate(prompt.candidates)}
        self.memo: dict[tuple, Any] = {}  # whatever else a method makes once a question
        self._made: dict[tuple, dict] = {}

    def made_by(self, agents: Engine, via: Via | None = None) -> Blocks:
        """The same question's KV where agents with these weights made what is not the judge's own text: execution
        contexts, isolated and foreign blocks; `via` turns it into the judge's. Made once for each weights and `via`.
        Raises KvattnError for weights whose keys and values cannot stand beside the judge's, unless they go `via`."""
        key = ("made by", id(agents), via)
        if key not in self.memo:
            if via is None:
                alike(agents, self.engine)
            other = Blocks(self.engine, self.prompt, self.regime, self.donor, self.caches, self.whole)
            other.agents, other.via = agents, via
            other._made = self.memo.setdefault(("made", id(agents)), {})
            self.memo[key] = other
        return self.memo[key]

    def _turned(self, key: tuple, block: KVBlock) -> KVBlock:
        """What agents made, as the judge can keep it; turned once."""
        if self.via is None:
            return block
        if (key := ("turned", *key)) not in self.memo:
            self.memo[key] = self.via(block, self.agents, self.engine)
            self.turned += len(block)
        return self.memo[key]

    def _fits(self, layout: PromptLayout, reader: Engine, asked: JudgePrompt | None = None) -> PromptLayout:
        """The layout. Raises KvattnError that names the question, its own if no other, where it is too long."""
        whose = "the model's" if reader is self.engine else f"the agents' ({reader.identity or 'unnamed'})"
        reader.compiler.check_length(layout, asked or self.prompt, whose=whose)
        return layout

    def execution(self, candidate: str) -> KVBlock:
        """A candidate's KV as its agent made it, in the agent's own context."""
        block = self._execution()[candidate]
        return block if candidate in self.caches else self._turned(("execution", candidate), block)

    def question(self) -> KVBlock:
        """The question's KV from the execution context (its chat header dropped)."""
        return self._turned(("question",), self._execution()[None])

    def _execution(self) -> dict[str | None, KVBlock]:
        key = ("execution", self.regime)
        if key in self._made:
            return self._made[key]
        made: dict[str | None, KVBlock] = {}
        for c in self.prompt.candidates:
            if c.id not in self.caches and c.cache is not None:
                raise KvattnError(
                    f"question {self.prompt.id!r}: candidate {c.id!r} names its cache, {c.cache}, which was not given; "
                    "give it (caches=kvattn.caches.named(prompt, folder)), or leave the field cache out"
                )
            if c.id not in self.caches and c.foreign_to(self.agents.identity):
                raise KvattnError(
                    f"question {self.prompt.id!r}: candidate {c.id!r} was generated by {c.model}, its KV would be "
                    f"made by {self.agents.identity}: keys and values of one model mean nothing to another, so no "
                    "cache can be reused; judge densely, generate candidates with the judge's own model, or say with "
                    "the method agents that theirs are meant"
                )
        ids = [c.id for c in self.prompt.candidates]
        layouts = self.engine.compiler.execution(self.prompt, self.regime)
        for i, layout in enumerate(layouts):
            parallel = self.regime == "parallel"
            apart = Visibility.isolated(layout, ("header", "candidate")) if parallel else None
            run = self.agents.encode(self._fits(layout, self.agents), apart)
            if i == 0:
                made[None] = run.block(layout.find("question"), source="execution")
            for s in layout.each("candidate"):
                assert s.slot is not None
                if parallel:
                    made[ids[s.slot]] = run.block(s, frozenset({ids[s.slot]}), "parallel")
                elif s is layout.segments[-1]:
                    c = self.prompt.candidates[s.slot]
                    forced = c.token_ids is None and c.prompt is None
                    source = "pr-teacher-forced" if forced else "progressive"
                    seen = frozenset(ids[t.slot] for t in layout.each("candidate") if t.slot is not None)
                    made[c.id] = run.block(s, seen, source)
        made |= {name: replace(given, seen=given.seen | {name}) for name, given in self.caches.items()}
        self._made[key] = made
        return made

    def assembled(self, layout: PromptLayout) -> KVBlock:
        """The whole prompt's KV as others assembled it, of all its tokens or all but the last. Raises KvattnError where
        none was given, and where it says something else than the layout."""
        what = f"question {self.prompt.id!r}: cache of the whole prompt"
        if self.whole is None:
            raise KvattnError(f"{what}: foreign-cache judges one, and none was given; give it (whole=, or --caches)")
        n = layout.trunk
        same_ids(self.whole, layout.token_ids[: n if len(self.whole) >= n else n - 1], what)
        return self.whole

    def isolated(self, layout: PromptLayout, labelled: bool = True) -> dict[str, KVBlock]:
        """By segment name, KV made behind the judge's own prefix and question with no other candidate in sight:
        header, candidate and separator together (labelled), or the candidate without its label."""
        roles = ("header", "candidate", "separator") if labelled else ("candidate",)
        before = layout.select(lambda s: s.slot is None and s.role in _BEFORE).token_ids.tolist()
        keys: dict[int, tuple] = {}  # all that a slot's blocks depend on
        for slot, candidate in enumerate(layout.candidates):
            own = [s for s in layout.each(*roles) if s.slot == slot]
            ids = tuple((s.role, *layout.token_ids[s.start : s.stop].tolist()) for s in own)
            keys[slot] = ("isolated", candidate, *before, ids)
        new = [slot for slot, key in keys.items() if key not in self._made]
        if new:
            alone = layout.select(lambda s: s.role in (_BEFORE if s.slot is None else roles) and s.slot in (None, *new))
            alone = alone.shared_start(*roles)
            run = self.agents.encode(self._fits(alone, self.agents), Visibility.isolated(alone, roles))
            for slot in new:
                seen = frozenset({layout.candidates[slot]})
                own = [s for s in alone.each(*roles) if s.slot == slot]
                self._made[keys[slot]] = {s.role: run.block(s, seen, "isolated") for s in own}
        return {
            s.name: self._turned((*keys[s.slot], s.role), self._made[keys[s.slot]][s.role])
            for s in layout.each(*roles)
            if s.slot is not None
        }

    def template(self, layout: PromptLayout) -> dict[str, KVBlock]:
        """By segment name, the KV of the template's own text, from one pass over the template with the literal names
        {question} and {agent_k} in the places of question and candidates (KVCOMM's base, arXiv 2510.12872)."""
        own = (layout.token_ids[s.start : s.stop].tolist() for s in layout.each(*TEMPLATE_ROLES))
        key = ("template", layout.names, *map(tuple, own))  # tokens that a text shares with a mark's neighbour differ
        if key not in self._made:
            text = self.engine.compiler.text
            parts = []
            for s in layout.segments:
                ids = layout.token_ids[s.start : s.stop].tolist()
                if s.role == "question":
                    ids = text("{question}")
                elif s.role == "candidate":
                    ids = text(f"{{agent_{s.slot + 1}}}")  # type: ignore[operator]
                if s.role != "branch":
                    parts.append((s.role, s.slot, ids))
            bare = join(parts, layout.candidates)
            run = self.engine.encode(self._fits(bare, self.engine))
            self._made[key] = {s.name: run.block(s, source="template") for s in bare.each(*TEMPLATE_ROLES)}
        return self._made[key]

    def reference(self, layout: PromptLayout) -> PromptLayout:
        """The same prompt with the candidates displayed in their own order (slots of equal label keep their header)."""
        text = {layout.candidates[s.slot]: s for s in layout.each("candidate") if s.slot is not None}
        own = tuple(c.id for c in self.prompt.candidates)
        parts = []
        for s in layout.segments:
            shown = text[own[s.slot]] if s.role == "candidate" and s.slot is not None else s
            parts.append((s.role, s.slot, layout.token_ids[shown.start : shown.stop].tolist()))
        return join(parts, own, layout.answer_ids)

    def log_probability(self, candidate: str) -> float:
        """Mean log-probability of a candidate's tokens in its execution context; the agents know it for free."""
        key = ("log-probability", self.regime)
        if key not in self._made:
            made, ids = {}, [c.id for c in self.prompt.candidates]
            for layout in self.engine.compiler.execution(self.prompt, self.regime):
                mine = [s for s in layout.each("candidate") if self.regime == "parallel" or s.stop == len(layout)]
                for s in mine:
                    assert s.slot is not None
                    made[ids[s.slot]] = self._mean_log_probability(layout, s)
            self._made[key] = made
        return self._made[key][candidate]

    def _mean_log_probability(self, layout: PromptLayout, s: Segment) -> float:
        if not s.length:
            return 0.0
        alone = layout.select(lambda t: t.slot in (None, s.slot)) if self.regime == "parallel" else layout
        start = len(alone) - s.length
        asked = replace(alone, decisions=tuple(range(start - 1, len(alone) - 1)))
        run = self.agents.execute([dense_plan(self._fits(asked, self.agents), self.agents.layers)])[0]
        assert run.logits is not None
        logp = torch.log_softmax(run.logits.float(), -1)
        return float(logp.gather(1, alone.token_ids[start:, None]).mean())

    def foreign(self, segment: Segment, candidate: str) -> KVBlock:
        """KV of the same length as a candidate, from the execution context of the donor question."""
        key = ("foreign",)
        if key not in self._made:
            self._made[key] = self._foreign(self.donor or donor_for(self.prompt))
        block = self._made[key][candidate]
        if len(block) != segment.length:
            raise KvattnError(f"foreign block of {len(block)} tokens for {segment.name} of {segment.length}")
        return self._turned(("foreign", candidate), block)

    def _foreign(self, donor: JudgePrompt) -> dict[str, KVBlock]:
        compiler = self.engine.compiler
        head = [
            (s.role, s.slot, ids)
            for layout in compiler.execution(donor, "parallel")[:1]
            for s in layout.segments
            if s.slot is None
            for ids in [layout.token_ids[s.start : s.stop].tolist()]
        ]
        texts = [compiler.candidate_ids(donor, i) for i in range(donor.n)]
        ids = [c.id for c in self.prompt.candidates]
        parts = []
        for i in range(self.prompt.n):
            want = len(compiler.candidate_ids(self.prompt, i))
            pool = [t for k in range(donor.n) for t in texts[(i + k) % donor.n]] or head[-1][2]
            parts.append(("candidate", i, (pool * (want // len(pool) + 1))[:want]))
        layout = join([*head, *parts], tuple(ids)).shared_start("candidate")
        run = self.agents.encode(self._fits(layout, self.agents, donor), Visibility.isolated(layout, ("candidate",)))
        return {
            ids[s.slot]: run.block(s, source="foreign")  # type: ignore[index]
            for s in layout.each("candidate")
        }


_BEFORE = ("prefix", "question", "separator")
