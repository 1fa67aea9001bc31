"""One batched pass of plans through the model, in as many calls as it takes: for inference and for training alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvattn.engine import capture, parts
from kvattn.engine.cache import PromptCache
from kvattn.engine.capture import Recorder, Wanted
from kvattn.engine.plan import KVPlan
from kvattn.engine.queries import Exits, Pass, Stop
from kvattn.engine.reach import adapted
from kvattn.errors import KvattnError


def shape(plan: KVPlan, wanted: Wanted | None, layers: int, chunk: int) -> tuple:
    """Plans of equal shape can share a batch."""
    counts = tuple(torch.bincount(plan.depth, minlength=layers + 1).tolist())
    partial = any(counts[1:layers])
    want = None if wanted is None else (replace(wanted, queries=None, sinks=None), wanted.sinks is not None)
    unique = id(plan) if partial and len(plan.layout) > chunk else 0
    heads = plan.visibility.allowed.shape[:-2]
    asked = [*plan.layout.decisions, *((wanted and wanted.queries) or ())]
    place = (plan.depth > 0).cumsum(0)[asked] - 1  # among the computed tokens, which are cut into calls
    calls = (len(plan.layout.decisions), *(0 if plan.is_dense else i // chunk for i in place.tolist()))
    adapter = None if plan.reach is None else id(plan.reach.adapter)
    return len(plan.layout), len(plan.layout.segments), counts, want, plan.is_dense, unique, heads, calls, adapter


class Passes:
    """Runs passes of one model, whose ids are fed on `device`."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model, self.device, self.layers = model, device, len(parts.layers(model))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, and so of the cache."""
        return self.model.get_input_embeddings().weight.dtype

    @staticmethod
    def calls(current: Pass, chunk: int) -> tuple[Int[Tensor, "batch queries"], ...]:
        """What the plans of a pass compute, by call: at most `chunk` queries where masks are needed."""
        index = torch.stack([torch.nonzero(p.depth > 0)[:, 0] for p in current.plans])
        return index.split(index.shape[1] if current.plans[0].is_dense and current.plain else chunk, 1)

    def through(
        self, current: Pass, cache: PromptCache, calls: Sequence[Int[Tensor, "batch queries"]]
    ) -> Float[Tensor, "batch decisions hidden"]:
        """Compute the queries of these calls, into the cache; the decision tokens' last hidden states (empty where the
        pass ends before)."""
        plans = current.plans
        ids = torch.stack([p.layout.token_ids for p in plans])
        depths = torch.stack([p.depth for p in plans])
        decisions = torch.tensor([p.layout.decisions for p in plans])
        found = [torch.empty(0)] * decisions.shape[1]
        for part in calls:
            fed = torch.gather(ids, 1, part).to(self.device)
            hidden = self.finite(partial(self._call, part, depths, fed, current, cache))
            if hidden is not None:
                self._collect(found, hidden, current.at, decisions)
        return torch.stack(found, 1) if len(found[0]) else torch.empty(0)

    def _call(
        self, part: Tensor, depths: Tensor, ids: Tensor, current: Pass, cache: PromptCache
    ) -> Float[Tensor, "batch queries hidden"] | None:
        """One forward call of the queries at `part`, whose tokens leave where their plan says."""
        current.stand(part)
        with self._hooks(current, depths):
            return self.forward(ids, current, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits on the CPU. Raises KvattnError for those that are not finite."""
        made = parts.logits(self.model, hidden).cpu()
        if not bool(torch.isfinite(made).all()):
            raise self.refusal("the logits", self.model.get_output_embeddings())
        return made

    def finite(self, call: Callable[[], Tensor | None]) -> Tensor | None:
        """What the call returns. Where that is not finite, it is made once more to see at which layer that begins, and
        KvattnError is raised."""
        hidden = call()
        if hidden is None or bool(torch.isfinite(hidden).all()):
            return hidden
        bad: list[tuple[str, torch.nn.Module]] = []

        def look(name: str, module: torch.nn.Module, _args: tuple, output: Any) -> None:
            made = output[0] if isinstance(output, tuple) else output
            if not bool(torch.isfinite(made).all()):
                bad.append((name, module))

        stages = {"the embedding": self.model.get_input_embeddings()}
        stages |= {f"layer {i}": layer for i, layer in enumerate(parts.layers(self.model))}
        handles = [module.register_forward_hook(partial(look, name)) for name, module in stages.items()]
        try:
            call()
        finally:
            for handle in handles:
                handle.remove()
        name, module = (*bad, ("the last norm", parts.last_norm(self.model)))[0]
        raise self.refusal(f"the numbers that come out of {name}", module)

    def refusal(self, what: str, module: torch.nn.Module | None = None) -> KvattnError:
        """What is not finite, and why that may be; module: what made it."""
        dtype = str(self.dtype).removeprefix("torch.")
        weights = parts.not_finite(self.model, module)
        if weights:
            why = f"{weights} holds such; fetch the weights anew, or load them in another dtype"
        elif self.dtype == torch.float16:
            why = "float16 ends at 65504; judge in bfloat16 or float32 (--dtype)"
        else:
            why = "the weights, or keys and values that were kept, are damaged; fetch or make them anew"
        return KvattnError(f"{what} are not finite in {dtype}: {why}")

    def forward(self, ids: Tensor, current: Pass, cache: PromptCache) -> Tensor | None:
        """Hidden states after the last layer, [batch, queries that reach it, hidden]; None for a probe."""
        try:
            with adapted(self.model, current), capture.running(current):
                return parts.decoder(self.model)(
                    input_ids=ids,
                    position_ids=torch.gather(current.positions.own, 1, current.at).to(self.device),
                    past_key_values=cache,
                    use_cache=True,
                ).last_hidden_state
        except Stop:
            return None

    @staticmethod
    def _collect(found: list[Tensor], hidden: Tensor, at: Tensor, decisions: Tensor) -> None:
        for d in range(decisions.shape[1]):
            hit = (at == decisions[:, d : d + 1]).nonzero()
            if len(hit) == len(at):
                row, place = hit.T.to(hidden.device)
                found[d] = hidden[row, place]
            elif len(hit):
                raise RuntimeError("decision tokens of a batch must fall into the same chunk")

    @contextmanager
    def _hooks(self, current: Pass, depths: Tensor) -> Iterator[None]:
        """The decoder with its exits, its residual stream recorded where that is wanted."""
        layers, recorder = parts.layers(self.model), current.recorder
        exits = Exits(current, depths, self.layers)
        handles = [
            layers[i].register_forward_pre_hook(partial(exits.hook, i), with_kwargs=True)
            for i in range(exits.first, self.layers)
        ]
        if recorder is not None and recorder.wanted.residual:
            handles += [
                layer.register_forward_pre_hook(partial(_before, recorder, i)) for i, layer in enumerate(layers)
            ]
            handles.append(layers[-1].register_forward_hook(partial(_after, recorder, self.layers)))
        try:
            yield
        finally:
            for h in handles:
                h.remove()


def _before(recorder: Recorder, stage: int, _module, args) -> None:
    recorder.record_residual(stage, args[0])


def _after(recorder: Recorder, stage: int, _module, _args, output) -> None:
    recorder.record_residual(stage, output)
