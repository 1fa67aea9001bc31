"""What the organisms judge: vectorised sampling of problems as token ids, and the same problems as judge prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from kvattn.errors import KvattnError
from kvattn.questions.organism.words import FILLERS, LATER, SCORES, VOCABULARY, ids, text
from kvattn.questions.prompt import Candidate, JudgePrompt
from kvattn.questions.templates import TEMPLATES, Template

MAX_SLOTS = 4


@dataclass(frozen=True)
class Sample:
    """Problems of one size, as token ids.

    question:   [problems, words]
    candidates: [problems, slots, tokens]
    best:       [problems], slot of the best candidate
    """

    question: Int[Tensor, "problems words"]
    candidates: Int[Tensor, "problems slots tokens"]
    best: Int[Tensor, " problems"]


@dataclass(frozen=True)
class Task(ABC):
    """A kind of problem. The slots are exchangeable: every slot wins equally often.

    tokens: in every candidate
    window: sliding window of the organism that is trained on it, or None
    fewest: candidates a problem has at least, one candidate (who wins by default) apart
    words:  size of the organism's vocabulary, the first of VOCABULARY
    """

    template: Template
    tokens: int = 6
    window: int | None = None
    fewest: int = 1
    words: int = len(VOCABULARY) - len(LATER)

    @abstractmethod
    def sample(self, count: int, slots: int, rng: torch.Generator) -> Sample:
        """`count` problems with `slots` candidates each and questions of one length."""

    def question(self, count: int, rng: torch.Generator) -> Int[Tensor, "problems words"]:
        """Questions of one to four filler words (one length for all); what they say does not matter."""
        words = int(torch.randint(1, 5, (), generator=rng))
        return _fillers((count, words), rng)

    def numbered(self, number: Int[Tensor, "problems slots"], rng: torch.Generator) -> Tensor:
        """Candidates of fillers, each with one number (an index of SCORES) somewhere in its second half."""
        place = torch.randint(self.tokens // 2, self.tokens, (*number.shape, 1), generator=rng)
        return _fillers((*number.shape, self.tokens), rng).scatter(
            2, place, torch.tensor(ids(SCORES))[number][..., None]
        )

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
    """Every candidate holds one number among fillers; the highest wins.

    Numbers of a problem are distinct and lie within `span` of each other around a level drawn anew, so that one alone
    says little about whether it is the highest.
    """

    template: Template = TEMPLATES["organism-max"]
    span: int = 12

    def sample(self, count: int, slots: int, rng: torch.Generator) -> Sample:
        """See the class."""
        question = self.question(count, rng)
        level = torch.randint(0, len(SCORES) - self.span + 1, (count, 1), generator=rng)
        number = level + torch.rand(count, self.span, generator=rng).argsort(1)[:, :slots]
        return Sample(question, self.numbered(number, rng), number.argmax(1))


@dataclass(frozen=True)
class OddTask(Task):
    """Every candidate holds one number among fillers; all hold the same but one, which wins.

    Both numbers and the winner are drawn evenly, so that one candidate alone is right in one case of `slots`, whatever
    it says: the task is relational.
    """

    template: Template = TEMPLATES["organism-odd"]
    fewest: int = 3
    words: int = len(VOCABULARY)

    def sample(self, count: int, slots: int, rng: torch.Generator) -> Sample:
        """See the class."""
        question = self.question(count, rng)
        common, other = torch.rand(count, len(SCORES), generator=rng).argsort(1)[:, :2].T
        best = torch.randint(0, slots, (count,), generator=rng)
        number = torch.where(torch.arange(slots) == best[:, None], other[:, None], common[:, None])
        return Sample(question, self.numbered(number, rng), best)


def _fillers(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    fillers = torch.tensor(ids(FILLERS))
    return fillers[torch.randint(0, len(fillers), shape, generator=rng)]


TASKS: dict[str, Task] = {
    "max-window": MaximumTask(window=7),  # a header and a candidate: one block
    "max-full": MaximumTask(),
    "odd": OddTask(),
}
