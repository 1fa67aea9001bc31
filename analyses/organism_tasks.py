"""The organisms' tasks as training needs them: auxiliary targets, and the task of an organism that did not ship."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from kvattn.questions.organism.tasks import TASKS as SHIPPED
from kvattn.questions.organism.tasks import MaximumTask, Sample, Task
from kvattn.questions.organism.words import BINDINGS, KEYS, SCORES, ids
from kvattn.questions.templates import TEMPLATES, Template

NONE = -100  # no target here; what torch's cross entropy leaves out


@dataclass(frozen=True)
class OverlapTask(Task):
    """Every candidate gives each key one value, all values used once; the candidate that shares most bindings with the
    others wins, by at least `margin`.

    Candidates are corruptions of a hidden assignment, each of a strength drawn anew: the values of some keys go round
    in a circle. All candidates hold the same keys and the same values, and one candidate alone says nothing about which
    wins.
    """

    template: Template = TEMPLATES["organism-overlap"]
    tokens: int = len(KEYS)
    fewest: int = 3
    margin: int = 2

    def sample(self, count: int, slots: int, rng: torch.Generator) -> Sample:
        """See the class; problems without a clear winner are drawn again."""
        bindings = torch.tensor(ids(BINDINGS))
        question = self.question(count, rng)
        found, have = [], 0
        while have < count:
            made = bindings[self.tokens * torch.arange(self.tokens) + self._assignments(2 * count, slots, rng)]
            top = _shared(made).sort(1, descending=True).values
            clear = torch.ones(len(made), dtype=torch.bool) if slots == 1 else top[:, 0] - top[:, 1] >= self.margin
            found.append(made[clear])
            have += int(clear.sum())
        made = torch.cat(found)[:count]
        order = torch.rand(count, slots, self.tokens, generator=rng).argsort(2)
        return Sample(question, made.gather(2, order), _shared(made).argmax(1))

    def _assignments(self, count: int, slots: int, rng: torch.Generator) -> Int[Tensor, "problems slots keys"]:
        """The value of every key in every candidate."""
        m = self.tokens
        hidden = torch.rand(count, 1, m, generator=rng).argsort(2).expand(-1, slots, -1)
        moved = torch.randint(0, m + 1, (count, slots, 1), generator=rng)  # 0 and 1 move nothing
        keys = torch.rand(count, slots, m, generator=rng).argsort(2)  # the first `moved` of these go round
        rank = torch.arange(m).expand_as(keys)
        source = torch.where(rank < moved, (rank + 1) % moved.clamp(min=1), rank)
        return torch.empty_like(keys).scatter(2, keys, hidden.gather(2, keys.gather(2, source)))


TASKS: dict[str, Task] = {**SHIPPED, "overlap": OverlapTask(), "overlap-stitched": OverlapTask()}


@dataclass(frozen=True)
class Targets:
    """What training asks for besides the decision; NONE where there is no target.

    running: [problems, slots], slot of the best candidate so far
    inside:  [problems, slots, tokens], words inside the candidates. Of maxima, at the last token: the highest number so
             far. Else at the number (its candidate's last token) or at every binding: how many earlier candidates hold
             it too, as a number word from 0
    alone:   [problems, slots, tokens], the same for a candidate that sees no other
    """

    running: Int[Tensor, "problems slots"]
    inside: Int[Tensor, "problems slots tokens"]
    alone: Int[Tensor, "problems slots tokens"]


def targets(task: Task, s: Sample) -> Targets:
    """The targets of the sample."""
    made, scores = s.candidates, torch.tensor(ids(SCORES))
    slots = made.shape[1]
    if isinstance(task, OverlapTask):
        running = torch.zeros(made.shape[:2], dtype=torch.long)
        for k in range(2, slots + 1):
            top = _shared(made[:, :k]).sort(1, descending=True)
            running[:, k - 1] = torch.where(top.values[:, 0] > top.values[:, 1], top.indices[:, 0], NONE)
        return Targets(running, scores[_earlier(made)], scores[0].expand_as(made))
    number = torch.where(torch.isin(made, scores), made - scores[0], 0).sum(2)
    inside, alone = (torch.full_like(made, NONE) for _ in range(2))
    if isinstance(task, MaximumTask):
        highest, running = number.cummax(1)
        inside[:, :, -1], alone[:, :, -1] = scores[highest], scores[number]
        return Targets(running, inside, alone)
    # Two candidates cannot say which is odd, nor can more that all agree; one alone wins by default.
    running = torch.where(s.best[:, None] <= torch.arange(slots), s.best[:, None], NONE)
    running[:, :2] = NONE
    running[:, 0] = 0
    inside[:, :, -1], alone[:, :, -1] = scores[_earlier(number[:, :, None])[:, :, 0]], scores[0]
    return Targets(running, inside, alone)


def _held(made: Int[Tensor, "problems slots tokens"]) -> Tensor:
    """[problems, slots, others, tokens], whether another candidate holds a candidate's token."""
    return (made[:, :, None, :, None] == made[:, None, :, None, :]).any(-1)


def _shared(made: Int[Tensor, "problems slots tokens"]) -> Int[Tensor, "problems slots"]:
    """How many tokens each candidate shares with all others together."""
    return _held(made).sum((2, 3)) - made.shape[2]


def _earlier(made: Int[Tensor, "problems slots tokens"]) -> Int[Tensor, "problems slots tokens"]:
    """How many earlier candidates hold each token."""
    before = torch.ones(made.shape[1], made.shape[1]).tril(-1).bool()
    return (_held(made) & before[None, :, :, None]).sum(2)
