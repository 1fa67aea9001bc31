"""The one seam of every method: a layout and the reusable blocks in, a KV plan out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float

from kvattn.errors import KvattnError

if TYPE_CHECKING:
    from kvattn.engine.blocks import Blocks
    from kvattn.engine.engine import Engine
    from kvattn.engine.execution import Execution
    from kvattn.engine.layout import PromptLayout
    from kvattn.engine.plan import KVPlan
    from kvattn.questions.prompt import JudgePrompt


@dataclasses.dataclass(frozen=True)
class Method:
    """A way of building the judge's cache. Subclasses are small dataclasses whose fields are their parameters.

    name:    what it is called on the command line
    source:  where the idea was published
    learns:  whether `observe` wants the KV of every judgement back; then a run folder asks for `save` and `restore`
    keeps:   whether plans keep candidates, so that other methods can start from them
    lone:    the parameter that a value without a name is of: "repaired:FOLDER"
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    learns: ClassVar[bool] = False
    keeps: ClassVar[bool] = True
    lone: ClassVar[str] = ""

    def prompt(self, prompt: JudgePrompt) -> JudgePrompt:
        """The prompt this method really shows the judge: the same, but for controls that edit it."""
        return prompt

    def prompts(self, prompt: JudgePrompt) -> tuple[JudgePrompt, ...]:
        """The prompts whose scores, one after the other, are those of the slots: one that shows all candidates, but for
        methods that judge them apart."""
        return (self.prompt(prompt),)

    def require(self, layout: PromptLayout, engine: Engine) -> None:
        """Raises KvattnError where it, or a method that it holds, cannot serve this judge and readout; asked before
        anything is judged or written."""
        for f in dataclasses.fields(self):
            if isinstance(held := getattr(self, f.name), Method):
                held.require(layout, engine)

    def plan(self, layout: PromptLayout, blocks: Blocks, engine: Engine) -> KVPlan:
        """The plan for one layout."""
        raise NotImplementedError(f"{type(self).__name__} has no plan")

    def adjusted(self, scores: Float[np.ndarray, " slots"]) -> Float[np.ndarray, " slots"]:
        """The scores that decide: those that were read, but for methods that correct them."""
        return scores

    def observe(self, layout: PromptLayout, blocks: Blocks, execution: Execution) -> None:
        """Called after each judgement, with its cache, for methods that learn."""

    @property
    def frozen(self) -> bool:
        """Whether a method that learns does so before a study alone, so that questions do not depend on each other."""
        return False

    @property
    def needs_warming(self) -> bool:
        """Whether the method cannot plan before it saw held-out prompts."""
        return False

    def learner(self) -> Method:
        """The method that `Judge.warm` judges held-out prompts with; what it observes, this one knows."""
        return self

    def save(self, folder: Path, name: str) -> None:
        """Write what was learned into files of the folder that begin with the name, whole or not at all."""

    def restore(self, folder: Path, name: str) -> None:
        """Take over what `save` wrote. Raises KvattnError where it cannot."""
        raise KvattnError(
            f"method {self.label!r} learns, but cannot restore what it learned, so a run that was "
            "stopped cannot go on; begin a new run folder, or give the method `save` and `restore`"
        )

    def learned_bytes(self) -> dict[str, int]:
        """By id of the question it was learned from, the bytes that `save` writes of it."""
        return {}

    @classmethod
    def fields(cls) -> dict[str, Any]:
        """Parameter names with their defaults, "" for one that has to be given; fields left out of comparisons are
        state, not parameters."""
        own = (f for f in dataclasses.fields(cls) if f.compare)
        return {f.name: "" if f.default is dataclasses.MISSING else f.default for f in own}

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters, JSON-able: a method is its label, and is left out where it is the default."""
        values = ((k, getattr(self, k), default) for k, default in self.fields().items())
        return {
            k: v.label if isinstance(v, Method) else v
            for k, v, default in values
            if not isinstance(v, Method) or v != default
        }

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of the files that it was built from, by path (by name, of a model), its bases' among them: with other
        content it is another method, whatever its name."""
        values = (getattr(self, f.name) for f in dataclasses.fields(self))
        return {path: digest for m in values if isinstance(m, Method) for path, digest in m.files.items()}

    @property
    def label(self) -> str:
        """The name, with the parameters that differ from their defaults: "naive-linked(headers=isolated)"."""
        changed = [f"{k}={v}" for k, v in self.parameters.items() if getattr(self, k) != self.fields()[k]]
        return f"{self.name}({','.join(changed)})" if changed else self.name

    def __str__(self) -> str:
        return self.label

    @classmethod
    def build(cls, values: dict[str, Any], get: Callable[[str], Method]) -> Method:
        """The method with these parameters; `get` gives others by their label."""
        return cls(**values)
