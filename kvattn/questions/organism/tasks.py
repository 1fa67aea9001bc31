"""What the organisms judge: vectorised sampling of problems as token ids, and the same problems as judge prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from kvattn.errors import KvattnError
from kvattn.questions.organism.words import BINDINGS, FILLERS, KEYS, SCORES, ids, text
from kvattn.questions.prompt import Candidate, JudgePrompt
from kvattn.questions.templates import TEMPLATES, Template

MAX_SLOTS = 4
NONE = -100  # no target here; what torch's cross entropy leaves out


@dataclass(frozen=True)
class Sample:
    """Problems of one size.

    question:   [problems, words]
    candidates: [problems, slots, tokens]
    best:       [problems], slot of the best candidate
    running:    [problems, slots], slot of the best candidate so far, or NONE where there is none
    inside:     [problems, slots, tokens], auxiliary targets inside the candidates, or NONE
    alone:      [problems, slots, tokens], the same for a candidate that sees no other
    """

    question: Int[Tensor, "problems words"]
    candidates: Int[Tensor, "problems slots tokens"]
    best: Int[Tensor, " problems"]
    running: Int[Tensor, "problems slots"]
    inside: Int[Tensor, "problems slots tokens"]
    alone: Int[Tensor, "problems slots tokens"]


@dataclass(frozen=True)
class Task(ABC):
    """A kind of problem. The slots are exchangeable: every slot wins equally often.

    tokens: in every candidate
    window: sliding window of the organism that is trained on it, or None
    fewest: candidates a problem has at least, one candidate (who wins by default) apart
    """

    template: Template
    tokens: int = 6
    window: int | None = None
    fewest: int = 1

    @abstractmethod
    def sample(self, count: int, slots: int, rng: torch.Generator) -> Sample:
        """`count` problems with `slots` candidates each and questions of one length."""

    def question(self, count: int, rng: torch.Generator) -> Int[Tensor, "problems words"]:
        """Questions of one to four filler words (one length for all); what they say does not matter."""
        words = int(torch.randint(1, 5, (), generator=rng))
        return _fillers((count, words), rng)

    def problems(self, n: int, seed: int, slots: int = MAX_SLOTS) -> list[JudgePrompt]:
        """`n` judge prompts, drawn in groups of 50 that share a question length."""
        if slots not in self.sizes:
            raise KvattnError(f"{slots} candidates; this organism judges {', '.join(map(str, self.sizes))}")
        rng = torch.Generator().manual_seed(seed)
        out: list[JudgePrompt] = []
        while len(out) < n:
            s = self.sample(min(50, n - len(out)), slots, rng)
            out += [self._prompt(s, i, f"{seed}-{len(out) + i}") for i in range(len(s.best))]
        return out

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many candidates a problem can have."""
        return tuple(n for n in range(1, MAX_SLOTS + 1) if n == 1 or n >= self.fewest)

    def _prompt(self, s: Sample, i: int, name: str) -> JudgePrompt:
        best = int(s.best[i])
        made = tuple(
            Candidate(id=chr(ord("a") + j), text=text(c), agent=f"agent-{j + 1}", correct=j == best)
            for j, c in enumerate(s.candidates[i])
        )
        return JudgePrompt(text(s.question[i]), made, self.template, id=name, answer=made[best].id)


@dataclass(frozen=True)
class MaximumTask(Task):
    """Every candidate holds one score among fillers, in its second half; the highest score wins.

    Scores of a problem are distinct and lie within `span` of each other around a level drawn anew, so that one score
    alone says little about whether it is the highest. Auxiliary target, at the candidate's last token: the highest
    score so far.
    """

    template: Template = TEMPLATES["organism-max"]
    span: int = 12

    def sample(self, count: int, slots: int, rng: torch.Generator) -> Sample:
        """See the class."""
        scores = torch.tensor(ids(SCORES))
        question = self.question(count, rng)
        level = torch.randint(0, len(scores) - self.span + 1, (count, 1), generator=rng)
        score = level + torch.rand(count, self.span, generator=rng).argsort(1)[:, :slots]
        place = torch.randint(self.tokens // 2, self.tokens, (count, slots, 1), generator=rng)
        made = _fillers((count, slots, self.tokens), rng).scatter(2, place, scores[score][:, :, None])
        highest, running = score.cummax(1)
        inside, alone = (torch.full_like(made, NONE) for _ in range(2))
        inside[:, :, -1], alone[:, :, -1] = scores[highest], scores[score]
        return Sample(question, made, score.argmax(1), running, inside, alone)


@dataclass(frozen=True)
class OverlapTask(Task):
    """Every candidate gives each key one value, all values used once; the candidate that shares most bindings with the
    others wins, by at least `margin`.

    Candidates are corruptions of a hidden assignment, each of a strength drawn anew: the values of some keys go round
    in a circle. All candidates hold the same keys and the same values, and one candidate alone says nothing about which
    wins. Auxiliary target, at every binding: how many earlier candidates hold it too (as a score word, from 0).
    """

    template: Template = TEMPLATES["organism-overlap"]
    tokens: int = len(KEYS)
    fewest: int = 3
    margin: int = 2

    def sample(self, count: int, slots: int, rng: torch.Generator) -> Sample:
        """See the class; problems without a clear winner are drawn again."""
        bindings, scores = torch.tensor(ids(BINDINGS)), torch.tensor(ids(SCORES))
        question = self.question(count, rng)
        found, have = [], 0
        while have < count:
            value = self._assignments(2 * count, slots, rng)
            total = _shared(value)
            top = total.sort(1, descending=True).values
            clear = torch.ones(len(total), dtype=torch.bool) if slots == 1 else top[:, 0] - top[:, 1] >= self.margin
            found.append(value[clear])
            have += int(clear.sum())
        value = torch.cat(found)[:count]
        running = torch.zeros(count, slots, dtype=torch.long)
        for k in range(2, slots + 1):
            top = _shared(value[:, :k]).sort(1, descending=True)
            running[:, k - 1] = torch.where(top.values[:, 0] > top.values[:, 1], top.indices[:, 0], NONE)
        earlier = _earlier(value)
        order = torch.rand(count, slots, self.tokens, generator=rng).argsort(2)
        made = bindings[self.tokens * torch.arange(self.tokens) + value].gather(2, order)
        inside = scores[earlier].gather(2, order)
        best = _shared(value).argmax(1)
        return Sample(question, made, best, running, inside, scores[torch.zeros_like(earlier)])

    def _assignments(self, count: int, slots: int, rng: torch.Generator) -> Int[Tensor, "problems slots keys"]:
        """The value of every key in every candidate."""
        m = self.tokens
        hidden = torch.rand(count, 1, m, generator=rng).argsort(2).expand(-1, slots, -1)
        moved = torch.randint(0, m + 1, (count, slots, 1), generator=rng)  # 0 and 1 move nothing
        keys = torch.rand(count, slots, m, generator=rng).argsort(2)  # the first `moved` of these go round
        rank = torch.arange(m).expand_as(keys)
        source = torch.where(rank < moved, (rank + 1) % moved.clamp(min=1), rank)
        return torch.empty_like(keys).scatter(2, keys, hidden.gather(2, keys.gather(2, source)))


def _shared(value: Int[Tensor, "problems slots keys"]) -> Int[Tensor, "problems slots"]:
    """How many bindings each candidate shares with all others together."""
    return (value[:, :, None] == value[:, None]).sum((2, 3)) - value.shape[2]


def _earlier(value: Int[Tensor, "problems slots keys"]) -> Int[Tensor, "problems slots keys"]:
    """How many earlier candidates hold each binding."""
    before = torch.ones(value.shape[1], value.shape[1]).tril(-1).bool()
    return ((value[:, :, None] == value[:, None]) & before[None, :, :, None]).sum(2)


def _fillers(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    fillers = torch.tensor(ids(FILLERS))
    return fillers[torch.randint(0, len(fillers), shape, generator=rng)]


TASKS: dict[str, Task] = {
    "max-window": MaximumTask(window=7),  # a header and a candidate: one block
    "max-full": MaximumTask(),
    "overlap": OverlapTask(),
    "overlap-stitched": OverlapTask(),
}
