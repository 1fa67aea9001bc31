"""A model whose layers lie in several places computes what it computes in one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from tiny import get_device, layout, plain_model, save, tokenizer
from two_devices import AWAY, two_devices
from typer.testing import CliRunner

import kvattn
from kvattn.cli.main import app
from kvattn.engine.capture import Wanted
from kvattn.engine.engine import Continued, Engine
from kvattn.engine.plan import Kept, KVPlan, Visibility, dense_plan
from kvattn.errors import KvattnError
from kvattn.models import load_pretrained
from kvattn.questions.synthetic import synthetic
from kvattn.study.grid import Grid
from kvattn.study.ray import Briefing
from kvattn.study.study import Study

HERE = str(get_device())
SHAPES = ("llama", "mistral-window", "mixtral", "gpt-oss", "glm4")


def halves(layers: int, second: str = "disk") -> dict[str, str]:
    """The first half of the layers here, the others elsewhere."""
    at = {f"model.layers.{i}": HERE if i < layers // 2 else second for i in range(layers)}
    return {"": HERE, **at}


def plans(engine: Engine) -> dict[str, KVPlan]:
    """One of every kind: nothing kept, hidden, moved, and tokens that leave half way."""
    x = layout(1)
    full, depth = engine.encode(x), torch.full((len(x),), engine.layers)
    first, second = (x.find("candidate", slot) for slot in range(2))
    depth[first.start : first.stop], depth[second.start : second.stop] = 0, engine.layers // 2
    moved = replace(full.span(first.start, first.stop), positions=torch.arange(first.length))
    kept = [Kept(moved, first.start), Kept(full.span(second.start, second.stop), second.start)]
    return {
        "dense": dense_plan(x, engine.layers),
        "true-mask": dense_plan(x, engine.layers, Visibility.isolated(x)),
        "stitched": KVPlan.of(x, engine.layers, depth, kept),
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return {shape: save(tmp_path_factory.mktemp(shape), shape) for shape in SHAPES}


def spread(folder: str, device_map) -> Engine:
    return Engine(*load_pretrained(folder, device_map=device_map)[:2], chunk=16)


@pytest.mark.parametrize("everything", [False, True], ids=["half", "all"])
@pytest.mark.parametrize("shape", SHAPES)
def test_weights_on_the_disk_judge_as_weights_in_memory(folders, shape, everything):
    one = Engine(*load_pretrained(folders[shape], device=HERE)[:2], chunk=16)
    away = {"": "disk", "lm_head": HERE} if everything else halves(one.layers)
    two = spread(folders[shape], away)
    assert any(p.is_meta for p in two.model.parameters())
    assert two.spread
    assert not one.spread
    want = Wanted(rows=True, norms=True, kv=True, find_sinks=1, received=True, residual=True, query_states=True)
    for name, plan in plans(one).items():
        a, b = (e.execute([plan, plan], want, keep_cache=True)[1] for e in (one, two))
        assert torch.equal(a.logits, b.logits), name
        assert torch.equal(a.keys, b.keys), name
        assert torch.equal(a.values, b.values), name
        for field in ("mass", "rows", "norm", "received", "residual", "sinks", "value_norm", "query_states"):
            assert torch.equal(getattr(a.captured, field), getattr(b.captured, field)), (name, field)


def test_dense_is_the_plain_forward_and_tokens_are_decoded(folders):
    plain = load_pretrained(folders["llama"])[0]
    two = spread(folders["llama"], halves(4))
    x = layout(1)
    plan = dense_plan(x, two.layers)
    run = two.execute([plan], keep_cache=True)[0]
    with torch.inference_mode():
        want = plain(x.token_ids[None]).logits[0, -1]
        tokens = plain.generate(x.token_ids[None], max_new_tokens=4, do_sample=False, eos_token_id=None)[0, len(x) :]
    torch.testing.assert_close(run.logits[0], want, atol=1e-5, rtol=0)
    assert two.generate([Continued(run, 4)]) == [tokens.tolist()]


def test_auto_and_the_commands_take_a_map(folders, tmp_path: Path):
    judge = kvattn.load(folders["llama"], device_map="auto")
    assert judge.engine.geometry.devices[0].type == HERE.partition(":")[0]
    said = tmp_path / "map.json"
    said.write_text(json.dumps(halves(4)))
    done = CliRunner().invoke(app, ["doctor", folders["llama"], "--device-map", str(said)])
    assert done.exit_code == 0, done.output
    assert "all checks passed" in done.output
    assert "on one device" in done.output  # what the lens cannot do is said
    grid = Grid.of({"data": "synthetic", "models": folders["llama"], "device_map": halves(4)})
    engine = next(grid._judges())[1].engine
    assert any(p.is_meta for p in engine.model.parameters())
    with pytest.raises(KvattnError, match="actors have none"):
        Briefing.of(Study(replace(judge, engine=engine), synthetic(1), ["dense"]), 1)


def test_what_is_not_finite_is_found_on_the_disk(folders, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = Path(save(tmp_path, "llama"))
    held = load_file(folder / "model.safetensors")
    held["model.layers.3.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(KvattnError, match=r"layers\.3\.mlp\.up_proj\.weight holds"):
        kvattn.load(str(folder), device_map=halves(4))


@pytest.mark.parametrize(
    ("device_map", "said"),
    [
        ("fastest", "unknown device map"),
        ({}, "no device map"),
        ({"": "cuda:99"}, "is not there"),
        ({"": 99}, "'cuda:99' is not there"),
        ({"": "disk"}, "something has to compute"),
        ({"model.layers.0": "cpu"}, "says no device for model.embed_tokens.weight"),
        ({"": "cpu", "model.layers.9": "disk"}, "names model.layers.9, which the model lacks"),
    ],
)
def test_a_map_that_cannot_work_is_refused(folders, device_map, said):
    with pytest.raises(KvattnError, match=said) as caught:
        load_pretrained(folders["llama"], device_map=device_map)
    assert "\n" not in str(caught.value)


def test_a_device_and_a_map_are_one_too_many(folders, monkeypatch):
    monkeypatch.setattr("kvattn.models.places.find", torch.device)
    with pytest.raises(KvattnError, match="leave the device out"):
        load_pretrained(folders["llama"], device="mps", device_map="auto")


@pytest.mark.parametrize("shape", ["llama", "mistral-window", "gemma2", "cohere2"])
def test_every_layer_has_its_own_device(shape):
    one = Engine(plain_model(shape, kernel="eager").cpu(), tokenizer(), chunk=16)
    want = Wanted(rows=True, norms=True, kv=True, find_sinks=1, received=True, residual=True, query_states=True)
    expected = {name: one.execute([p, p], want, keep_cache=True)[1] for name, p in plans(one).items()}
    asked = [dense_plan(layout(1), 4)]
    decoded = one.generate([Continued(one.execute(asked, keep_cache=True)[0], 4)] * 3)
    with two_devices():
        model = plain_model(shape, kernel="eager").cpu()
        names = [name for name, _ in model.model.named_children() if name != "layers"]
        spread = {f"model.{name}": "cpu" for name in names} | {"lm_head": "cpu"}
        spread |= {f"model.layers.{i}": AWAY if i % 2 else "cpu" for i in range(4)}
        with_hooks = dispatch_model(model, spread, main_device="cpu", skip_keys=model._skip_keys_device_placement)
        two = Engine(with_hooks, tokenizer(), chunk=16)
        assert [d.type for d in two.geometry.devices] == ["cpu", "away"] * 2
        for name, plan in plans(two).items():
            a, b = expected[name], two.execute([plan, plan], want, keep_cache=True)[1]
            assert torch.equal(a.logits, b.logits), name
            assert torch.equal(a.keys, b.keys), name
            for field in ("mass", "rows", "norm", "received", "residual", "sinks", "value_norm", "query_states"):
                assert torch.equal(getattr(a.captured, field), getattr(b.captured, field)), (name, field)
        assert two.generate([Continued(two.execute(asked, keep_cache=True)[0], 4)] * 3) == decoded
