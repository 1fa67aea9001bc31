"""Questions held against a judge before anything is judged or written: all that it cannot judge, in one list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from kvattn.errors import KvattnError
from kvattn.text import Progress, silent

if TYPE_CHECKING:
    from kvattn.judge.judge import Judge
    from kvattn.methods import Method
    from kvattn.questions.prompt import JudgePrompt

NAMED = 5  # faults that a message names
FRESH = {"dense", "null-edit", "true-mask"}  # methods that read no execution context


def faults(
    judge: Judge, prompts: Iterable[JudgePrompt], methods: Sequence[Method], progress: Progress = silent
) -> dict[str, str]:
    """By id, why a question cannot be judged: each is compiled as every method shows it, and held, with the tokens that
    the judge is to write, against the model's context. Nothing is computed."""
    reuse = any(m.name not in FRESH for m in methods)
    found: dict[str, str] = {}
    for i, prompt in enumerate(prompts):
        try:
            prompt.require_regime(judge.regime)
            for shown in {id(p): p for m in methods for p in m.prompts(prompt)}.values():
                judge.compile(shown)
            if reuse:
                judge.engine.compiler.execution(prompt, judge.regime)
        except KvattnError as error:
            found[prompt.id] = str(error)
        progress("checking", i + 1, i + 1)
    return found


def refuse(found: Mapping[str, str], where: str, skip: bool = False) -> None:
    """Raises KvattnError that lists the faults, unless they are to be skipped."""
    if not found or skip:
        return
    lines = [*dict.fromkeys(found.values())][:NAMED]
    rest = [name for name, line in found.items() if line not in lines]
    more = f"; and {len(rest)} more: {', '.join(rest)}" if rest else ""
    many = len(found) > 1
    count, them = (f"{where}: {len(found)} questions cannot be judged: ", "them") if many else ("", "it")
    way = f"nothing was judged: mend {them}, or leave {them} out (--skip-bad)"
    raise KvattnError(f"{count}{'; '.join(lines)}{more}; {way}")
