"""The probe for an equal answer before, and marks on a stale cache: against what was planted and dense's own cache."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from analyses import echo_probe, echo_twins
from kvattn import methods
from kvattn.judge.edits import minimal_edits
from kvattn.judge.judge import load
from kvattn.questions.organism import problems


@pytest.fixture(scope="module")
def pair() -> echo_twins.Twins:
    """The twins of a question whose later candidate has others behind it."""
    found = echo_twins.twins(load("organism-unsafe"), problems("organism-safe", 40, 1), 40)
    return next(p for _, p in found if p.edit.later < p.edit.same.n - 1)


def test_twins_differ_in_what_an_earlier_candidate_states(pair):
    edit, name = pair.edit, pair.edit.same.template.name
    same, other = ([p.shown(s).text for s in range(p.n)] for p in (edit.same, edit.other))
    assert [a != b for a, b in zip(same, other, strict=True)] == [s == edit.earlier for s in range(len(same))]
    assert [echo_twins.repeating(x, name)[edit.later] for x in (same, other)] == [True, False]
    assert echo_twins.repeating(["I get 7.", "It must be 8.", "The answer is 7.", "8"], "math") == [
        False,
        False,
        True,
        True,
    ]
    engine, layout = pair.judge.engine, pair.layouts[0]
    answer, end, behind = echo_twins.tokens(engine, layout, edit.later)
    stated = engine.tokenizer.decode([int(layout.token_ids[answer])]).strip()
    assert same[edit.later].split().index(stated) == answer - layout.find("candidate", edit.later).start
    assert (end, behind) == (
        layout.find("candidate", edit.later).stop - 1,
        layout.find("separator", edit.later).stop - 1,
    )


def test_tokens_that_did_not_see_the_others_are_the_same_bits_in_both_twins(pair):
    zoo = [methods.get(m) for m in ("tail:tokens=2", "tail:tokens=2,sight=blind", "naive-linked", "true-mask")]
    read = pair.read(zoo)
    apart = np.abs(read[:, 0] - read[:, 1]).max((1, 2, 3))
    assert (apart[:2] > 0.01).all()
    assert (apart[2:] == 0).all()
    dense = pair.judge.engine.encode(pair.layouts[1])
    at, layers = echo_twins.tokens(pair.judge.engine, pair.layouts[1], pair.edit.later)[0], pair.judge.engine.layers
    assert dense.values is not None
    assert np.allclose(read[0, 1, 0, :, read.shape[-1] // 2 :], dense.values[:, :, at].reshape(layers, -1), atol=1e-5)


def test_a_mark_lies_on_two_tokens_of_whoever_repeats_an_answer(pair):
    judge, layout, blocks = pair.judge, pair.layouts[0], pair.blocks[0]
    engine, later = judge.engine, pair.edit.later
    answer, end, _ = echo_twins.tokens(engine, layout, later)
    size = engine.geometry.kv_heads * engine.geometry.head_dim
    mark = np.random.default_rng(0).normal(size=(2, engine.layers, 2 * size)).astype(np.float32)
    plain = methods.get("naive-linked").plan(layout, blocks, engine)

    def added(marked: echo_twins.Marked) -> list[np.ndarray]:
        """[layers, tokens, keys as at position 0, and values] that every candidate gets."""
        out = []
        for new, old in zip(marked.plan(layout, blocks, engine).kept, plain.kept, strict=True):
            zero = torch.zeros(len(new.block), dtype=torch.long)
            a, b = (k.block.moved(zero, engine.rotary) for k in (new, old))
            parts = [(x - y).permute(0, 2, 1, 3).flatten(2) for x, y in ((a.keys, b.keys), (a.values, b.values))]
            out.append(torch.cat(parts, -1).numpy())
        return out

    again = echo_twins.repeating([pair.edit.same.shown(s).text for s in range(pair.edit.same.n)], "math")
    along, start = added(echo_twins.Marked("along", 2.0, 0, mark)), layout.find("candidate", later).start
    places = {end - start: mark[1]} | ({answer - start: mark[0]} if answer < end else {})
    for slot, x in enumerate(along):
        if not again[slot]:
            assert np.abs(x).max() < 1e-5
    for i in range(along[later].shape[1]):
        assert np.allclose(along[later][:, i], 2 * places.get(i, np.zeros_like(mark[0])), atol=1e-4)
    against, alone = (
        added(echo_twins.Marked(way, 2.0, layer, mark))[later] for way, layer in (("against", 0), ("along", 3))
    )
    assert np.allclose(against, -along[later], atol=1e-4)
    assert np.abs(np.delete(alone, 2, 0)).max() < 1e-5
    assert np.allclose(alone[2], along[later][2], atol=1e-4)
    random = added(echo_twins.Marked("random", 2.0, 0, mark))[later]
    for half in (slice(None, size), slice(size, None)):
        lengths = [np.linalg.norm(x[..., half], axis=-1) for x in (random, along[later])]
        assert np.allclose(*lengths, atol=1e-3)
    assert not np.allclose(random, along[later], atol=0.1)
    dense, own = engine.encode(layout), echo_twins.Marked("dense's own").plan(layout, blocks, engine)
    assert dense.values is not None
    for kept, s in zip(own.kept, layout.each("candidate"), strict=True):
        assert torch.allclose(kept.block.values[:, :, -1], dense.values[:, :, s.stop - 1], atol=1e-4)
        assert torch.equal(kept.block.values[:, :, 0], blocks.execution(layout.candidates[s.slot or 0]).values[:, :, 0])


def test_echoes_of_twins_are_those_of_the_edits(pair):
    prompt = next(p for p in problems("organism-safe", 40, 1) if p.id == pair.edit.same.id)
    assert pair.edit in minimal_edits(prompt)
    found = pair.echoes([methods.get("naive-linked"), echo_twins.Marked("dense's own")])
    lead = []
    for p in (pair.edit.same, pair.edit.other):
        scores = pair.judge.judge(p, ["dense"], capture=False)[0].scores
        lead.append(scores[pair.edit.later] - scores[list(pair.edit.apart)].mean())
    assert found[0] == pytest.approx(lead[0] - lead[1], abs=1e-4)
    assert abs(found[1]) < 1e-4 < abs(found[0])


def test_a_probe_tells_what_was_planted_and_nothing_else(monkeypatch):
    monkeypatch.setattr(echo_probe, "SHUFFLES", 20)
    rng, layers = np.random.default_rng(0), (0, 4)
    reads = {m: rng.normal(size=(40, 1, 3, 6, 8)).repeat(2, 1) for m in ("dense", "naive-linked")}
    reads["dense"][:, 0, :, 3:] += 6 * np.eye(8)[0]
    assert echo_probe.best_layer(reads["dense"], layers) == 4
    half = [{m: x[i::2] for m, x in reads.items()} for i in (0, 1)]
    table = echo_probe.told(*half, -reads["dense"], layers, 0).set_index(["method", "probe", "place", "layer"])["value"]
    assert (table["dense", "its own", :, 5] > 0.95).all()
    assert (table["dense", "its own", :, 1] == 0.5).all()  # equal twins are told by luck, one way as often as the other
    assert (table["naive-linked"] == 0.5).all()
    assert (table["dense", "dense's of the other questions", :, 5] < 0.05).all()  # there it is the other way round
    assert (table["dense", echo_probe.SHUFFLED, :, 5].sub(0.5).abs() < 0.35).all()


def test_the_command_probes_and_marks_and_asks_for_enough_questions(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(echo_probe, "CHOOSERS", 2)
    monkeypatch.setattr(echo_probe, "SHUFFLES", 2)
    arguments = ["--model", "organism-unsafe", "--data", "organism-max", "--every", "3", "--out", str(tmp_path)]
    echo_probe.main([*arguments, "--limit", "8"])
    frame = pd.read_csv(tmp_path / "echo_probe.csv")
    assert {"AUC", "echo, nats", echo_probe.SHARE, "JCR"} == set(frame["what"])
    nats = frame[frame["what"] == "echo, nats"].set_index("method")
    share = frame[frame["what"] == echo_probe.SHARE].set_index("method")
    for method in share.index:
        assert share.loc[method, "value"] == pytest.approx(nats.loc[method, "value"] / nats.loc["dense", "value"])
    less = nats.loc["marked", "value"] - nats.loc["marked, random direction", "value"]
    assert nats.loc["marked less random", "value"] == pytest.approx(less)
    assert (frame["n"] == 4).all()
    assert (frame["value_low"] <= frame["value"]).all()
    assert "organism-max: layer" in (tmp_path / "echo_probe.md").read_text()
    with pytest.raises(SystemExit, match="give more"):
        echo_probe.main([*arguments, "--limit", "3"])
