"""A gate in use: run its cheap passes, accept their decision, or fall back to dense and say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from kvattn import methods as zoo
from kvattn.decision import Decision
from kvattn.engine.blocks import Blocks
from kvattn.errors import KvattnError
from kvattn.methods import Method
from kvattn.questions.prompt import JudgePrompt
from kvattn.stats.frames import read_questions
from kvattn.study.gate import signals
from kvattn.study.gate.features import features, further_rotations, pass_of
from kvattn.study.gate.gate import Gate, different, judged_by
from kvattn.study.run_folder.schema import question_row

if TYPE_CHECKING:
    from kvattn.judge.judge import Judge


def decide(
    judge: Judge, prompt: JudgePrompt, gate: Gate, method: str | Method | None = None, allow: Sequence[str] = ()
) -> Decision:
    """The reuse decision where the gate accepts it, else dense's. `method` says whose it is, the last note says why.

    method: the reuse method, where it is an object that knows something (a warmed pool); its label must be the gate's
    allow:  entries of `gate.JUDGED` in which this judge may differ from the one the gate was fitted on;
            the guarantee says nothing about it then

    The decision's cost counts everything that was run: passes that were looked at, and were not the answer, as probes.
    Raises KvattnError where judge or prompt are not those that the gate was fitted for.
    """
    _check(judge, prompt, gate, allow)
    recipe = gate.recipe
    reuse = zoo.get(recipe.reuse) if method is None else zoo.get(method)
    if reuse.label != recipe.reuse:
        raise KvattnError(f"the gate was fitted for {recipe.reuse!r}, not {reuse.label!r}; fit one for that method")
    probes = [zoo.get(p) for p in recipe.probes]
    made = judge.judge(prompt, [reuse, *probes], capture=recipe.mass)
    further = further_rotations(prompt.order, recipe.votes)
    votes = judge.judge(prompt, [reuse], further, capture=False) if further else []
    lengths = [len(judge.engine.compiler.candidate_ids(prompt, i)) for i in range(prompt.n)]
    question = read_questions(pd.DataFrame([question_row(prompt, lengths)]))[prompt.id]
    away = None
    if recipe.deviation:
        away = signals.of_judge(judge, prompt, reuse, Blocks(judge.engine, prompt, judge.regime))
    by_label = {d.method: d for d in made}
    passes = {label: pass_of(d, question) for label, d in by_label.items()}
    row = features(
        question,
        prompt.order,
        passes[recipe.reuse],
        {p: passes[p] for p in recipe.probes},
        [pass_of(v, question) for v in votes],
        away,
    )
    verdict = gate.verdicts(pd.DataFrame([row], dtype=float))[0]
    answer = by_label[recipe.reuse]
    if not verdict.accepted:
        whole = [d for d in made if passes[d.method].whole]
        answer = whole[0] if whole else judge.judge(prompt, ["dense"], capture=False)[0]
    others = [d for d in (*made, *votes) if d is not answer]
    spent = sum(d.cost.token_layers + d.cost.probe_token_layers for d in others)
    spent += 0 if away is None else int(away["token_layers"])
    cost = replace(
        answer.cost,
        probe_token_layers=answer.cost.probe_token_layers + spent,
        seconds=answer.cost.seconds + sum(d.cost.seconds for d in others),
    )
    return replace(answer, cost=cost, notes=(*answer.notes, verdict.why))


def _check(judge: Judge, prompt: JudgePrompt, gate: Gate, allow: Sequence[str]) -> None:
    here = judged_by(judge, prompt)
    wrong = different(gate.judged, here, allow)
    if wrong:
        own, now = (_short(x.get(wrong[0])) for x in (gate.judged, here))
        raise KvattnError(
            f"the gate was fitted with another {wrong[0]} ({own}, here {now}), so its guarantee says nothing here; "
            "fit a gate on a run judged like this"
        )


def _short(value: object) -> str:
    text = str(value.get("name") or value.get("id")) if isinstance(value, dict) else str(value)
    return text if len(text) < 60 else text[:57] + "..."
