"""The face: comparisons, calibration, studies that stop and go on."""

from __future__ import annotations

import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from fake_run import frame
from tiny import plain_added_tokenizer, save
from transformers import AutoTokenizer

import kvattn
from kvattn.engine import capture
from kvattn.engine.capture import Wanted
from kvattn.engine.compiler import token_texts
from kvattn.errors import KvattnError
from kvattn.judge import readout
from kvattn.judge.judge import calibrate, load
from kvattn.judge.prior import Prior
from kvattn.models.source import PACKAGED
from kvattn.questions import synthetic
from kvattn.questions.orders import assign, orders, rotations
from kvattn.questions.prompt import Candidate, JudgePrompt
from kvattn.study.run_folder import Run
from kvattn.study.study import Study
from kvattn.text import Enough


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def judge(folder):
    return load(folder)


def test_a_comparison_holds_decisions_rows_and_caches(judge):
    p = synthetic(1)[0]
    result = judge.compare(p.question, [c.text for c in p.candidates], methods=["naive", "dense"])
    assert [d.method for d in result.decisions] == ["dense", "naive"]
    n = len(result.runs[0].plan.layout)
    assert result.row["naive"].shape == (4, 4, n)
    assert torch.allclose(result.row["dense"].sum(-1), torch.ones(4, 4), atol=1e-4)
    assert result.kv["dense"][0].shape == (4, 2, n, 8)
    assert len(result.tokens()) == n
    table = result.table()
    assert list(table["method"]) == ["dense", "naive"]
    assert table["token-layers"].iloc[0] == 1
    assert table[["p1", "p2", "p3", "p4"]].sum(axis=1).to_numpy() == pytest.approx(1, abs=0.01)
    assert len(result.plot().data) >= 2


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_progress_that_has_enough_keeps_what_is_done(judge, after):
    def progress(what: str, done: int, of: int) -> None:
        if done == after:
            raise Enough

    asked = ["dense", "naive", "true-mask"]
    if not after:
        with pytest.raises(Enough):
            judge.compare(synthetic(1)[0], methods=asked, progress=progress)
        return
    whole, part = (judge.compare(synthetic(1)[0], methods=asked, **more) for more in ({}, {"progress": progress}))
    assert part.methods == asked[:after]
    for method in part.methods:
        assert torch.equal(part.row[method], whole.row[method])


def test_sinks_found_on_dense_are_the_same_tokens_for_every_method(judge):
    p = synthetic(1)[0]
    made = judge.judge(p, ["dense", "naive", "null-edit"], [(0, 1, 2, 3), (3, 1, 0, 2)])
    for d in made:
        assert d.mass is not None
        assert (d.mass.sink <= d.mass.mass + 1e-6).all()
        assert np.allclose(d.mass.mass.sum(-1), 1, atol=1e-4)
    assert {d.order for d in made} == {(0, 1, 2, 3), (3, 1, 0, 2)}


@pytest.mark.parametrize("queries", [(5,), (5, 9, 2), None])
def test_sinks_are_found_on_the_decision_row_whatever_rows_are_wanted(judge, queries, monkeypatch):
    tokens = partial(capture.sink_tokens, mass=0.0, small=1.0)  # a random model has no strong ones
    monkeypatch.setattr(capture, "sink_tokens", tokens)
    p = synthetic(1)[0]
    plain = judge.judge(p, ["dense", "naive"])
    runs = []
    asked = judge.judge(p, ["dense"], wanted=Wanted(queries=queries, rows=True, kv=True), keep=runs)
    layout, captured = runs[0].plan.layout, runs[0].captured
    last = len(layout) - 1
    assert captured.queries == (last, *(queries or ()))
    sinks = tokens(captured.row(last)[..., : len(layout)], captured.value_norm)
    assert torch.equal(captured.sinks, sinks)
    assert sinks.any()
    for mass, q in zip((asked[0].mass, *asked[0].more), captured.queries, strict=True):
        for i, s in enumerate(layout.segments):
            here = sinks[:, s.start : s.stop]
            want = (captured.row(q)[..., s.start : s.stop] * here[:, None]).sum(-1)
            assert np.allclose(mass.sink[..., i], want, atol=1e-6)
    assert np.allclose(asked[0].mass.sink, plain[0].mass.sink, atol=1e-6)


def test_every_method_finds_its_own_sinks(judge, monkeypatch):
    tokens = partial(capture.sink_tokens, mass=0.0, small=1.0)  # a random model has no strong ones
    monkeypatch.setattr(capture, "sink_tokens", tokens)
    p, runs = synthetic(1)[0], []
    for d in judge.judge(p, ["naive", "null-edit"], wanted=Wanted(rows=True, kv=True), keep=runs):
        captured = runs.pop(0).captured
        assert torch.equal(captured.sinks, tokens(captured.rows[0], captured.value_norm))
        assert d.mass.sink.any()


def test_choices_name_candidates_not_slots(judge):
    p = synthetic(1, seed=3)[0]
    for order in orders("all", 4):
        d = judge.judge(p, ["dense"], [order], capture=False)[0]
        assert d.choice == p.candidates[order[d.slot]].id
        assert d.correct == p.candidates[order[d.slot]].correct


def test_calibration_takes_out_the_mean_score_of_each_slot(judge):
    prompts = synthetic(3, seed=5)
    prior = calibrate(judge, prompts)
    scores = [judge.judge(p, ["dense"], [o], capture=False)[0].scores for p in prompts for o in rotations(p.order)]
    mean = np.mean(scores, axis=0)
    assert prior.scores == pytest.approx(mean - mean.mean(), abs=1e-4)
    assert np.allclose(np.mean([prior.apply(s) for s in scores], axis=0), mean.mean(), atol=1e-4)
    with pytest.raises(KvattnError, match="made for 4"):
        prior.apply(np.zeros(3))
    assert Prior(**{**prior.to_json(), "scores": prior.scores}) == prior


def test_yes_no_asks_about_every_slot_on_one_cache(judge, monkeypatch):
    ask = readout.Ask(branch="\nAgent {label}?", answers=("Y", "N"), reader=readout.branch_scores)
    monkeypatch.setattr(readout.YesNo, "ask", lambda self, template: ask)
    p = synthetic(1)[0]
    yes = load_like(judge, "yesno")
    layout = yes.compile(p)
    assert len(layout.decisions) == 4
    runs = []
    made = yes.judge(p, ["dense", "naive"], wanted=Wanted(rows=True), keep=runs)
    assert made[0].mass.query == "at_choice"
    assert [m.query for m in made[0].more] == [f"at_choice:{s}" for s in (1, 2, 3, 4)]
    assert runs[0].captured.queries == layout.decisions  # no row of the middle of the instruction
    assert np.allclose(made[0].mass.mass, np.mean([m.mass for m in made[0].more], axis=0), atol=1e-6)
    for d, run in zip(made, runs, strict=True):
        rows = run.captured.rows.mean(0)
        for i, s in enumerate(layout.segments):
            assert np.allclose(d.mass.mass[..., i], rows[..., s.start : s.stop].sum(-1), atol=1e-5)
        assert d.mass.sink is not None
    assert made[0].scores.shape == (4,)


def load_like(judge, name: str):
    from kvattn.judge.judge import Judge

    return Judge(judge.engine, readout.get(name))


def even(count: int, first: int = 0) -> list[JudgePrompt]:
    """Problems whose texts are all of one length, so that every anchor is long enough for every text."""
    return [
        JudgePrompt(
            f"What is {10 + i} and {20 + i}?",
            tuple(Candidate(f"c{k}", f"it is {30 + 2 * i + k}", f"agent-{k}", k == 0) for k in range(3)),
            id=f"even-{i}",
        )
        for i in range(first, first + count)
    ]


METHODS = ["dense", "naive", "kvcomm:gamma=0.9", "pal-kv:pool=frozen", "foreign-kv"]


def study(judge, **changes) -> Study:
    values = {"prompts": even(6), "heldout": even(3, first=50), "methods": METHODS}
    return Study(judge=judge, **{**values, "orders": "shuffle:2", **changes})


def test_an_interrupted_study_equals_an_uninterrupted_one(folder, tmp_path):
    study(load(folder)).run(tmp_path / "whole")

    class Enough(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if what == "judging" and done == 3:
            raise Enough

    with pytest.raises(Enough):
        study(load(folder)).run(tmp_path / "cut", stop)
    assert len(Run(tmp_path / "cut")) == 3
    study(load(folder)).run(tmp_path / "cut")
    whole, cut = frame(tmp_path / "whole"), frame(tmp_path / "cut")
    drop = ["seconds"]
    pd.testing.assert_frame_equal(whole.drop(columns=drop), cut.drop(columns=drop), check_exact=True)
    assert whole["notes"].astype(str).str.contains("kvcomm: reused").any()
    assert Run(tmp_path / "cut").manifest["content_test"]["raw"]["reading"]["verdict"] == "cannot tell"


def test_other_parameters_are_never_silently_continued(judge, tmp_path):
    study(judge, heldout=(), methods=["dense"]).run(tmp_path / "run")
    for change in ({"methods": ["dense", "naive"]}, {"orders": "latin"}, {"prompts": synthetic(4, seed=9)}):
        with pytest.raises(KvattnError, match="run"):
            study(judge, **{"heldout": (), "methods": ["dense"], **change}).run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")


def test_a_stream_with_holes_is_refused(folder, tmp_path):
    study(load(folder), heldout=(), methods=["dense", "kvcomm"]).run(tmp_path / "run")
    first = even(1)[0].id
    from kvattn.study.run_folder import file_key

    for part in (tmp_path / "run").glob(f"*/part-{file_key(first)}-*"):
        part.unlink()
    with pytest.raises(KvattnError, match="learns from question to question"):
        study(load(folder), heldout=(), methods=["dense", "kvcomm"]).run(tmp_path / "run")


def test_bad_studies_are_refused(judge):
    with pytest.raises(KvattnError, match="no questions"):
        study(judge, prompts=[])
    with pytest.raises(KvattnError, match="unique"):
        study(judge, prompts=[*synthetic(1), *synthetic(1)])
    with pytest.raises(KvattnError, match="held-out"):
        study(judge, heldout=even(1))


def test_order_schemes():
    assert orders("fixed", 3) == [(0, 1, 2)]
    assert orders("shuffle:2", 4, 1, "a") != orders("shuffle:2", 4, 1, "b")
    assert orders("shuffle", 4, 1, "a") == orders("shuffle:1", 4, 1, "a")
    square = orders("latin", 5, 7, "q")
    for slot in range(5):
        assert {o[slot] for o in square} == set(range(5))
    assert len(orders("all", 4)) == 24
    assert sorted(orders("shuffle:6", 3)) == sorted(orders("all", 3))
    with pytest.raises(KvattnError, match="fewer than"):
        orders("shuffle:7", 3)
    for bad in ("latin:2", "shuffle:0", "some", "all"):
        with pytest.raises(KvattnError):
            orders(bad, 6)


def test_the_package_names_its_nouns():
    assert kvattn.Judge.__name__ == "Judge"


def test_orders_permute_the_questions_own_order():
    own = (2, 0, 1)
    assert orders("fixed", 3, own=own) == [own]
    assert orders("rotations", 3, own=own) == [(2, 0, 1), (0, 1, 2), (1, 2, 0)]
    assert sorted(orders("all", 3, own=own)) == sorted(orders("all", 3))


def test_agents_are_assigned_to_slots_by_latin_squares():
    prompts = assign(even(9) + synthetic(8), seed=5)
    for n, part in ((3, prompts[:9]), (4, prompts[9:])):
        for slot in range(n):
            agents = [p.order[slot] for p in part]
            assert all(agents.count(i) == len(part) // n for i in range(n)), "a slot-locked judge picks all alike"
    assert assign(even(9), seed=5) == prompts[:9]
    assert assign(even(9), seed=6) != prompts[:9]


def test_a_study_judges_fixed_orders_as_assigned(folder, tmp_path):
    prompts = assign(even(3))
    study(load(folder), prompts=prompts, heldout=(), methods=["dense"], orders="fixed").run(tmp_path / "run")
    assert {r["question_id"]: r["order"] for _, r in frame(tmp_path / "run").iterrows()} == {
        p.id: p.order for p in prompts
    }


def test_held_out_judgements_are_a_run_of_their_own(folder, tmp_path):
    class Enough(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if what == "held-out questions" and done == 2:
            raise Enough

    with pytest.raises(Enough):
        study(load(folder), methods=["dense"]).run(tmp_path / "cut", stop)
    assert len(Run(tmp_path / "cut" / "heldout")) == 2
    study(load(folder), methods=["dense"]).run(tmp_path / "cut")
    study(load(folder), methods=["dense"]).run(tmp_path / "whole")
    held = frame(tmp_path / "cut" / "heldout")
    assert len(held) == 3 * 3
    calibration = [Run(tmp_path / name).manifest["calibration"] for name in ("cut", "whole")]
    assert calibration[0] == calibration[1]
    mean = np.mean(held["scores"].tolist(), 0)
    assert np.allclose(calibration[0]["scores"], mean - mean.mean(), atol=1e-12)


def test_the_calibrated_content_test_is_cross_fitted(monkeypatch):
    from kvattn import stats
    from kvattn.study.run_folder import question_row
    from kvattn.study.study import held_out

    prompts, rng = even(4), np.random.default_rng(0)
    bias = np.array([[3.0, 0, 0], [3.0, 0, 0], [0, 0, 3.0], [0, 0, 3.0]])  # the halves love different slots
    rows = [
        {"question_id": p.id, "order": o, "scores": bias[i] + rng.normal(size=3)}
        for i, p in enumerate(prompts)
        for o in rotations(p.order)
    ]
    judged, picked = pd.DataFrame(rows), []

    class Asked:
        def to_dict(self):
            return {}

    monkeypatch.setattr(stats, "content_test", lambda picks, questions: picked.append(picks) or Asked())
    prior, _ = held_out(judged, pd.DataFrame([question_row(p) for p in prompts]), "label")
    scores = np.stack(judged["scores"].tolist())
    halves = scores[:6].mean(0), scores[6:].mean(0)
    raw, calibrated = (list(p["slot"]) for p in picked)
    assert raw == scores.argmax(1).tolist()
    assert calibrated == [*(scores[:6] - halves[1]).argmax(1), *(scores[6:] - halves[0]).argmax(1)]
    assert np.allclose(prior.scores, scores.mean(0) - scores.mean())


def test_token_texts_are_whole_characters_and_together_the_prompt():
    for tokenizer, text in (
        (AutoTokenizer.from_pretrained(str(PACKAGED / "odd")), "paul says 36 jelly"),
        (plain_added_tokenizer(), "ℝ∑ 中文 🙂 naïve שלום"),
    ):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        texts = token_texts(tokenizer, ids)
        assert len(texts) == len(ids)
        assert "".join(texts) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert not any("\ufffd" in t for t in texts)
