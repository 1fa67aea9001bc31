"""A verdict that the judge writes: greedy decoding, the slot it names, its scores and rows where the slot is named."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float

from kvattn.capture import Captured
from kvattn.data.answers import check
from kvattn.engine import Engine, Step
from kvattn.errors import KvattnError
from kvattn.execution import Execution
from kvattn.prompt import JudgePrompt, slot_labels
from kvattn.verdict import Verdict, after_verdict, read_verdict


@dataclass(frozen=True)
class Written:
    """What a judge wrote under one plan.

    output:   the text; tokens: how many it is of
    verdict:  the slot it names, if it names one, and the rule that read it
    scores:   [slots], log-probabilities of the labels where the label was written; NaN where the verdict was read by
              another rule than "format", or a label is not one token there
    coverage: probability of the labels there, or NaN
    correct:  whether the answer in the output is right; None where nobody can say, and for programs, which nobody runs
              here
    rows:     by query kind, the captured row: "first_generated" (the first written token), "at_choice" (the token that
              emitted the label)
    """

    output: str
    tokens: int
    verdict: Verdict
    scores: Float[np.ndarray, " slots"]
    coverage: float
    correct: bool | None
    rows: dict[str, Captured]


def write(engine: Engine, run: Execution, prompt: JudgePrompt, max_new: int) -> Written:
    """Let the judge of a finished prefill write up to `max_new` tokens, greedily, and read its verdict."""
    labels, texts = slot_labels(prompt.n), [prompt.shown(s).text for s in range(prompt.n)]
    task = prompt.template.name if prompt.template.name in ("math", "choice", "code") else "free"
    capture, stops = run.captured is not None, stop_tokens(engine)
    ids: list[int] = []
    rows: dict[str, Captured] = {}
    named: Step | None = None  # where the label was written
    for step in islice(engine.stream(run, rows=capture), max_new):
        if len(ids) == 1 and step.captured is not None:
            rows["first_generated"] = step.captured
        if step.token in stops:
            break
        ids.append(step.token)
        if named is None and read_verdict(engine.tokenizer.decode(ids), labels, texts, task).rule == "format":
            named = step
            if step.captured is not None:
                rows["at_choice"] = step.captured
    output = engine.tokenizer.decode(ids, skip_special_tokens=True)
    verdict = read_verdict(output, labels, texts, task)
    scores, coverage = np.full(prompt.n, np.nan), float("nan")
    if verdict.rule == "format" and named is not None:
        scores, coverage = _label_scores(engine, named, labels, scores)
    correct = None if task == "code" else check(task, prompt.answer, after_verdict(output, labels))
    return Written(output, len(ids), verdict, scores, coverage, correct, rows)


def stop_tokens(engine: Engine) -> frozenset[int]:
    """The tokens that end a model's turn: its generation configuration's and its tokenizer's."""
    said = getattr(engine.model.generation_config, "eos_token_id", None)
    ends = {*(said if isinstance(said, list) else [said]), getattr(engine.tokenizer, "eos_token_id", None)}
    return frozenset(int(x) for x in ends if x is not None)


def _label_scores(
    engine: Engine, named: Step, labels: tuple[str, ...], nothing: np.ndarray
) -> tuple[np.ndarray, float]:
    """Log-probabilities of the labels, and their summed probability, where one of them was emitted."""
    for opening in ("Selected agent id: ", "Selected agent id:"):
        try:
            _, at = engine.compiler.forced(opening, labels)
        except KvattnError:
            continue
        if named.token in at:
            logp = torch.log_softmax(named.logits.double(), -1)[list(at)]
            return logp.numpy(), float(logp.exp().sum())
    return nothing, float("nan")
