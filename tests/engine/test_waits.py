"""What steers a pass is known on the CPU: however many layers a model has, it stops for the device no more often."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from tiny import at_home, layout, tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from benchmarks.shapes import SHAPES
from kvattn.engine.capture import Wanted
from kvattn.engine.engine import Engine
from kvattn.engine.plan import Kept, KVPlan, Visibility, dense_plan

WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "item", "_unique2")


class Waits(TorchDispatchMode):
    """Counts the operations that wait for what the device computes."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def deep(shape: str, layers: int) -> Engine:
    config = SHAPES[shape]()
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = (config.layer_types * layers)[:layers]
    torch.manual_seed(0)
    return Engine(at_home(AutoModelForCausalLM.from_config(config).eval()), tokenizer(), chunk=16)


def plan(engine: Engine, kind: str) -> KVPlan:
    x = layout(1)
    if kind == "dense":
        return dense_plan(x, engine.layers)
    if kind == "true-mask":
        return dense_plan(x, engine.layers, Visibility.isolated(x))
    full = engine.encode(x)
    depth = torch.full((len(x),), engine.layers)
    spans = [x.find("candidate", slot) for slot in range(3)]
    for s in spans:
        depth[s.start : s.stop] = 0
    if kind == "leaving":  # some of the kept tokens are computed through the first two layers
        depth[spans[1].start : spans[1].stop] = 2
    kept = [Kept(full.span(s.start, s.stop), s.start) for s in spans]
    return replace(KVPlan.of(x, engine.layers, depth, kept))


@pytest.mark.parametrize("wanted", [None, Wanted(rows=True, find_sinks=1), Wanted(residual=True, norms=True, kv=True)])
@pytest.mark.parametrize("kind", ["dense", "true-mask", "kept", "leaving"])
@pytest.mark.parametrize("shape", ["llama", "qwen2-window"])
def test_waits_do_not_grow_with_layers(shape, kind, wanted):
    counts = []
    for layers in (4, 8):
        engine = deep(shape, layers)
        asked = plan(engine, kind)
        with Waits() as waits:
            engine.execute([asked, asked], wanted, keep_cache=True)
        counts.append(waits.count)
    assert counts[0] == counts[1]
    assert sum(counts[0].values()) > 0  # it counts


def test_a_decoded_token_waits_no_more_often_in_a_deeper_model():
    counts = []
    for layers in (4, 8):
        engine = deep("llama", layers)
        run = engine.execute([dense_plan(layout(1), layers)], room=4)[0]
        with Waits() as waits:
            engine.extend(run, [7], wanted=True)
        counts.append(waits.count)
    assert counts[0] == counts[1]
