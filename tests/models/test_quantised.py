"""Folders of quantised weights: torchao's run as they are, all others are refused by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import layout, save, tokenizer

import kvattn
from kvattn.engine.capture import Wanted
from kvattn.engine.doctor import Doctor
from kvattn.engine.engine import Engine
from kvattn.engine.plan import dense_plan
from kvattn.errors import KvattnError
from kvattn.models import load_pretrained

KINDS = {
    "int8": ("Int8WeightOnlyConfig", {"version": 2}),
    "int8, and what they multiply": ("Int8DynamicActivationInt8WeightConfig", {"version": 2}),
    "int4": ("IntxWeightOnlyConfig", {"weight_dtype": torch.int4}),
}


@pytest.fixture(params=KINDS)
def folder(request, tmp_path: Path) -> str:
    quantization = pytest.importorskip("torchao.quantization", reason="needs kvattn[quantised]")
    from transformers import AutoModelForCausalLM, TorchAoConfig

    kind, options = KINDS[request.param]
    how = TorchAoConfig(getattr(quantization, kind)(**options))
    model = AutoModelForCausalLM.from_pretrained(
        save(tmp_path / "plain"), dtype="float32", quantization_config=how, attn_implementation="sdpa"
    )
    model.save_pretrained(tmp_path / "quantised")
    tokenizer().save_pretrained(tmp_path / "quantised")
    return str(tmp_path / "quantised")


def test_torchaos_weights_pass_the_doctor_and_are_no_others(folder: str):
    judge = kvattn.load(folder)
    engine, info = judge.engine, judge.engine.info
    assert info["quantised"].startswith("torchao")
    assert info["dtype"] == "float32"
    for finding in Doctor(engine).examine():
        assert finding.passed, str(finding)
    x = layout(1)
    plain = Engine(*load_pretrained(str(Path(folder).parent / "plain"))[:2])
    here, there = (e.execute([dense_plan(x, 4)])[0].logits for e in (engine, plain))
    assert 1e-3 < float((here - there).abs().max() / there.std()) < 3  # quantised they are


def test_norms_are_of_what_the_weights_stand_for(folder: str):
    engine = kvattn.load(folder, trusted=True).engine
    x = layout(1)
    run = engine.execute([dense_plan(x, 4)], Wanted(norms=True, moved=True))[0].captured
    own = load_pretrained(folder)[0].model.layers[2].self_attn.o_proj.weight.dequantize()
    with torch.no_grad():
        for layer in engine.model.model.layers:
            layer.self_attn.o_proj.weight = torch.nn.Parameter(layer.self_attn.o_proj.weight.dequantize(), False)
    assert torch.equal(engine.model.model.layers[2].self_attn.o_proj.weight, own)
    want = engine.execute([dense_plan(x, 4)], Wanted(norms=True, moved=True))[0].captured
    torch.testing.assert_close(run.norm[:, :1], want.norm[:, :1])
    torch.testing.assert_close(run.norm, run.moved.norm(dim=-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes", "awq", "compressed-tensors", None])
def test_other_quantisations_are_refused_by_name(tmp_path: Path, method):
    folder = save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
    with pytest.raises(KvattnError, match=f"quantised by {method or 'an unnamed method'}, .*dequantize"):
        load_pretrained(folder)


def test_torchao_is_asked_for_where_it_lacks(tmp_path: Path, monkeypatch):
    folder = save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "torchao"}}))
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(KvattnError, match=r"pip install 'kvattn\[quantised\]'"):
        load_pretrained(folder)
