"""TransformerLens on the decision step: every hook of its bridge, on the cache that a plan built.

The bridge forces eager attention and rewires the model it is given, so it gets a second module tree on the engine's
own tensors. Only the decision token is computed; what it reads is the cache of an execution. Edges between earlier
tokens lie in the prefill: those are cut by the plan's visibility, not here.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from kvattn.engine.devices import Everywhere
from kvattn.engine.engine import Engine
from kvattn.engine.execution import Execution
from kvattn.engine.queries import Pass
from kvattn.errors import KvattnError

if TYPE_CHECKING:
    from transformer_lens import ActivationCache
    from transformer_lens.model_bridge import TransformerBridge

Hook = tuple[str | Callable[[str], bool], Callable[..., Any]]

_FIRST = Everywhere(torch.zeros(1, 1, dtype=torch.long))  # the place of a step's one query
_LENSES: WeakKeyDictionary[Engine, DecisionLens] = WeakKeyDictionary()


class NoBridge(KvattnError):
    """TransformerLens cannot run this model at all; nothing is wrong with plans on it."""


def lens(engine: Engine) -> DecisionLens:
    """The engine's lens, made at the first call and again when the engine's tensors are no longer the same ones.

    Raises KvattnError, naming the model, where TransformerLens cannot wrap it."""
    found = _LENSES.get(engine)
    if found is None or found.addresses != _addresses(engine.model):
        found = _LENSES[engine] = DecisionLens(engine)
    return found


def check(engine: Engine, execution: Execution) -> tuple[float, float]:
    """(row error, logit error): the largest absolute differences between the lens and the execution, over all decision
    tokens, layers, heads and tokens of the row, and over all logits.

    Raises KvattnError unless the execution has its logits, its decision rows (Wanted(rows=True)) and its cache."""
    captured, decisions = execution.captured, execution.plan.layout.decisions
    if execution.logits is None or captured is None or not set(decisions) <= set(captured.queries):
        raise KvattnError("the lens is checked against logits and decision rows; execute with Wanted(rows=True)")
    row_error = logit_error = 0.0
    for which, query in enumerate(decisions):
        logits, rows = lens(engine).run(execution, which=which)
        row_error = max(row_error, float((rows - captured.row(query)).abs().max()))
        logit_error = max(logit_error, float((logits - execution.logits[which]).abs().max()))
    return row_error, logit_error


class DecisionLens:
    """Runs the decision step of executions of one engine under TransformerLens hooks. Make it with `lens(engine)`.

    bridge: the TransformerBridge; its switches (`bridge.set_use_attn_result(True)`) hold for the runs made here

    Hooks are (name or filter of names, function(tensor, hook) -> tensor or None), named as in TransformerLens:
    "blocks.7.attn.hook_pattern" [1, heads, 1, keys], "blocks.7.attn.hook_z" [1, 1, heads, dim],
    "blocks.7.hook_resid_post" [1, 1, hidden]. Nothing that a hook changes reaches the execution's own cache.
    """

    def __init__(self, engine: Engine) -> None:
        self.geometry = engine.geometry
        self.addresses = _addresses(engine.model)
        self.bridge: TransformerBridge = _bridge(engine.model)
        self._current: Pass | None = None
        for layer, block in enumerate(self.bridge.blocks):
            block.register_forward_pre_hook(partial(self._mask, layer), with_kwargs=True)

    def run(
        self, execution: Execution, hooks: Sequence[Hook] = (), which: int = 0
    ) -> tuple[Float[Tensor, " vocabulary"], Float[Tensor, "layers heads tokens"]]:
        """(logits, rows) of the decision step, fp32 on the CPU; rows as the hooks left them, as wide as the captured
        ones (the prompt, and the room to decode if there was any) and zero behind the query.

        which: which of the layout's decision tokens (a yes/no layout has one a slot)
        Raises KvattnError for an execution without its cache and for a hook name that the model does not have."""
        rows: list[Tensor] = [torch.empty(0)] * self.geometry.layers

        def keep(pattern: Tensor, hook, layer: int) -> None:
            rows[layer] = rearrange(pattern, "1 head 1 key -> head key").detach().float().cpu()

        last = [(f"blocks.{i}.attn.hook_pattern", partial(keep, layer=i)) for i in range(self.geometry.layers)]
        with self._step(execution, which, hooks) as step:
            logits = self.bridge.run_with_hooks(fwd_hooks=[*hooks, *last], **step)
        row, width = torch.stack(rows), execution.keys.shape[2]  # type: ignore[union-attr]
        return logits[0, -1].float().cpu(), F.pad(row, (0, width - row.shape[-1]))

    def run_with_cache(
        self,
        execution: Execution,
        names_filter: str | list[str] | Callable[[str], bool] | None = None,
        hooks: Sequence[Hook] = (),
        which: int = 0,
    ) -> tuple[Float[Tensor, " vocabulary"], ActivationCache]:
        """(logits, activations by hook name) of the decision step, as the hooks left them; batch and position are 1.

        names_filter: a hook name, a list of them or a function of the name; None keeps everything"""
        asked = [] if names_filter is None or callable(names_filter) else names_filter
        self._known([asked] if isinstance(asked, str) else asked)
        with self._step(execution, which, hooks) as step, self.bridge.hooks(fwd_hooks=list(hooks)):
            logits, cache = self.bridge.run_with_cache(names_filter=names_filter, **step)
        return logits[0, -1].float().cpu(), cache

    def patch_rows(
        self, rows: Float[Tensor, "layers heads tokens"], heads: Sequence[tuple[int, int]] | None = None
    ) -> list[Hook]:
        """Hooks that put these attention rows in place of the computed ones, at the given (layer, head) or everywhere.

        Rows of the same prompt under another plan: `execution.captured.row(query)` or what `run` returned. Dense
        pattern on stale values: `run(stale, lens.patch_rows(dense_rows))`; stale pattern on dense values:
        `run(dense, lens.patch_rows(stale_rows))`."""
        wanted = (self.geometry.layers, self.geometry.heads)
        if rows.dim() != 3 or tuple(rows.shape[:2]) != wanted:
            raise KvattnError(f"rows of shape {tuple(rows.shape)}; this model needs [{wanted[0]}, {wanted[1]}, tokens]")

        def patch(pattern: Tensor, hook, layer: int, some: list[int]) -> Tensor:
            keys = pattern.shape[-1]
            if rows.shape[-1] < keys or bool(rows[layer, some, keys:].any()):
                raise KvattnError(f"rows over {rows.shape[-1]} tokens do not fit a query that has {keys} keys")
            out = pattern.clone()
            out[0, some, 0] = rows[layer, some, :keys].to(out)
            return out

        return self._at(heads, "hook_pattern", patch)

    def knock_out(self, heads: Sequence[tuple[int, int]]) -> list[Hook]:
        """Hooks that set the output of these (layer, head) to zero before the output matrix."""

        def zero(z: Tensor, hook, layer: int, some: list[int]) -> Tensor:
            out = z.clone()
            out[:, :, some] = 0.0
            return out

        return self._at(heads, "hook_z", zero)

    def _at(self, heads: Sequence[tuple[int, int]] | None, point: str, change: Callable) -> list[Hook]:
        """`change` at one hook point of the attention, once for every layer with a chosen head."""
        layers, each = self.geometry.layers, self.geometry.heads
        if heads is None:
            heads = [(layer, head) for layer in range(layers) for head in range(each)]
        chosen: dict[int, list[int]] = {}
        for layer, head in heads:
            if not (0 <= layer < layers and 0 <= head < each):
                raise KvattnError(f"no head ({layer}, {head}): this model has {layers} layers of {each} heads")
            chosen.setdefault(layer, []).append(head)
        return [
            (f"blocks.{layer}.attn.{point}", partial(change, layer=layer, some=some)) for layer, some in chosen.items()
        ]

    @contextmanager
    def _step(self, execution: Execution, which: int, hooks: Sequence[Hook]) -> Iterator[dict[str, Any]]:
        """Arguments of the bridge's forward for the decision token alone, on a copy of the cache.

        The execution's cache holds that token's own KV already. The copy ends before it, and the step appends it anew,
        so it counts once and what hooks do to it counts."""
        from transformers.cache_utils import DynamicCache

        query, keys, values = self._checked(execution, which)
        self._known([name for name, _ in hooks if isinstance(name, str)])
        current = Pass([execution.plan], self.geometry.windows, 0)
        current.stand(torch.tensor([[query]]))
        cache = DynamicCache()  # made without a config: a sliding-window model's would drop old tokens
        for layer, (k, v) in enumerate(zip(keys, values, strict=True)):
            cache.update(k[None, :, :query], v[None, :, :query], layer)
        self._current = current
        try:
            with torch.no_grad():
                yield {
                    "input": execution.plan.layout.token_ids[query].to(keys.device).view(1, 1),
                    "position_ids": current.positions.on(keys.device)[:, query : query + 1],
                    "attention_mask": torch.zeros(1, 1, 1, query + 1, dtype=keys.dtype, device=keys.device),
                    "past_key_values": cache,
                }
        finally:
            self._current = None

    def _known(self, names: Sequence[str]) -> None:
        """Raise KvattnError for the first hook name that the model does not have."""
        points = self.bridge.hook_dict
        for name in names:
            if name not in points:
                near = difflib.get_close_matches(name, points, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise KvattnError(
                    f"no hook {name!r} in this model{hint} lens.bridge.hook_dict lists all {len(points)}."
                )

    def _checked(self, execution: Execution, which: int) -> tuple[int, Tensor, Tensor]:
        """(prompt index of the decision token, keys, values) of an execution that the step can stand on."""
        plan, keys, values, g = execution.plan, execution.keys, execution.values, self.geometry
        decisions = plan.layout.decisions
        if keys is None or values is None:
            raise KvattnError("the lens stands on the cache of an execution; execute with keep_cache=True")
        if execution.cost.token_layers < plan.token_layers:
            raise KvattnError("the lens needs every layer, and a probe has only the first; execute the plan")
        if plan.reach is not None:
            raise KvattnError(
                "the lens runs the base model, and an adapter acts in this plan; look at its captured rows"
            )
        if (keys.shape[0], keys.shape[1], keys.shape[3]) != (g.layers, g.kv_heads, g.head_dim):
            raise KvattnError("this execution's cache was made by another model; take the lens of the engine it ran on")
        if not 0 <= which < len(decisions):
            raise KvattnError(f"decision {which} of a layout with {len(decisions)}; they count from 0")
        return decisions[which], keys, values

    def _mask(self, layer: int, _block, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The plan's additive mask for this layer in place of transformers' one, whatever shape that model wants.

        Float, because eager attention adds a mask: a bool one would count as 0 and 1."""
        current, plain = self._current, kwargs.get("attention_mask")
        if current is not None and plain is not None:
            kwargs["attention_mask"] = current.rule(layer, _FIRST, plain.dtype, plain.device)
        return args, kwargs


def _bridge(model: nn.Module) -> TransformerBridge:
    """A TransformerBridge around a second module tree on the model's own tensors."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    name = type(model).__name__
    places = sorted({str(p.device) for p in model.parameters()})
    if len(places) != 1 or places == ["meta"]:
        raise NoBridge(f"the lens needs all of {name} on one device; its weights lie on {', '.join(places)}")
    try:
        twin = _twin(model)
        # No tokenizer goes along: the bridge would alter it, and ids come from the layout.
        bridge = build_bridge_from_module(twin, name, hf_config=copy.deepcopy(twin.config), model_name=name)
    except Exception as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise NoBridge(f"TransformerLens cannot wrap {name}: {why}; use the engine's capture without it") from error
    return bridge.eval()


def _twin(model):
    """The model again, in eager attention: other modules, the same parameters and buffers."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        twin = type(model)(config)
    twin.load_state_dict(model.state_dict(), assign=True)
    for path, buffer in model.named_buffers():  # rotary frequencies, embedding scale: not in the state dict
        owner, _, leaf = path.rpartition(".")
        setattr(twin.get_submodule(owner), leaf, buffer)
    return twin.eval()


def _addresses(model: nn.Module) -> tuple[int, ...]:
    """Where the model's tensors lie; another answer means that a twin no longer shares them."""
    return tuple(x.data_ptr() for x in (*model.parameters(), *model.buffers()))
