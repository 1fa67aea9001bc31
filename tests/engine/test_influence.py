"""The influence graph against two independent references: a breadth-first walk over (layer, token) nodes, and edits of
the text on real forward passes. What the graph calls unreachable never changes; for random weights the rest does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from tiny import SHORT, plain_model, short_prompt, tokenizer
from tiny import layout as tiny_layout
from torch.utils._python_dispatch import TorchDispatchMode

from kvattn import methods
from kvattn.engine import influence
from kvattn.engine.blocks import Blocks
from kvattn.engine.engine import Engine
from kvattn.engine.execution import Execution
from kvattn.engine.influence import explain
from kvattn.engine.layout import PromptLayout, join
from kvattn.engine.plan import Kept, KVBlock, KVPlan, Visibility
from kvattn.engine.readings import uniform_matrix
from kvattn.judge.judge import Judge
from kvattn.methods.kvcomm import KVComm
from kvattn.questions.prompt import JudgePrompt

LAYERS, HEADS = 4, 4
CHANGED = 1e-9  # double precision: what is not reached stays bitwise or nearly so


def double_engine(shape: str) -> Engine:
    return Engine(copy.deepcopy(plain_model(shape, torch.float64)), tokenizer())


@pytest.fixture(scope="module", params=["gemma3", "mistral-window"])
def eng(request) -> Engine:
    return double_engine(request.param)


# -- a plan made of texts, so that a text can be edited and the plan made again ---------------------------------------

Parts = list[tuple[str, int | None, list[int]]]


def parts_of(layout: PromptLayout) -> Parts:
    return [(s.role, s.slot, layout.token_ids[s.start : s.stop].tolist()) for s in layout.segments]


def rule(kind: str, layout: PromptLayout, g: torch.Generator) -> Visibility:
    n = len(layout.segments)
    if kind == "full":
        return Visibility.full(layout)
    if kind == "isolated":
        return Visibility.isolated(layout)
    shape = {"segments": (n, n), "layers": (LAYERS, n, n), "heads": (LAYERS, HEADS, n, n)}[kind]
    share = {"segments": 0.5, "layers": 0.6, "heads": 0.85}[kind]  # how much is cut
    allowed = (torch.rand(shape, generator=g) > share) & Visibility.full(layout).allowed
    return Visibility(allowed | torch.eye(n, dtype=torch.bool))


def make_plan(
    engine: Engine,
    parts: Parts,
    seed: int,
    kind: str,
    keep_share: float,
    partial: bool,
    memo: dict,
    template_too: bool = True,
) -> KVPlan:
    """A random plan that depends on the texts through its blocks alone: everything else comes from the seed."""

    def encoded(some: Parts, ids: tuple[str, ...] = ()) -> Execution:
        key = str(some)
        if key not in memo:
            memo[key] = engine.encode(join(some, ids))
        return memo[key]

    g = torch.Generator().manual_seed(seed)
    slots = sum(role == "candidate" for role, _, _ in parts)
    layout = join(parts, tuple(f"c{i}" for i in range(slots)), answer_ids=(5, 6, 7)[:slots])
    visibility = rule(kind, layout, g)
    ids = {(role, slot): part for role, slot, part in parts}
    depth, kept = torch.full((len(layout),), LAYERS), []
    template = encoded([(r, s, [9] if r in ("question", "candidate") else p) for r, s, p in parts if r != "branch"])
    for segment, (role, slot, part) in zip(layout.segments, parts, strict=True):
        take, source = float(torch.rand((), generator=g)), int(torch.randint(0, 4, (), generator=g))
        seen = [c for c in range(slots) if c != slot and float(torch.rand((), generator=g)) < 0.4]
        drawn = torch.randint(0, LAYERS, (len(part),), generator=g)
        if role == "branch" or take > keep_share or not (template_too or role == "candidate"):
            continue
        question: Parts = [("prefix", None, [8, 7]), ("question", None, ids["question", None])]
        if role == "question":
            run = encoded(question)
            block = run.block(run.plan.layout.find("question"), source="execution")
        elif role != "candidate":
            at = template.plan.layout.segments[layout.segments.index(segment)]
            block = template.block(at, source="template")
        elif source == 0:
            run = encoded([("candidate", slot, [11] * len(part))])
            kept.append(Kept(run.span(0, len(part), source="foreign"), segment.start, foreign=True))
            block = None
        elif source == 1:
            before = [(r, s, p) for r, s, p in parts if s is None and r in ("prefix", "question", "separator")]
            own = [("header", slot, ids["header", slot]), (role, slot, part)]
            run = encoded([*before, *own])
            block = run.block(run.plan.layout.find("candidate", slot), frozenset({f"c{slot}"}), "isolated")
        else:
            others = [("candidate", c, ids["candidate", c]) for c in seen]
            run = encoded([*question, *others, (role, slot, part)])
            at = run.plan.layout.segments[-1]
            block = run.block(at, frozenset({f"c{slot}", *(f"c{c}" for c in seen)}), "progressive")
        if block is not None:
            kept.append(Kept(block, segment.start))
        depth[segment.start : segment.stop] = drawn if partial else 0
    depth[list(layout.decisions)] = LAYERS
    return KVPlan.of(layout, LAYERS, depth, tuple(kept), visibility)


def edited(parts: Parts, which: int, seed: int) -> Parts:
    """Every token of one segment replaced by another."""
    g = torch.Generator().manual_seed(seed)
    role, slot, ids = parts[which]
    new = [3 + (i - 3 + int(torch.randint(1, 100, (), generator=g))) % 105 for i in ids]
    assert all(a != b for a, b in zip(ids, new, strict=True))
    return [*parts[:which], (role, slot, new), *parts[which + 1 :]]


def outcomes(engine: Engine, plans: list[KVPlan]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Of every plan what every token holds, [tokens, features]: its KV at all layers and, where it is computed through
    all of them, its own next-token logits. And the logits of the decision."""
    through = [(plan.depth == LAYERS).nonzero()[:, 0].tolist() for plan in plans]
    asked = [replace(p, layout=replace(p.layout, decisions=tuple(t))) for p, t in zip(plans, through, strict=True)]
    for run, plan, computed in zip(engine.execute(asked, keep_cache=True), plans, through, strict=True):
        assert run.keys is not None
        assert run.values is not None
        assert run.logits is not None
        kv = torch.cat([run.keys, run.values], -1).permute(2, 0, 1, 3).flatten(1)
        logits = torch.zeros(len(kv), run.logits.shape[1])
        logits[computed] = run.logits
        yield torch.cat([kv, logits.double()], 1), logits[list(plan.layout.decisions)]


def check(engine: Engine, make: Callable[[Parts], KVPlan], parts: Parts, exact: bool) -> tuple[int, int]:
    """Edits every segment; returns how many (source, target) pairs were said reachable, and how many are not."""
    plan = make(parts)
    graph = explain(plan, engine.geometry.windows)
    edits = [a for a, segment in enumerate(plan.layout.segments) if segment.length]
    again = [make(edited(parts, a, seed=1)) for a in edits]
    assert all(torch.equal(p.depth, plan.depth) for p in again)
    (held, logits), *others = outcomes(engine, [plan, *again])
    count = [0, 0]
    for a, (other_held, other_logits) in zip(edits, others, strict=True):
        name = plan.layout.names[a]
        moved = ((held - other_held).abs() > CHANGED).any(-1)
        decided = bool(((logits - other_logits).abs() > 1e-6).any())
        assert decided <= bool(graph.decision[a]), f"{name} was said not to reach the decision"
        if exact:
            assert decided == bool(graph.decision[a]), f"{name} was said to reach the decision"
        for b, segment in enumerate(plan.layout.segments):
            said = bool(graph.reaches[a, b])
            count[not said] += 1
            changed = bool(moved[segment.start : segment.stop].any())
            assert changed <= said, f"{name} changed {segment.name}, which was said unreachable"
            if exact:
                assert changed == said, f"{name} was said to reach {segment.name} and did not"
    return count[0], count[1]


KINDS = ["full", "isolated", "segments", "layers", "heads"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("partial", [False, True], ids=["whole", "partial"])
def test_what_is_said_unreachable_never_changes(eng, kind, partial):
    for seed, share in ((0, 0.5), (1, 0.9)):
        memo: dict = {}
        parts = parts_of(tiny_layout(seed, slots=3, length=3, branches=seed == 1))
        reachable, unreachable = check(
            eng, lambda some, a=(seed, kind, share, partial, memo): make_plan(eng, some, *a), parts, exact=False
        )
        assert reachable
        assert unreachable


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.8], ids=["dense", "kept"])
def test_what_is_said_reachable_does_change_for_random_weights(eng, kind, share):
    """Where blocks say all they saw, the graph is exact, not only safe."""
    memo: dict = {}
    parts = parts_of(tiny_layout(7, slots=3, length=3))
    reachable, _ = check(
        eng, lambda some: make_plan(eng, some, 3, kind, share, share > 0, memo, False), parts, exact=True
    )
    assert reachable


# -- the same for the zoo: texts edited in the prompt, blocks and plan made again ------------------------------------

PROMPT = short_prompt("What is 2+2?", ("two", "it's 5", "four!"), (2, 0, 1), "asked")


def other(text: str) -> str:
    """Text of the same length, every letter changed."""
    return "".join(c if c == "{" else chr(33 + (ord(c) - 33 + 41) % 94) for c in text)


def with_texts(question: str | None = None, slot: int | None = None, template: dict | None = None) -> JudgePrompt:
    candidates = tuple(
        replace(c, text=other(c.text)) if slot is not None and i == PROMPT.order[slot] else c
        for i, c in enumerate(PROMPT.candidates)
    )
    return replace(
        PROMPT,
        question=question or PROMPT.question,
        candidates=candidates,
        template=replace(SHORT, **(template or {})),
    )


EDITS: dict[tuple[str, ...], JudgePrompt] = {
    ("question",): with_texts(question=other(PROMPT.question)),
    **{(f"candidate:{s + 1}",): with_texts(slot=s) for s in range(3)},
    ("prefix",): with_texts(template={"system": other(SHORT.system)}),
    ("separator",): with_texts(template={"candidates_heading": other(SHORT.candidates_heading)}),
    ("header:1", "header:2", "header:3"): with_texts(template={"header": "Bgent {label}:\n"}),
    ("separator:1", "separator:2", "separator:3"): with_texts(template={"separator": "\n!"}),
    ("suffix",): with_texts(template={"instruction": other(SHORT.instruction)}),
}


def zoo() -> list[tuple[str, str]]:
    extra = ["naive", "naive-linked:headers=isolated", "isolated:labelled=false"]
    specs = [
        *(m for m in methods.registry() if m != "slot-offset"),
        *extra,
        "first-k:budget=0.5,shrink=0",
        "last-k:budget=0.5,shrink=0.5",
    ]
    progressive = ["naive-linked", "low-rank-patch", "kvcomm", "first-k", "progressive"]
    return [(s, "parallel") for s in specs] + [(s, "progressive") for s in progressive]


@pytest.fixture(scope="module")
def judge(eng) -> Judge:
    made = Judge(eng)
    eng.compiler.max_tokens = None
    return made


def learned(judge: Judge, name: str) -> methods.Method:
    """A KVCOMM that has anchors for all of PROMPT's agents and lets everything pass."""
    learner = methods.get(f"{name}:gamma=0")
    for i in range(3):
        texts = ("one, two, three"[i:], "it is five, I say"[i:], "four! no, three!"[i:])
        judge.judge(short_prompt("What is 1+3? " + "!" * i, texts, id=f"old{i}"), [learner], capture=False)
    assert isinstance(learner, KVComm)
    return type(learner)(gamma=1.01, pool="frozen", state=learner.state)


@pytest.mark.parametrize(("spec", "regime"), zoo())
def test_the_zoos_plans_say_what_they_hold(judge, spec, regime):
    method = learned(judge, spec) if spec in ("kvcomm", "pal-kv", "slot-aligned") else methods.get(spec)
    donor = short_prompt("Who?", ("somebody else",), id="donor")

    def plan_of(prompt: JudgePrompt) -> KVPlan:
        layout = judge.compile(method.prompt(prompt))
        return method.plan(layout, Blocks(judge.engine, prompt, regime, donor), judge.engine)

    plan = plan_of(PROMPT)
    if isinstance(method, KVComm):
        assert plan.kept
    graph = explain(plan, judge.engine.geometry.windows)
    names = plan.layout.names
    # In a progressive regime the agents' own prompts hold the template's text too.
    edits = [s for s in EDITS if regime == "parallel" or s[0].startswith(("question", "candidate"))]
    again = [plan_of(EDITS[s]) for s in edits]
    for p in again:
        assert p.layout.lengths == plan.layout.lengths
        assert not torch.equal(p.layout.token_ids, plan.layout.token_ids) or method.name == "null-edit"
    (held, logits), *others = outcomes(judge.engine, [plan, *(replace(p, depth=plan.depth) for p in again)])
    for sources, (other_held, other_logits) in zip(edits, others, strict=True):
        moved = ((held - other_held).abs() > 1e-6).any(-1)
        shown = {f"candidate:{s + 1}": plan.layout.candidates.index(PROMPT.shown(s).id) for s in range(3)}
        rows = [names.index(f"candidate:{shown[x] + 1}" if x in shown else x) for x in sources]
        for b, segment in enumerate(plan.layout.segments):
            said = bool(graph.reaches[rows, b].any())
            changed = bool(moved[segment.start : segment.stop].any())
            assert changed <= said, f"{sources} changed {segment.name}, which was said unreachable"
        decided = bool(((logits - other_logits).abs() > 1e-5).any())
        assert decided <= bool(graph.decision[rows].any()), f"{sources} was said not to reach the decision"


def test_foreign_blocks_hold_nothing_of_the_prompt(judge):
    donor = short_prompt("Who?", ("somebody else",), id="donor")
    layout = judge.compile(PROMPT)
    plan = methods.get("foreign-kv").plan(layout, Blocks(judge.engine, PROMPT, donor=donor), judge.engine)
    graph = explain(plan)
    for name, reached in zip(graph.names, graph.decision.tolist(), strict=True):
        assert reached != name.startswith("candidate")
    assert "candidate:1   cannot reach the decision" in str(graph)


# -- the paths, by a walk over nodes ----------------------------------------------------------------------------------


def walked(plan: KVPlan, windows: tuple[int | None, ...]) -> tuple[set, set, dict[str, set[str]]]:
    """(source, target) pairs, sources of the decision, and by source the segments on its paths to the decision.

    Nodes are ("x", l, t), token t's residual stream entering layer l, and ("kv", l, t). Edges are followed one by one.
    Only for plans without kept blocks, or with blocks that saw nothing but the question and themselves."""
    layout, n = plan.layout, len(plan.layout)
    of = [layout.names[int(i)] for i in layout.segment_of]
    edges: dict[tuple, list[tuple]] = {}
    for layer in range(plan.layers):
        for q in range(n):
            if int(plan.depth[q]) > layer:
                edges.setdefault(("x", layer, q), []).append(("kv", layer, q))
                edges.setdefault(("x", layer, q), []).append(("x", layer + 1, q))
            for k in range(q + 1):
                rule = plan.visibility.at(layer)[:, int(layout.segment_of[q]), int(layout.segment_of[k])]
                near = int(plan.positions[q] - plan.positions[k]) < (windows[layer] or n)
                if bool(rule.any()) and near and int(plan.depth[q]) > layer:
                    edges.setdefault(("kv", layer, k), []).append(("x", layer + 1, q))
    back: dict[tuple, list[tuple]] = {}
    for a, targets in edges.items():
        for b in targets:
            back.setdefault(b, []).append(a)

    def spread(start: set, along: dict) -> set:
        seen, todo = set(start), list(start)
        while todo:
            for b in along.get(todo.pop(), []):
                if b not in seen:
                    seen.add(b)
                    todo.append(b)
        return seen

    feeds = spread({("x", plan.layers, d) for d in layout.decisions}, back)
    pairs, deciders, via = set(), set(), {}
    for name in layout.names:
        tokens = [t for t in range(n) if of[t] == name]
        own = {("kv", la, t) for t in tokens for la in range(plan.layers) if int(plan.depth[t]) <= la}
        if name == "question":  # every kept block counts as made with the question in sight
            own |= {("kv", la, t) for t in range(n) for la in range(1, plan.layers) if int(plan.depth[t]) <= la}
        reached = spread({("x", 0, t) for t in tokens if int(plan.depth[t])} | own, edges)
        for kind, layer, t in reached:
            if kind == "kv" or layer == plan.layers:
                pairs.add((name, of[t]))
        if any(("x", plan.layers, d) in reached for d in layout.decisions):
            deciders.add(name)
            via[name] = {of[t] for kind, _, t in reached & feeds if kind == "kv"} - {name}
    return pairs, deciders, via


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_the_graph_equals_a_walk_over_every_edge(kind, seed, monkeypatch):
    monkeypatch.setattr(influence, "CHUNK", 7)  # several chunks of queries under a window
    g = torch.Generator().manual_seed(seed)
    layout = tiny_layout(seed, slots=3, length=3, branches=seed == 1)
    n = len(layout)
    depth = torch.full((n,), LAYERS)
    kept = ()
    if seed % 2:
        depth = torch.randint(0, LAYERS + 1, (n,), generator=g)
        depth[list(layout.decisions)] = LAYERS
        kv = torch.zeros(LAYERS, 2, n, 8)
        kept = tuple(
            Kept(KVBlock(kv[:, :, i : i + 1], kv[:, :, i : i + 1], layout.token_ids[i : i + 1], torch.tensor([i])), i)
            for i in range(n)
        )
    plan = KVPlan.of(layout, LAYERS, depth, kept, rule(kind, layout, g))
    windows = (None, 6, None, 4) if seed > 1 else (None,) * LAYERS
    graph = explain(plan, windows)
    pairs, deciders, via = walked(plan, windows)
    for a, source in enumerate(layout.names):
        assert bool(graph.decision[a]) == (source in deciders), source
        if source in deciders:
            assert set(graph.via[source]) == via[source], source
        for b, target in enumerate(layout.names):
            assert bool(graph.reaches[a, b]) == ((source, target) in pairs), (source, target)


def test_the_graph_reads_slots_as_ranges():
    from kvattn.engine.influence import _ranges

    names = ["question", "header:1", "candidate:1", "candidate:3", "candidate:4", "suffix", "branch:1", "branch:2"]
    assert _ranges(names) == ["question", "header:1", "candidate:1,3-4", "branch:1-2", "suffix"]
    assert _ranges([]) == []


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gave."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.parametrize("windows", [(None,) * LAYERS, (None, 600, None, 4)])
def test_nothing_of_size_tokens_by_tokens_is_made(windows):
    layout = tiny_layout(0, slots=3, length=900)
    plan = KVPlan.of(layout, LAYERS, torch.full((len(layout),), LAYERS), visibility=Visibility.isolated(layout))
    with Largest() as largest:
        explain(plan, windows)
        uniform_matrix(plan, 1, windows[1])
    assert largest.elements <= influence.CHUNK * len(layout) < len(layout) ** 2 / 8
