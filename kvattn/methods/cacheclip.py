"""CacheClip: a small helper model reads the prompt, and what its last layer attends to is recomputed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kvattn.engine.capture import Wanted
from kvattn.engine.compiler import MOST_LOST, token_texts
from kvattn.engine.engine import Engine
from kvattn.engine.given import same_vocabulary
from kvattn.engine.layout import PromptLayout, join
from kvattn.engine.plan import dense_plan
from kvattn.errors import KvattnError
from kvattn.methods.companion import beside
from kvattn.methods.selective import Selective, by_group

if TYPE_CHECKING:
    from collections.abc import Sequence

Span = tuple[int, int]


@dataclass(frozen=True)
class CacheClip(Selective):
    """The windows of tokens that a small helper model, which reads the whole prompt, attends to most.

    Adapted to a judge: the helper is not finetuned to predict the judge; the shared prefix is what all candidates have
    in common in their execution contexts; windows tile each candidate, and their size and mean are ours. Another
    tokenizer's attention is spread over characters, and what falls on a token's characters is the token's. The helper's
    pass is paid for, in token-layers of the judge that cost as many multiplications: a helper as large as the judge
    costs as much as dense.

    Parameters
    ----------
    helper : the helper's name, as `kvattn.load` takes it; loaded once, in the judge's dtype on its device.
    window : tokens of a window, 1 or more.
    queries : how many of the helper's last prompt tokens ask, 1 or more.
    """

    per: Literal["slot", "whole", "ramp"] = "whole"
    helper: str = "smollm2-135m"
    window: int = 8
    queries: int = 8

    name = "cacheclip"
    source = "CacheClip (Yang et al. 2025, arXiv 2510.10129)"

    def __post_init__(self) -> None:
        super().__post_init__()
        for what in ("window", "queries"):
            if getattr(self, what) < 1:
                raise KvattnError(f"method {self.name!r}: {what} counts tokens, 1 or more, not {getattr(self, what)}")

    @property
    def files(self) -> dict[str, str]:
        from kvattn.models import fingerprint

        return {**super().files, self.helper: fingerprint(self.helper)}

    def require(self, layout: PromptLayout, engine: Engine) -> None:
        """Raises KvattnError where the helper cannot be loaded, cannot say the prompt's text, or has too short a
        context for it."""
        super().require(layout, engine)
        self._read(layout, engine)

    def score(self, layout, blocks, engine, stale):
        """The helper's attention from its last prompt tokens, mean over them and over the heads of its last layer."""
        helper = beside(engine, self.helper)
        theirs, own, given = self._read(layout, engine)
        asked = tuple(range(max(0, len(theirs) - self.queries), len(theirs)))
        run = helper.execute([dense_plan(theirs, helper.layers)], Wanted(queries=asked, rows=True), logits=False)[0]
        row = run.rows()[:, -1].mean((0, 1))
        scores, worth, group = torch.zeros(len(layout)), torch.zeros(len(layout)), torch.zeros(len(layout)).long()
        scores[: len(own)] = spread(row, given, own)
        for s in layout.each("candidate"):
            for number, start in enumerate(range(s.start, s.stop, self.window)):
                part = slice(start, min(start + self.window, s.stop))
                worth[part], group[part] = scores[part].mean(), s.start + number
        weighed = run.cost.token_layers * helper.meter.weights / engine.meter.weights
        return by_group(worth, group, scores), math.ceil(weighed)

    def _read(self, layout: PromptLayout, engine: Engine) -> tuple[PromptLayout, list[Span], list[Span]]:
        """The prompt but its branches as the helper reads it, and the characters of the judge's and its tokens."""
        helper = beside(engine, self.helper)
        alike = same_vocabulary(helper.tokenizer, engine.tokenizer)
        ids = layout.token_ids[: layout.trunk].tolist()
        texts = token_texts(engine.tokenizer, ids)
        own, text = characters(texts), "".join(texts)
        parts, given = [], []
        for s in layout.segments:
            if s.role == "branch" or not s.length:
                continue
            if alike:
                parts.append((s.role, s.slot, ids[s.start : s.stop]))
                given += own[s.start : s.stop]
                continue
            start, said = own[s.start][0], text[own[s.start][0] : own[s.stop - 1][1]]
            if (lost := helper.compiler.lost(said)) > MOST_LOST:
                raise KvattnError(
                    f"method {self.name!r}: the helper {self.helper} cannot say {s.name}: {lost:.0%} of its characters "
                    "become unknown tokens; take another helper"
                )
            trusted = s.role not in ("question", "candidate")
            tokens = (helper.compiler.special_tokens if trusted else helper.compiler.tokens)(said)
            parts.append((s.role, s.slot, [t.id for t in tokens]))
            given += [(start + t.start, start + t.stop) for t in tokens]
        theirs, most = join(parts, layout.candidates), helper.geometry.max_tokens
        if most is not None and len(theirs) > most:
            raise KvattnError(
                f"method {self.name!r}: the prompt has {len(theirs)} tokens of the helper {self.helper}, whose context "
                f"holds {most}; take another helper"
            )
        return theirs, own, given


def characters(texts: Sequence[str]) -> list[Span]:
    """Characters [start, stop) of every token; a token without text, which goes on with a character that another began,
    has the other's."""
    out: list[Span] = []
    at = 0
    for text in texts:
        out.append((at, at + len(text)) if text or not out else out[-1])
        at += len(text)
    return out


def spread(scores: Float[Tensor, " given"], given: Sequence[Span], wanted: Sequence[Span]) -> Float[Tensor, " wanted"]:
    """Scores of tokens, evenly spread over their characters and summed over those of other tokens."""
    length = max((stop for _, stop in (*given, *wanted)), default=0)
    density = torch.zeros(length, dtype=torch.float64)
    for score, (start, stop) in zip(scores.tolist(), given, strict=True):
        if stop > start:
            density[start:stop] += score / (stop - start)
    return torch.tensor([float(density[start:stop].sum()) for start, stop in wanted])
