"""Reuse across models: what agents on another model made, mapped to what the judge would have made of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from kvattn.engine.blocks import Blocks
from kvattn.engine.engine import Engine
from kvattn.engine.execution import Execution
from kvattn.engine.layout import PromptLayout
from kvattn.engine.plan import KVBlock, KVPlan
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
    may not. The map is paid for, in token-layers of the judge that cost as many multiplications.

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
        if self.layers < 1 or not self.ridge > 0:
            raise KvattnError(
                f"method {self.name!r}: layers is 1 or more and ridge above 0, not {self.layers}, {self.ridge}"
            )
        if self.map and self.needs_warming:
            self.restore(Path(self.map).parent, Path(self.map).stem)

    @property
    def files(self) -> dict[str, str]:
        return {**super().files, **({self.map: sha256(Path(self.map))} if self.map else {})}

    @property
    def frozen(self) -> bool:
        """The map is fit before a study, and never changes."""
        return True

    @property
    def needs_warming(self) -> bool:
        """Whether no map was fit yet."""
        return not self.state.tokens

    def learner(self) -> Mapped:
        """The same, collecting pairs for the map of this one."""
        return replace(self, learning=True)

    def require(self, layout: PromptLayout, engine: Engine) -> None:
        """Raises KvattnError where the model cannot be loaded, has another vocabulary or too few layers, and where the
        map was fit for other weights."""
        Over.require(self, layout, engine)
        agents = self.agents(engine)
        if agents.tokenizer.get_vocab() != engine.tokenizer.get_vocab():
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

    def plan(self, layout: PromptLayout, blocks: Blocks, engine: Engine) -> KVPlan:
        """The base's plan over mapped blocks; while learning, over the judge's own. Raises KvattnError where no map was
        fit, and where it was fit for other weights."""
        if self.learning:
            return self.base.plan(layout, blocks, engine)
        self.require(layout, engine)
        if self.needs_warming:
            raise KvattnError(f"method {self.label!r} has no map yet; give held-out questions (judge.warm, --heldout)")
        if not self.state.fits:
            self.state.solve(self.layers, self.ridge)
        plan = self.base.plan(layout, blocks.made_by(self.agents(engine), self.state), engine)
        mapped = int(((plan.depth < engine.layers) & layout.mask("candidate", "question")).sum())
        spent = math.ceil(mapped * self.state.multiplications / engine.meter.weights)
        return replace(plan, probe_token_layers=plan.probe_token_layers + spent)

    def observe(self, layout: PromptLayout, blocks: Blocks, execution: Execution) -> None:
        """While learning, count in what both models make of candidates and question."""
        if not self.learning:
            return
        judge = blocks.engine
        agents = self.agents(judge)
        self.state.of.update({"agents": agents.identity, "judge": judge.identity})
        theirs = blocks.made_by(agents, as_made)
        for own, other in [
            *((blocks.execution(c), theirs.execution(c)) for c in layout.candidates),
            (blocks.question(), theirs.question()),
        ]:
            self.state.add(other, own, agents, judge)

    def save(self, folder, name: str) -> None:
        if not self.state.fits:
            self.state.solve(self.layers, self.ridge)
        self.state.save(folder, name)

    def restore(self, folder, name: str) -> None:
        self.state.load(folder, name)
        if (how := {"layers": self.layers, "ridge": self.ridge}) != self.state.how:
            raise KvattnError(
                f"the map {folder / name} was fit with {self.state.how}, not {how}; name these, or fit anew"
            )


def as_made(block: KVBlock, agents: Engine, judge: Engine) -> KVBlock:
    """A block as it was made: nothing that a judge can keep."""
    return block
