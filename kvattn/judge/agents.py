"""Execution agents: a model answers a problem several times, each in an agent's own context, token by token."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Literal

import torch
from jaxtyping import Bool

from kvattn.engine.engine import Choose, Continued, Engine, greedy
from kvattn.engine.layout import PromptLayout
from kvattn.engine.plan import dense_plan
from kvattn.errors import KvattnError, unknown
from kvattn.judge.verdict import stop_tokens
from kvattn.questions.answers import check
from kvattn.questions.problems import Problem
from kvattn.questions.prompt import MAX_CANDIDATES, REGIMES, Candidate, JudgePrompt
from kvattn.questions.templates import Template, get_template

_NEXT = Candidate("next", "", token_ids=())  # the agent that answers now


@dataclass(frozen=True)
class Agents:
    """How candidates are made (defaults of arXiv 2601.08343).

    count:       agents, all of one model, each answering once
    regime:      "parallel": each sees the question alone; "progressive": agent i also sees the answers before its own
    temperature: of sampling from the softmax, for all, or several that agents take in turn (the third of two is the
                 first again); 0 takes the likeliest token, and parallel agents at 0 all say the same
    max_new:     tokens an answer may have; a longer one is cut off there
    seed:        with the problem's id and the agent's number it seeds that agent's own random stream, so that an answer
                 does not depend on which others are made (but for rounding: parallel agents are decoded side by side)
    """

    count: int = 4
    regime: Literal["parallel", "progressive"] = "parallel"
    temperature: float | tuple[float, ...] = 0.2
    max_new: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_CANDIDATES:
            raise KvattnError(f"{self.count} agents; a judge prompt takes 1 to {MAX_CANDIDATES}")
        if self.regime not in REGIMES:
            raise unknown("regime", self.regime, REGIMES)
        for t in self.temperatures:
            if not 0 <= t < float("inf"):
                raise KvattnError(f"temperature {t}; give a number of 0 or more")
        if not 1 <= len(self.temperatures) <= self.count:
            raise KvattnError(f"{len(self.temperatures)} temperatures for {self.count} agents; give as many, or fewer")
        if self.max_new < 1:
            raise KvattnError(f"max_new is {self.max_new}; an answer has 1 token or more")

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Those that agents take in turn."""
        return self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)

    def answer(self, engine: Engine, problems: Sequence[Problem], words: Template | None = None) -> list[JudgePrompt]:
        """The problems with a candidate of every agent, `correct` not yet known; what agents can say at the same time,
        to one problem or to several, is decoded side by side.

        words: whose `agent_system` and `agent_instruction` agents are asked in (default: each problem's template)

        Raises KvattnError where the model's context cannot hold an agent's prompt and one token more."""
        stops, banned = stop_tokens(engine), unspeakable(engine)
        heats = list(islice(cycle(self.temperatures), self.count))
        made: list[list[Candidate]] = [[] for _ in problems]
        for some in [range(self.count)] if self.regime == "parallel" else [[i] for i in range(self.count)]:
            rows = []
            for problem, own in zip(problems, made, strict=True):
                prompt = JudgePrompt(problem.question, (*own, _NEXT), asked_in(problem, words), id=problem.id)
                layout, room = self.context(engine, prompt)
                asked = engine.execute([dense_plan(layout, engine.layers)], keep_cache=True)[0]
                streams = [sampler(heats[i], f"{self.seed}/{problem.id}/{i}", banned) for i in some]
                rows += [Continued(asked, room, x) for x in streams]
            answers = iter(engine.generate(rows, stops))
            for own in made:
                for i in some:
                    ids = next(answers)
                    text = engine.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
                    name = f"agent-{i + 1}"
                    own.append(Candidate(name, text, name, token_ids=tuple(ids), model=engine.identity))
        return [
            JudgePrompt(p.question, tuple(own), get_template(p.template), id=p.id, answer=p.answer, regime=self.regime)
            for p, own in zip(problems, made, strict=True)
        ]

    def check(self, engine: Engine, problem: Problem, words: Template | None = None) -> None:
        """Raises KvattnError where the first agent cannot answer: its tokenizer cannot say the question, or its context
        has no room."""
        prompt = JudgePrompt(problem.question, (_NEXT,), asked_in(problem, words), id=problem.id)
        engine.compiler.check_said(prompt)
        self.context(engine, prompt)

    def cut_off(self, engine: Engine, prompt: JudgePrompt, words: Template | None = None) -> int:
        """How many of the prompt's answers were cut off, at `max_new` tokens or where the context ends."""
        prompt = prompt if words is None else replace(prompt, template=replace(words, messages=()))
        before = [prompt.candidates[:i] if self.regime == "progressive" else () for i in range(prompt.n)]
        rooms = [self.context(engine, replace(prompt, candidates=(*b, _NEXT), order=()))[1] for b in before]
        return sum(len(c.token_ids or ()) >= room for c, room in zip(prompt.candidates, rooms, strict=True))

    def context(self, engine: Engine, prompt: JudgePrompt) -> tuple[PromptLayout, int]:
        """What stands before the answer of the last candidate, which is empty, and the tokens that it may have."""
        way_out = "take fewer agents, or parallel ones" if prompt.n > 1 else "shorten the question"
        layout = engine.compiler.execution(prompt, self.regime, way_out)[-1]
        most = engine.geometry.max_tokens
        room = self.max_new if most is None else min(self.max_new, most - len(layout))
        if room < 1:
            raise KvattnError(
                f"question {prompt.id!r}: the agents' prompt of {len(layout)} tokens fills the context of {most}, "
                f"so that no answer fits behind it; {way_out}"
            )
        return layout, room


def asked_in(problem: Problem, words: Template | None) -> Template:
    """The template whose words the agents are asked in; a conversation's messages are the judge's alone."""
    return get_template(problem.template) if words is None else replace(words, messages=())


def checked(prompt: JudgePrompt, problem: Problem, allow_code_execution: bool = False) -> JudgePrompt:
    """The prompt with every candidate's `correct` filled in by `kvattn.questions.check`.

    Raises KvattnError for programs where their execution is not allowed."""

    def right(c: Candidate) -> bool | None:
        return check(
            problem.task, problem.answer, c.text, question=problem.question, allow_code_execution=allow_code_execution
        )

    return replace(prompt, candidates=tuple(replace(c, correct=right(c)) for c in prompt.candidates))


def unspeakable(engine: Engine) -> Bool[torch.Tensor, " vocabulary"]:
    """Which ids an answer may not hold: reserved tokens other than those that end the turn, and rows of the vocabulary
    that no token has."""
    size = engine.model.get_output_embeddings().weight.shape[0]
    out = torch.zeros(size, dtype=torch.bool)
    out[len(engine.tokenizer) :] = True
    out[[t for t in engine.compiler.reserved if t < size]] = True
    out[[t for t in stop_tokens(engine) if t < size]] = False
    return out


def sampler(temperature: float, seed: str, banned: Bool[torch.Tensor, " vocabulary"]) -> Choose:
    """Sampling from the softmax of logits over temperature, never a banned id; the seed is any text."""
    stream = torch.Generator().manual_seed(
        int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big", signed=True)
    )

    def choose(logits: torch.Tensor) -> int:
        allowed = logits.masked_fill(banned, float("-inf"))
        if temperature == 0:
            return greedy(allowed)
        return int(torch.multinomial(torch.softmax(allowed.double() / temperature, -1), 1, generator=stream))

    return choose
