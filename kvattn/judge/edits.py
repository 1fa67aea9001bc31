"""What one candidate does to the judging of the others: it is removed, replaced, or its final answer is changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from kvattn.decision import Decision
from kvattn.errors import KvattnError
from kvattn.judge.judge import Judge
from kvattn.methods import Method
from kvattn.questions.answers import final_answer
from kvattn.questions.prompt import JudgePrompt


def without(prompt: JudgePrompt, slot: int) -> JudgePrompt:
    """The prompt without the candidate in that slot; the others stand in the same sequence."""
    gone = prompt.order[slot]
    kept = tuple(c for i, c in enumerate(prompt.candidates) if i != gone)
    return replace(prompt, candidates=kept, order=tuple(i - (i > gone) for i in prompt.order if i != gone))


def rewritten(prompt: JudgePrompt, slot: int, text: str) -> JudgePrompt:
    """The prompt with another text in that slot; nobody knows whether it is right."""
    at = prompt.order[slot]
    was = prompt.candidates[at]
    other = replace(was, text=text, correct=None, token_ids=None)
    return replace(prompt, candidates=(*prompt.candidates[:at], other, *prompt.candidates[at + 1 :]))


def independence(
    judge: Judge,
    prompts: Sequence[JudgePrompt],
    edit: Literal["remove", "replace"] = "remove",
    method: str = "dense",
    floor: str = "null-edit",
) -> pd.DataFrame:
    """Does a candidate that was not chosen decide among the others (independence of irrelevant alternatives)?

    Every candidate but the chosen one is edited in its turn: removed, or replaced by the text that the next question
    shows in that slot. One row an edit: question_id, slot (from 0, of the edited candidate), edit, changed (whether
    the best score among the others is another text's than before), changed_floor (the same under an edit that changes
    no meaning, all candidates standing). `kvattn.stats.independence` makes rates of them.

    Raises KvattnError for fewer than three candidates, and for judgements without a score for every slot."""
    rows = []
    for i, prompt in enumerate(prompts):
        if prompt.n < 3:
            raise KvattnError(f"question {prompt.id!r} has {prompt.n} candidates; among the others there is no choice")
        donor = prompts[(i + 1) % len(prompts)]
        if edit == "replace" and (donor.n != prompt.n or donor.id == prompt.id):
            raise KvattnError("replacing takes another question with as many candidates; give two or more")
        before, null = judge.judge(prompt, [method], capture=False)[0], judge.judge(prompt, [floor], capture=False)[0]
        best = _best(before, prompt)
        for slot in range(prompt.n):
            if prompt.order[slot] == best:
                continue
            rest = [s for s in range(prompt.n) if s != slot]
            if edit == "remove":
                edited = without(prompt, slot)
                kept = list(range(edited.n))
            else:
                edited, kept = rewritten(prompt, slot, donor.shown(slot).text), rest
            after = judge.judge(edited, [method], capture=False)[0]
            found = edited.shown(kept[int(np.argmax(_scores(after)[kept]))])
            under_null = prompt.shown(rest[int(np.argmax(_scores(null)[rest]))])
            chosen = prompt.candidates[best]
            rows.append(
                {
                    "question_id": prompt.id,
                    "slot": slot,
                    "edit": edit,
                    "changed": found.text != chosen.text,
                    "changed_floor": under_null.text != chosen.text,
                }
            )
    return pd.DataFrame(rows, columns=["question_id", "slot", "edit", "changed", "changed_floor"])


class Edit(NamedTuple):
    """A minimal edit: the final answer of the candidate in slot `earlier` becomes that of the one in slot `later` in
    `same`, and one that nobody states in `other`; not a character else changes. apart: the slots that were not edited
    and state another answer than `later`."""

    earlier: int
    later: int
    same: JudgePrompt
    other: JudgePrompt
    apart: tuple[int, ...]


def restated(text: str, template: str, answer: str) -> str | None:
    """The text with its final answer written as another one, nothing else changed; None where that cannot be done."""
    if template == "code":
        return None
    token = r"(?<![A-Za-z])[A-J](?![A-Za-z])" if template == "choice" else r"(?<![\w.,])-?\d[\d,]*(?:\.\d+)?"
    for found in reversed(list(re.finditer(token, text))):
        new = text[: found.start()] + answer + text[found.end() :]
        if final_answer(new, template) == answer:
            return new
    return None


def minimal_edits(prompt: JudgePrompt, seed: int = 0) -> list[Edit]:
    """All minimal edits of one earlier candidate towards one later one, in a sequence that the seed draws. Left out are
    pairs that state one answer, and those beside which no third candidate states another one."""
    name, texts = prompt.template.name, [prompt.shown(s).text for s in range(prompt.n)]
    answers = [final_answer(t, name) for t in texts]
    rng, out = np.random.default_rng([seed, *prompt.id.encode()]), []
    for earlier in range(prompt.n):
        for later in range(earlier + 1, prompt.n):
            said = answers[later]
            apart = tuple(s for s in range(prompt.n) if s not in (earlier, later) and answers[s] not in (said, None))
            if said is None or answers[earlier] in (said, None) or not apart:
                continue
            alike = (
                "ABCDEFGHIJ"[: max(4, prompt.n)]
                if name == "choice"
                else [_near(said, d) for d in (1, 2, 3, 10, -1, -2)]
            )
            free = [a for a in alike if a is not None and a not in answers]
            if not free:
                continue
            edited = [restated(texts[earlier], name, a) for a in (said, str(rng.choice(free)))]
            if edited[0] is not None and edited[1] is not None:
                same, other = (rewritten(prompt, earlier, e) for e in edited if e is not None)
                out.append(Edit(earlier, later, same, other, apart))
    return [out[i] for i in rng.permutation(len(out))]


def echo(
    judge: Judge, prompts: Sequence[JudgePrompt], methods: Sequence[str | Method], per_question: int = 1, seed: int = 0
) -> pd.DataFrame:
    """What an earlier candidate that states the same final answer does to a later one's score: the causal echo.

    One row a question, edit and method: question_id, method, earlier, later (slots from 0), same, other (the later
    candidate's score less the mean score of `Edit.apart`, under the two edits), value (same - other, nats). Questions
    without an edit have no row.

    per_question: so many edits of each question, drawn by the seed"""
    rows = []
    for prompt in prompts:
        for edit in minimal_edits(prompt, seed)[:per_question]:
            same, other = (judge.judge(p, methods, capture=False) for p in (edit.same, edit.other))
            for a, b in zip(same, other, strict=True):
                first, second = (float(s[edit.later] - s[list(edit.apart)].mean()) for s in (_scores(a), _scores(b)))
                found = {"question_id": prompt.id, "method": a.method, "earlier": edit.earlier, "later": edit.later}
                rows.append({**found, "same": first, "other": second, "value": first - second})
    return pd.DataFrame(rows, columns=["question_id", "method", "earlier", "later", "same", "other", "value"])


def _near(number: str, step: int) -> str | None:
    """A whole number that many away from one; None where it is none."""
    return str(int(number) + step) if re.fullmatch(r"-?\d+", number) else None


def _scores(decision: Decision) -> np.ndarray:
    if not np.isfinite(decision.scores).all():
        raise KvattnError(
            f"this takes a score for every slot; use the readout label, yesno or score, not {decision.readout}"
        )
    return decision.scores


def _best(decision: Decision, prompt: JudgePrompt) -> int:
    return prompt.order[int(np.argmax(_scores(decision)))]
