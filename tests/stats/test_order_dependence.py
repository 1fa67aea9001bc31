"""Order dependence, counted, against a walk through all pairs of orders."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kvattn.stats.slots import position_bias


def test_it_is_that_of_a_walk_through_all_pairs_of_orders() -> None:
    """With equal texts, one candidate, one order, and another number of orders each."""
    rng = np.random.default_rng(0)
    questions, judgements, expected = [], [], []
    for i in range(40):
        n = int(rng.integers(1, 6))
        texts = [f"t{rng.integers(3)}" for _ in range(n)]
        ids = [f"c{k}" for k in range(n)]
        key = f"q{i:02}"
        questions.append({"question_id": key, "candidate_ids": ids, "texts": texts, "corrects": [None] * n})
        orders = list({tuple(map(int, rng.permutation(n))) for _ in range(rng.integers(1, 7))})
        slots = []
        for order in orders:
            scores = rng.normal(size=n)
            slots.append(int(scores.argmax()))
            row = {"question_id": key, "order": list(order), "method": "dense", "scores": scores, "slot": slots[-1]}
            judgements.append(row | {"choice": ids[order[slots[-1]]], "correct": None, "n": n, "readout": "label"})
        pairs = [(a, b) for a in range(len(orders)) for b in range(len(orders)) if a != b]
        if pairs:
            picks = [o[s] for o, s in zip(orders, slots, strict=True)]
            apart = [(a, b) for a, b in pairs if texts[picks[a]] != texts[picks[b]]]
            later = sum(np.sign(slots[a] - orders[a].index(picks[b])) for a, b in apart)
            expected.append((1 - len(apart) / len(pairs), float(not apart), later / len(pairs)))
    table = pd.DataFrame(questions).assign(agents=None, template="math", question="?", answer=None, lengths=None)
    found = position_bias(pd.DataFrame(judgements), table).iloc[0]
    assert found["questions"] == len(expected) > 10
    names = ["order_consistency", "position_consistency", "preference_fairness"]
    assert found[names].tolist() == pytest.approx(np.mean(expected, axis=0).tolist(), abs=1e-12)
