"""KVCOMM and its relatives against a reference made of plain loops and the plain model (arXiv 2510.12872).

Nothing here calls the code under test for an expected value: the reference prefills with transformers alone, turns
keys with complex numbers, and keeps its own pool.
"""

from __future__ import annotations

import cmath
import copy
import json
import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import plain_model, short_prompt, tokenizer
from transformers import DynamicCache

from kvattn import methods
from kvattn.engine.blocks import Blocks
from kvattn.engine.engine import Engine
from kvattn.errors import KvattnError
from kvattn.judge import readout as readouts
from kvattn.judge.judge import Judge
from kvattn.methods.anchors import Anchor, AnchorPool, channel_weights, is_new, token_weights, top_mass
from kvattn.methods.kvcomm import PALKV, KVComm, SlotAligned
from kvattn.questions.prompt import JudgePrompt

# -- the reference -------------------------------------------------------------------------------------------------


@dataclass
class Old:
    """An anchor of the reference: everything [layers, heads, tokens, dim], keys of the base at positions 0, 1, ..."""

    question: str
    base: tuple[np.ndarray, np.ndarray]
    change: tuple[np.ndarray, np.ndarray]
    after: tuple[np.ndarray, np.ndarray]
    start: int
    after_start: int
    uses: int = 0

    @property
    def length(self) -> int:
        return self.base[0].shape[2]


@dataclass
class Reference:
    """The published method on one question after another."""

    model: Any
    judge: Judge
    gamma: float = 0.3
    size: int = 5
    window: int = 5
    temperature: float = 1.0
    top_p: float = 0.9
    rotated: bool = False
    pooled: str = "agent"  # or "all" (PAL-KV), or "slot"
    pools: dict[str, list[Old]] = field(default_factory=dict)
    skipped: int = 0  # anchors too short for the text after
    cropped: int = 0  # anchors longer than it

    def kv(self, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            cache = self.model(torch.tensor([ids]), use_cache=True).past_key_values
        keys = torch.stack([x.keys[0] for x in cache.layers])
        values = torch.stack([x.values[0] for x in cache.layers])
        return keys.double().numpy(), values.double().numpy()

    def turn(self, keys: np.ndarray, steps: list[int]) -> np.ndarray:
        rates = self.model.model.rotary_emb.inv_freq.double().numpy()
        out, half = keys.copy(), len(rates)
        for t, step in enumerate(steps):
            for j, rate in enumerate(rates):
                z = (keys[:, :, t, j] + 1j * keys[:, :, t, half + j]) * cmath.exp(1j * step * float(rate))
                out[:, :, t, j], out[:, :, t, half + j] = z.real, z.imag
        return out

    def judged(self, prompt: JudgePrompt) -> dict:
        """Mode, scores and, under reuse, the stitched cache of one question in its own order; the pool learns."""
        layout = self.judge.compile(prompt)
        ids = layout.token_ids.tolist()
        template = self.template(prompt, layout)
        texts = []
        (context,) = self.judge.engine.compiler.execution(prompt, "parallel")
        trunk = context.token_ids[: context.find("candidate", 0).start].tolist()
        for s in layout.segments:
            if s.role == "question":
                at = context.find("question")
                k, v = (x[:, :, at.start : at.stop] for x in self.kv(trunk))
                owner, first = "question", at.start
            elif s.role == "candidate" and s.slot is not None:
                c = prompt.candidates[prompt.order[s.slot]]
                own = ids[s.start : s.stop]
                k, v = (x[:, :, len(trunk) :] for x in self.kv(trunk + own))
                owner, first = (f"slot:{s.slot + 1}" if self.pooled == "slot" else f"agent:{c.agent}"), len(trunk)
            else:
                continue
            texts.append((owner, s, self.turn(k, [-first] * s.length), v))
        verdicts = [self.gate(owner, v, prompt.id) for owner, _, _, v in texts]
        fall_back = any(new for new, _ in verdicts)
        real = self.kv(ids)
        out = {"fallback": fall_back, "layout": layout}
        if fall_back:
            with torch.inference_mode():
                logits = self.model(torch.tensor([ids])).logits[0, -1]
        else:
            out["keys"], out["values"] = self.stitch(layout, texts, template, prompt.id)
            logits = self.last_token(ids, out["keys"], out["values"])
        out["scores"] = logits.double().log_softmax(-1)[list(layout.answer_ids)].numpy()
        for (owner, s, k, v), (new, used) in zip(texts, verdicts, strict=True):
            if new:
                self.insert(owner, self.anchor(prompt.id, s, k, v, real, layout, template))
            else:
                for old in used:
                    old.uses += 1
        return out

    def template(self, prompt: JudgePrompt, layout) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Template text, placed in the judge's prompt: one forward with literal names, moved by the difference."""
        ids: list[int] = []
        spans = []
        text = self.judge.engine.compiler.text
        for s in layout.segments:
            part = layout.token_ids[s.start : s.stop].tolist()
            part = text("{question}") if s.role == "question" else part
            part = text(f"{{agent_{s.name[-1]}}}") if s.role == "candidate" else part
            spans.append((s, len(ids), len(ids) + len(part)))
            ids += part
        keys, values = self.kv(ids)
        out = {}
        for s, a, b in spans:
            if s.role not in ("question", "candidate"):
                out[s.name] = (self.turn(keys[:, :, a:b], [s.start - a] * (b - a)), values[:, :, a:b])
        return out

    def others(self, owner: str, question: str) -> list[Old]:
        return [a for a in self.pools.get(owner, []) if a.question != question]

    def gate(self, owner: str, values: np.ndarray, question: str) -> tuple[bool, list[Old]]:
        """(becomes an anchor, the anchors in the top-p mass)."""
        known, length = self.others(owner, question), values.shape[2]
        usable = [a for a in known if a.length >= length]
        if len(known) <= 1 or len(usable) <= 1:
            return True, []
        far = [
            math.sqrt(sum(float(x) ** 2 for x in (values - a.base[1][:, :, :length]).reshape(-1).tolist()))
            for a in usable
        ]
        s = soft(far)
        entropy = -sum(p * math.log2(p) for p in s if p > 0)
        if entropy > self.gamma * math.log2(len(usable)):
            return True, []
        used, mass = [], 0.0
        for i in sorted(range(len(s)), key=lambda i: -s[i]):
            used.append(usable[i])
            mass += s[i]
            if mass >= self.top_p:
                break
        return False, used

    def stitch(self, layout, texts, template, question: str) -> tuple[np.ndarray, np.ndarray]:
        n = len(layout) - 1  # the last token is computed
        whole = [np.full((*texts[0][2].shape[:2], n, texts[0][2].shape[3]), np.nan) for _ in range(2)]
        for s in layout.segments:
            if s.name in template:
                for x, part in zip(whole, template[s.name], strict=True):
                    x[:, :, s.start : min(s.stop, n)] = part[:, :, : n - s.start]
        for owner, s, k, v in texts:
            if self.pooled == "all" and owner != "question":
                known = [a for name in self.pools if name != "question" for a in self.others(name, question)]
            else:
                known = self.others(owner, question)
            known = [a for a in known if a.length >= s.length]
            placed = (self.turn(k, [s.start] * s.length), v)
            after = span_after(layout, s)
            for which, (x, base) in enumerate(zip(whole, (k, v), strict=True)):
                x[:, :, s.start : s.stop] = placed[which]
                self.correct_text(x, base, which, known, s)
                self.correct_after(x, base, which, known, s.length, after, n)
        return whole[0], whole[1]

    def framed(self, change: np.ndarray, which: int, steps: int) -> np.ndarray:
        if self.rotated and which == 0:
            return self.turn(change, [steps] * change.shape[2])
        return change

    def correct_text(self, x, base, which, known, s) -> None:
        layers, heads, length, dim = base.shape
        moved = [self.framed(a.change[which][:, :, :length], which, s.start - a.start) for a in known]
        for t in range(length if known else 0):
            far = []
            for a in known:
                total = 0.0
                for layer in range(layers):
                    for head in range(heads):
                        for c in range(dim):
                            total += abs(float(base[layer, head, t, c] - a.base[which][layer, head, t, c]))
                far.append(total / (layers * heads * dim) / self.temperature)
            for w, step in zip(soft(far), moved, strict=True):
                x[1:, :, s.start + t] += w * step[1:, :, t]  # layer 0 stays as it is

    def correct_after(self, x, base, which, known, length, after, n) -> None:
        start, stop = after
        layers, heads, _, dim = base.shape
        moved = [self.framed(a.after[which], which, start - a.after_start) for a in known]
        self.skipped += sum(x.shape[2] < stop - start for x in moved)
        self.cropped += sum(x.shape[2] > stop - start for x in moved)
        for layer in range(1, layers if known and stop > start else 1):
            for head in range(heads):
                for c in range(dim):
                    far = []
                    for a in known:
                        d = base[layer, head, :, c] - a.base[which][layer, head, a.length - length :, c]
                        far.append(math.sqrt(sum(float(y) ** 2 for y in d)))
                    for w, step in zip(soft(far), moved, strict=True):
                        if step.shape[2] < stop - start:
                            continue  # too short a one is skipped, its weight lost
                        for t in range(start, min(stop, n)):
                            x[layer, head, t, c] += w * step[layer, head, t - start, c]

    def last_token(self, ids: list[int], keys: np.ndarray, values: np.ndarray) -> torch.Tensor:
        cache = DynamicCache()
        for layer in range(len(keys)):
            cache.update(
                torch.from_numpy(keys[layer])[None].float(), torch.from_numpy(values[layer])[None].float(), layer
            )
        with torch.inference_mode():
            return self.model(
                torch.tensor([ids[-1:]]), past_key_values=cache, position_ids=torch.tensor([[len(ids) - 1]])
            ).logits[0, -1]

    def anchor(self, question, s, k, v, real, layout, template) -> Old:
        start, stop = span_after(layout, s)
        follow = [t.name for t in layout.segments if t.start >= start and t.stop <= stop and t.name in template]
        base = [np.concatenate([template[name][i] for name in follow], 2) for i in range(2)]
        placed = (self.turn(k, [s.start] * s.length), v)
        return Old(
            question,
            (k, v),
            tuple(real[i][:, :, s.start : s.stop] - placed[i] for i in range(2)),
            tuple(real[i][:, :, start:stop] - base[i] for i in range(2)),
            s.start,
            start,
        )

    def insert(self, owner: str, new: Old) -> None:
        pool = self.pools.setdefault(owner, [])
        if any(a.question == new.question for a in pool):
            return
        if len(pool) + 1 > self.size:
            least = 0
            for i in range(min(self.window, len(pool))):
                if pool[i].uses < pool[least].uses:
                    least = i
            del pool[least]
        pool.append(new)


def soft(distances: list[float]) -> list[float]:
    """Softmax of minus each distance."""
    least = min(distances)
    e = [math.exp(least - d) for d in distances]
    return [x / sum(e) for x in e]


def span_after(layout, s) -> tuple[int, int]:
    """The template text between a placeholder and the next, or the end of the prompt."""
    stop = len(layout)
    for t in layout.segments:
        if t.start >= s.stop and t.role in ("question", "candidate", "branch") and t != s:
            stop = min(stop, t.start)
    return s.stop, stop


# -- streams of questions ------------------------------------------------------------------------------------------


def question(number: int, texts: tuple[str, ...], order: tuple[int, ...] = ()) -> JudgePrompt:
    return short_prompt(f"What is {number}+2?", texts, order, f"q{number}")


STREAM = [
    question(1, ("it is 3.", "three!!", "no idea at all")),
    question(2, ("I say 4 ", "four, 4", "no, it is 5 or 6")),
    question(3, ("so, 5.", "5, five", "not so sure: 7")),  # shorter texts: all anchors can serve
    question(4, ("six..", "six: 6", "six, six, six"), (2, 0, 1)),
    question(5, ("7 (very long: no anchor is)", "seven", "seven, I think")),  # too long for the first agent's pool
    question(6, ("8, ok.", "8 / 8", "eight, so said"), (1, 2, 0)),
    question(7, ("9", "nine", "9, nine, nine"), (0, 2, 1)),
    question(8, ("10", "ten", "ten"), (1, 0, 2)),
    question(9, ("11", "11!", "ten?")),
]
VALUES = 10.0
KINDS = {"agent": KVComm, "all": PALKV, "slot": SlotAligned}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """Values large enough that the gate is sure of some texts and not of others."""
    made = plain_model("llama")
    with torch.no_grad():
        for layer in made.model.layers:
            layer.self_attn.v_proj.weight.mul_(VALUES)
    return made


@pytest.fixture(scope="module")
def judge(model) -> Judge:
    made = Judge(Engine(copy.deepcopy(model), tokenizer()), readouts.get("label"))
    made.engine.compiler.max_tokens = None
    return made


def plan_of(judge: Judge, method: KVComm, prompt: JudgePrompt):
    layout = judge.compile(prompt)
    return method.plan(layout, Blocks(judge.engine, prompt), judge.engine)


def kept_kv(judge: Judge, plan) -> tuple[np.ndarray, np.ndarray]:
    """The plan's kept cache, in place, [layers, heads, tokens - 1, dim]."""
    shape = (*plan.kept[0].block.keys.shape[:2], len(plan.layout) - 1, plan.kept[0].block.keys.shape[3])
    keys, values = np.full(shape, np.nan), np.full(shape, np.nan)
    for k in plan.kept:
        span = slice(k.start, k.start + len(k.block))
        block = k.block.moved(plan.positions[span], judge.engine.rotary)
        keys[:, :, span], values[:, :, span] = block.keys.numpy(), block.values.numpy()
    return keys, values


@pytest.mark.parametrize(
    ("pooled", "parameters"),
    [
        ("agent", {}),
        ("agent", {"frame": "rotated", "temperature": 0.25, "gamma": 0.9}),
        ("agent", {"size": 2, "window": 2, "gamma": 0.9, "top_p": 0.5}),
        ("all", {"gamma": 0.9}),
        ("all", {"frame": "rotated", "size": 3, "window": 2, "gamma": 0.9}),
        ("slot", {"gamma": 0.9}),
    ],
    ids=str,
)
def test_a_stream_of_questions_equals_the_reference(judge, model, pooled, parameters):
    method = KINDS[pooled](**parameters)
    plain = {k: v for k, v in parameters.items() if k != "frame"}
    want = Reference(model, judge, pooled=pooled, rotated=parameters.get("frame") == "rotated", **plain)
    modes = []
    for prompt in STREAM:
        planned = plan_of(judge, method, prompt)  # planning alone must leave the pool as it is
        expected = want.judged(prompt)
        got = judge.judge(prompt, [method], capture=False)[0]
        modes.append(expected["fallback"])
        assert any("fallback" in n for n in got.notes) == expected["fallback"], prompt.id
        assert np.abs(got.scores - expected["scores"]).max() < 2e-3
        if not expected["fallback"]:
            for mine, theirs in zip(kept_kv(judge, planned), (expected["keys"], expected["values"]), strict=True):
                assert np.isfinite(theirs).all()
                assert np.abs(mine - theirs).max() < 1e-4 * theirs.std()
        assert_same_pools(method.state, want.pools)
    assert any(modes)
    assert not all(modes)
    if pooled != "slot":  # a slot is always followed by the same text
        assert want.cropped > 0
        assert want.skipped > 0


def assert_same_pools(state: AnchorPool, pools: dict[str, list[Old]]) -> None:
    assert {k: [a.question for a in v] for k, v in state.anchors.items()} == {
        k: [a.question for a in v] for k, v in pools.items()
    }
    for owner, olds in pools.items():
        for mine, old in zip(state.anchors[owner], olds, strict=True):
            assert (mine.uses, mine.start, mine.after_start) == (old.uses, old.start, old.after_start)
            for name, value in zip(("keys", "values"), old.base, strict=True):
                assert np.abs(getattr(mine, name).numpy() - value).max() < 1e-4
            for name, value in zip(("key_change", "value_change"), old.change, strict=True):
                assert np.abs(getattr(mine, name).numpy() - value).max() < 1e-3
            for name, value in zip(("after_keys", "after_values"), old.after, strict=True):
                assert np.abs(getattr(mine, name).numpy() - value).max() < 1e-3


# -- the formulas, one by one ----------------------------------------------------------------------------------------


def tensor(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def anchor(seed: int, length: int, question: str = "", uses: int = 0, owner: str = "agent:a") -> Anchor:
    parts = [tensor(seed + 100 * i, 3, 2, length, 4) for i in range(4)]
    after = [tensor(seed + 100 * i, 3, 2, 5, 4) for i in (5, 6)]
    return Anchor(question or f"q{seed}", owner, 0, *parts, *after, start=3, after_start=3 + length, uses=uses)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_token_weights_are_a_softmax_of_mean_absolute_differences(temperature):
    base, others = tensor(1, 3, 2, 5, 4), [tensor(2, 3, 2, 5, 4), tensor(3, 3, 2, 9, 4), tensor(4, 3, 2, 6, 4)]
    got = token_weights(base, others, temperature)
    assert got.shape == (3, 5)
    for t in range(5):
        far = []
        for other in others:
            total = 0.0
            for layer in range(3):
                for head in range(2):
                    for c in range(4):
                        total += abs(float(base[layer, head, t, c]) - float(other[layer, head, t, c]))
            far.append(total / 24 / temperature)
        assert got[:, t].tolist() == pytest.approx(soft(far), abs=1e-5)


def test_channel_weights_are_a_softmax_of_distances_over_the_last_tokens():
    base, others = tensor(1, 3, 2, 5, 4), [tensor(2, 3, 2, 5, 4), tensor(3, 3, 2, 9, 4)]
    got = channel_weights(base, others)
    assert got.shape == (2, 3, 2, 4)
    for layer in range(3):
        for head in range(2):
            for c in range(4):
                far = []
                for other in others:
                    last = other.shape[2] - 5
                    d = [float(base[layer, head, t, c]) - float(other[layer, head, last + t, c]) for t in range(5)]
                    far.append(math.sqrt(sum(x * x for x in d)))
                assert got[:, layer, head, c].tolist() == pytest.approx(soft(far), abs=1e-5)


def test_the_gate_asks_for_two_usable_anchors_and_then_for_low_entropy():
    values = tensor(1, 3, 2, 4, 4)
    near = replace(anchor(2, 6), values=torch.cat([values + 0.01, tensor(9, 3, 2, 2, 4)], 2))
    far, short = anchor(3, 4), anchor(4, 3)
    assert is_new(values, [], 0.3)[0]
    assert is_new(values, [near], 0.3)[0]  # at most one anchor
    assert is_new(values, [near, short], 0.3)[0]  # at most one long enough
    new, s, usable = is_new(values, [near, short, far], 0.3)
    assert not new
    assert usable == [near, far]
    distances = []
    for a in usable:
        d = (values - a.values[:, :, :4]).reshape(-1).tolist()
        distances.append(math.sqrt(sum(x * x for x in d)))
    assert s.tolist() == pytest.approx(soft(distances), abs=1e-5)
    twin = replace(near, question="twin")
    assert is_new(values, [near, twin], 0.99)[0]  # as near to one as to the other: entropy is at its maximum
    assert not is_new(values, [near, twin], 1.01)[0]


@pytest.mark.parametrize("gamma", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_gamma_is_a_share_of_the_largest_entropy(gamma):
    values = torch.zeros(1, 1, 1, 1)
    for gap in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0):
        olds = []
        for i, d in enumerate((1.0, 1.0 + gap, 1.0 + gap)):
            olds.append(replace(anchor(i, 1), keys=torch.zeros(1, 1, 1, 1), values=torch.full((1, 1, 1, 1), d)))
        s = soft([1.0, 1.0 + gap, 1.0 + gap])
        entropy = -sum(p * math.log2(p) for p in s)
        assert is_new(values, olds, gamma)[0] == (entropy > gamma * math.log2(3)), gap


def test_top_mass_takes_the_fewest_most_similar_anchors():
    s = torch.tensor([0.05, 0.5, 0.15, 0.3])
    assert top_mass(s, 0.4) == [1]
    assert top_mass(torch.tensor([0.5, 0.25, 0.25]), 0.5) == [0]
    assert top_mass(s, 0.7) == [1, 3]
    assert top_mass(s, 0.9) == [1, 3, 2]
    assert sorted(top_mass(s, 1.0)) == [0, 1, 2, 3]


def test_the_least_used_of_the_oldest_goes():
    pool = AnchorPool(size=7, window=5)
    for i, uses in enumerate((4, 2, 2, 9, 3, 0, 0)):
        pool.add(anchor(i, 4, uses=uses))
    pool.add(anchor(7, 4))
    assert [a.question for a in pool.anchors["agent:a"]] == ["q0", "q2", "q3", "q4", "q5", "q6", "q7"]  # not q5, q6
    pool.add(anchor(8, 4))
    assert [a.question for a in pool.anchors["agent:a"]] == ["q0", "q2", "q3", "q4", "q6", "q7", "q8"]
    pool.add(anchor(9, 4))
    assert [a.question for a in pool.anchors["agent:a"]] == ["q0", "q2", "q3", "q4", "q7", "q8", "q9"]
    pool.add(anchor(9, 4))
    assert len(pool.anchors["agent:a"]) == 7
    pool.add(anchor(10, 4, owner="agent:b"))
    assert len(pool.anchors["agent:a"]) == 7  # each owner has its own room


@pytest.mark.parametrize("spec", ["size=0", "window=0", "temperature=0", "top_p=0", "top_p=1.5", "gamma=-1"])
def test_parameters_that_cannot_be_meant_are_refused(spec):
    with pytest.raises(KvattnError, match=spec.split("=")[0]):
        methods.get(f"kvcomm:{spec}")


# -- what a plan keeps and learns ------------------------------------------------------------------------------------


def warmed(judge: Judge, cls: type[KVComm] = KVComm, count: int = 5, **parameters) -> KVComm:
    """A method that learned all of the stream's first questions, and whose gate lets everything pass."""
    learner = cls(gamma=0.0, size=20, **parameters)
    for prompt in STREAM[:count]:
        judge.judge(prompt, [learner], capture=False)
    return cls(gamma=1.01, size=20, **parameters, state=learner.state)


SERVED = question(0, ("it is", "it's 2.", "no idea: 2"))


def test_layer_0_is_untouched_and_reuse_computes_the_last_token_only(judge):
    method = warmed(judge)
    plan = plan_of(judge, method, SERVED)
    assert plan.notes == ("kvcomm: reused",)
    assert plan.depth.tolist() == [0] * (len(plan.layout) - 1) + [4]
    kept = methods.get("naive")
    stale = kept.plan(plan.layout, Blocks(judge.engine, SERVED), judge.engine)
    corrected, plain = kept_kv(judge, plan), kept_kv(judge, stale)
    untouched = plan.layout.find("prefix")
    for mine, theirs in zip(corrected, plain, strict=True):
        assert np.abs(mine[0] - theirs[0]).max() < 1e-5
        assert np.abs(mine[1:, :, : untouched.stop] - theirs[1:, :, : untouched.stop]).max() < 1e-5
        for s in plan.layout.segments[1:]:
            span = slice(s.start, min(s.stop, mine.shape[2]))
            assert (np.abs(mine[1:, :, span] - theirs[1:, :, span]).max((1, 2, 3)) > 1e-3).all(), s.name


def test_layer_0_is_untouched_whatever_the_anchors_say(judge):
    method = warmed(judge)
    before = kept_kv(judge, plan_of(judge, method, SERVED))
    for a in (a for olds in method.state.anchors.values() for a in olds):
        for change in (a.key_change, a.value_change, a.after_keys, a.after_values):
            change += 1.0
    after = kept_kv(judge, plan_of(judge, method, SERVED))
    for x, y in zip(before, after, strict=True):
        assert (x[0] == y[0]).all()
        assert np.abs(x[1:] - y[1:]).max() > 0.5


def test_moved_and_corrected_keys_are_rounded_once(model):
    """In bfloat16 every kept key is the one-step result in float32, at layer 0 (never corrected) and above."""
    low = Judge(Engine(copy.deepcopy(model).bfloat16(), tokenizer()), readouts.get("label"))
    low.engine.compiler.max_tokens = None
    method = warmed(low)
    offset = torch.tensor(0.3).bfloat16()
    for a in (a for olds in method.state.anchors.values() for a in olds):
        a.key_change = torch.full_like(a.key_change, float(offset))
        a.after_keys = torch.full_like(a.after_keys, float(offset))
    layout, blocks = low.compile(SERVED), Blocks(low.engine, SERVED)
    plan = method.plan(layout, blocks, low.engine)
    sources = {s.start: blocks.execution(c) for s, c in layout.shown()} | {
        layout.find("question").start: blocks.question()
    }
    sources |= {s.start: blocks.template(layout)[s.name] for s in layout.each("header")}
    for kept in plan.kept:
        if kept.start not in sources:
            continue
        own = sources[kept.start]
        moved = low.engine.rotary.turn(own.keys.float(), own.positions, kept.block.positions)
        assert torch.equal(kept.block.keys[0], moved[0].bfloat16())
        same = kept.block.keys[1:] == (moved[1:] + offset.float()).bfloat16()
        assert same.float().mean() > 0.98  # the anchors' weights sum to 1 but for float32's rounding


def test_gate_and_texts_are_worked_out_once(judge, monkeypatch):
    method, gates = warmed(judge), []
    online = replace(method, state=copy.deepcopy(method.state))
    monkeypatch.setattr("kvattn.methods.kvcomm.is_new", lambda *args: gates.append(args) or is_new(*args))
    blocks, layouts = Blocks(judge.engine, SERVED), [judge.compile(SERVED.ordered(o)) for o in ((0, 1, 2), (2, 0, 1))]
    texts = len(SERVED.candidates) + 1
    for layout in layouts:
        run = judge.engine.execute([online.plan(layout, blocks, judge.engine)], keep_cache=True)[0]
        online.observe(layout, blocks, run)
    assert len(gates) == texts * len(layouts)


def test_without_a_usable_anchor_nothing_is_corrected(judge):
    class Alone(KVComm):
        def lookup(self, owner, question):
            return []

    method = warmed(judge)
    plan = plan_of(judge, Alone(gamma=1.01, size=20, state=method.state), SERVED)
    assert plan.kept
    kept = methods.get("naive")
    stale = kept.plan(plan.layout, Blocks(judge.engine, SERVED), judge.engine)
    for mine, theirs in zip(kept_kv(judge, plan), kept_kv(judge, stale), strict=True):
        assert np.abs(mine - theirs).max() < 1e-5


def test_the_frames_differ_by_the_turn_from_anchor_to_target_in_keys_alone(judge):
    official = warmed(judge)
    rotated = KVComm(gamma=1.01, size=20, frame="rotated", state=official.state)
    one, two = (kept_kv(judge, plan_of(judge, m, SERVED)) for m in (official, rotated))
    assert np.abs(one[0] - two[0]).max() > 1e-3
    assert (one[1] == two[1]).all()


def test_a_fallback_is_dense(judge):
    method = KVComm()
    for prompt in STREAM[:2]:
        dense, fell = judge.judge(prompt, ["dense", method])
        assert fell.notes == ("kvcomm: fallback",)
        assert np.abs(fell.scores - dense.scores).max() < 1e-4
        assert fell.choice == dense.choice
        assert fell.cost.token_layers == dense.cost.token_layers


def test_the_question_being_judged_never_serves_itself(judge):
    method = warmed(judge, count=4)
    asked = STREAM[1]
    assert any(a.question == asked.id for v in method.state.anchors.values() for a in v)
    without = KVComm(gamma=1.01, size=20, state=copy.deepcopy(method.state))
    for owner, olds in without.state.anchors.items():
        without.state.anchors[owner] = [a for a in olds if a.question != asked.id]
    shorter = replace(asked, candidates=tuple(replace(c, text=c.text[:3]) for c in asked.candidates))
    for cls in (KVComm, PALKV):
        with_own, others = (plan_of(judge, replace_class(cls, m), shorter) for m in (method, without))
        assert with_own.kept
        for mine, theirs in zip(kept_kv(judge, with_own), kept_kv(judge, others), strict=True):
            assert (mine == theirs).all()
    alone = KVComm()
    for _ in range(4):  # however often one question is judged, its own anchors never let it be reused
        assert judge.judge(asked, [alone], capture=False)[0].notes == ("kvcomm: fallback",)
    assert all(len(v) == 1 for v in alone.state.anchors.values())


def replace_class(cls: type[KVComm], method: KVComm) -> KVComm:
    return cls(**method.parameters, state=method.state)


def test_several_orders_of_one_question_are_planned_on_the_same_pool(judge):
    method = warmed(judge)
    orders = [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
    together = judge.judge(SERVED, [replace_class(KVComm, copy_of(method))], orders, capture=False)
    for order, got in zip(orders, together, strict=True):
        alone = judge.judge(SERVED.ordered(order), [replace_class(KVComm, copy_of(method))], capture=False)[0]
        assert np.abs(alone.scores - got.scores).max() < 1e-4
        assert alone.order == got.order


def copy_of(method: KVComm) -> KVComm:
    return type(method)(**method.parameters, state=copy.deepcopy(method.state))


def test_a_frozen_pool_never_changes(judge):
    method = KVComm(gamma=0.9, pool="frozen")
    assert method.needs_warming
    with pytest.raises(KvattnError, match="warm"):
        plan_of(judge, method, SERVED)
    judge.warm(method, STREAM[:5])
    assert not method.needs_warming
    before = copy_of(method).state
    for prompt in (*STREAM[5:], SERVED):
        judge.judge(prompt, [method], capture=False)
    assert [(k, [(a.question, a.uses) for a in v]) for k, v in before.anchors.items()] == [
        (k, [(a.question, a.uses) for a in v]) for k, v in method.state.anchors.items()
    ]
    forward = [judge.judge(p, [method], capture=False)[0].scores for p in STREAM[5:]]
    backward = [judge.judge(p, [method], capture=False)[0].scores for p in reversed(STREAM[5:])]
    for a, b in zip(forward, reversed(backward), strict=True):
        assert (a == b).all()


def test_pal_kv_looks_everywhere_but_asks_each_agents_own_gate(judge):
    """An agent that was never seen has no anchors of its own: the whole prompt falls back, whatever others know."""
    stranger = replace(SERVED, candidates=(*SERVED.candidates[:2], replace(SERVED.candidates[2], agent="new")))
    for cls in (KVComm, PALKV):
        method = warmed(judge, cls)
        assert plan_of(judge, method, SERVED).kept
        assert not plan_of(judge, method, stranger).kept
    method = warmed(judge, PALKV)
    mine = method.lookup("agent:a", SERVED.id)
    assert {a.owner for a in mine} == {"agent:a", "agent:b", "agent:c"}
    assert {a.owner for a in method.lookup("question", SERVED.id)} == {"question"}
    assert {a.owner for a in warmed(judge).lookup("agent:a", SERVED.id)} == {"agent:a"}
    own, union = (kept_kv(judge, plan_of(judge, replace_class(c, method), SERVED)) for c in (KVComm, PALKV))
    question_span = judge.compile(SERVED).find("question")
    for a, b in zip(own, union, strict=True):
        assert (a[:, :, : question_span.stop] == b[:, :, : question_span.stop]).all()
        assert np.abs(a - b).max() > 1e-3


def test_slot_aligned_pools_by_display_position(judge):
    method = SlotAligned()
    judge.judge(STREAM[3], [method], capture=False)  # shown in the order 2, 0, 1
    layout = judge.compile(STREAM[3])
    pools = method.state.anchors
    assert list(pools) == ["question", "slot:1", "slot:2", "slot:3"]
    for s in layout.each("candidate"):
        (stored,) = pools[f"slot:{s.slot + 1}"]
        assert (stored.length, stored.start, stored.slot) == (s.length, s.start, s.slot)


def test_planning_leaves_the_pool_alone(judge):
    method = warmed(judge)
    before = [(k, [(a.question, a.uses) for a in v]) for k, v in method.state.anchors.items()]
    plan_of(judge, method, SERVED)
    assert before == [(k, [(a.question, a.uses) for a in v]) for k, v in method.state.anchors.items()]


# -- pools on disk -----------------------------------------------------------------------------------------------------


def test_pools_round_trip_and_judge_the_same(judge, tmp_path):
    method = warmed(judge)
    path = method.state.save(tmp_path)
    again = KVComm(gamma=1.01, size=20, state=AnchorPool.load(tmp_path))
    assert path.name == "pool.json"
    assert list(again.state.anchors) == list(method.state.anchors)
    for owner, olds in method.state.anchors.items():
        for a, b in zip(olds, again.state.anchors[owner], strict=True):
            assert (a.question, a.owner, a.slot, a.start, a.after_start, a.uses) == (
                b.question,
                b.owner,
                b.slot,
                b.start,
                b.after_start,
                b.uses,
            )
            for name in ("keys", "values", "key_change", "value_change", "after_keys", "after_values"):
                assert torch.equal(getattr(a, name), getattr(b, name))
    assert not list(tmp_path.glob("*.part"))
    scores = [judge.judge(SERVED, [m], capture=False)[0].scores for m in (method, again)]
    assert (scores[0] == scores[1]).all()


def test_an_empty_text_can_be_an_anchor_on_disk(judge, tmp_path):
    method = KVComm()
    judge.judge(question(40, ("", "two", "three")), [method], capture=False)
    method.state.save(tmp_path)
    assert AnchorPool.load(tmp_path).anchors["agent:a"][0].length == 0


def test_another_models_anchors_of_the_same_question_are_not_mistaken_for_these(tmp_path):
    """The same question, owner and place with other KV (another model, another text) is another file."""
    first, second = AnchorPool(), AnchorPool()
    first.add(anchor(1, 4, question="same"))
    second.add(anchor(2, 4, question="same"))
    first.save(tmp_path, "first")
    second.save(tmp_path, "second")
    for pool, name in ((first, "first"), (second, "second")):
        stored = AnchorPool.load(tmp_path, name).anchors["agent:a"][0]
        assert torch.equal(stored.keys, pool.anchors["agent:a"][0].keys)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "missing", "other"])
def test_damaged_files_are_refused_by_name(tmp_path, damage):
    pool = AnchorPool()
    for seed in (1, 2):
        pool.add(anchor(seed, 4))
    pool.save(tmp_path)
    victim, other = sorted(tmp_path.glob("anchor-*.safetensors"))
    data = bytearray(victim.read_bytes())
    if damage == "flip":
        data[-3] ^= 1
    elif damage == "truncate":
        data = data[: len(data) // 2]
    elif damage == "empty":
        data = bytearray()
    elif damage == "other":
        data = bytearray(other.read_bytes())
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(data)
    with pytest.raises(KvattnError, match=victim.name) as error:
        AnchorPool.load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "index",
    ["", "{", "[]", '{"size": 5}', json.dumps({"size": 5, "window": 5, "frozen": False, "anchors": [{"owner": "a"}]})],
)
def test_a_damaged_index_is_refused_by_name(tmp_path, index):
    (tmp_path / "pool.json").write_text(index)
    with pytest.raises(KvattnError, match=r"pool\.json") as error:
        AnchorPool.load(tmp_path)
    assert "\n" not in str(error.value)
