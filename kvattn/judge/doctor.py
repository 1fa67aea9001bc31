"""Can a model be judged with? Real prompts of every template, compiled and judged, and then the engine's own checks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from kvattn.decision import ties
from kvattn.engine import parts
from kvattn.engine.doctor import Doctor, Finding
from kvattn.engine.engine import Engine
from kvattn.errors import KvattnError
from kvattn.judge.judge import Judge
from kvattn.judge.readout import READOUTS
from kvattn.questions.organism.tasks import TASKS
from kvattn.questions.prompt import JudgePrompt
from kvattn.questions.synthetic import synthetic
from kvattn.questions.templates import TEMPLATES


def examine(engine: Engine) -> Iterator[Finding]:
    """All findings on a model, in the order of dependence."""
    bad = parts.not_finite(engine.model)
    error = f"{bad} holds numbers that are not finite; fetch the weights anew" if bad else ""
    yield Finding("weights that are not finite", float(bad is not None), 0, error=error)
    doctor = Doctor(engine)
    yield from _prompts(engine, doctor)
    yield from doctor.examine()


def real_prompts() -> list[JudgePrompt]:
    """A question for every template: the organisms' of their own tasks, the others a word problem."""
    problem = synthetic(1)[0]
    own = {task.template.name: task.problems(1, 0)[0] for task in TASKS.values()}
    plain = {name: replace(problem, template=t) for name, t in TEMPLATES.items() if t.chat}
    return list({**plain, **own}.values())


def _prompts(engine: Engine, doctor: Doctor) -> Iterator[Finding]:
    said, unsaid = [], ""
    for prompt in real_prompts():
        try:
            engine.compiler.check_said(prompt)
            said.append(prompt)
        except KvattnError as problem:
            unsaid = str(problem)
    yield Finding("templates that the tokenizer can say", len(said), 0, above=True, error="" if said else unsaid)
    largest, judged = 0, []
    for prompt in said:
        wrong: dict[str, str] = {}
        for name, readout in READOUTS.items():
            asked = replace(prompt, candidates=prompt.candidates[:2], order=()) if ties(name) else prompt
            try:
                layouts = [Judge(engine, readout).compile(asked), *engine.compiler.execution(prompt, "progressive")]
                largest = max(largest, *(int(x.token_ids.max()) for x in layouts))
                judged += [prompt] if name == "label" else []
            except KvattnError as problem:
                wrong[name] = str(problem)
        first, none = next(iter(wrong.values()), ""), {"label", "yesno"} <= wrong.keys()
        yield Finding(
            f"readouts for prompts of the template {prompt.template.name}",
            float("nan") if none else len(READOUTS) - len(wrong),
            0,
            above=True,
            error=first if none else "",
            note=f"not {', '.join(wrong)}: {first}" if wrong else "",
        )
    rows = engine.model.get_input_embeddings().weight.shape[0]
    yield Finding("the largest id of these prompts", largest, rows - 1)
    marks = _cut_marks(engine, said)
    error = f"the chat template writes {', '.join(marks)}, which is no token here; take the template of this vocabulary"
    yield Finding("turn marks that are no token", len(marks), 0, error=error if marks else "")
    if judged:
        yield _judged(engine, doctor, judged[0])


def _cut_marks(engine: Engine, prompts: list[JudgePrompt]) -> list[str]:
    """The marks of chat turns, <|...|>, that the tokenizer cuts into pieces."""
    marks: set[str] = set()
    for t in {p.template.name: p.template for p in prompts}.values():
        try:
            before, after = engine.compiler.frame(t.system, t.chat)
        except KvattnError:  # named above
            continue
        marks |= set(re.findall(r"<\|[^|<>\s]+\|>", engine.tokenizer.decode([*before, *after])))
    return sorted(m for m in marks if len(engine.tokenizer(m, add_special_tokens=False).input_ids) != 1)


def _judged(engine: Engine, doctor: Doctor, prompt: JudgePrompt) -> Finding:
    """Dense's scores of a real question against those of the plain forward; naive reuse must decide, too."""
    value, error = float("nan"), ""
    try:
        judge = Judge(engine)
        decision, layout = judge.judge(prompt, ["dense", "naive"])[0], judge.compile(prompt)
        want, _ = layout.scores(doctor.plain(layout.token_ids)[None])
        value = float(np.abs(decision.scores - want).max())
    except Exception as problem:
        error = (str(problem) or type(problem).__name__).splitlines()[0]
    return Finding("scores of a real question equal the plain forward's", value, doctor.bound, error=error)
