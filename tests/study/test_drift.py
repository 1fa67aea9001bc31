"""A gate for continuous integration: it fails a planted regression, passes a null edit, and says why."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from fake_run import Fake, write_fake_run

from kvattn.cli.check import share
from kvattn.errors import KvattnError
from kvattn.report.drift import junit, markdown
from kvattn.stats.resampling import exact_sum_p
from kvattn.study.drift import drift
from kvattn.study.run_folder import Run, RunWriter

pytest_plugins = ["pytester"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline of 16 questions; the same judged by naive, by a null edit, by all methods, and half of it."""
    folder = tmp_path_factory.mktemp("drift")
    sizes: dict[str, Any] = {"questions": 16, "rows": False}
    write_fake_run(folder / "baseline", Fake(**sizes, methods=("dense", "null-edit")))
    write_fake_run(folder / "bare", Fake(**sizes, methods=("dense",)))
    write_fake_run(folder / "naive", Fake(**sizes, methods=("dense", "naive")))
    write_fake_run(folder / "edit", Fake(**sizes, methods=("dense", "null-edit")))
    write_fake_run(folder / "many", Fake(**sizes))
    write_fake_run(folder / "half", Fake(**{**sizes, "questions": 8}, methods=("dense", "naive")))
    write_fake_run(folder / "other", Fake(**sizes, methods=("dense", "naive"), seed=1))
    return folder


@pytest.mark.parametrize("values", [[0, 2, -1, 1], [3, 3], [-2, 1], [0, 0], [], [1] * 8, [1, -3, 2, 2, 0, 1]])
def test_the_exact_test_counts_every_sign(values: list[int]) -> None:
    signs = np.array(list(itertools.product((1, -1), repeat=len(values))), dtype=int)
    sums = signs @ np.array(values, dtype=int)
    assert exact_sum_p(np.array(values, dtype=int)) == pytest.approx(np.mean([x >= sum(values) for x in sums]))


def test_a_planted_regression_fails_and_a_null_edit_passes(runs: Path) -> None:
    bad = drift(Run(runs / "baseline"), Run(runs / "naive"))
    assert not bad.passed
    assert bad.excess.value > 0.05
    assert bad.p < 0.001
    assert (bad.method, bad.reference, bad.floor, bad.questions) == ("naive", "dense", "null-edit", 16)
    good = drift(Run(runs / "baseline"), Run(runs / "edit"), method="null-edit")
    assert good.passed
    assert good.excess.value == 0
    same = drift(Run(runs / "baseline"), Run(runs / "edit"), max_flips=0)
    assert (same.method, same.flips, same.p, same.why) == ("dense", 0, 1, "no verdict flips")
    assert same.passed


def test_flips_are_counted_by_hand(runs: Path) -> None:
    run = Run(runs / "many")
    table = run.judgements().set_index(["question_id", "method"])
    texts = run.questions().set_index("question_id")
    flips = []
    for (q, m), row in ((k, r) for k, part in table.groupby(level=[0, 1]) for r in part.to_dict("records")):
        if m == "naive":
            dense = next(
                r for r in table.loc[(q, "dense")].to_dict("records") if list(r["order"]) == list(row["order"])
            )
            said = dict(zip(texts.loc[q, "candidate_ids"], texts.loc[q, "texts"], strict=True))
            flips.append(said[dense["choice"]] != said[row["choice"]])
    found = drift(Run(runs / "baseline"), run, method="naive")
    assert found.pairs == len(flips)
    assert found.flips == pytest.approx(np.mean(flips))


def test_more_may_be_allowed(runs: Path) -> None:
    assert drift(Run(runs / "baseline"), Run(runs / "naive"), max_flips=1.0).passed


def test_without_a_null_edit_the_floor_is_none(runs: Path) -> None:
    found = drift(Run(runs / "bare"), Run(runs / "naive"))
    assert (found.floor, found.floor_flips) == (None, 0)
    assert found.excess.value == found.flips
    assert "no null edit beside it" in found.sentence


def test_why_names_ties_shift_and_content(runs: Path) -> None:
    why = drift(Run(runs / "baseline"), Run(runs / "naive")).why
    assert "flips are ties" in why
    assert "are a shift of whole slots" in why
    assert "lost content" in why


@pytest.mark.parametrize(
    ("pair", "how", "says"),
    [
        (("baseline", "many"), {}, r"several methods, true-mask, .*; say which one \(--method\)"),
        (("baseline", "naive"), {"method": "kvcomm"}, "has no judgements by 'kvcomm'; it has dense, naive"),
        (("baseline", "naive"), {"reference": "true-mask"}, "has no judgements by 'true-mask'"),
        (("baseline", "half"), {}, "lacks 8 of the baseline's 16 questions"),
        (("baseline", "other"), {}, "says something else in"),
        (("baseline", "naive"), {"max_flips": 5.0}, "a share from 0% to 100%"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(runs: Path, pair: tuple[str, str], how: dict, says: str) -> None:
    with pytest.raises(KvattnError, match=says):
        drift(Run(runs / pair[0]), Run(runs / pair[1]), **how)


def test_the_command_says_it_in_two_lines_and_by_its_status(runs: Path, run: Callable[..., Any]) -> None:
    bad = run("check", "baseline", "naive", "--junit", "out/j.xml", "--markdown", "m.md", cwd=runs)
    assert bad.returncode == 1
    first, second = bad.stdout.splitlines()
    assert first.startswith("FAIL  naive beside the baseline's dense: ")
    assert second.startswith("why   ")
    suite = ElementTree.parse(runs / "out" / "j.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
    assert "naive beside the baseline's dense" in str(suite.find("testcase/failure").get("message"))  # type: ignore[union-attr]
    assert (runs / "m.md").read_text().startswith("### Verdicts drift\n\n| method |")
    good = run("check", "baseline", "edit", "--method", "null-edit", "--junit", "j.xml", cwd=runs)
    assert (good.returncode, good.stdout[:6]) == (0, "PASS  ")
    assert ElementTree.parse(runs / "j.xml").getroot().get("failures") == "0"
    assert run("check", "baseline", "half", cwd=runs).returncode == 2


def test_names_out_of_files_are_text_everywhere(runs: Path) -> None:
    found = drift(Run(runs / "baseline"), Run(runs / "naive"))
    found = type(found)(**{**vars(found), "method": "<b>|x|\n\x1b[31m &amp;"})
    assert "\n\x1b" not in markdown(found)
    assert "\\<b\\>\\|x\\|" in markdown(found)
    assert "<b>" in str(ElementTree.fromstring(junit(found)).find("testcase").get("name"))  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of 16 questions; the same a point higher, which flips nothing."""
    folder = tmp_path_factory.mktemp("scored")
    for name, moved in (("baseline", 0.0), ("higher", 1.0), ("bare", 0.0)):
        fake = Fake(questions=16, rows=False, methods=("dense",) if name == "bare" else ("dense", "null-edit"))
        with RunWriter(folder / name, {**fake.manifest(), "readout": "score"}) as writer:
            for row, decisions in fake.units():
                made = [replace(d, readout="score", scores=d.scores + moved) for d in decisions]
                writer.write_unit(row["question_id"], row, made)
    return folder


def test_scores_that_move_and_pick_the_same_fail_where_points_are_limited(scored: Path) -> None:
    base, higher = Run(scored / "baseline"), Run(scored / "higher")
    found = drift(base, higher, max_points=0.5)
    table = base.judgements().set_index(["question_id", "method"])
    floor = []
    for key in base.asked:
        dense, edit = ({tuple(r["order"]): r["scores"] for r in table.loc[[(key, m)]].to_dict("records")}
                       for m in ("dense", "null-edit"))  # fmt: skip
        floor += [np.abs(np.asarray(edit[o]) - np.asarray(dense[o])).mean() for o in dense]
    assert found.points is not None
    assert found.points.value == pytest.approx(1 - np.mean(floor))
    assert found.points.low < found.points.value < found.points.high
    assert (found.flips, found.passed) == (0, False)
    assert "points beyond it" in found.sentence
    assert "0.5 allowed" in found.sentence
    assert drift(base, higher).passed
    assert drift(base, higher, max_points=1.0).passed
    assert drift(base, base, max_points=0.0).passed
    without = drift(Run(scored / "bare"), higher, max_points=0.5, method="dense")
    assert (without.floor, without.passed) == (None, False)
    assert without.points is not None
    assert without.points.low == pytest.approx(1)


def test_points_are_of_scores(runs: Path) -> None:
    with pytest.raises(KvattnError, match="are of the readout score"):
        drift(Run(runs / "baseline"), Run(runs / "naive"), max_points=0.5)


@pytest.mark.parametrize(("text", "value"), [("5%", 0.05), ("0.05", 0.05), (" 0% ", 0), ("100%", 1), ("1", 1)])
def test_shares_are_read_as_people_write_them(text: str, value: float) -> None:
    assert share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["5", "-1%", "x", "", "%", "nan", "5%%", "101%"])
def test_other_words_are_no_share(text: str) -> None:
    with pytest.raises(KvattnError, match=r"give a share such as 5% or 0\.05"):
        share(text)


def test_the_plugin_fails_a_regression_and_passes_a_null_edit(runs: Path, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        f"""
        import sys

        def test_nothing_heavy_was_imported():
            assert not {{"torch", "pandas", "transformers"}} & set(sys.modules)

        def test_null_edit(kvattn_check):
            found = kvattn_check({str(runs / "baseline")!r}, {str(runs / "edit")!r}, method="null-edit")
            assert found.excess.value == 0

        def test_regression(kvattn_check):
            kvattn_check({str(runs / "baseline")!r}, {str(runs / "naive")!r}, max_flips="5%")

        def test_nothing_to_compare(kvattn_check):
            kvattn_check({str(runs / "baseline")!r}, {str(runs / "half")!r})
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["*naive beside the baseline's dense: *", "*kvattn check: *lacks 8*"])
