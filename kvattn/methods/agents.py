"""Reuse across weights: what agents with other weights of the judge's shape made, its base's or a sibling's."""

from __future__ import annotations

from dataclasses import dataclass

from kvattn.engine.engine import Engine
from kvattn.engine.given import alike
from kvattn.errors import KvattnError
from kvattn.methods.base import Method
from kvattn.methods.companion import beside
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

    name = "agents"
    source = "after DroidSpeak (arXiv 2411.02820), which shares KV between fine-tunes of one model"

    def __post_init__(self) -> None:
        super().__post_init__()
        base: Method | None = self.base
        while base is not None:
            if isinstance(base, Agents):
                raise KvattnError(
                    f"method {self.name!r} cannot start from {self.base.label!r}, which says already who the agents are"
                )
            base = getattr(base, "base", None)

    @property
    def files(self) -> dict[str, str]:
        from kvattn.models import fingerprint

        return {**super().files, self.model: fingerprint(self.model)}

    def agents(self, judge: Engine) -> Engine:
        """The agents' model. Raises KvattnError where it cannot be loaded."""
        return beside(judge, self.model)

    def require(self, layout, engine):
        """Raises KvattnError where the model cannot be loaded, and where its keys and values do not fit the judge."""
        super().require(layout, engine)
        alike(self.agents(engine), engine)

    def plan(self, layout, blocks, engine):
        return self.base.plan(layout, blocks.made_by(self.agents(engine)), engine)
