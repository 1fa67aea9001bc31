"""What low precision does to a judge: dense against dense, as its dtype and as float32 compute it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvattn.engine.capture import Wanted
from kvattn.engine.engine import Engine
from kvattn.engine.plan import dense_plan
from kvattn.engine.precision import in_float32
from kvattn.errors import KvattnError
from kvattn.judge.judge import Judge
from kvattn.judge.readout import Reading
from kvattn.questions.orders import rotations
from kvattn.questions.prompt import JudgePrompt


@dataclass(frozen=True)
class Agreement:
    """How a judge's dense decisions compare with those of the same weights in float32.

    same, of: how often it picks the same candidate
    scores:   the mean distance of a slot's log-probability
    rows:     the mean share of a decision row, over layers and heads, that lies on other tokens (half the L1 distance)
    """

    same: int
    of: int
    scores: float
    rows: float

    def __str__(self) -> str:
        return (
            f"the same pick in {self.same} of {self.of} prompts, log-probabilities of the slots {self.scores:.3f} "
            f"away, {self.rows:.2%} of attention on other tokens"
        )


def agreement(engine: Engine, prompts: Sequence[JudgePrompt]) -> Agreement:
    """Dense in the engine's dtype against dense in float32, on prompts in all their rotations, read by the label.

    Raises KvattnError where no prompt can be compiled."""
    judge, picks, scores, rows = Judge(engine), [], [], []
    for prompt in (p.ordered(order) for p in prompts for order in rotations(p.order)):
        try:
            layout = judge.compile(prompt)
        except KvattnError:
            continue
        plan = dense_plan(layout, engine.layers)
        low = engine.execute([plan], Wanted(rows=True))[0]
        with in_float32(engine.model):
            high = engine.execute([plan], Wanted(rows=True))[0]
        one, other = (judge.readout.reading(engine, run, prompt) for run in (low, high))
        picks.append(one.slot == other.slot)
        scores.append(_distance(one, other))
        rows.append(float((low.rows() - high.rows()).abs().sum(-1).mean() / 2))
    if not picks:
        raise KvattnError("this judge can compile none of the prompts; name others")
    mean = torch.tensor([scores, rows]).mean(1).tolist()
    return Agreement(sum(picks), len(picks), *mean)


def _distance(a: Reading, b: Reading) -> float:
    return float(abs(a.scores - b.scores).mean())
