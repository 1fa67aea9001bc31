"""The sentences above figures: each follows from its table, and nothing is said where nothing is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_run import Fake, write_fake_run

from kvattn import stats
from kvattn.report import headline
from kvattn.stats.accuracy import of_methods
from kvattn.stats.slots import position_bias, slot_histogram
from kvattn.study.run_folder import Run, mass

SAME: Any = pd.DataFrame(
    {
        "method": ["null-edit", "true-mask", "foreign-kv"],
        "jcr": [0.98, 0.4, 0.3],
        "low": [0.9, 0.3, 0.2],
        "high": [1.0, 0.5, 0.4],
        "chance": [0.25, 0.26, 0.27],
        "floor": [0.98, 0.98, 0.98],
        "pairs": [1200, 1200, 1200],
    }
)


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        (["dense", "foreign-kv", "naive-linked", "naive"], "naive"),
        (["dense", "naive-linked", "true-mask"], "naive-linked"),
        (["dense", "null-edit", "foreign-kv", "true-mask"], "true-mask"),
        (["dense", "null-edit"], "null-edit"),
        (["dense"], None),
    ],
)
def test_a_view_opens_with_naive_reuse_or_else_with_what_agrees_least(methods: list[str], told: str | None) -> None:
    assert headline.telling(methods, SAME) == told
    assert headline.telling(["dense", "a", "b"], SAME.assign(method=["x", "a", "b"])) == "b"


def test_consistency_stands_beside_chance_floor_and_foreign_blocks() -> None:
    said = headline.consistency(SAME, "true-mask")
    assert said.startswith("true-mask picks the same candidate as dense in 40% of 1,200 judgements (95% 30 to 50%)")
    assert "reads nothing, would in 26%, and dense itself after an edit that changes no meaning does in 98%." in said
    assert "(foreign-kv) it is 30% (95% 20 to 40%)" in said
    assert "changes no meaning" not in headline.consistency(SAME, "null-edit")
    assert headline.consistency(SAME, "absent") == ""
    one = SAME.assign(low=np.nan, high=np.nan)
    assert "(interval unknown); a judge" in headline.consistency(one, "true-mask")


def test_sentences_are_those_of_a_runs_own_tables(tmp_path) -> None:
    run = Run(write_fake_run(tmp_path / "run", Fake(questions=20, orders=4, methods=("dense", "naive", "null-edit"))))
    judged: Any = run.judgements()
    naive = judged[judged["method"] == "naive"]
    share = naive["slot"].value_counts(normalize=True)
    picked: Any = slot_histogram(run)
    dense = (judged[judged["method"] == "dense"]["slot"] == share.idxmax()).mean()
    assert (
        headline.slots(picked, "naive")
        == f"naive picks slot {share.idxmax() + 1} in {share.max():.0%}, dense in {dense:.0%}."
    )
    right = judged.groupby("method")["correct"].mean()
    told = headline.accuracy(of_methods(run), "naive")
    assert told.startswith(
        f"naive is right in {right['naive']:.0%}, dense in {right['dense']:.0%}, a slot at random in "
    )
    measured: Any = stats.measures(judged, run.questions()).set_index("method")
    assert f"keeps {measured.loc['naive', 'jcr_c']:.0%} of dense's" in headline.content(measured.reset_index(), "naive")
    bias: Any = position_bias(run).set_index("method")["order_consistency"]
    assert f"in {bias['dense']:.0%} of pairs, naive in {bias['naive']:.0%}" in headline.shuffling(
        bias.reset_index(), "naive"
    )
    changes: Any = mass.with_intervals(run, run.queries()[0], ("method",), "change", "kept")
    own = changes[changes["method"] == "naive"].set_index("slot")["value"]
    assert f"Under naive slot {own.idxmax()} gets {np.exp(own.max()):.2g} times" in headline.dilution(changes, "naive")


def test_what_is_unknown_is_not_said() -> None:
    nothing: Any = pd.DataFrame({"method": ["naive", "dense"], "accuracy": [np.nan] * 2, "random": [np.nan] * 2})
    assert headline.accuracy(nothing, "naive") == ""
    assert headline.dilution(pd.DataFrame({"method": ["naive"], "slot": [1], "value": [np.nan]}), "naive") == ""
    assert headline.content(pd.DataFrame({"method": ["naive"], "jcr_c": [np.nan]}), "naive") == ""
    assert headline.shuffling(nothing.assign(order_consistency=np.nan), "naive") == ""
    assert headline.runs(SAME.assign(run="a"), "absent") == ""


def test_the_head_that_moves_most_attention_is_named() -> None:
    keys = pd.DataFrame({"layer": [0, 3, 3], "head": [1, 2, 2], "slot": [1, 1, 4]})
    own, other = keys.assign(value=[0.1, 0.4, 0.02]), keys.assign(value=[0.12, 0.1, 0.0001])
    said = headline.heads(own, other, "naive", "dense")
    assert said == "Head L3H2 moves most: slot 1 gets 40.0% of its attention under naive, 10.0% under dense."


@pytest.mark.parametrize(
    ("jcr", "said"),
    [
        (0.95, "cheapest method within the interval of dense's own floor is tail: 95% at 20%"),
        (0.5, "No method is as consistent as dense after an edit without meaning; the nearest is tail with 50% at 20%"),
    ],
)
def test_the_frontier_names_the_cheapest_method_at_the_floor(jcr: float, said: str) -> None:
    table: Any = pd.DataFrame(
        {
            "method": ["dense", "null-edit", "naive", "tail", "tail(tokens=8)"],
            "share": [1.0, 1.0, 0.01, 0.2, 0.6],
            "jcr": [1.0, 0.97, 0.3, jcr, jcr],
            "low": [1.0, 0.9, 0.2, 0.4, 0.4],
        }
    )
    assert said in headline.frontier(table)
    assert headline.frontier(table[table["method"] != "null-edit"]) == ""
