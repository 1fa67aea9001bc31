"""A loaded model that runs any plan: encode, probe, execute, continue. It meters what everybody asks of it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvattn.decision import Cost
from kvattn.engine import capture, parts
from kvattn.engine.cache import PromptCache
from kvattn.engine.capture import Captured, Recorder, Wanted
from kvattn.engine.compiler import PromptCompiler
from kvattn.engine.execution import Continuation, Execution
from kvattn.engine.layout import PromptLayout
from kvattn.engine.passes import Passes, shape
from kvattn.engine.plan import KVPlan, Visibility, dense_plan
from kvattn.engine.queries import Pass
from kvattn.engine.survey import survey
from kvattn.errors import KvattnError


class Step(NamedTuple):
    """A decoded token, the logits it was chosen from [vocabulary], and the row of the token that emitted it, if rows
    were asked for (None for the first: the prompt's own last row)."""

    token: int
    logits: Float[Tensor, " vocabulary"]
    captured: Captured | None


Choose = Callable[[Tensor], int]


def greedy(logits: Float[Tensor, " vocabulary"]) -> int:
    """The likeliest token."""
    return int(logits.argmax())


class Continued(NamedTuple):
    """What `Engine.generate` continues: an execution that has its logits and cache, for at most so many tokens."""

    execution: Execution
    max_new: int
    choose: Choose = greedy


def _decision(execution: Execution) -> Float[Tensor, " vocabulary"]:
    if execution.logits is None or len(execution.plan.layout.decisions) != 1:
        raise KvattnError("generation continues a prompt with one decision token and its logits")
    return execution.logits[0]


@dataclass
class Meter:
    """Everything an engine has computed since it was loaded.

    weights:         of a layer, that a token is computed with (of experts, those that it is routed to), on average
    multiplications: of tokens with weights; those of attention and of the output matrix come on top
    """

    weights: float = 0.0
    tokens: int = 0
    token_layers: int = 0

    @property
    def multiplications(self) -> float:
        return self.weights * self.token_layers

    def add(self, tokens: int, token_layers: int) -> None:
        """Count one batched call."""
        self.tokens += tokens
        self.token_layers += token_layers


class Engine:
    """Runs plans on one model. It sets the model's attention to its own; `release()` gives the model back.

    identity: which weights these are, name@hash, or None
    chunk: queries at a time when a mask is needed, bounding its memory; dense goes through in one call
    batch_tokens: prompt tokens of a batch at most, bounding the memory of activations and cache; a longer prompt runs
                  alone
    """

    def __init__(
        self, model, tokenizer, info: dict | None = None, chunk: int = 1024, batch_tokens: int = 32768
    ) -> None:
        self.model, self.tokenizer, self.info, self.chunk = model.eval(), tokenizer, info or {}, chunk
        self.geometry = survey(model)
        self.rotary = self.geometry.rotary
        self.batch_tokens = batch_tokens
        self.companions: dict[str, Engine] = {}  # other models that methods need beside it, by name
        self.identity = identity(self.info)
        self.passes = Passes(model, self.device)
        self.compiler = PromptCompiler(tokenizer, self.geometry.max_tokens, self.identity)
        self.meter = Meter(parts.active_parameters(model) / self.geometry.layers)
        capture.register()
        self._original = model.config._attn_implementation
        model.config.return_dict = True  # some files say otherwise, and the engine reads results by name
        model.set_attn_implementation(capture.NAME)

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return self.geometry.layers

    @property
    def device(self) -> torch.device:
        """Where ids are fed, and kept blocks lie: that of the first layer."""
        return self.geometry.devices[0]

    @property
    def spread(self) -> bool:
        """Whether the weights lie on several devices, the disk being one."""
        return len({*getattr(self.model, "hf_device_map", {}).values()}) > 1

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, and so of the cache."""
        return self.passes.dtype

    def release(self):
        """The model, with the attention it came with."""
        self.model.set_attn_implementation(self._original)
        return self.model

    # -- the three verbs -------------------------------------------------------------------------------------------

    def encode(self, layout: PromptLayout, visibility: Visibility | None = None) -> Execution:
        """Everything computed, cache kept, no logits: the source of blocks."""
        return self.execute([dense_plan(layout, self.layers, visibility)], keep_cache=True, logits=False)[0]

    def probe(self, plan: KVPlan, depth: int, wanted: Wanted | None = None) -> Execution:
        """A shallow pass through the first `depth` layers: rows of those layers where wanted, and the KV of layers
        0 to `depth`, that last one included (its keys and values are made, its attention is not; zero above)."""
        if not 1 <= depth < self.layers:
            raise KvattnError(f"probe depth {depth}; the model has {self.layers} layers")
        if wanted:
            wanted.check(plan, depth)
        return self._run([plan], [wanted] if wanted else None, True, False, 0, depth)[0]

    def execute(
        self,
        plans: Sequence[KVPlan],
        wanted: Wanted | Sequence[Wanted] | None = None,
        keep_cache: bool = False,
        logits: bool = True,
        room: int = 0,
        max_batch: int = 8,
    ) -> list[Execution]:
        """Run plans, those of equal length and equal recomputation as a batch of at most `max_batch` plans and the
        engine's `batch_tokens`; results in the order given.

        wanted: what to capture, one for all or one a plan; room: tokens that may be decoded afterwards (then each plan
        runs alone, on a cache of its own)
        """
        max_batch = 1 if room else max_batch
        asked = [wanted] * len(plans) if wanted is None or isinstance(wanted, Wanted) else list(wanted)
        groups: dict[tuple, list[int]] = {}
        for i, (p, want) in enumerate(zip(plans, asked, strict=True)):
            if want:
                want.check(p, self.layers)
            groups.setdefault(shape(p, want, self.layers, self.chunk), []).append(i)
        out: dict[int, Execution] = {}
        for members in groups.values():
            size = max(1, min(max_batch, self.batch_tokens // max(1, len(plans[members[0]].layout))))
            for at in range(0, len(members), size):
                some = members[at : at + size]
                want = [asked[i] for i in some]
                got = self._run(
                    [plans[i] for i in some],
                    None if want[0] is None else want,  # type: ignore[arg-type]
                    keep_cache or room > 0,
                    logits,
                    room,
                    self.layers,
                )
                out.update(zip(some, got, strict=True))
        return [out[i] for i in range(len(plans))]

    @torch.inference_mode()
    def extend(
        self, execution: Execution, token_ids: Sequence[int], wanted: bool = False
    ) -> tuple[Float[Tensor, " vocabulary"], Captured | None]:
        """Feed tokens after the prompt (decoding): logits after the last of them and, if wanted, its row.

        The execution must have been given `room`. In the row, decoded tokens count to the prompt's last segment."""
        state, n = execution.state, len(execution.plan.layout)
        if state is None or state.used + len(token_ids) > state.room:
            raise KvattnError("no room to decode; execute with room=<number of tokens>")
        last = n + state.used + len(token_ids) - 1
        sinks = execution.captured and execution.captured.sinks
        want = Wanted(queries=(last,), rows=True, sinks=sinks) if wanted else None
        at = torch.arange(n + state.used, last + 1)[None]
        logits, captured = self._feed(state.current, state.cache, at, [list(token_ids)], want)
        state.used += len(token_ids)
        return logits[0], captured

    def _feed(
        self,
        current: Pass,
        cache: PromptCache,
        at: Int[Tensor, "batch queries"],
        ids: list[list[int]],
        want: Wanted | None = None,
    ) -> tuple[Float[Tensor, "batch vocabulary"], Captured | None]:
        """As many tokens in every row of a batch, at these indices."""
        fed = torch.tensor(ids, device=self.device)
        current.stand(at)
        current.recorder = Recorder([want], current, self.layers) if want else None
        hidden = self.passes.finite(partial(self.passes.forward, fed, current, cache))
        self.meter.add(fed.numel(), fed.numel() * self.layers)
        captured = current.recorder.finish()[0] if current.recorder else None
        assert hidden is not None  # nothing leaves, nothing stops
        return self.passes.logits(hidden[:, -1:])[:, 0], captured

    def stream(self, execution: Execution, choose: Choose = greedy, rows: bool = False) -> Iterator[Step]:
        """Decode an execution that has its logits and `room`, token after token, for as long as the caller takes them.
        A stream begins at the prompt's end: a second one writes over what the first decoded."""
        logits, captured = _decision(execution), None
        if execution.state is not None:
            execution.state.used = 0
        while True:
            token = choose(logits)
            yield Step(token, logits, captured)
            logits, captured = self.extend(execution, [token], rows)

    @torch.inference_mode()
    def generate(self, rows: Sequence[Continued], stop: frozenset[int] = frozenset()) -> list[list[int]]:
        """Continuations, each of which ends before a stop token or after its `max_new` tokens. Those of causal prompts,
        of whatever length, are decoded side by side, others beside those of the same plan (rows that have ended are
        fed on until they are half of all; batches of another size round otherwise). `max_new` is 0 or more."""
        groups: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            plan = row.execution.plan
            groups.setdefault(0 if plan.visibility.causal and plan.reach is None else id(plan), []).append(i)
        out: dict[int, list[int]] = {}
        for members in groups.values():
            longest = max(len(rows[i].execution.plan.layout) + rows[i].max_new for i in members)
            size = max(1, self.batch_tokens // longest)
            for some in (members[i : i + size] for i in range(0, len(members), size)):
                out.update(zip(some, self._together([rows[i] for i in some], stop), strict=True))
        return [out[i] for i in range(len(rows))]

    def _together(self, rows: Sequence[Continued], stop: frozenset[int]) -> list[list[int]]:
        made: list[list[int]] = [[] for _ in rows]
        logits = {i: _decision(r.execution) for i, r in enumerate(rows)}
        going = [i for i, r in enumerate(rows) if r.max_new]
        batch, live, used = going, None, 0
        while going:
            ended = set()
            for i in going:
                if (token := rows[i].choose(logits[i])) in stop:
                    ended.add(i)
                    continue
                made[i].append(token)
                if len(made[i]) == rows[i].max_new:
                    ended.add(i)
            going = [i for i in going if i not in ended]
            if going and (live is None or 2 * len(going) <= len(batch)):
                kept = [live[1].of(batch.index(i), self.device) if live else rows[i].execution.cache() for i in going]
                batch, live = going, self._filled([rows[i] for i in going], kept, used)
                del kept  # a view of all that was let go of
            if going and live:
                # A row that has ended is fed its last token again where that stands: no further than it went, for some
                # models turn all rows by the furthest position of a batch.
                at = [[len(rows[i].execution.plan.layout) + max(len(made[i]) - 1, 0)] for i in batch]
                fed = [made[i][-1:] or [0] for i in batch]
                logits = dict(zip(batch, self._feed(*live, torch.tensor(at), fed)[0], strict=True))
                used += 1
        return made

    def _filled(
        self, rows: Sequence[Continued], held: Sequence[tuple[Tensor, Tensor]], used: int
    ) -> tuple[Pass, PromptCache]:
        """A pass over what rows decode, and a cache with what is `held` of their prompts and `used` tokens more."""
        plans, room = [r.execution.plan for r in rows], max(r.max_new for r in rows)
        current = Pass(plans, self.geometry.windows, room)
        cache = PromptCache(current, self.geometry, self.dtype, room, held=True)
        for i, (plan, tensors) in enumerate(zip(plans, held, strict=True)):
            cache.fill(i, *(x[:, :, : len(plan.layout) + used] for x in tensors))
        return current, cache

    # -- one batched run -------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _run(
        self,
        plans: list[KVPlan],
        wanted: list[Wanted] | None,
        keep_cache: bool,
        logits: bool,
        room: int,
        depth: int,
    ) -> list[Execution]:
        began = time.perf_counter()
        batch = len(plans)
        current = Pass(plans, self.geometry.windows, room)
        calls = self.passes.calls(current, self.chunk)
        cache = PromptCache(current, self.geometry, self.dtype, room, held=keep_cache or len(calls) > 1)
        if wanted is not None:
            current.recorder = Recorder(wanted, current, depth)
        current.stop_at = depth if depth < self.layers else None
        found = self.passes.through(current, cache, calls)
        for device in {d for d in self.geometry.devices if d.type == "cuda"}:
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
        costs = [self.cost(p, depth, seconds, batch, cache.bytes) for p in plans]
        self.meter.add(sum(c.tokens_computed for c in costs), sum(c.token_layers for c in costs))
        captured = current.recorder.finish() if current.recorder else [None] * batch
        current.recorder = None
        made = self.passes.logits(found) if logits else [None] * batch
        if depth < self.layers and not cache.finite:
            raise self.passes.refusal(f"the keys and values of the first {depth} layers")
        states = [Continuation(cache, current, 0, room) if room else None for _ in plans]
        held = [cache.of(b, self.device) if keep_cache else (None, None) for b in range(batch)]
        return [Execution(p, costs[b], made[b], captured[b], *held[b], state=states[b]) for b, p in enumerate(plans)]

    def cost(self, plan: KVPlan, depth: int, seconds: float, batch: int, kv_bytes: int) -> Cost:
        """What a plan costs through `depth` layers, in a batch that took so many seconds and bytes."""
        layered = plan.depth.clamp(max=depth)
        candidate = plan.layout.mask("candidate")
        kept = plan.depth < self.layers
        return Cost(
            tokens=len(plan.layout),
            tokens_computed=int((plan.depth > 0).sum()),
            layers=self.layers,
            token_layers=int(layered.sum()),
            probe_token_layers=plan.probe_token_layers,
            seconds=seconds,
            kv_bytes=kv_bytes // batch,
            batch=batch,
            candidate_tokens=int(candidate.sum()),
            candidate_tokens_kept=int((candidate & kept).sum()),
            blocks_kept=sum(
                bool((plan.depth[s.start : s.stop] == 0).all()) for s in plan.layout.each("candidate") if s.length
            ),
        )


def identity(info: dict) -> str | None:
    """Which weights a model has, as name@hash (of the weights, or a Hub commit); None where nobody knows."""
    hashes = info.get("hashes")
    revision = info.get("revision")
    if not revision and hashes:
        said = json.dumps(hashes, sort_keys=True)
        revision = f"sha256:{hashlib.sha256(said.encode()).hexdigest()}"
    if not revision:
        return None
    names = [Path(part).name.removesuffix(".gguf") for part in info["name"].split("+")]
    return f"{'+'.join(names)}@{revision}"
