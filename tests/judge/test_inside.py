"""What heads and layers do to a pick, against the plain model and against what was captured while judging."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import long_judge, short_prompt

from kvattn.engine import parts, readings
from kvattn.engine.capture import Wanted
from kvattn.errors import KvattnError
from kvattn.judge import readout
from kvattn.judge.comparison import Comparison
from kvattn.judge.judge import Judge, load
from kvattn.models import load_pretrained
from kvattn.plots.explorer import Explorer
from kvattn.questions import load as questions
from kvattn.report import headline


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load("organism-unsafe", trusted=True)


@pytest.fixture(scope="module")
def result(judge: Judge) -> Comparison:
    return judge.compare(questions("organism-max", 1)[0], methods=["dense", "naive", "true-mask"], keep_cache=False)


def plain_model():
    """The organism by transformers alone, in eager attention."""
    model = load_pretrained("organism-unsafe")[0]
    model.set_attn_implementation("eager")
    return model


def plain_scores(judge: Judge, result: Comparison, without: tuple[int, int] | None = None) -> np.ndarray:
    """Logits of the labels by the plain model, the output of one (layer, head) at the last token left out."""
    layout, dim, model = result.plan("dense").layout, judge.engine.geometry.head_dim, plain_model()
    if without is not None:
        layer, head = without

        def drop(_, args):
            z = args[0].clone()
            z[:, -1, head * dim : (head + 1) * dim] = 0
            return (z,)

        parts.layers(model)[layer].self_attn.o_proj.register_forward_pre_hook(drop)
    with torch.inference_mode():
        return model(layout.token_ids[None]).logits[0, -1, list(layout.answer_ids)].double().numpy()


def test_a_cut_is_what_the_plain_model_loses_without_that_head(judge: Judge, result: Comparison) -> None:
    a, b = result._between("naive", "dense")
    table = result.heads("dense", base="naive", cut=3)
    whole = plain_scores(judge, result)
    for row in table.head(3).itertuples():
        without = plain_scores(judge, result, (row.layer, row.head))
        assert row.cut == pytest.approx((without[b] - without[a]) - (whole[b] - whole[a]), abs=1e-3)
    assert table["cut"].abs().max() > 0.01
    assert table["cut"][3:].isna().all()


def test_heads_hold_the_masses_that_were_captured_while_judging_most_changed_first(result: Comparison) -> None:
    table = result.heads("naive")
    assert len(table) == np.prod(result.decisions[0].mass.mass.shape[:2])
    dense, naive = ({d.method: d for d in result.decisions}[m].mass for m in ("dense", "naive"))
    for row in table.itertuples():
        at = dense.names.index(f"candidate:{row.slot}")
        assert row.where == f"L{row.layer}H{row.head}"
        assert row.mass_base == pytest.approx(dense.mass[row.layer, row.head, at], abs=1e-5)
        assert row.mass == pytest.approx(naive.mass[row.layer, row.head, at], abs=1e-5)
    assert table["change"].abs().is_monotonic_decreasing
    assert table["change"].to_numpy() == pytest.approx((table["mass"] - table["mass_base"]).to_numpy())


class YesNo(readout.YesNo):
    def ask(self, template):  # "Yes" is no one token of the tiny vocabulary
        return replace(super().ask(template), answers=("Y", "N"))


@pytest.mark.parametrize("ask", [readout.Label(), YesNo()])
def test_what_heads_write_is_their_attribution_to_one_score_less_another(ask: readout.Readout) -> None:
    judge = replace(long_judge("llama"), readout=ask)
    found = judge.compare(short_prompt("What is 2 + 3?", ["5", "6", "It is 5"]), methods=["dense", "naive"])
    a, b = found._between("dense", "naive")
    plan = found.plan("naive")
    run = judge.engine.execute([plan], Wanted(residual=True, moved=True))[0]
    ids = plan.layout.answer_ids
    each = readings.attribution(judge.engine, run.captured, ids).sum(3)
    if ask.name == "label":
        want = each[0, ..., b] - each[0, ..., a]
    else:
        want = (each[b, ..., 0] - each[b, ..., 1]) - (each[a, ..., 0] - each[a, ..., 1])
    for row in found.heads("naive").itertuples():
        assert row.written == pytest.approx(float(want[row.layer, row.head]), abs=1e-4)
    read = found.lens()
    last = read[(read["layer"] == read["layer"].max()) & (read["method"] == "naive")]
    assert last["score"].to_numpy() - last["score"].max() == pytest.approx(
        found.decisions[1].scores - found.decisions[1].scores.max(), abs=1e-3
    )
    assert last.loc[last["ahead"], "slot"].tolist() == [found.decisions[1].slot + 1]


def test_the_lens_of_a_flip_says_where_each_settles(result: Comparison) -> None:
    assert result.decisions[0].slot != result.decisions[1].slot  # naive flips: what the organism is for
    said = headline.lens(result.lens(), "naive", "dense")
    assert re.fullmatch(
        r"The logit lens has dense settle on slot \d (after layer \d+|from the start), naive on slot \d "
        r"(after layer \d+|from the start): there the flip is made\.",
        said,
    )
    slots = [int(s) for s in re.findall(r"slot (\d)", said)]
    assert slots == [d.slot + 1 for d in result.decisions[:2]]


def test_candidates_drift_under_reuse_and_not_under_dense(result: Comparison) -> None:
    drift = result.drift("naive").groupby("slot")["values"].max()
    assert drift[2] > 0.01
    assert result.drift("dense")[["keys", "values"]].to_numpy().max() == 0
    assert set(result.drift("naive")["layer"]) == set(range(result.engine.layers))


def test_the_text_of_some_heads_is_their_mean_and_another_token_has_its_own_row(result: Comparison) -> None:
    one, two = (result.text("naive", layer=a, head=b).panels[0].row for a, b in ((0, 1), (1, 0)))
    assert result.text("naive", heads=[(0, 1), (1, 0)]).panels[0].row == pytest.approx((one + two) / 2)
    token = result.plan("dense").layout.find("candidate", 2).stop - 1
    row = result.text("dense", layer=1, head=0, token=token).panels[0].row
    with torch.inference_mode():
        ids = result.plan("dense").layout.token_ids[None]
        eager = plain_model()(ids, output_attentions=True).attentions[1][0, 0, token]
    assert row == pytest.approx(eager.numpy(), abs=1e-5)
    with pytest.raises(KvattnError, match="kept"):
        result.text("naive", token=token)


def test_an_explorer_holds_every_row_and_hostile_text_as_text(result: Comparison) -> None:
    page = result.explore().page()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    assert [p["name"] for p in data["panels"]] == ["dense", "naive", "true-mask"]
    for p in data["panels"]:
        rows = (np.frombuffer(base64.b64decode(p["rows"]), "<u2") / 65535.0) ** 2
        assert rows == pytest.approx(result.row[p["name"]].numpy().ravel(), abs=2e-5)
    panel = result.explore().panels[0]
    evil = replace(panel, title="</script><b>", tokens=["</script><script>alert(1)</script>", *panel.tokens[1:]])
    assert Explorer((evil,)).page().count("<script") == page.count("<script") == 2
    assert "<b>" not in Explorer((evil,)).page()
    with pytest.raises(KvattnError, match="other tokens"):
        Explorer((panel, evil))


def test_what_cannot_be_asked_is_refused(judge: Judge, result: Comparison) -> None:
    for ask in (result.heads, result.drift, result.influence, result.text, result.explore):
        with pytest.raises(KvattnError, match="method of this comparison"):
            ask("nive")
    alone = replace(result.prompt, candidates=result.prompt.candidates[:1], order=())
    with pytest.raises(KvattnError, match="one candidate"):
        judge.compare(alone, methods=["dense", "naive"]).heads()
    with pytest.raises(KvattnError, match="nothing to compare"):
        judge.compare(result.prompt, methods=["dense"]).heads()
