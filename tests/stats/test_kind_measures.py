"""Measures of kinds of judgement, by plain loops: ties as a third verdict, and scores on a scale."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from kvattn import stats
from kvattn.decision import TIE

ORDERS = {"pairwise": [(0, 1, 2), (1, 0, 2)], "score": [(0, 1, 2, 3), (2, 3, 0, 1), (3, 2, 1, 0)]}


def made(readout: str, questions: int = 30) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Judgements of random scores under dense, a null edit near it and a method further off."""
    rng, rows, asked = np.random.default_rng(3), [], []
    for q in range(questions):
        n = len(ORDERS[readout][0])
        ids = ["a", "b", TIE] if readout == "pairwise" else [f"c{i}" for i in range(n)]
        asked.append({"question_id": f"q{q}", "candidate_ids": ids, "texts": [f"{q} {x}" for x in ids]})
        for order in ORDERS[readout]:
            base = rng.normal(0, 1, n)
            for method, noise in (("dense", 0.0), ("null-edit", 0.2), ("naive", 1.5)):
                scores = base + rng.normal(0, 1, n) * noise
                slot = int(scores.argmax())
                rows.append(
                    {"question_id": f"q{q}", "order": order, "method": method, "readout": readout, "slot": slot}
                    | {"choice": ids[order[slot]], "scores": scores}
                )
    return pd.DataFrame(rows), pd.DataFrame(asked)


def beside(judged: pd.DataFrame, method: str) -> list[tuple[dict, dict]]:
    """(dense's row, the method's) of every pair."""
    rows = {(r["question_id"], r["order"], r["method"]): r for r in judged.to_dict("records")}
    return [(r, rows[q, o, method]) for (q, o, m), r in rows.items() if m == "dense"]


def test_ties_are_a_third_verdict() -> None:
    judged, asked = made("pairwise")
    table = stats.measures(judged, asked).set_index("method")
    for method in ("naive", "null-edit"):
        pairs = beside(judged, method)
        flips = [(a["choice"], b["choice"]) for a, b in pairs if a["choice"] != b["choice"]]
        tied = sum(TIE in x for x in flips)
        assert 0 < tied < len(flips) or method == "null-edit"
        assert table.loc[method, "jcr"] == pytest.approx(1 - len(flips) / len(pairs))
        assert table.loc[method, "flips_tie"] == pytest.approx(tied / len(pairs))
        assert table.loc[method, "flips_side"] == pytest.approx((len(flips) - tied) / len(pairs))
        # Two judges that say first, second or tie as often as these two, and read nothing.
        shares = [Counter(x["slot"] for x in side) for side in zip(*pairs, strict=True)]
        chance = sum(shares[0][s] * shares[1][s] for s in range(3)) / len(pairs) ** 2
        assert table.loc[method, "chance"] == pytest.approx(chance)
    assert table.loc["naive", "flips_tie_low"] < table.loc["naive", "flips_tie"] < table.loc["naive", "flips_tie_high"]
    assert table.loc["naive", "flips_tie_floor"] == pytest.approx(table.loc["null-edit", "flips_tie"])
    assert table[["points", "branch", "jcr_c"]].isna().all(axis=None)
    assert "in every order" in table.loc["naive", "note"]


def test_order_consistency_counts_ties_as_the_same() -> None:
    judged, asked = made("pairwise")
    found = stats.position_bias(judged, asked).set_index("method")
    for method, part in judged.groupby("method"):
        same = [len(set(x["choice"])) == 1 for _, x in part.groupby("question_id")]
        assert found.loc[method, "order_consistency"] == pytest.approx(np.mean(same))
    ties = judged[judged["method"] == "dense"].assign(slot=2, choice=TIE)
    assert stats.position_bias(ties, asked)["order_consistency"].tolist() == [1.0]


def test_scores_drift_by_points_and_ranks() -> None:
    judged, asked = made("score")
    table = stats.measures(judged, asked).set_index("method")
    for method in ("naive", "null-edit"):
        pairs = beside(judged, method)
        points = [np.mean([abs(x - y) for x, y in zip(a["scores"], b["scores"], strict=True)]) for a, b in pairs]
        tau = [kendalltau(a["scores"], b["scores"]).statistic for a, b in pairs]
        assert table.loc[method, "points"] == pytest.approx(np.mean(points))
        assert table.loc[method, "tau"] == pytest.approx(np.mean(tau))
        assert table.loc[method, "flips"] == pytest.approx(np.mean([a["slot"] != b["slot"] for a, b in pairs]))
    row = table.loc["naive"]
    assert row["points_low"] < row["points"] < row["points_high"]
    assert row["points_floor"] == pytest.approx(table.loc["null-edit", "points"])
    assert table[["flips_tie", "flips_side", "branch"]].isna().all(axis=None)


def test_the_interval_of_points_takes_questions_for_the_unit() -> None:
    """Each question three times over says no more than once."""
    judged, asked = made("score")
    again = pd.concat([judged.assign(order=[tuple(o[i] for i in p) for o in judged["order"]])
                       for p in ((0, 1, 2, 3), (1, 2, 0, 3), (0, 2, 1, 3))])  # fmt: skip
    again = again.assign(choice=[f"c{o[s]}" for o, s in zip(again["order"], again["slot"], strict=True)])
    one, three = (stats.measures(x, asked).set_index("method").loc["naive"] for x in (judged, again))
    assert three["pairs"] == 3 * one["pairs"]
    assert [three[f"points{x}"] for x in ("", "_low", "_high")] == pytest.approx(
        [one[f"points{x}"] for x in ("", "_low", "_high")]
    )
