"""What a repair is trained from: whose plan, which tokens, which teacher, how long."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from kvattn import methods
from kvattn.engine.layout import ROLES
from kvattn.errors import KvattnError, unknown
from kvattn.questions.prompt import JudgePrompt

TeacherKind = Literal["dense", "averaged", "permuted"]
TEACHERS: tuple[str, ...] = get_args(TeacherKind)


@dataclass(frozen=True)
class Recipe:
    """How a repair is trained; all of it decides which steps are taken.

    base:      the method whose plan is repaired; if it holds link tokens, their embeddings are learned, too
    reach:     the LoRA acts on computed tokens of segments with these roles; none: link embeddings alone
    teacher:   "dense" distils dense's distribution over slots under the same order; "averaged" its mean over rotations
               (no herding by order); "permuted", a placebo, another question's under the same rotation
    questions: in a step, each in all its rotations, so that no step teaches a slot
    rate:      of AdamW, after `warmup` steps, falling to a twentieth on a cosine
    rank, alpha: of the LoRA, on all linear layers of the decoder

    Raises KvattnError for values that no training can have.
    """

    base: str = "links:base=naive-linked(prefix=kept)"
    reach: tuple[str, ...] = ("header", "link", "separator", "suffix")
    teacher: TeacherKind = "dense"
    steps: int = 100
    questions: int = 2
    rate: float = 2e-3
    warmup: int = 10
    rank: int = 8
    alpha: float = 16.0
    seed: int = 0

    def __post_init__(self) -> None:
        if odd := [r for r in self.reach if r not in ROLES]:
            raise unknown("role of a segment", odd[0], ROLES)
        if self.teacher not in TEACHERS:
            raise unknown("teacher", self.teacher, TEACHERS)
        for name in ("steps", "questions", "rank", "rate", "alpha"):
            if not 0 < getattr(self, name) < math.inf:
                raise KvattnError(f"{name} of a repair is a number above 0, not {getattr(self, name)}")
        base: Any = methods.get(self.base)
        for held in _bases(base):
            if held.learns or isinstance(held, methods.TRAINED):
                why = "which learns itself" if held.learns else "which is a repair itself, and would be dropped"
                raise KvattnError(f"a repair cannot start from {base.label}, {why}; take another --base")

    def method(self) -> methods.Method:
        """The method whose plan is repaired."""
        return methods.get(self.base)

    def check(self, prompt: JudgePrompt) -> None:
        """Raises KvattnError where the base shows the judge anything but that prompt, which is what dense is asked."""
        if self.method().prompts(prompt) != (prompt,):
            raise KvattnError(
                f"{self.base} shows the judge another prompt than dense, whose choices are taught; take a --base that "
                "keeps candidates in the prompt as it is"
            )

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, the base as its label."""
        return {**asdict(self), "base": self.method().label, "reach": list(self.reach)}


def _bases(method: methods.Method | None) -> Iterator[methods.Method]:
    """A method, the one that it starts from, and so on."""
    while method is not None:
        yield method
        method = getattr(method, "base", None)
