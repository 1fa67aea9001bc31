"""Agents on another model, through a ridge map: the arithmetic against scikit-learn, the judge itself in other
coordinates, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from tiny import byte_llama, save_bytes, short_prompt, tokenizer

from kvattn import methods
from kvattn.engine.blocks import Blocks
from kvattn.engine.influence import _brought, explain
from kvattn.errors import KvattnError
from kvattn.judge.judge import load
from kvattn.methods.agents import Agents
from kvattn.methods.mapped import Mapped
from kvattn.methods.ridge import Sums, plain
from kvattn.study import estimate
from kvattn.study.run_folder import Run
from kvattn.study.study import Study

TEXTS = ("two and two is four", "it is 5, or so", "four, since 2+2=4", "4! that I know")
PROMPTS = [
    short_prompt(f"What is {i}+{i + 1}?", [f"{t} ({i}{j})" for j, t in enumerate(TEXTS)], id=f"q{i}") for i in range(8)
]
ASKED, HELDOUT = PROMPTS[0], PROMPTS[1:]


def turned(model, seed: int = 5):
    """The same function with other keys and values: values go through a matrix that the output matrix undoes, keys are
    scaled as queries are divided."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for number, layer in enumerate(other.model.layers):
        a = layer.self_attn
        dim = a.head_dim
        turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0] * 3
        with torch.no_grad():
            a.v_proj.weight.copy_(turn @ a.v_proj.weight)
            heads = a.o_proj.weight.view(a.o_proj.weight.shape[0], -1, dim)
            a.o_proj.weight.copy_((heads @ torch.linalg.inv(turn)).flatten(1))
            a.k_proj.weight.mul_(number + 2.0)
            a.q_proj.weight.div_(number + 2.0)
    return other


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    at, own = tmp_path_factory.mktemp("models"), byte_llama()
    own.config.max_position_embeddings = 512
    wide = byte_llama(seed=3)
    wide.config.max_position_embeddings = 512
    return {
        name: str(save_bytes(at / name, m))
        for name, m in (("own", own), ("turned", turned(own)), ("other", wide), ("deep", deep()))
    }


def deep():
    """Another shape: three layers of two KV heads of 16 channels, another base of the rotation."""
    torch.manual_seed(9)
    config = copy.deepcopy(byte_llama().config)
    config.update({"num_hidden_layers": 3, "num_key_value_heads": 2, "num_attention_heads": 4, "head_dim": 16})
    config.update({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "max_position_embeddings": 512})
    return type(byte_llama())(config).eval()


@pytest.fixture(scope="module")
def judge(folders):
    return load(folders["own"])


def warmed(judge, model: str, base: str = "naive-linked", heldout=HELDOUT, **fields) -> Mapped:
    method = Mapped(methods.get(base), model, **{"layers": 1, **fields})
    judge.warm(method, heldout)
    return method


def test_the_map_is_ridge_regression_from_the_layers_that_explain_most():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(4, 60, 3)) + 5
    y = np.stack(
        [x[2] @ generator.normal(size=(3, 6)) + 0.5 * x[0] @ generator.normal(size=(3, 6)), x[1] @ np.ones((3, 6))]
    )
    y += 0.1 * generator.normal(size=y.shape)
    sums = Sums()
    for part in (slice(0, 25), slice(25, 60)):
        sums.add(torch.tensor(x[:, part]), torch.tensor(y[:, part]))
    fit = sums.fit(2, 0.7)
    rest = 0.0
    for layer, target in enumerate(y):
        errors = [((Ridge(0.7).fit(s, target).predict(s) - target) ** 2).sum() for s in x]
        best = sorted(np.argsort(errors)[:2].tolist())
        assert fit.layers[layer].tolist() == best
        inputs = np.concatenate([x[i] for i in best], 1)
        predicted = Ridge(0.7).fit(inputs, target).predict(inputs)
        np.testing.assert_allclose(fit(torch.tensor(x))[layer].numpy(), predicted, atol=1e-4)
        rest += ((predicted - target) ** 2).sum()
    assert fit.layers.tolist() == [[0, 2], *[sorted(fit.layers[1].tolist())]]
    assert 1 in fit.layers[1].tolist()
    total = ((y - y.mean(1, keepdims=True)) ** 2).sum()
    assert fit.explained == pytest.approx(1 - rest / total, abs=1e-2)


@pytest.mark.parametrize("base", ["naive", "naive-linked", "isolated", "foreign-kv", "tail:tokens=1"])
def test_a_model_that_is_the_judge_in_other_coordinates_is_mapped_back(judge, folders, base):
    own = judge.judge(ASKED, [base], capture=False)[0]
    raw = judge.judge(ASKED, [Agents(methods.get(base), folders["turned"])], capture=False)[0]
    found = judge.judge(ASKED, [warmed(judge, folders["turned"], base, ridge=1e-6)], capture=False)[0]
    assert np.abs(raw.scores - own.scores).max() > 0.05
    np.testing.assert_allclose(found.scores, own.scores, atol=2e-3)


def test_what_is_kept_is_the_map_of_what_they_made_at_its_place_in_the_prompt(judge, folders):
    method = warmed(judge, folders["deep"], layers=2)
    blocks, layout = Blocks(judge.engine, ASKED), judge.compile(ASKED)
    plan = method.plan(layout, blocks, judge.engine)
    run = judge.engine.execute([plan], keep_cache=True)[0]
    theirs = Blocks(load(folders["deep"]).engine, ASKED)
    for s, candidate in layout.shown():
        block = theirs.execution(candidate)
        keys, values = (f(x) for f, x in zip(method.state.fits, plain(block, theirs.engine), strict=True))
        found = run.block(s)
        own_keys, own_values = plain(found, judge.engine)
        torch.testing.assert_close(own_values, values, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(own_keys, keys, atol=1e-4, rtol=1e-4)
        assert torch.equal(found.positions, layout.positions[s.start : s.stop])


def test_keys_are_mapped_without_their_rotation(judge, folders):
    """The same text further on in a prompt has the same keys once the rotation is off: to the map it is one token."""
    engine = load(folders["deep"]).engine
    block = Blocks(engine, ASKED).execution("c0")
    moved = block.moved(block.positions + 40, engine.rotary)
    assert not torch.allclose(moved.keys, block.keys, atol=1e-2)
    for one, other in zip(plain(block, engine), plain(moved, engine), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_map_is_paid_for(judge, folders):
    own = judge.judge(ASKED, ["naive-linked"], capture=False)[0].cost
    one, two = (judge.judge(ASKED, [warmed(judge, folders["deep"], layers=n)], capture=False)[0].cost for n in (1, 2))
    tokens = sum(s.length for s in judge.compile(ASKED).each("candidate"))
    map_of_one = 2 * 2 * (1 * 32) * 32  # keys and values, two layers of the judge's, each from one of 32 numbers
    for found, times in ((one, 1), (two, 2)):
        spent = int(np.ceil(tokens * times * map_of_one / judge.engine.meter.weights))
        assert found.probe_token_layers == spent > 0
        assert found.token_layers == own.token_layers
    caches = {c.id: Blocks(judge.engine, ASKED).execution(c.id) for c in ASKED.candidates}
    given = judge.compare(ASKED, methods=[warmed(judge, folders["deep"])], caches=caches).decisions[0].cost
    assert given.probe_token_layers == 0  # what was given is the judge's own
    labelled = judge.judge(ASKED, [warmed(judge, folders["deep"], "isolated")], capture=False)[0].cost
    tokens = sum(s.length for s in judge.compile(ASKED).each("header", "candidate", "separator") if s.slot is not None)
    assert labelled.probe_token_layers == int(np.ceil(tokens * map_of_one / judge.engine.meter.weights))


def test_a_saved_map_is_the_map_and_a_damaged_or_foreign_one_is_refused(judge, folders, tmp_path):
    method = warmed(judge, folders["deep"], layers=2)
    method.save(tmp_path, "m")
    again = Mapped(methods.get("naive-linked"), folders["deep"], layers=2)
    again.restore(tmp_path, "m")
    first, second = (judge.judge(ASKED, [m], capture=False)[0].scores.tolist() for m in (method, again))
    assert first == second
    for wrong in (tmp_path / "m", tmp_path / "m.safetensors"):
        with pytest.raises(KvattnError, match=r"map is the file NAME.json"):
            methods.get(f"mapped:model={folders['deep']},layers=2,map={wrong}")
    given = methods.get(f"mapped:model={folders['deep']},layers=2,map={tmp_path / 'm.json'}")
    assert set(given.files) == {folders["deep"], str(tmp_path / "m.json")}
    assert not given.needs_warming
    assert judge.judge(ASKED, [given], capture=False)[0].scores.tolist() == first
    with pytest.raises(KvattnError, match=r"was fit with .*2.*, not .*1"):
        methods.get(f"mapped:model={folders['deep']},layers=1,map={tmp_path / 'm.json'}")
    other = Mapped(methods.get("naive-linked"), folders["turned"], layers=2)
    other.restore(tmp_path, "m")
    with pytest.raises(KvattnError, match=r"fit for the agents .*; fit it again"):
        other.require(judge.compile(ASKED), judge.engine)
    with pytest.raises(KvattnError, match="fit for the judge"):
        again.require(judge.compile(ASKED), load(folders["other"]).engine)
    weights = tmp_path / "m.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    for damage in (lambda: None, lambda: (tmp_path / "m.json").write_text(json.dumps({"format": "x"})), weights.unlink):
        damage()
        with pytest.raises(KvattnError, match="cannot read the map"):
            Mapped().restore(tmp_path, "m")


def test_a_map_of_other_shapes_is_refused(judge, folders, tmp_path):
    method = warmed(judge, folders["deep"], layers=2)
    method.save(tmp_path, "m")
    fits = method.state.fits
    for change in (
        {"layers": fits[0].layers + 7},
        {"layers": fits[0].layers - 9},
        {"layers": fits[0].layers.float()},
        {"weights": fits[0].weights[:, :-1]},
        {"weights": fits[0].weights.half()},
        {"bias": fits[0].bias[:1]},
    ):
        method.state.fits = (replace(fits[0], **change), fits[1])
        method.state.save(tmp_path, "odd")
        with pytest.raises(KvattnError, match="not one between models of these shapes"):
            judge.judge(ASKED, [methods.get(f"mapped:model={folders['deep']},layers=2,map={tmp_path / 'odd.json'}")])
    method.state.fits = (replace(fits[0], bias=fits[0].bias * float("nan")), fits[1])
    method.state.save(tmp_path, "odd")
    with pytest.raises(KvattnError, match="not finite"):
        methods.get(f"mapped:model={folders['deep']},layers=2,map={tmp_path / 'odd.json'}")


def test_a_map_without_pairs_or_with_too_few_is_refused(judge, folders, tmp_path):
    with pytest.raises(KvattnError, match=r"has no map yet: .* was shown 0; give more held-out questions"):
        judge.judge(ASKED, [Mapped(model=folders["deep"], layers=2)], capture=False)
    few = warmed(judge, folders["deep"], layers=3, heldout=HELDOUT[:1])
    assert few.needs_warming
    with pytest.raises(KvattnError, match=f"was shown {few.state.tokens}; give more"):
        judge.judge(ASKED, [few], capture=False)
    with pytest.raises(KvattnError, match=f"from 3 layers wants 192 held-out tokens, .*shown {few.state.tokens}; give"):
        few.save(tmp_path, "few")
    judge.warm(few, HELDOUT[1:])  # what was counted is not lost
    assert judge.judge(ASKED, [few], capture=False)[0].scores.shape == (4,)


def test_a_fit_map_is_not_fit_again_and_holds_for_one_pair_of_models(judge, folders):
    method = warmed(judge, folders["deep"], layers=2)
    judge.judge(ASKED, [method], capture=False)
    tokens = method.state.tokens
    with pytest.raises(KvattnError, match="has its map already; make a new method"):
        judge.warm(method, HELDOUT[:1])
    with pytest.raises(KvattnError, match="fit for the judge"):
        load(folders["other"]).warm(method, HELDOUT[:1])
    assert method.state.tokens == tokens
    halfway = warmed(judge, folders["deep"], layers=2, heldout=HELDOUT[:2])
    with pytest.raises(KvattnError, match="fit for the judge"):
        load(folders["other"]).warm(halfway, HELDOUT[2:])


def test_the_agents_are_named_once():
    for spec in ("mapped:base=agents(base=naive)", "agents:base=tail(base=agents(base=naive))"):
        with pytest.raises(KvattnError, match="says already who the agents are"):
            methods.get(spec)


@pytest.mark.parametrize("base", ["isolated", "naive", "tail:tokens=1,base=isolated"])
def test_influence_is_the_bases_and_at_the_bottom_all_that_was_seen(judge, folders, base):
    layout = judge.compile(ASKED)
    plain_method, method = methods.get(base), warmed(judge, folders["deep"], base, layers=2)
    own, found = (explain(m.plan(layout, Blocks(judge.engine, ASKED), judge.engine)) for m in (plain_method, method))
    assert torch.equal(own.reaches, found.reaches)
    assert torch.equal(own.decision, found.decision)
    plan = method.plan(layout, Blocks(judge.engine, ASKED), judge.engine)
    segments = torch.nn.functional.one_hot(layout.segment_of, len(layout.segments)).bool()
    bottom, above = _brought(plan, segments)
    mapped = layout.mask("candidate")
    assert torch.equal(bottom[mapped], above[mapped])
    assert not torch.equal(above[mapped], segments[mapped])


def test_other_vocabularies_and_too_many_layers_are_refused_before_anything_is_judged(judge, folders, tmp_path):
    words = tmp_path / "words"
    byte_llama(seed=1).save_pretrained(words)
    tokenizer().save_pretrained(words)
    layout = judge.compile(ASKED)
    for model, layers, says in (
        (str(words), 1, "another vocabulary than the judge"),
        (folders["deep"], 4, "has 3 layers; take at most as many"),
        (str(tmp_path / "nobody"), 1, "nobody"),
    ):
        with pytest.raises(KvattnError, match=says):
            Mapped(model=model, layers=layers).require(layout, judge.engine)
    for bad in ({"layers": 0}, {"ridge": 0.0}, {"ridge": float("nan")}, {"ridge": float("inf")}):
        with pytest.raises(KvattnError, match="layers is 1 or more and ridge above 0"):
            Mapped(**bad)


def test_a_study_fits_the_map_on_its_held_out_questions_alone_and_goes_on_with_it(judge, folders, tmp_path):
    method = f"mapped:model={folders['deep']},layers=2"

    def study() -> Study:
        return Study(judge, PROMPTS[:3], ["dense", method], "fixed", heldout=PROMPTS[3:])

    scores = Run(study().run(tmp_path / "run")).judgements().query("method != 'dense'")
    (tmp_path / "direct").mkdir()
    direct = methods.get(method)
    judge.warm(direct, PROMPTS[3:])
    for prompt in PROMPTS[:3]:
        expected = judge.judge(prompt, [direct], capture=False)[0].scores
        assert list(scores[scores["question_id"] == prompt.id]["scores"].iloc[0]) == pytest.approx(expected.tolist())
    assert estimate.of_study(study()).judgements == 6
    cards = list((tmp_path / "run").rglob("mapped*.json"))
    assert [json.loads(c.read_text())["format"] for c in cards] == ["kvattn-map-1"]


def test_candidates_that_the_agents_model_wrote_are_mapped_and_others_are_refused(judge, folders):
    method = warmed(judge, folders["deep"], layers=2)
    engine = load(folders["deep"]).engine
    theirs = replace(ASKED, candidates=tuple(replace(c, model=engine.identity) for c in ASKED.candidates))
    assert judge.judge(theirs, [method], capture=False)[0].scores.tolist() == pytest.approx(
        judge.judge(ASKED, [method], capture=False)[0].scores.tolist()
    )
    authored = [replace(p, candidates=tuple(replace(c, model=engine.identity) for c in p.candidates)) for p in HELDOUT]
    first, second = (warmed(judge, folders["deep"], heldout=some).state.sums[0] for some in (authored, HELDOUT))
    assert torch.equal(first._xy, second._xy)
    others = replace(ASKED, candidates=tuple(replace(c, model="x@1") for c in ASKED.candidates))
    with pytest.raises(KvattnError, match="was generated by x@1"):
        judge.judge(others, [method], capture=False)


def test_tokens_that_leave_the_map_open_are_said():
    x = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[..., 2] = 0.0
    sums = Sums()
    sums.add(x, x)
    with pytest.raises(KvattnError, match="leave the map open under ridge=0; raise it"):
        sums.fit(1, 0)
    assert sums.fit(1, 0.01).explained == pytest.approx(1)


def test_a_study_keeps_the_map_that_its_method_came_with(judge, folders, tmp_path):
    method = warmed(judge, folders["deep"], layers=2, heldout=HELDOUT[:4])
    Study(judge, PROMPTS[:2], ["dense", method], "fixed", heldout=HELDOUT[4:]).run(tmp_path / "run")
    again = Mapped(methods.get("naive-linked"), folders["deep"], layers=2)
    card = next((tmp_path / "run" / "pools").glob("mapped*.json"))
    again.restore(card.parent, card.stem)
    assert again.state.tokens == method.state.tokens
    first, second = (judge.judge(ASKED, [m], capture=False)[0].scores.tolist() for m in (method, again))
    assert first == second


@pytest.mark.parametrize("kind", [Agents, Mapped])
def test_agents_whose_context_is_too_short_are_refused(judge, folders, kind):
    method = kind(methods.get("naive-linked"), folders["other"], **({"layers": 1} if kind is Mapped else {}))
    agents = method.agents(judge.engine)
    held, agents.compiler.max_tokens = agents.compiler.max_tokens, 20
    try:
        with pytest.raises(KvattnError, match=r"tokens, the agents' \(.*\) context holds 20; shorten or drop"):
            judge.warm(method, [ASKED]) if kind is Mapped else judge.judge(ASKED, [method], capture=False)
    finally:
        agents.compiler.max_tokens = held
