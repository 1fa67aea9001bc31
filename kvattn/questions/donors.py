"""Another question, for blocks that have nothing to do with the one judged."""

from __future__ import annotations

from kvattn.questions.organism import problems
from kvattn.questions.prompt import JudgePrompt
from kvattn.questions.synthetic import synthetic
from kvattn.questions.templates import TEMPLATES


def donor_for(prompt: JudgePrompt) -> JudgePrompt:
    """A question of the same kind and about as many candidates, whose words the judge's tokenizer knows."""
    for name, organism in (("organism-max", "max-full"), ("organism-odd", "odd")):
        if prompt.template == TEMPLATES[name]:
            return problems(organism, 1, seed=97, candidates=prompt.n)[0]
    return synthetic(1, seed=97, candidates=max(2, min(prompt.n, 8)))[0]
