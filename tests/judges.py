"""Synthetic judges whose shift and loss of content are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from kvattn.stats.pairs import Pairs

SHIFT = np.array([-1.4, 0.1, 0.0, 1.3])
HABIT = np.array([-0.2, 0.0, 0.1, 0.1])


def cyclic(questions: int, orders: int, slots: int = 4) -> np.ndarray:
    """[questions, orders, slots], rotations that start at another candidate with every question."""
    start = np.arange(questions)[:, None, None] + np.arange(orders)[None, :, None]
    return (start + np.arange(slots)) % slots


def judged(
    rng: np.random.Generator,
    questions: int = 60,
    orders: int = 1,
    gain: float = 0.6,
    noise: float = 0.6,
    shift: np.ndarray = SHIFT,
    edit: float = 0.05,
) -> Pairs:
    """A judge with content of variance 1 (half the candidate's, half the judgement's), and a method that keeps `gain`
    of it, adds noise, and shifts the slots by `shift`."""
    order = cyclic(questions, orders)
    own = np.take_along_axis(rng.normal(size=(questions, 1, 4)).repeat(orders, 1), order, -1)
    content = np.sqrt(0.5) * (own + rng.normal(size=order.shape))
    correct = np.take_along_axis((rng.random((questions, 1, 4)) < 0.5).repeat(orders, 1), order, -1).astype(float)
    dense = content + HABIT
    method = gain * content + noise * rng.normal(size=order.shape) + HABIT + shift
    floor = dense + edit * rng.normal(size=order.shape)
    flat = [x.reshape(-1, 4) for x in (dense, method, order, correct, floor)]
    dense, method, order, correct, floor = flat
    names = np.repeat(np.arange(questions), orders)
    return Pairs(dense, method, names, order, order, correct, order, floor)


def with_classes(pairs: Pairs, classes: list[int]) -> Pairs:
    """The same judge, on candidates of which some have equal texts: candidate i has the text `classes[i]`."""
    shown = np.array(classes)[pairs.orders]
    return Pairs(pairs.dense, pairs.method, pairs.questions, pairs.orders, shown, pairs.correct, shown, pairs.floor)


def frames(pairs: Pairs) -> tuple[Any, Any]:
    """The judge as judgements of dense, naive and null-edit, and its questions of four different texts."""
    rows = []
    for method, scores in (("dense", pairs.dense), ("naive", pairs.method), ("null-edit", pairs.floor)):
        for q, order, s in zip(pairs.questions, pairs.orders, scores, strict=True):
            slot = int(s.argmax())
            rows.append((f"q{q}", order.tolist(), method, "abcd"[order[slot]], slot, s, "yesno"))
    columns = ["question_id", "order", "method", "choice", "slot", "scores", "readout"]
    first = {f"q{q}": i for i, q in reversed(list(enumerate(pairs.questions)))}
    asked = [
        {
            "question_id": q,
            "candidate_ids": list("abcd"),
            "texts": [f"The answer is {c}" for c in "1234"],
            "corrects": [bool(c) for c in pairs.correct[i][np.argsort(pairs.orders[i])]],
        }
        for q, i in sorted(first.items(), key=lambda item: item[1])
    ]
    return pd.DataFrame(rows, columns=columns), pd.DataFrame(asked)
