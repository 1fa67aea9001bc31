"""Questions held against a judge before anything is judged or written: all that it cannot judge, in one list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from kvattn.errors import KvattnError
from kvattn.questions.orders import orders
from kvattn.text import Progress, silent

if TYPE_CHECKING:
    from kvattn.engine.layout import PromptLayout
    from kvattn.judge.judge import Judge
    from kvattn.methods import Method
    from kvattn.questions.prompt import JudgePrompt
    from kvattn.study.caches import Given

NAMED = 5  # faults that a message names
FRESH = {"dense", "null-edit", "true-mask"}  # methods that read no execution context


def faults(
    judge: Judge,
    prompts: Iterable[JudgePrompt],
    methods: Sequence[Method],
    scheme: str = "fixed",
    progress: Progress = silent,
    given: Given | None = None,
) -> tuple[dict[str, str], int]:
    """By id, why a question cannot be judged, and how many questions there are: each is compiled as every method shows
    it, and held, with the tokens that the judge is to write, against the model's context; and it has the orders of the
    scheme. Nothing is computed.

    given: the caches that will be judged; without, a candidate that names its cache is a fault under reuse"""
    reuse = any(m.name not in FRESH for m in methods)
    found: dict[str, str] = {}
    i = -1
    for i, prompt in enumerate(prompts):
        try:
            prompt.require_regime(judge.regime)
            orders(scheme, prompt.n)
            if reuse and given is None and (own := next((c for c in prompt.candidates if c.cache is not None), None)):
                raise KvattnError(
                    f"question {prompt.id!r}: candidate {own.id!r} names its cache, {own.cache}, and a run or a gate "
                    "makes its caches from texts; leave the field cache out, or judge with kvattn judge FILE alone"
                )
            compiled: dict[int, tuple[JudgePrompt, PromptLayout]] = {}
            for m in methods:
                for shown in m.prompts(prompt):
                    if id(shown) not in compiled:  # held with its layout, so that no other gets its id
                        compiled[id(shown)] = shown, judge.compile(shown)
                    m.require(compiled[id(shown)][1], judge.engine)
            if reuse:
                judge.engine.compiler.execution(prompt, judge.regime)
            if given is not None:
                given.check(judge, prompt)
        except KvattnError as error:
            found[prompt.id] = str(error)
        progress("checking", i + 1, i + 1)
    return found, i + 1


def refuse(found: Mapping[str, str], of: int, where: str, skip: bool = False, done: str = "judged") -> None:
    """Raises KvattnError that lists the faults among so many questions, unless they are to be skipped and others are
    left."""
    if not found or (skip and len(found) < of):
        return
    lines = [*dict.fromkeys(found.values())][:NAMED]
    rest = [name for name, line in found.items() if line not in lines]
    more = f"; and {len(rest)} more: {', '.join(rest)}" if rest else ""
    many = len(found) > 1
    count, them = (f"{where}: {len(found)} questions cannot be {done}: ", "them") if many else ("", "it")
    way = f": mend {them}, or leave {them} out (--skip-bad)" if len(found) < of else ", since no other is left" * skip
    raise KvattnError(f"{count}{'; '.join(lines)}{more}; nothing was {done}{way}")
