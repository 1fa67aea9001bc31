"""The analyses: numbers against what was planted and against counts by hand, complete files, the command line."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from dataclasses import dataclass, replace
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from fake_run import Fake, write_fake_run
from safetensors.torch import load_file
from statsmodels.stats.contingency_tables import mcnemar
from tiny import save, tokenizer

from analyses import (
    anchor_quality,
    attention_collapse,
    claims,
    echo,
    fresh_rows,
    frontier,
    gate,
    head_readout,
    heads,
    kit,
    ladder,
    lock,
    masking,
    models,
    noise_floor,
    own_rows,
    readouts,
    red_team,
    repair,
    restored,
    shuffle_stress,
    silent_flip,
    split,
    tails,
    train_judge,
)
from analyses.judge import asked as judge_asked
from kvattn import stats
from kvattn.engine.blocks import Blocks
from kvattn.engine.compiler import PromptCompiler
from kvattn.engine.plan import Visibility
from kvattn.errors import KvattnError
from kvattn.judge.judge import load
from kvattn.methods import get
from kvattn.models import load_pretrained
from kvattn.plots import theme
from kvattn.questions.organism import problems
from kvattn.questions.relational import relational
from kvattn.study.run_folder import Run, side_by_side

RUNS = sorted(x.parent for x in (Path(__file__).parents[1] / "figures/runs").glob("*/manifest.json"))
METHODS = ("dense", "null-edit", "true-mask", "isolated", "naive-linked", "foreign-kv", "mismatched-order", "kvcomm")


@dataclass(frozen=True)
class Planted(kit.Held):
    """A run with other judgements."""

    judgements: pd.DataFrame  # type: ignore[assignment]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> kit.Held:
    """A made-up run in which the later slots are under-read, less and less from rung to rung."""
    fake = Fake(questions=24, orders=4, layers=4, heads=2, methods=METHODS)
    return kit.Held(
        write_fake_run(tmp_path_factory.mktemp("runs") / "planted", fake, content_test=fake.content_tests())
    )


@pytest.mark.parametrize(
    ("name", "shown"),
    [("anchor_quality", "anchors-smollm2"), ("frontier", "frontier-organism-safe"), ("tails", "gsm8k-1.5b")],
)
def test_an_analysis_goes_from_its_command_to_its_tables(name, shown, tmp_path, monkeypatch):
    few = Fake(8, orders=1, layers=2, heads=1, methods=METHODS)
    monkeypatch.setattr(kit, "made", lambda run, _: write_fake_run(tmp_path / run, few))
    monkeypatch.setattr(kit, "save", lambda fig, stem, data: ([], fig.to_json() and ""))
    importlib.import_module(f"analyses.{name}").main(["--out", str(tmp_path)])
    assert shown in (tmp_path / f"{name}.md").read_text()


@pytest.mark.parametrize("folder", RUNS, ids=lambda x: x.name)
def test_a_run_that_comes_along_is_whole(folder):
    assert Run(folder).check() == []


def test_the_method_random_is_not_the_baseline(tmp_path):
    names = ("dense", "naive", "random")
    held = kit.Held(write_fake_run(tmp_path / "r", Fake(questions=9, orders=1, layers=2, heads=1, methods=names)))
    right = np.mean([np.mean(x) for x in held.questions["corrects"]])
    assert silent_flip.numbers(held)["accuracy_random"].unique() == pytest.approx([right])


def test_accuracy_and_consistency_stand_beside_what_they_are_read_against(run):
    frame = silent_flip.numbers(run).set_index("method")
    assert set(frame.index) == {*METHODS} - {"mismatched-order"}
    picks = run.judgements.assign(order=run.judgements["order"].map(tuple))
    both = picks.pivot(index=["question_id", "order"], columns="method", values="choice")
    texts = {
        q: dict(zip(i, t, strict=True)) for q, i, t in run.questions[["question_id", "candidate_ids", "texts"]].values
    }
    same = [
        texts[q][a] == texts[q][b] for (q, _), a, b in zip(both.index, both["naive-linked"], both["dense"], strict=True)
    ]
    assert frame.loc["naive-linked", "jcr"] == pytest.approx(np.mean(same))
    assert frame.loc["null-edit", "jcr"] > frame.loc["naive-linked", "jcr"]
    shown = silent_flip.readable(frame.reset_index())
    assert {"published, HumanEval"} < set(shown["run"])


def test_the_noise_floor_is_the_share_of_equal_picks(run):
    frame = noise_floor.numbers("planted", run.judgements, run.questions).set_index("method")
    assert set(frame.index) == {"a newline added", noise_floor.OTHER_ORDER}
    edit = silent_flip.numbers(run).set_index("method").loc["null-edit"]
    assert frame.loc["a newline added", "jcr"] == edit["jcr"]
    dense = run.judgements[run.judgements["method"] == "dense"]
    texts = {
        q: dict(zip(i, t, strict=True)) for q, i, t in run.questions[["question_id", "candidate_ids", "texts"]].values
    }
    picked = dense.assign(text=[texts[q][c] for q, c in zip(dense["question_id"], dense["choice"], strict=True)])
    same = [
        np.mean([a == b for a, b in combinations(p, 2)]) for _, p in picked.groupby("question_id", sort=False)["text"]
    ]
    assert frame.loc[noise_floor.OTHER_ORDER, "jcr"] == pytest.approx(np.mean(same))


def test_nothing_changes_an_organisms_mind():
    frame = noise_floor.repeated("organism-unsafe", problems("organism-unsafe", 6, seed=3))
    picks = frame.assign(order=frame["order"].map(tuple)).pivot(
        index=["question_id", "order"], columns="method", values="choice"
    )
    for name in ("one order at a time", noise_floor.Masked.name, "null-edit", "bfloat16"):
        assert (picks[name] == picks["dense"]).all(), name


def test_blind_tails_are_what_seeing_ones_are_but_for_the_sight_of_others():
    judge = load("organism-unsafe")
    prompt = problems("organism-unsafe", 1, seed=5)[0]
    layout, blocks = judge.compile(prompt), Blocks(judge.engine, prompt)
    seeing, blind = (m.plan(layout, blocks, judge.engine) for m in tails.methods((0.5,)))
    assert (seeing.depth == blind.depth).all()
    assert seeing.visibility.causal
    own = [i for i, s in enumerate(layout.segments) if s.role == "candidate"]
    for i in own:
        for j, s in enumerate(layout.segments):
            assert bool(blind.visibility.allowed[i, j]) == (s.slot in (None, layout.segments[i].slot))
    rest = [i for i in range(len(layout.segments)) if i not in own]
    assert (blind.visibility.allowed[rest] == seeing.visibility.allowed[rest]).all()


def test_seeing_and_blind_are_compared_question_by_question(run):
    swap = {"true-mask": "last-k(budget=0.1)", "isolated": "blind-tail(budget=0.1)"}
    judged = run.judgements.assign(method=run.judgements["method"].replace(swap))
    frame = tails.numbers(Planted(run.folder, judged)).set_index("method")
    order = judged["order"].map(tuple)
    firsts = judged[order == order.groupby(judged["question_id"]).transform("min")]
    asked = run.questions.set_index("question_id")
    texts = {(q, i): t for q, r in asked.iterrows() for i, t in zip(r["candidate_ids"], r["texts"], strict=True)}
    firsts = firsts.assign(text=[texts[k] for k in zip(firsts["question_id"], firsts["choice"], strict=True)])
    firsts = firsts.set_index(["method", "question_id"])["text"]  # equal texts are one candidate
    kept = {m: firsts[m] == firsts["dense"] for m in swap.values()}
    a, b = kept.values()
    row = frame.loc["blind-tail(budget=0.1)"]
    assert (row["only_seeing"], row["only_blind"]) == ((a & ~b).sum(), (~a & b).sum())


def test_the_steps_of_the_ladder_add_up(run):
    frame = ladder.steps(run).set_index("method")
    assert list(frame.index) == ["true-mask", "isolated", "naive-linked", "foreign-kv"]
    top = stats.jcr(run.judgements, run.questions).set_index("method").loc["null-edit", "jcr"]
    assert next(iter(frame["from"])) == "null-edit"
    assert top + frame["step"].sum() == pytest.approx(frame.loc["foreign-kv", "jcr"])
    assert (frame["step_low"] <= frame["step"]).all()
    assert (frame["step"] <= frame["step_high"]).all()


def test_mass_by_part_is_the_runs_and_shares_add_up(run):
    frame = attention_collapse.parts(run)
    assert frame is not None
    assert frame.groupby("method")["mass"].sum().to_numpy() == pytest.approx(np.ones(5), abs=1e-4)
    first, last = (
        frame[(frame["method"] == "naive-linked") & (frame["part"] == f"slot {s}")]["change"].iloc[0] for s in (1, 4)
    )
    assert last < first  # planted


def test_distances_and_controls_count_every_pair_once(run):
    frame = shuffle_stress.distances(run)
    counts = frame[[c for c in frame if c.endswith("_pairs")]].fillna(0).sum(axis=1)
    assert (counts == 24 * 4).all()
    controls = shuffle_stress.controls(run)
    assert "dense, other order" in set(controls["method"])


def test_cuts_are_compared_with_dense_and_with_reuse(run):
    frame = masking.numbers(run)
    assert set(frame["reference"]) == {"dense", "naive-linked"}
    assert frame["jcr"].between(0, 1).all()


@pytest.mark.parametrize("layers", [4, 7, 30])
def test_depth_is_cut_into_the_quarters_of_compare(tmp_path, monkeypatch, layers):
    monkeypatch.setenv("KVATTN_CACHE", str(tmp_path / "cache"))
    folder = write_fake_run(
        tmp_path / "run", Fake(questions=4, layers=layers, heads=2, methods=("dense", "naive-linked"))
    )
    frame = models.bands(kit.Held(folder))
    assert frame is not None
    assert sorted(set(frame["band"])) == [1, 2, 3, 4]
    theirs = side_by_side.by_band(Run(folder), models.BANDS)
    both = frame.assign(from_depth=(frame["band"] - 1) / models.BANDS).merge(theirs, on=["from_depth", "slot"])
    assert len(both) == len(frame) == len(theirs)
    assert both["factor_x"].to_numpy() == pytest.approx(both["factor_y"].to_numpy(), rel=1e-4)


def test_a_slot_has_its_colour_in_the_models_figure(run):
    frame = models.bands(run)
    assert frame is not None
    lines = models.draw(frame).data
    assert {t.name: t.line.color for t in lines} == {f"slot {s}": theme.slot_colour(s) for s in (1, 2, 3, 4)}
    assert models.facts(run)["content test"] == "reads"


def test_anchor_methods_are_judged_on_the_calls_that_reused(run):
    run.judgements.loc[run.judgements["method"] == "kvcomm", "candidate_tokens_kept"] = 0
    some = run.judgements["method"].eq("kvcomm") & run.judgements["question_id"].isin(run.questions["question_id"][:6])
    run.judgements.loc[some, "candidate_tokens_kept"] = 5
    row = anchor_quality.numbers(run).iloc[0]
    assert (row["calls"], row["reused"]) == (24 * 4, 6 * 4)


@pytest.mark.parametrize("family", claims.FAMILIES, ids=lambda f: f[0].asked)
def test_claims_are_asked_of_the_same_judgements(tmp_path, family):
    asked = {m for claim in family for m in (claim.first, claim.second)}
    names = sorted({"dense", "naive-linked", *(claims.label(m) for m in {*asked, claims.SHUFFLED})})
    assert not [name for name in names if ":" in name]  # as runs call them
    held = kit.Held(write_fake_run(tmp_path / "claims", Fake(questions=6, orders=24, layers=2, heads=1, methods=names)))
    found = claims.numbers(held).set_index("asked")
    assert list(found.index[:-2]) == [claim.asked for claim in family]  # a family stands whole, without another's
    pairs = stats.paired(held.judgements, held.questions)
    pairs = pairs.assign(order=pairs["order"].map(tuple))
    agree = pairs.pivot(index=["question_id", "order"], columns="method", values="agree").astype(int)
    for claim in (c for c in family if not c.reused):
        row, first, second = found.loc[claim.asked], claims.label(claim.first), claims.label(claim.second)
        apart = agree[first] - agree[second]
        assert row["gain"] == pytest.approx(apart.mean())
        assert (row["gained"], row["lost"]) == ((apart > 0).sum(), (apart < 0).sum())
        assert row["p"] == pytest.approx(mcnemar([[0, row["gained"]], [row["lost"], 0]], exact=True).pvalue)
    assert (found["p_holm"] >= found["p"]).all()
    far = found.loc["naive-linked: far orders less near ones"]
    table = shuffle_stress.distances(held).set_index("method").loc["naive-linked"]
    assert far["gain"] == pytest.approx(table["far"] - table["near"])
    assert far["gain_low"] < far["gain"] < far["gain_high"]


def test_runs_are_held_against_the_first_on_what_all_of_them_judged(tmp_path):
    folder = write_fake_run(
        tmp_path / "one", Fake(questions=8, orders=2, layers=2, heads=1, methods=("dense", "naive"))
    )
    one, two = kit.Held(folder), kit.Held(folder)
    dropped, turned = two.questions["question_id"].iloc[:2]
    frame = two.judgements[two.judgements["question_id"] != dropped].copy()
    vars(two)["judgements"] = frame
    assert readouts.numbers([one, two])["judgements"].tolist() == [14] * 4
    ids = two.questions.set_index("question_id")["candidate_ids"]
    for i in frame.index[frame["method"].eq("naive") & frame["question_id"].eq(turned)]:
        slot = (frame.loc[i, "slot"] + 1) % frame.loc[i, "n"]
        frame.loc[i, ["slot", "choice"]] = [slot, ids[turned][frame.loc[i, "order"][slot]]]
    found = readouts.numbers([one, two])
    again = found[found["same"].notna()].set_index("method")  # the first run is held against nothing
    assert again["same"].to_dict() == {"dense": 1, "naive": pytest.approx(12 / 14)}
    written = frame.assign(readout="generate").astype({"slot": "Int64", "choice": object})
    nobody = written.index[written["method"].eq("dense")][0]
    written.loc[nobody, ["slot", "choice"]] = [pd.NA, None]
    vars(two)["judgements"] = written
    dense = readouts.numbers([one, two]).iloc[2]
    assert (dense["method"], dense["none"], dense["same"]) == ("dense", 1, pytest.approx(13 / 14))
    vars(two)["judgements"] = frame[frame["method"] == "dense"]
    alone = readouts.numbers([one, two])
    assert alone["same"].tolist()[1:] == [1]
    assert alone["jcr"].isna().all()
    assert kit.shown(alone, readouts.TABLE)["JCR"].tolist() == ["", ""]
    vars(two)["questions"] = two.questions.assign(texts=two.questions["texts"].map(lambda t: [f"{x}!" for x in t]))
    with pytest.raises(SystemExit, match="no question was judged densely"):  # other candidates under the same ids
        readouts.numbers([one, two])
    vars(two)["questions"] = one.questions
    vars(two)["judgements"] = frame[frame["method"] != "dense"]
    with pytest.raises(SystemExit, match="no question was judged densely in one order in every run"):
        readouts.numbers([one, two])
    with pytest.raises(SystemExit, match="two runs or more"):
        readouts.main([str(folder)])


def test_own_rows_hold_the_agents_of_one_temperature(tmp_path, capsys):
    said = [{"id": str(i), "text": f"a\u2028{i // 4}", "correct": i > 2, "token_ids": [1, 2]} for i in range(5)]
    row = {"id": "q", "question": "?", "candidates": said}
    (tmp_path / "own.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    side = tmp_path / "own.jsonl.manifest.json"
    side.write_text(json.dumps({"agents": {"temperature": [0.2, 0.7], "regime": "parallel"}}))
    own_rows.main([str(tmp_path / "own.jsonl"), str(tmp_path / "made")])
    for heat, ids in (("0.2", ["0", "2", "4"]), ("0.7", ["1", "3"])):
        made = json.loads((tmp_path / "made" / f"own-{heat}.jsonl").read_text(encoding="utf-8"))
        assert [c["id"] for c in made["candidates"]] == ids
        assert made["question"] == "?"
    told = capsys.readouterr().out.splitlines()
    counts = "right 1 of 3, right and wrong in 1, none right in 0, equal texts in 1; 6 tokens a question"
    assert told[0].endswith(counts)
    unknown = json.dumps({**row, "candidates": [{**c, "correct": None} for c in said]})  # --no-verify
    (tmp_path / "own.jsonl").write_text(unknown + "\n", encoding="utf-8")
    own_rows.main([str(tmp_path / "own.jsonl"), str(tmp_path / "made")])
    assert "right 0 of 3, right and wrong in 0," in capsys.readouterr().out
    for agents, said in (
        ({"temperature": 0.2, "regime": "parallel"}, "different temperatures"),
        ({"temperature": [0.2, 0.2], "regime": "parallel"}, "different temperatures"),
        ({"temperature": [0.2, 0.7], "regime": "progressive"}, "parallel ones"),
    ):
        side.write_text(json.dumps({"agents": agents}))
        with pytest.raises(SystemExit, match=said):
            own_rows.main([str(tmp_path / "own.jsonl"), str(tmp_path / "made")])


def test_fresh_rows_are_no_rows_that_were_judged(tmp_path, capsys):
    lines = [json.dumps({"id": i, "candidates": [{"correct": i % 3 > 0}, {"correct": False}]}) for i in range(600)]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    fresh_rows.main([str(tmp_path / "all.jsonl"), str(tmp_path / "made")])
    mixed = [i for i in range(600) if i % 3]
    cut = {n: [json.loads(x)["id"] for x in (tmp_path / "made" / n).open()] for n in ("fresh.jsonl", "seen.jsonl")}
    assert cut["seen.jsonl"] == mixed[:60] + mixed[150:250] + mixed[60:84]
    assert cut["fresh.jsonl"] == mixed[84:150] + mixed[250:] + mixed[60:84]
    assert "seen.jsonl: 160 questions, and 24 held out" in capsys.readouterr().out


def test_a_run_that_no_claim_is_about_is_refused_in_a_line(tmp_path):
    held = write_fake_run(tmp_path / "other", Fake(questions=4, orders=1, layers=2, heads=1, methods=("dense",)))
    with pytest.raises(SystemExit, match="other has the methods of no family"):
        claims.numbers(kit.Held(held))
    with pytest.raises(SystemExit, match="no run was given"):
        claims.main([])


def test_an_anchor_method_is_asked_on_the_calls_that_reused(tmp_path):
    claim = claims.FAMILIES[0][0]
    index = pd.MultiIndex.from_product([["a", "b", "c"], [(0, 1)]], names=["question_id", "order"])
    names = [claims.label(claim.first), claims.label(claim.second)]
    agree = pd.DataFrame([[True, False], [True, True], [False, True]], index, names)
    reused = pd.DataFrame([[False, True], [True, True], [True, True]], index, names)
    row = claims._paired(claim, agree, reused)
    assert (row["judgements"], row["gained"], row["lost"], row["gain"]) == (2, 0, 1, -0.5)


def test_policies_are_chosen_on_one_half_and_reported_on_the_other(run):
    frame = frontier.points(run)
    table = frontier.chosen(frame)
    assert set(frame["half"]) == {0, 1, "all"}
    judged = run.judgements.groupby("method")["correct"].mean()
    whole = frame[frame["half"] == "all"].set_index("method")
    assert whole.loc["naive-linked", "accuracy"] == pytest.approx(judged["naive-linked"])
    half = frontier.halves(run)
    assert abs(sum(half.values()) - len(half) / 2) < 1
    for row in table.to_dict("records"):
        if isinstance(row.get("score, chosen on"), float) and row["score, chosen on"] == row["score, chosen on"]:
            tuned = frame[(frame["half"] == 0) & ~frame["method"].str.startswith(frontier.CONTROLS)]
            limit = float(row["at most"].rstrip("%")) / 100
            assert row["score, chosen on"] == tuned[tuned["share"] <= limit]["score"].max()
    assert isinstance(frontier.draw(frame), go.Figure)


def test_runs_of_one_judge_are_joined_by_question_and_order(tmp_path):
    fake = Fake(questions=6, orders=2, layers=2, heads=2)
    whole = write_fake_run(tmp_path / "a", replace(fake, methods=("dense", "null-edit", "naive-linked")))
    other = write_fake_run(tmp_path / "b", replace(fake, questions=4, methods=("dense", "true-mask")))
    joined = frontier.opened([f"{whole}+{other}"])[0].judgements
    assert set(joined["method"]) == {"dense", "null-edit", "naive-linked", "true-mask"}
    assert joined["question_id"].nunique() == 4
    assert joined.groupby("method").size().eq(8).all()


def test_a_figure_comes_with_table_numbers_and_a_sidecar(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))  # static pictures have their own tests
    table = pd.DataFrame({"a_b": ["50 %", None], "n": [3, 4], "x": [0.5, np.nan]})
    args = kit.arguments("", ["runs/a b", "runs/c+/home/me/d", "/home/me/e/", "--out", str(tmp_path)])
    kit.publish("thing", go.Figure(), table, args, [run], caption="What it shows.")
    assert {p.name for p in tmp_path.glob("thing.*")} == {f"thing.{e}" for e in ("html", "csv", "md", "tex", "json")}
    assert "cdn" not in (tmp_path / "thing.html").read_text(encoding="utf-8").lower()
    latex = (tmp_path / "thing.tex").read_text()
    assert "\\toprule" in latex
    assert "a\\_b" in latex
    assert "50 \\%" in latex
    assert "nan" not in latex
    said = json.loads((tmp_path / "thing.json").read_text())
    assert said["runs"][0]["picks_sha256"] == run.hash
    assert said["command"] == "python -m analyses.thing 'runs/a b' runs/c+d e/"
    assert "no svg, pdf, png" in capsys.readouterr().out


def test_a_runs_hash_is_of_what_was_picked(run):
    for columns, same in ({"seconds": 9.0}, True), ({"choice": None}, False), ({"order": [(3, 2, 1, 0)] * 4}, False):
        other = kit.Held(run.folder)
        few = vars(other)["judgements"] = run.judgements.head(4).copy()
        first = other.hash
        vars(other)["judgements"] = few.assign(**columns)
        assert (other.hash == first) is same, columns


def test_heads_swap_what_they_say_they_swap():
    judge = load("organism-unsafe")
    cases = [heads.Case(judge, p) for p in problems("organism-unsafe", 8, seed=5)]
    rows = {r["which"]: r["jcr"] for r in heads.pattern_or_content(cases)}
    assert rows["dense keys, dense values"] == 1
    g = judge.engine.geometry
    every = frozenset((x, h) for x in range(g.layers) for h in range(g.kv_heads))
    assert all(heads.same_picks(cases, lambda c: c.kept(lambda d, s: heads.grafted(s, d, every))))
    assert all(heads.same_picks(cases, lambda c: c.cut([])))
    stale = np.mean(heads.same_picks(cases, lambda c: c.kept(lambda d, s: heads.grafted(d, s, every))))
    assert stale == rows["stale keys, stale values"] < 1
    mass = heads.mass_across(cases[0])
    assert mass.shape == (g.layers, g.heads)
    assert (mass >= 0).all()
    assert (mass <= 1).all()
    rng = np.random.default_rng(0)
    some = heads.matched([(x, h) for x in range(g.layers) for h in range(g.heads)], mass, float(mass.sum() / 2), rng)
    assert sum(mass[at] for at in some) >= mass.sum() / 2


def test_scripts_run_from_the_command_line(run, tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", "/none")
    only = ["--only", "ladder", "--only", "masking"]
    monkeypatch.setattr(sys, "argv", ["analyses", *only, str(run.folder), "--out", str(tmp_path)])
    runpy.run_module("analyses", run_name="__main__")
    assert (tmp_path / "ladder.tex").exists()
    assert (tmp_path / "masking.md").exists()


def test_the_echo_of_a_judge_is_drawn_with_its_intervals(tmp_path, capsys):
    judge = ["--model", save(tmp_path / "model"), "--data", "synthetic", "--limit", "4"]
    echo.main([*judge, "--map", "4", "--bands", "2", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "echo.csv")
    assert list(table["method"])[: len(echo.METHODS)] == [get(m).label for m in echo.METHODS]
    assert (table["echo_low"] <= table["echo"]).all()
    assert (table["echo"] <= table["echo_high"]).all()
    assert abs(table.loc[0, "echo"]) > 1e-4
    assert {"another pair", "the edited pair", "headers"} <= set(table["reader"].dropna())
    assert "minimal edits" in (tmp_path / "echo.md").read_text()
    for arguments, says in (
        (["--bands", "7"], "1 to 6"),
        (["--bands", "2", "--data", "contradiction", "--limit", "1"], "none of 1"),
        (["--bands", "2", "--data", "a/same.jsonl", "--data", "b/same.csv"], "two sets are called same"),
    ):
        with pytest.raises(SystemExit) as ended:
            echo.main(["--model", "organism-unsafe", "--out", str(tmp_path), *arguments])
        assert says in f"{ended.value} {capsys.readouterr().err}"


def test_a_sign_of_repair_is_told_on_questions_that_it_was_not_chosen_on(run):
    frame = restored.numbers(run, "null-edit", "naive-linked").set_index(["contrast", "score"])
    planted, nothing = frame.loc[restored.APART], frame.loc["dense or null-edit?"]
    assert planted.loc["all heads together", "auc"] > 0.95
    assert planted.loc["all heads, fitted on dense against naive", "auc"] > 0.95
    assert nothing.loc["the best head's statistic", "auc_low"] < 0.5  # chosen for the other half
    assert ((frame["auc_low"] <= frame["auc"]) & (frame["auc"] <= frame["auc_high"])).all()
    held = set(np.random.default_rng(0).permutation(sorted(run.questions["question_id"]))[1::2])
    mass = run.run.mass(query=run.run.deciding)
    values: dict[str, list[float]] = {"null-edit": [], "naive-linked": []}
    for r in mass[mass["question_id"].isin(held) & mass["method"].isin(list(values))].to_dict("records"):
        of = dict(zip(r["names"], np.reshape(np.asarray(r["mass"], "float64"), r["shape"]).mean((0, 1)), strict=True))
        values[r["method"]].append(sum(v for name, v in of.items() if name.startswith("candidate:")))
    wins = [(a > b) + 0.5 * (a == b) for a in values["null-edit"] for b in values["naive-linked"]]
    assert planted.loc["mass on candidates, mean of heads", "auc"] == pytest.approx(np.mean(wins))
    assert (planted["good"] == len(values["null-edit"])).all()


def test_content_kept_stands_over_the_shift(run, tmp_path):
    frame = split.numbers(run)
    table = frame.set_index("method")
    assert "mismatched-order" not in table.index
    assert table.loc["null-edit", "jcr_c"] == table["jcr_c_floor"].dropna().max()
    fig = split.figure(frame)
    drawn = {t.name: (t.x[0], t.y[0]) for t in fig.data}
    known = table.dropna(subset=["jcr_c"])
    assert drawn == {m: (known.loc[m, "shift"], known.loc[m, "jcr_c"]) for m in known.index}
    args = kit.arguments("", [str(run.folder), "--out", str(tmp_path)])
    assert sum(x.line.dash == "dot" for x in fig.layout.shapes) == 1
    bare = split.figure(frame.assign(jcr_c_floor=np.nan))  # no null edit was judged
    assert [x.line.dash for x in bare.layout.shapes] == ["dash"]
    kit.publish("split", fig, kit.shown(frame, split.TABLE), args, (run,), frame, "said")
    assert "less own offsets" in (tmp_path / "split.md").read_text()


@pytest.mark.parametrize("readout", ["label", "yesno"])
def test_what_the_judge_is_trained_on_is_what_the_engine_judges(readout, smollm2):
    from peft import LoraConfig, get_peft_model

    judge = load(smollm2, readout)
    compiler = PromptCompiler(judge.engine.tokenizer)
    prompts = relational(2, 5, 3, ["lookup"])
    rows = [train_judge.row(compiler, p, readout) for p in prompts]
    scores = [d.scores for p in prompts for d in judge.judge(p, ["dense"], capture=False)]
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    tuned = get_peft_model(load_pretrained(smollm2)[0], config)
    loss, right = train_judge.loss_of(tuned, rows)
    assert right == [bool(row.right[s.argmax()]) for row, s in zip(rows, scores, strict=True)]
    if readout == "label":
        told = [-float(np.logaddexp.reduce(s[row.right.numpy()])) for row, s in zip(rows, scores, strict=True)]
        assert float(loss) == pytest.approx(np.mean(told), abs=1e-4)
    loss.backward()
    assert all(p.grad is not None for n, p in tuned.named_parameters() if "lora_B" in n)


def test_a_step_of_training_shows_every_candidate_in_every_slot():
    compiler = PromptCompiler(tokenizer())
    rows = next(train_judge.batches(compiler, train_judge.Lesson("plurality"), 0, 3000))
    for n in {len(row.right) for row in rows}:
        assert len(set(np.sum([row.right.numpy() for row in rows if len(row.right) == n], axis=0))) == 1
    assert max(row.fresh for row in rows) * len(rows) <= 3000


def test_training_goes_on_to_the_next_lesson_and_ends_settled(tmp_path, monkeypatch):
    monkeypatch.setattr(train_judge, "BASE", save(tmp_path / "model", words=("Yes", "No")))
    monkeypatch.setattr(train_judge, "LESSONS", (train_judge.Lesson("lookup"), train_judge.Lesson("lookup", "yesno")))
    monkeypatch.setattr(train_judge, "MIXED", ())
    said: list[str] = []
    recipe = train_judge.Recipe(patience=1, settle=1, tokens=1, rank=1)
    train_judge.train(tmp_path / "judge", 0, recipe, said.append)
    assert [line.split(":")[0] for line in said[1:]] == ["step 1, lookup", "step 2, lookup yes/no"]
    record = json.loads((tmp_path / "judge" / "kvattn.json").read_text())
    assert (record["steps"], record["device"], record["recipe"]["rank"]) == (3, "cpu", 1)
    judge = load(str(tmp_path / "judge"))
    assert judge.judge(relational(1, 5, 2, ["lookup"])[0], ["dense"], capture=False)[0].slot in (0, 1)


def test_a_lesson_is_repeated_the_oftener_the_less_it_is_known():
    course = train_judge.Course(0, train_judge.Recipe(newest=0.0, floor=0.25))
    known, missed, new = train_judge.LESSONS[:3]
    course.at = 3
    course.hits(known, [True] * 60)
    course.hits(missed, [False] * 60)
    drawn = [course.next() for _ in range(3000)]
    shares = [drawn.count(x) / 3000 for x in (known, missed, new)]
    assert shares == pytest.approx([0.25 / 2.75, 1.25 / 2.75, 1.25 / 2.75], abs=0.03)


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr(train_judge, "BASE", save(tmp_path / "model"))
    monkeypatch.setattr(train_judge, "LESSONS", (train_judge.Lesson("lookup"), train_judge.Lesson("plurality")))
    monkeypatch.setattr(train_judge, "MIXED", ())
    monkeypatch.setattr(train_judge, "EVERY", 3)
    recipe = train_judge.Recipe(patience=4, settle=2, tokens=1, rank=1)
    whole: list[str] = []
    train_judge.train(tmp_path / "whole", 0, recipe, whole.append)
    with monkeypatch.context() as m:
        draws, loss_of = iter(range(5)), train_judge.loss_of
        m.setattr(train_judge, "loss_of", lambda *x: (next(draws, None) is None and stop()) or loss_of(*x))
        with pytest.raises(KeyboardInterrupt):
            train_judge.train(tmp_path / "again", 0, recipe, lambda _: None)
    rest: list[str] = []
    train_judge.train(tmp_path / "again", 0, recipe, rest.append)
    assert rest[1] == "step 3: going on"
    ended = [[line for line in log if "known" in line and "{" not in line] for log in (whole, rest)]
    assert ended[0] == ended[1] != []
    weights = [load_file(tmp_path / name / "training.safetensors") for name in ("whole", "again")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(x, weights[1][name]) for name, x in weights[0].items())
    with pytest.raises(KvattnError, match="holds the training of seed 0, not 1"):
        train_judge.train(tmp_path / "again", 1, recipe, rest.append)


def stop() -> None:
    raise KeyboardInterrupt


def test_a_planted_block_is_honest_text_in_its_honest_place():
    """Its ids and positions are the honest block's, so is layer 0 and all below the layer that is tampered with; behind
    nothing it is the agent's own block, and the judge decides as without it."""
    judge = load("organism-safe")
    prompt = problems("organism-safe", 1, seed=5)[0]
    honest = red_team.context(judge, prompt, 1)
    planted = red_team.context(judge, prompt, 1, prompt.candidates[0].text).block
    own = Blocks(judge.engine, prompt).execution(prompt.candidates[1].id)
    assert np.allclose(honest.block.keys, own.keys, atol=1e-4)
    assert np.allclose(honest.block.values, own.values, atol=1e-4)
    assert planted.token_ids.tolist() == own.token_ids.tolist()
    assert planted.positions.tolist() == own.positions.tolist()
    assert np.allclose(planted.values[0], own.values[0], atol=1e-4)
    assert np.allclose(planted.keys[0], own.keys[0], atol=1e-4)
    assert not np.allclose(planted.values[1:], own.values[1:], atol=1e-2)
    part = red_team.above(honest.block, planted, 3)
    assert (part.keys[:3] == honest.block.keys[:3]).all()
    assert (part.keys[3:] == planted.keys[3:]).all()
    assert red_team.held(judge, honest.block, honest) == {"passed": True, "lowest": -1}
    assert red_team.held(judge, part, honest) == {"passed": False, "lowest": 3}


def test_the_red_team_counts_the_agent_against_its_honest_cache():
    judge = load("organism-safe")
    rows = [r for p in problems("organism-safe", 4, seed=5) for r in red_team.attacked(judge, p, audited=False)]
    frame = red_team.numbers(pd.DataFrame(rows).assign(judge="j", asked="a")).set_index(
        ["method", "planted", "above", "computed"]
    )
    honest = frame.loc["naive-linked", "nothing", 0, 0]
    assert honest["more"] == 0
    assert honest["right"] == 1  # this organism was taught to read stale blocks
    dense = frame.loc["dense", "nothing", 0, 0]
    assert dense["picked"] == dense["dense"] == 0
    assert set(frame["questions"]) == {4}


def test_the_judge_is_asked_what_its_training_left_out():
    sets = {s.name: s for s in judge_asked(3, None)}
    assert [x for x in sets if not x.startswith("ladder")] == [s.name for s in judge_asked(3, None, ladder=False)]
    taught = {x.kind for x in train_judge.LESSONS}
    assert {name.split(",")[0] for name, s in sets.items() if not s.trained} >= {"pair", "median", "ladder dissent"}
    assert not {"pair", "median"} & taught
    assert all(len(s.prompts) == 3 for s in sets.values())
    assert {s.prompts[0].n for s in sets.values() if s.name.startswith("trained kinds, ")} == {4, 6, 8}
    assert max(train_judge.SIZES) == 5
    known = {p.id for s in sets.values() for p in s.prompts}
    drawn = islice(train_judge.prompts(train_judge.Lesson("lookup"), 0), 50)
    assert not known & {p.id for p in drawn}


def test_every_arm_of_a_repair_is_a_recipe_and_is_told_by_its_folder():
    for judge in repair.PLAN["judges"]:
        for arm in repair.PLAN["arms"]:
            assert repair.recipe(judge, arm).reach
            assert repair.arm_of(f"repaired(folder=a/b/{repair.slug(arm)})") == arm
    assert repair.arm_of("slot-offset") == "slot-offset"
    seeing, blind = (repair.recipe("organism-safe", f"tails, {sight}") for sight in ("seeing", "blind"))
    assert replace(blind, base=seeing.base) == seeing


def test_arms_stand_beside_slot_offsets_and_the_floor(tmp_path):
    arm = "repaired(folder=a/tails-seeing)"
    fake = Fake(questions=24, orders=1, layers=2, heads=2, methods=("dense", "null-edit", "slot-offset", arm))
    frame = repair.numbers(kit.Held(write_fake_run(tmp_path / "repair-made", fake)))
    row = frame.set_index("arm").loc["tails, seeing"]
    assert row["run"] == "made"
    assert {"gain", "p", "deficit"} <= set(row.dropna().index)
    assert set(frame["arm"]) == {"null-edit", "slot-offset", "tails, seeing"}
    fig = repair.draw(frame)
    assert {t.name for t in fig.data} == set(frame["arm"])
    assert len(kit.shown(frame, repair.TABLE)) == 3


def test_heads_are_chosen_on_one_half_and_read_on_the_other(run):
    """One head of four looks at the right candidate; half of the questions say which, the other half read it."""
    pairs, mass, _ = head_readout.looks(run.run)
    judged = run.judgements
    assert len(pairs) == judged[["question_id"]].assign(order=judged["order"].map(tuple)).drop_duplicates().shape[0]
    question, order = pairs[3]
    row = run.run.slot_mass(question, order, "naive-linked", run.run.deciding)
    layer, head, slot = 2, 1, 3
    want = np.log(max(row.mass[layer, head, row.names.index(f"candidate:{slot + 1}")], 1e-8))
    assert mass["naive-linked"][3, layer * 2 + head, slot] == pytest.approx(want)

    rng = np.random.default_rng(0)
    right = np.eye(4)[rng.integers(0, 4, 80)]
    looked = {m: rng.normal(0, 1, (80, 4, 4)) + np.arange(4) for m in ("dense", "naive")}
    looked["dense"][:, 2] += 9 * right
    looked["naive"][:, 2] += 9 * (1 - right)
    scores = {m: rng.normal(0, 1, (80, 4)) for m in looked}
    found = dict(head_readout.readouts([f"q{i}" for i in range(80)], looked, scores, right, 1))
    assert set(found) == {"logits", "1 heads", "all heads"}
    assert (found["1 heads"]["dense"] == right.argmax(1)).all()
    assert (found["1 heads"]["naive"] != right.argmax(1)).all()
    halves = [np.arange(80) % 2 == k for k in (0, 1)]
    for mine, other in (halves, halves[::-1]):
        usual = scores["dense"][other].mean(0)
        assert (found["logits"]["naive"][mine] == (scores["naive"] - usual)[mine].argmax(1)).all()


def test_a_readout_of_heads_stands_beside_the_logits(run):
    frame = head_readout.numbers(run.run, 2).set_index(["readout", "method"])
    assert set(frame.index.get_level_values(0)) == {"logits", "2 heads", "all heads"}
    assert (frame.loc[(slice(None), "dense"), "jcr"] == 1).all()
    judged = run.judgements.assign(order=run.judgements["order"].map(tuple))
    pairs = sorted(set(zip(judged["question_id"], judged["order"], strict=True)))
    scores = judged.set_index(["method", "question_id", "order"])["scores"]
    made = {m: np.stack([np.asarray(scores[m, q, o]) for q, o in pairs]) for m in ("dense", "naive-linked")}
    names = sorted({q for q, _ in pairs})
    odd = np.array([names.index(q) % 2 == 1 for q, _ in pairs])
    base = np.where(odd[:, None], made["dense"][~odd].mean(0), made["dense"][odd].mean(0))
    picks = {m: (x - base).argmax(1) for m, x in made.items()}
    asked = run.run.asked
    texts = [[asked[q].texts[i] for i in o] for q, o in pairs]
    same = [t[a] == t[b] for t, a, b in zip(texts, picks["dense"], picks["naive-linked"], strict=True)]
    assert frame.loc[("logits", "naive-linked"), "jcr"] == pytest.approx(np.mean(same))
    assert (frame.loc["logits", "p"] == 1).all()
    assert len(kit.shown(frame.reset_index(), head_readout.TABLE)) == len(frame)


def test_the_echo_map_cuts_where_it_says():
    judge, prompts = load("organism-unsafe"), list(problems("organism-safe", 4, 1))
    found = echo.mapped(judge, prompts, "max", bands=2)
    told = found.set_index(["way", "reader", "first"])["echo"]
    for first, other in ((1, 4), (4, 1)):  # of two bands, cut in one is open in the other
        assert told["cut here alone", "candidates", first] == told["open here alone", "candidates", other]
    whole = told["dense", "", 1]
    everywhere = echo.means(echo.raw(judge, prompts, [echo.Sight(bands=1), "true-mask"], "max"), "max")["echo"]
    assert (everywhere.abs() < abs(whole) / 10).all()
    assert told["cut here alone", "the edited pair", 1] != told["cut here alone", "another pair", 1]


def test_a_pair_is_cut_or_open_for_one_reader_and_what_it_reads():
    judge, (prompt,) = load("organism-unsafe"), problems("organism-safe", 1, 1)
    layout = judge.compile(prompt)
    seen = Visibility.full(layout).allowed
    at = {(s.role, s.slot): i for i, s in enumerate(layout.segments)}
    pair = at["candidate", 2], at["candidate", 0]
    cut = echo.Sight(later=2, earlier=0).plan(layout, None, judge.engine).visibility.at(0)[0]
    assert [tuple(x) for x in (cut != seen).nonzero().tolist()] == [pair]
    kept = echo.Sight(where="only", later=2, earlier=0).plan(layout, None, judge.engine).visibility.at(0)[0]
    apart = {(at["candidate", b], at["candidate", a]) for b in range(4) for a in range(4) if a != b}
    assert {tuple(x) for x in (kept != seen).nonzero().tolist()} == apart - {pair}


def test_the_lock_is_split_into_what_heads_bring_from_each_source_and_the_rest():
    judge, prompts = load("organism-unsafe"), list(problems("organism-safe", 6, 1))
    alike = [lock.content_free(p) for p in prompts]
    assert all(len({c.text for c in p.candidates}) == 1 for p in alike)
    frame = lock.numbers(judge, prompts)
    lifted = int(frame["lifted"].iloc[0])
    slots = frame[frame["source"].isna()].pivot(index="way", columns="slot", values="value")
    assert slots.sum(1).abs().max() < 1e-4
    for way, method in (("dense", "dense"), ("all stale", "naive-linked")):
        scores = np.mean([judge.judge(p, [method], capture=False)[0].scores for p in alike[3:]], axis=0)
        assert slots.loc[way].to_numpy() == pytest.approx(scores - scores.mean(), abs=1e-4)
        told = frame[frame["way"] == way].dropna(subset="source").set_index("source")["value"]
        others = slots.loc[way].drop(lifted).mean()
        assert told["score"] == pytest.approx(slots.loc[way, lifted] - others, abs=1e-3)
        assert told["all heads"] == pytest.approx(told.drop(["all heads", "all else", "score"]).sum(), abs=1e-4)
    assert slots.loc["dense", lifted] < slots.loc["all stale", lifted]


def test_pairs_that_a_question_lacks_are_not_counted_as_cut():
    judge = load("organism-unsafe")
    few, many = problems("organism-safe", 3, 1, candidates=3), problems("organism-safe", 3, 2)
    one, other, both = (echo.mapped(judge, p, "max", bands=1) for p in (few, many, [*few, *many]))
    keys = ["way", "reader", "first"]
    parts = pd.concat([one, other]).assign(sum=lambda t: t["echo"] * t["n"]).groupby(keys)[["sum", "n"]].sum()
    want = parts["sum"] / parts["n"]
    assert both.set_index(keys)["echo"].to_dict() == pytest.approx(want.to_dict(), abs=1e-4)


def test_an_echo_that_may_be_none_is_drawn_in_nats_and_not_as_shares():
    found = echo.mapped(load("organism-unsafe"), problems("organism-safe", 4, 1), "max", bands=2)
    for ends, says in (((-1.0, 1.0), "nats"), ((0.5, 1.0), "share")):
        places = found.assign(echo_low=ends[0], echo_high=ends[1])
        assert says in echo.drawn(found, places).layout.xaxis2.title.text


def test_a_gates_table_names_a_repair_by_its_folder():
    assert gate._named("repaired(folder=runs/arms/tails-seeing)") == "repaired:tails-seeing"
    assert gate._named("first-k(budget=0.84)") == "first-k(budget=0.84)"
