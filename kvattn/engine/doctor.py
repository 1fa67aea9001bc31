"""Can plans be trusted on this model? Every check is a measured number against a bound.

References are the model's own plain forward (SDPA or eager), never another path of the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from kvattn.engine import capture, lens, parts
from kvattn.engine.capture import Wanted
from kvattn.engine.engine import Engine
from kvattn.engine.execution import Execution
from kvattn.engine.influence import explain
from kvattn.engine.layout import PromptLayout, join
from kvattn.engine.plan import Kept, KVPlan, Visibility, dense_plan
from kvattn.engine.precision import in_float32

ESSENTIAL = ("a random half kept from a dense pass equals dense", "attention rows sum to one")  # when a model loads


@dataclass(frozen=True)
class Finding:
    """One check: a number, the bound it is held against, and whether it has to stay below or rise above it; where the
    check raised, NaN and the error.

    note: what is said beside the number
    skipped: why there is nothing to check, which fails nothing
    """

    name: str
    value: float
    bound: float
    above: bool = False
    error: str = ""
    note: str = ""
    skipped: str = ""

    @property
    def passed(self) -> bool:
        """Whether the number is on the right side of the bound; NaN never is."""
        if self.skipped:
            return True
        return self.value > self.bound if self.above else self.value <= self.bound

    def __str__(self) -> str:
        if self.skipped:
            return f"none {self.name}: {self.skipped}"
        sign = ">" if self.above else "<="
        measured = self.error or f"{self.value:.2e} ({sign} {self.bound:.0e})"
        return f"{'ok  ' if self.passed else 'FAIL'} {self.name}: {measured}{self.note and f'; {self.note}'}"


class Doctor:
    """Examines one engine. Errors of logits and keys are relative to the reference's standard deviation.

    bound: what they may be; in low precision twice the model's own rounding, where that is more than is usual; of
           quantised weights twice what they differ by from themselves in eager attention
    """

    def __init__(self, engine: Engine, seed: int = 0, slots: int = 3, length: int = 24) -> None:
        self.engine = engine
        single = engine.dtype in (torch.float32, torch.float64)
        generator = torch.Generator().manual_seed(seed)
        window = min((w for w in engine.geometry.windows if w), default=None)
        if window:  # long enough that the window cuts something, short enough to stay quick
            length = max(length, min(window // slots + 8, 256))
        self.layout = _random_layout(engine, generator, slots, length)
        self.alone = self.layout.select(lambda s: s.role == "candidate" and s.slot == 0)
        self.far = min(601, (engine.geometry.max_tokens or 4096) // 2)
        self.edited = _edit_candidate(engine, self.layout, generator)
        usual, quantised = 1e-3 if single else 0.3, parts.quantised(engine.model)
        self.bound = usual if single and not quantised else max(usual, 2 * self.rounding())
        self.exact = self.bound == 1e-3

    def examine(self, only: Collection[str] = ()) -> Iterator[Finding]:
        """All findings, or `only` those of these names, in the order of dependence. A check that raises is a failed
        finding, one that TransformerLens cannot make a skipped one."""
        rows = 1e-4 if self.exact else 0.05
        # Experts multiply the tokens that are routed to them as one matrix, which rounds otherwise with other tokens.
        kept = (1e-5 if self.exact else self.bound) if parts.experts(self.engine.model) else 0.0
        checks: list[tuple[str, Callable[[], float], float, bool]] = [
            ("everything recomputed equals the plain forward", self.everything_recomputed, self.bound, False),
            (ESSENTIAL[0], lambda: self.half_kept(1024, 1), self.bound, False),
            ("the same in query chunks", lambda: self.half_kept(13, 1), self.bound, False),
            ("the same in a batch", lambda: self.half_kept(1024, 3), self.bound, False),
            ("generation after a stitched prompt equals the plain forward", self.generation, self.bound, False),
            ("a moved block equals the block made there", self.moved_block, self.bound, False),
            (ESSENTIAL[1], self.rows_sum, rows if self.engine.geometry.sinks else 1e-4, False),
            ("attention rows equal eager's", self.rows_equal, rows, False),
            ("changing the row changes the logits", self.rows_matter, 1e-4, True),
            ("what the plan cannot reach does not change", lambda: self.edit(reach=False), kept, False),
            ("what the plan reaches does change", lambda: self.edit(reach=True), 1e-4, True),
            ("the TransformerLens bridge gives the same row", lambda: self.bridge(0), rows, False),
            ("the TransformerLens bridge gives the same logits", lambda: self.bridge(1), self.bound, False),
        ]
        for name, measure, bound, above in checks:
            if only and name not in only:
                continue
            value, error, skipped = float("nan"), "", ""
            try:
                value = float(measure())
            except lens.NoBridge as problem:
                skipped = str(problem)
            except Exception as problem:
                error = (str(problem) or type(problem).__name__).splitlines()[0]
            yield Finding(name, value, bound, above, error, skipped=skipped)

    def rounding(self) -> float:
        """How far low precision takes the plain model from itself in float32, and quantised weights from themselves in
        eager attention: its logits and keys, of the prompts that are compared below."""
        at = torch.arange(len(self.alone))
        asked = [(self.layout.token_ids, None), (self.alone.token_ids, at), (self.alone.token_ids, at + self.far)]
        low = [x for ids, where in asked for x in self._plainly(ids, where)]
        quantised = parts.quantised(self.engine.model)  # which nothing turns into float32
        with in_float32(self.engine.model):
            high = [x for ids, where in asked for x in self._plainly(ids, where, quantised)]
        return max(float((a - b).abs().max() / b.std()) for a, b in zip(low, high, strict=True))

    @cached_property
    def dense(self) -> Execution:
        """A dense execution of the layout, with rows and cache."""
        plan = dense_plan(self.layout, self.engine.layers)
        return self.engine.execute([plan], Wanted(rows=True), keep_cache=True)[0]

    @cached_property
    def reference(self) -> Tensor:
        """Last-token logits of the model's plain SDPA forward."""
        return self.plain(self.layout.token_ids)

    def everything_recomputed(self) -> float:
        """Dense through the engine against the plain forward."""
        plan = dense_plan(self.layout, self.engine.layers)
        return self._error(self.engine.execute([plan])[0].logits)

    def half_kept(self, chunk: int, batch: int) -> float:
        """A random half of the tokens kept from a dense pass, against the plain forward."""
        n, layers, plans = len(self.layout), self.engine.layers, []
        for row in range(batch):
            kept = torch.randperm(n - 1, generator=torch.Generator().manual_seed(row))[: n // 2].sort().values
            depth = torch.full((n,), layers)
            depth[kept] = 0
            blocks = tuple(Kept(self.dense.span(i, i + 1), i) for i in kept.tolist())
            plans.append(KVPlan.of(self.layout, layers, depth, blocks))
        with self._chunk(chunk):
            runs = self.engine.execute(plans)
        return float(torch.tensor([self._error(r.logits) for r in runs]).max())  # unlike max, it keeps NaN

    def generation(self) -> float:
        """Tokens fed after a stitched prompt, against the plain forward of the longer prompt."""
        start, stop = len(self.layout) // 3, 2 * len(self.layout) // 3
        depth = torch.full((len(self.layout),), self.engine.layers)
        depth[start:stop] = 0
        plan = KVPlan.of(self.layout, self.engine.layers, depth, (Kept(self.dense.span(start, stop), start),))
        run = self.engine.execute([plan], room=4)[0]
        fed = self.layout.token_ids[:4].tolist()
        logits = torch.empty(0)
        for token in fed:  # one by one, as decoding does
            logits, _ = self.engine.extend(run, [token])
        want = self.plain(torch.cat([self.layout.token_ids, torch.tensor(fed)]))
        return float((logits - want).abs().max() / want.std())

    def moved_block(self) -> float:
        """A block made at one place and moved, against the model's own keys at the other place."""
        alone = self.alone
        made = self.engine.encode(alone)
        far = alone.positions + self.far
        depth = torch.full((len(alone),), self.engine.layers)
        there = self.engine.execute(
            [KVPlan.of(alone, self.engine.layers, depth, positions=far)], keep_cache=True, logits=False
        )[0]
        moved = made.span(0, len(alone)).moved(far, self.engine.rotary)
        keys, _ = there.cache()
        return float((moved.keys - keys).abs().max() / keys.float().std())

    def rows_sum(self) -> float:
        """Rows are probabilities; where attention has a sink, less what the sink takes of the eager kernel's."""
        sums = self.dense.rows()[0].sum(-1)
        return float((sums - (self._eager_rows.sum(-1) if self.engine.geometry.sinks else 1)).abs().max())

    def rows_equal(self) -> float:
        """Captured rows against the eager kernel's."""
        return float((self.dense.rows()[0] - self._eager_rows).abs().max())

    @cached_property
    def _eager_rows(self) -> Tensor:
        """The last token's rows as the model's own eager attention makes them, [layers, heads, tokens]."""
        with self._kernel("eager") as model, torch.inference_mode():
            out = model(self.layout.token_ids[None].to(self.engine.device), output_attentions=True).attentions
        return torch.stack([a[0, :, -1].float().cpu() for a in out])

    def rows_matter(self) -> float:
        """Taking the last candidate (a sliding window may hide the others anyway) out of sight moves the logits."""
        names, last = self.layout.names, f"candidate:{self.layout.slots}"
        rule = Visibility.full(self.layout).cut(
            [(names.index("suffix"), names.index(last))], self.engine.layers, self.engine.geometry.heads
        )
        return self._error(self.engine.execute([dense_plan(self.layout, self.engine.layers, rule)])[0].logits)

    def bridge(self, which: int) -> float:
        """TransformerLens on the plan's cache: row (0) or logits (1) of the decision step."""
        try:
            return lens.check(self.engine, self.dense)[which]
        except RuntimeError as problem:
            if self.exact:
                raise
            raise lens.NoBridge(f"TransformerLens cannot run it in low precision ({problem})") from problem

    def edit(self, reach: bool) -> float:
        """How an edit of candidate 1 under a true mask changes KV: most of what the plan says it cannot reach, or least
        of what it reaches. The keys and values of a single layer depend on no other token: its logits then."""
        plans = [dense_plan(x, self.engine.layers, Visibility.isolated(x)) for x in (self.layout, self.edited)]
        reached = explain(plans[0], self.engine.geometry.windows).reaches[self.layout.names.index("candidate:1")]
        runs = [self.engine.execute([p], keep_cache=True)[0] for p in plans]
        if reach and self.engine.layers == 1:
            before, after = (r.logits for r in runs)
            assert before is not None
            assert after is not None
            return float((before - after).abs().max() / after.std())
        before, after = (r.cache() for r in runs)
        changes = []
        for i, s in enumerate(self.layout.segments):
            if bool(reached[i]) == reach and s.length and s.name != "candidate:1":
                for a, b in zip(before, after, strict=True):
                    changes.append(float((a - b)[:, :, s.start : s.stop].abs().max() / b.float().std()))
        return float(torch.tensor(changes).min() if reach else torch.tensor(changes).max())

    def _error(self, logits: Tensor | None) -> float:
        assert logits is not None
        return float((logits[0] - self.reference).abs().max() / self.reference.std())

    def plain(self, ids: Tensor) -> Tensor:
        """Last-token logits of the model's own forward, [vocabulary]."""
        return self._plainly(ids)[0]

    def _plainly(self, ids: Tensor, positions: Tensor | None = None, eager: bool = False) -> list[Tensor]:
        """Logits of the last token and the keys of every layer, as the model makes them without an engine."""
        where = None if positions is None else positions[None].to(self.engine.device)
        with self._kernel("eager" if eager else parts.kernel(self.engine.model)) as model, torch.no_grad():
            out = model(ids[None].to(self.engine.device), position_ids=where, logits_to_keep=1, use_cache=True)
        return [x.float().cpu() for x in (out.logits[0, -1], *(layer.keys for layer in out.past_key_values.layers))]

    @contextmanager
    def _kernel(self, name: str):
        model = self.engine.model
        model.set_attn_implementation(name)
        try:
            yield model
        finally:
            model.set_attn_implementation(capture.NAME)

    @contextmanager
    def _chunk(self, size: int):
        was, self.engine.chunk = self.engine.chunk, size
        try:
            yield
        finally:
            self.engine.chunk = was


def _random_layout(engine: Engine, generator: torch.Generator, slots: int, length: int) -> PromptLayout:
    ids = partial(_random_ids, engine, generator)
    parts: list[tuple[str, int | None, list[int]]] = [("prefix", None, ids(8)), ("question", None, ids(12))]
    for s in range(slots):
        parts += [("header", s, ids(3)), ("candidate", s, ids(length + 2 * s)), ("separator", s, ids(2))]
    parts.append(("suffix", None, ids(10)))
    return join(parts, tuple(f"c{s}" for s in range(slots)))


def _random_ids(engine: Engine, generator: torch.Generator, n: int) -> list[int]:
    top = engine.model.config.vocab_size
    return torch.randint(min(8, top // 4), top, (n,), generator=generator).tolist()


def _edit_candidate(engine: Engine, layout: PromptLayout, generator: torch.Generator) -> PromptLayout:
    ids, s = layout.token_ids.clone(), layout.find("candidate", 0)
    ids[s.start : s.stop] = torch.tensor(_random_ids(engine, generator, s.length))
    return replace(layout, token_ids=ids)
