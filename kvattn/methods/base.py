"""The one seam of every method: a layout and the reusable blocks in, a KV plan out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from kvattn.blocks import Blocks
    from kvattn.engine import Engine
    from kvattn.execution import Execution
    from kvattn.judge import Judge
    from kvattn.layout import PromptLayout
    from kvattn.plan import KVPlan
    from kvattn.prompt import JudgePrompt


@dataclasses.dataclass(frozen=True)
class Method:
    """A way of building the judge's cache. Subclasses are small dataclasses whose fields are their parameters.

    name:    what it is called on the command line
    source:  where the idea was published
    learns:  whether `observe` wants the KV of every judgement back
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    learns: ClassVar[bool] = False

    def prompt(self, prompt: JudgePrompt) -> JudgePrompt:
        """The prompt this method really shows the judge: the same, but for controls that edit it."""
        return prompt

    def plan(self, layout: PromptLayout, blocks: Blocks, engine: Engine) -> KVPlan:
        """The plan for one layout."""
        raise NotImplementedError(f"{type(self).__name__} has no plan")

    def observe(self, layout: PromptLayout, blocks: Blocks, execution: Execution) -> None:
        """Called after each judgement, with its cache, for methods that learn."""

    def warm(self, judge: Judge, prompts: Sequence[JudgePrompt]) -> None:
        """Learn from held-out prompts before a study, for methods with `needs_warming`."""

    @property
    def needs_warming(self) -> bool:
        """Whether the method cannot plan before it saw held-out prompts."""
        return False

    @classmethod
    def fields(cls) -> dict[str, Any]:
        """Parameter names with their defaults (fields left out of comparisons are state, not parameters)."""
        return {f.name: f.default for f in dataclasses.fields(cls) if f.compare}

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters, JSON-able."""
        return {name: getattr(self, name) for name in self.fields()}

    @property
    def label(self) -> str:
        """The name, with the parameters that differ from their defaults: "naive(template=kept)"."""
        changed = [f"{k}={v}" for k, v in self.parameters.items() if v != self.fields()[k]]
        return f"{self.name}({','.join(changed)})" if changed else self.name
