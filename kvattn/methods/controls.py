"""Controls: what no effect, and what a mistake, would look like."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from kvattn.engine.plan import dense_plan, keep
from kvattn.errors import KvattnError
from kvattn.methods.base import Method
from kvattn.methods.over import Over
from kvattn.questions.conversation import with_newline
from kvattn.questions.templates import HEADER


@dataclass(frozen=True)
class ForeignKV(Method):
    """A null: blocks of equal length from another question stand in the candidates' places.

    If reuse agrees with dense no more often than this, nothing is being measured."""

    name = "foreign-kv"
    source = "control"

    def plan(self, layout, blocks, engine):
        placed = [(s, blocks.foreign(s, c)) for s, c in layout.shown()]
        return keep(layout, engine.layers, placed, foreign=True)


@dataclass(frozen=True)
class NullEdit(Method):
    """Dense under an edit that changes no meaning: dense's own noise floor.

    Parameters
    ----------
    edit : "newline" adds one before the candidates; "reword" rewords the instruction, "header" the words over each
        candidate, where those are kvattn's own.
    """

    edit: Literal["newline", "reword", "header"] = "newline"

    name = "null-edit"
    source = "control"
    keeps = False

    def prompt(self, prompt):
        t = prompt.template
        if self.edit == "newline":
            return replace(prompt, template=with_newline(t))
        if t.messages:
            raise KvattnError(
                f"{self.label}: the template {t.name!r} is a conversation, whose words are not kvattn's to change; "
                "take null-edit, which adds a line end"
            )
        if self.edit == "header":
            if t.header != HEADER:
                raise KvattnError(
                    f"{self.label}: the template {t.name!r} has words of its own over each candidate; take null-edit, "
                    "which adds a line end"
                )
            return replace(prompt, template=replace(t, header=f"The answer of {t.header}"))
        words = "Weigh each agent's reasoning against the question and against the reasoning of the others."
        return replace(prompt, template=replace(t, instruction=words))

    def plan(self, layout, blocks, engine):
        return dense_plan(layout, engine.layers)


@dataclass(frozen=True)
class MismatchedOrder(Over):
    """Its base, naive-linked, under another order than the one its answer is read in: what an order bug looks like.

    Parameters
    ----------
    seed : of the permutation that stands for the other order.
    """

    seed: int = 0

    name = "mismatched-order"
    source = "control"

    def prompt(self, prompt):
        """The prompt in a seeded other order."""
        prompt = self.base.prompt(prompt)
        if prompt.n < 2:
            return prompt
        key = [self.seed, *prompt.order, *prompt.id.encode()]
        while True:
            other = np.random.default_rng(key).permutation(prompt.n)
            if tuple(other) != prompt.order:
                return prompt.ordered(other.tolist())
            key.append(0)

    def plan(self, layout, blocks, engine):
        return self.base.plan(layout, blocks, engine)
