"""Reuse across models: what agents on another model made, mapped to what the judge would have made of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from kvattn.engine.blocks import Blocks
from kvattn.engine.engine import Engine
from kvattn.engine.execution import Execution
from kvattn.engine.given import same_vocabulary
from kvattn.engine.layout import PromptLayout
from kvattn.engine.plan import KVBlock, KVPlan, dense_plan
from kvattn.errors import KvattnError
from kvattn.files import sha256
from kvattn.methods.agents import Agents
from kvattn.methods.over import Over
from kvattn.methods.ridge import RidgeMap
from kvattn.text import hash_of


@dataclass(frozen=True)
class Mapped(Agents):
    """Its base's plan, with the KV of candidates (and what else stands in agents' contexts) made by another model and
    mapped to the judge's by ridge regression.

    A map for each of the judge's layers, of keys without their rotation and of values, from all KV heads of those of
    the agents' layers that say most of it. Fit by `judge.warm(method, prompts)` (a study does so with its held-out
    questions) on what both models make of the same candidates and questions, each in its agent's context. The paper
    maps head to head between models with equal heads, and fits on general text; here shapes may differ, the vocabulary
    may not. The map is paid for, in token-layers of the judge that cost as many multiplications. While it is fit, sums
    of (layers x heads x channels of the agents)^2 numbers in double precision are held, twice.

    Parameters
    ----------
    model : the agents' model, as `kvattn.load` takes it, of the judge's vocabulary. Loaded once, in the judge's dtype
        on its device.
    layers : how many of the agents' layers each of the judge's is told from, 1 or more.
    ridge : lambda, above 0.
    map : a map that was fit before and saved (`method.save(folder, name)` writes NAME.json, a study pools/NAME.json).
    """

    layers: int = 8
    ridge: float = 0.01
    map: str = ""
    state: RidgeMap = field(default_factory=RidgeMap, compare=False, repr=False)
    learning: bool = field(default=False, compare=False, repr=False)

    name = "mapped"
    source = "Heo et al. 2026 (arXiv 2608.03893)"
    learns = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers < 1 or not 0 < self.ridge < math.inf:
            raise KvattnError(
                f"method {self.name!r}: layers is 1 or more and ridge above 0, not {self.layers}, {self.ridge}"
            )
        if self.map and self.needs_warming:
            if (path := Path(self.map)).suffix != ".json":
                raise KvattnError(
                    f"method {self.name!r}: map is the file NAME.json that a map was saved as, not {path}"
                )
            self.restore(path.parent, path.stem)

    @property
    def files(self) -> dict[str, str]:
        return {**super().files, **({self.map: sha256(Path(self.map))} if self.map else {})}

    @property
    def frozen(self) -> bool:
        """The map is fit before a study, and never changes."""
        return True

    @property
    def needs_warming(self) -> bool:
        """Whether no map was fit yet, nor enough tokens counted for one."""
        return not self.state.fits and not self.state.enough(self.layers)

    def learner(self) -> Mapped:
        """The same, collecting pairs for the map of this one."""
        return replace(self, learning=True)

    def require(self, layout: PromptLayout, engine: Engine) -> None:
        """Raises KvattnError where the model cannot be loaded, has another vocabulary or too few layers, and where the
        map was fit for other weights."""
        Over.require(self, layout, engine)
        agents = self.agents(engine)
        if not same_vocabulary(agents.tokenizer, engine.tokenizer):
            raise KvattnError(
                f"method {self.name!r}: {self.model} has another vocabulary than the judge, so its tokens are not the "
                "judge's; name a model of the judge's family"
            )
        if self.layers > agents.layers:
            raise KvattnError(f"method {self.name!r}: {self.model} has {agents.layers} layers; take at most as many")
        here = {"agents": agents.identity, "judge": engine.identity}
        if other := [k for k, of in self.state.of.items() if hash_of(of) != hash_of(here[k])]:
            raise KvattnError(
                f"method {self.label!r}: its map was fit for the {other[0]} {self.state.of[other[0]]!r}, not "
                f"{here[other[0]]!r}; fit it again"
            )
        self.state.check(agents, engine)

    def plan(self, layout: PromptLayout, blocks: Blocks, engine: Engine) -> KVPlan:
        """The base's plan over mapped blocks; while learning, dense's. Raises KvattnError where no map was fit, or one
        for other weights, and while learning where one was fit already."""
        self.require(layout, engine)
        if self.learning:
            if self.state.fits:
                raise KvattnError(f"method {self.label!r} has its map already; make a new method to fit another")
            return dense_plan(layout, engine.layers)
        if self.needs_warming:
            raise KvattnError(
                f"method {self.label!r} has no map yet: it wants twice as many held-out tokens as inputs and was shown "
                f"{self.state.tokens}; give more held-out questions (judge.warm, --heldout), or take fewer layers"
            )
        if not self.state.fits:
            self.state.solve(self.layers, self.ridge)
        turned = blocks.made_by(self.agents(engine), self.state)
        plan = self.base.plan(layout, turned, engine)
        spent = math.ceil(turned.turned * self.state.multiplications / engine.meter.weights)
        return replace(plan, probe_token_layers=plan.probe_token_layers + spent)

    def observe(self, layout: PromptLayout, blocks: Blocks, execution: Execution) -> None:
        """While learning, count in what both models make of candidates and question, whoever wrote them."""
        if not self.learning:
            return
        judge, agents = blocks.engine, self.agents(blocks.engine)
        self.state.of.update({"agents": agents.identity, "judge": judge.identity})
        texts = tuple(replace(c, model=None, token_ids=None, cache=None) for c in blocks.prompt.candidates)
        own = Blocks(judge, replace(blocks.prompt, candidates=texts), blocks.regime)
        theirs = own.made_by(agents, as_made)
        self.state.add(theirs.question(), own.question(), agents, judge)
        for c in texts:
            self.state.add(theirs.execution(c.id), own.execution(c.id), agents, judge)

    def save(self, folder, name: str) -> None:
        if not self.state.fits:
            self.state.solve(self.layers, self.ridge)
        self.state.save(folder, name)

    def restore(self, folder, name: str) -> None:
        self.state.load(folder, name, {"layers": self.layers, "ridge": self.ridge})


def as_made(block: KVBlock, agents: Engine, judge: Engine) -> KVBlock:
    """A block as it was made: nothing that a judge can keep."""
    return block
