"""Link tokens after each candidate: computed tokens that may see the candidates before them, which are kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvattn.engine.blocks import Blocks
from kvattn.engine.engine import Engine
from kvattn.engine.layout import PromptLayout
from kvattn.engine.links import with_links
from kvattn.engine.plan import KVPlan, Visibility
from kvattn.errors import KvattnError
from kvattn.methods.over import Over
from kvattn.methods.tail import Sight


@dataclass(frozen=True)
class Links(Over):
    """Its base's plan with a few computed tokens after each candidate that are no text of the prompt.

    Untrained, each repeats the token that the first candidate follows; a repair teaches them embeddings of their own.

    Parameters
    ----------
    count : link tokens after each candidate.
    sight : "seeing" links see all that stands before them; "blind" ones, with headers and separators, see prefix,
        question and their own slot alone.
    """

    count: int = 2
    sight: Sight = "seeing"

    name = "links"
    source = "KVLink (arXiv 2502.16002), its link tokens behind the block and untrained"
    keeps = False  # the plan's tokens are not the prompt's, which other methods count in

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 1:
            raise KvattnError(
                f"method {self.name!r}: count is 1 or more, not {self.count}; without links take the base"
            )

    def plan(self, layout: PromptLayout, blocks: Blocks, engine: Engine) -> KVPlan:
        plan = self.base.plan(layout, blocks, engine)
        before = next(layout.each("candidate")).start - 1
        plan = with_links(plan, layout.token_ids[[before] * self.count].tolist())
        return plan if self.sight == "seeing" else replace(plan, visibility=Visibility.isolated(plan.layout))
