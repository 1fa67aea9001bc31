"""Methods over methods: another method's plan is what they start from."""

from __future__ import annotations

from dataclasses import dataclass

from kvattn.errors import KvattnError
from kvattn.methods.base import Method
from kvattn.methods.naive import NaiveLinked

LINKED = NaiveLinked()


@dataclass(frozen=True)
class Over(Method):
    """The seam of methods that change the plan of another, their base.

    Parameters
    ----------
    base : the method whose plan is changed; it has the say in what is kept, and from where. Any that keeps candidates
        and does not learn.
    """

    base: Method = LINKED

    def __post_init__(self) -> None:
        if self.base.learns or not self.base.keeps:
            why = "which learns from judgements" if self.base.learns else "which keeps no candidate"
            raise KvattnError(
                f"method {self.name!r} cannot start from {self.base.label!r}, {why}; take base=naive-linked, "
                "base=isolated or another that keeps candidates as they are"
            )

    def prompt(self, prompt):
        return self.base.prompt(prompt)
