"""The attention rows that a decision carries: which queries, what falls on each segment, and what on sink tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from kvattn.decision import SlotMass
from kvattn.engine.capture import Captured, Wanted
from kvattn.engine.layout import PromptLayout, Segment


@dataclass(frozen=True)
class Sinks:
    """Sink tokens [layers, tokens] that were found under one layout."""

    layout: PromptLayout
    tokens: Bool[Tensor, "layers tokens"]

    def on(self, target: PromptLayout) -> Bool[Tensor, "layers tokens"]:
        """The same places of the same segments of another layout."""
        if self.layout is target:
            return self.tokens
        out = torch.zeros(len(self.tokens), len(target), dtype=torch.bool)

        def key(layout: PromptLayout, s: Segment) -> tuple:
            return s.role, s.slot if s.role != "candidate" else layout.candidates[s.slot]  # type: ignore[index]

        places = {key(self.layout, s): s for s in self.layout.segments}
        for t in target.segments:
            s = places.get(key(target, t))
            if s is not None:
                n = min(s.length, t.length)
                out[:, t.start : t.start + n] = self.tokens[:, s.start : s.start + n]
        return out


def decision_rows(
    layout: PromptLayout, wanted: Wanted | None = None, sinks: Sinks | None = None, find_sinks: bool = False
) -> Wanted:
    """What to capture of a judgement: the decision row first, then the others that `wanted` asks for (all of
    `query_tokens`, if it names none), with the mass on `sinks`, or on those found on the decision row."""
    wanted, standard = wanted or Wanted(), query_tokens(layout)
    queries = tuple(dict.fromkeys((standard[0], *(wanted.queries or standard))))
    return replace(wanted, queries=queries, sinks=sinks.on(layout) if sinks else None, find_sinks=find_sinks)


def query_tokens(layout: PromptLayout) -> tuple[int, ...]:
    """The tokens whose rows a decision carries: the last prompt token or, for readouts with a branch per slot, the end
    of the suffix and then the end of every branch."""
    if len(layout.decisions) == 1 and layout.segments[-1].role != "branch":
        return layout.decisions
    return (layout.find("suffix").stop - 1, *layout.decisions)


def slot_masses(captured: Captured, layout: PromptLayout) -> list[SlotMass]:
    """SlotMass of every captured query. Queries are named: "last_prompt" for the first, "at_choice:K" for slot K's
    branch, "token:I" for any other prompt index."""
    standard = query_tokens(layout)
    out = []
    for i, q in enumerate(captured.queries):
        if q == standard[0]:
            name = "last_prompt"
        elif q in standard:
            name = f"at_choice:{standard.index(q)}"
        else:
            name = f"token:{q}"
        out.append(
            SlotMass(
                mass=captured.mass[i].numpy(),
                sink=None if captured.sink is None else captured.sink[i].numpy(),
                names=layout.names,
                lengths=layout.lengths,
                query=name,
                norm=None if captured.norm is None else captured.norm[i].numpy(),
            )
        )
    return out
