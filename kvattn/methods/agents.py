"""Reuse across weights: what agents with other weights of the judge's shape made, its base's or a sibling's."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvattn.engine.engine import Engine
from kvattn.engine.given import alike
from kvattn.methods.companion import Loaded, beside
from kvattn.methods.over import Over


@dataclass(frozen=True)
class Agents(Over):
    """Its base's plan, with the KV of candidates (and what else stands in agents' contexts) made by other weights.

    What KV of a base model is worth under an adapter on it, or of one fine-tune under another. The judge computes with
    its own weights whatever the base computes.

    Parameters
    ----------
    model : the agents' model, as `kvattn.load` takes it; of the judge's shape, rotation and vocabulary. Loaded once, in
        the judge's dtype on its device.
    """

    model: str = "smollm2-135m"
    loaded: Loaded = field(default_factory=dict, compare=False, repr=False)

    name = "agents"
    source = "after DroidSpeak (arXiv 2411.02820), which shares KV between fine-tunes of one model"

    @property
    def files(self) -> dict[str, str]:
        from kvattn.models import fingerprint

        return {**super().files, self.model: fingerprint(self.model)}

    def agents(self, judge: Engine) -> Engine:
        """The agents' model. Raises KvattnError where it cannot be loaded."""
        return beside(judge, self.model, self.loaded)

    def require(self, layout, engine):
        """Raises KvattnError where the model cannot be loaded, and where its keys and values do not fit the judge."""
        super().require(layout, engine)
        alike(self.agents(engine), engine)

    def plan(self, layout, blocks, engine):
        return self.base.plan(layout, blocks.made_by(self.agents(engine)), engine)
