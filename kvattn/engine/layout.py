"""A compiled prompt: token ids, made once, and the segments they fall into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kvattn.engine.scores import Reader, Scores
from kvattn.errors import KvattnError

ROLES = ("prefix", "question", "header", "candidate", "link", "separator", "suffix", "branch")


@dataclass(frozen=True)
class Segment:
    """Tokens [start, stop) with one role. `slot` counts from 0 and is None for what belongs to no candidate."""

    role: str
    slot: int | None
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.stop - self.start

    @property
    def name(self) -> str:
        """The role, with the slot counted from 1: "candidate:1"."""
        return self.role if self.slot is None else f"{self.role}:{self.slot + 1}"


@dataclass(frozen=True)
class Ask:
    """What a readout adds to a template: text before the model's turn, text that opens the model's turn, and, for
    readouts that ask about every slot apart, a branch text that holds {label} (then the turn ends in each branch)."""

    question: str = ""
    opening: str = ""
    branch: str | None = None
    answers: tuple[str, ...] | None = None  # None: the slot labels; (): the judge writes, nothing is read at one place
    reader: Reader | None = None  # makes scores of the logits at the decisions; None where nothing is read there
    longer: bool = False  # the last answer may be two tokens, of which another answer is the first (a branch's "10")


@dataclass(frozen=True)
class PromptLayout:
    """Token ids [tokens] and the segments that tile them, in prompt order; immutable.

    positions:  [tokens], RoPE positions; the index itself, but for branches, which all follow the suffix
    decisions:  indices of the tokens whose next-token logits decide (one, or one per slot; behind each of these, where
                an answer may be two tokens, the first of them)
    answer_ids: token ids that those logits are read at (the slot labels; or yes and no)
    candidates: candidate id shown in each slot
    reader:     how scores are made of those logits; None where the judge writes its verdict
    begun:      tokens of an answer that each branch ends in: 0, or 1
    """

    token_ids: Int[Tensor, " tokens"]
    segments: tuple[Segment, ...]
    positions: Int[Tensor, " tokens"]
    decisions: tuple[int, ...]
    answer_ids: tuple[int, ...]
    candidates: tuple[str, ...]
    reader: Reader | None = None
    begun: int = 0

    def __post_init__(self) -> None:
        at = 0
        for s in self.segments:
            if s.start != at or s.stop < s.start or s.role not in ROLES:
                raise ValueError(f"segments must tile the prompt in order; {s} does not start at {at}")
            at = s.stop
        if at != len(self.token_ids) or len(self.positions) != at:
            raise ValueError(f"segments cover {at} tokens of {len(self.token_ids)}")

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def slots(self) -> int:
        """Number of candidates shown."""
        return len(self.candidates)

    @property
    def deciding(self) -> tuple[int, ...]:
        """The decisions whose rows are the decision row: where an answer begins."""
        return self.decisions[:: 1 + self.begun]

    @property
    def names(self) -> tuple[str, ...]:
        """Segment names in prompt order."""
        return tuple(s.name for s in self.segments)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens in each segment."""
        return tuple(s.length for s in self.segments)

    @property
    def trunk(self) -> int:
        """Number of tokens before the branches (all of them where there are none)."""
        return min((s.start for s in self.each("branch")), default=len(self))

    @cached_property
    def segment_of(self) -> Int[Tensor, " tokens"]:
        """Index of the segment of each token."""
        return torch.repeat_interleave(torch.arange(len(self.segments)), torch.tensor(self.lengths, dtype=torch.long))

    def scores(self, logits: Float[Tensor, "decisions vocabulary"]) -> Scores:
        """Scores by slot and coverage. Raises KvattnError for a layout whose judge writes its verdict."""
        if self.reader is None:
            raise KvattnError(
                "this method needs a score for every slot; use the readout label, yesno or score, not generate"
            )
        return self.reader(logits, self.answer_ids)

    def find(self, role: str, slot: int | None = None) -> Segment:
        """The segment with that role and slot. Raises KeyError where there is none."""
        for s in self.segments:
            if s.role == role and s.slot == slot:
                return s
        raise KeyError(f"no segment {role!r} with slot {slot}")

    def each(self, *roles: str) -> Iterator[Segment]:
        """All segments with one of these roles, in prompt order."""
        return (s for s in self.segments if s.role in roles)

    def shown(self) -> Iterator[tuple[Segment, str]]:
        """Every candidate's segment with the id of the candidate in it, by slot."""
        return zip(self.each("candidate"), self.candidates, strict=False)

    def mask(self, *roles: str) -> Bool[Tensor, " tokens"]:
        """Which tokens lie in segments with one of these roles."""
        out = torch.zeros(len(self), dtype=torch.bool)
        for s in self.each(*roles):
            out[s.start : s.stop] = True
        return out

    def select(self, wanted: Callable[[Segment], bool]) -> PromptLayout:
        """The layout that holds the wanted segments alone, closed up, at positions 0, 1, 2, ..."""
        return join(
            [(s.role, s.slot, self.token_ids[s.start : s.stop].tolist()) for s in self.segments if wanted(s)],
            candidates=self.candidates,
        )

    def shared_start(self, *roles: str) -> PromptLayout:
        """The same layout with every slot's segments of these roles at the positions right after the last token
        before slot 1, as if each slot's block stood there alone."""
        first = min((s.start for s in self.each(*roles) if s.slot is not None), default=len(self))
        positions, used = self.positions.clone(), dict.fromkeys(range(self.slots), int(first))
        for s in self.each(*roles):
            if s.slot is not None:
                positions[s.start : s.stop] = torch.arange(used[s.slot], used[s.slot] + s.length)
                used[s.slot] += s.length
        return replace(self, positions=positions)


def join(
    parts: list[tuple[str, int | None, list[int]]],
    candidates: tuple[str, ...],
    answer_ids: tuple[int, ...] = (),
    reader: Reader | None = None,
    begun: int = 0,
) -> PromptLayout:
    """A layout from (role, slot, ids) parts. Branches share the positions that follow everything else; the decision
    tokens are the ends of the branches (and so many tokens before) or, without branches, the last token."""
    segments, ids, positions, decisions, at, trunk = [], [], [], [], 0, 0
    for role, slot, part in parts:
        segments.append(Segment(role, slot, at, at + len(part)))
        ids += part
        positions += range(trunk, trunk + len(part))
        at += len(part)
        if role == "branch":
            decisions += range(at - 1 - begun, at)
        else:
            trunk += len(part)
    return PromptLayout(
        token_ids=torch.tensor(ids, dtype=torch.long),
        segments=tuple(segments),
        positions=torch.tensor(positions, dtype=torch.long),
        decisions=tuple(decisions) or (at - 1,),
        answer_ids=answer_ids,
        candidates=candidates,
        reader=reader,
        begun=begun,
    )
