"""What a model does with keys and values, seen while it runs: nothing here knows a model by its name.

A few short forwards with the model's own eager attention, at other positions each. Seen are the keys and values that
every layer asks the cache to hold, what its attention is called with, and the rule of its mask, which can be asked
about any two tokens however far apart.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import eager_mask

from kvattn.engine import parts
from kvattn.engine.capture import RUNNING, running
from kvattn.engine.devices import runs_on
from kvattn.engine.geometry import Geometry
from kvattn.engine.precision import in_float32
from kvattn.engine.rotary import Rotary
from kvattn.errors import KvattnError

NAME = "kvattn-survey"
TOKENS = 24
NEAR = 601  # positions that tokens are moved by, where the context is as long
FARTHEST = 131_072  # positions that are looked at
HARMLESS = {"position_ids", "use_cache", "cache_position", "is_causal", "output_attentions", "output_hidden_states"}
UNDERSTOOD = {*HARMLESS, "scaling", "sliding_window", "s_aux", "softcap"}  # what an attention function may be given


@dataclass
class Layer:
    """What one layer did in one forward, and how often it did it."""

    keys: Tensor | None = None  # [1, kv heads, tokens, dim], as the cache is to hold them
    values: Tensor | None = None
    stored: int = 0
    query: Tensor | None = None  # [1, heads, tokens, dim]
    options: dict[str, Any] = field(default_factory=dict)
    rule: Callable | None = None  # (batch, head, query, key) -> whether the mask lets them see


class Watch(DynamicCache):
    """A cache of transformers that remembers what it was given, and says that `seen` tokens came before."""

    def __init__(self, config: Any, layers: int, seen: int) -> None:
        super().__init__(config=config)
        self.watched, self._before = [Layer() for _ in range(layers)], seen

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """As it is, and written down."""
        layer = self.watched[layer_idx]
        layer.keys, layer.values, layer.stored = key_states, value_states, layer.stored + 1
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """For a model that counts positions by what its cache holds."""
        return self._before + super().get_seq_length(layer_idx)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """For masks, which are of what the cache really holds."""
        return 0


class Mask(Tensor):
    """A mask with its rule, which goes along to the device of a layer."""

    rule: Callable | None = None

    def to(self, *args, **kwargs):
        """The same mask there."""
        moved: Any = self.as_subclass(Tensor).to(*args, **kwargs)
        moved.rule = self.rule
        return moved


def _mask(*args, mask_function: Callable, **kwargs) -> Tensor | None:
    made = eager_mask(*args, mask_function=mask_function, **kwargs)
    if made is None:
        return None
    ruled: Any = made.as_subclass(Mask)
    ruled.rule = mask_function
    return ruled


def _attention(module, query, key, value, attention_mask, **options):
    layer = RUNNING.get().watched[module.layer_idx]
    layer.query, layer.rule = query, getattr(attention_mask, "rule", None)
    layer.options = {name: value for name, value in options.items() if value is not None}
    own = sys.modules[type(module).__module__].eager_attention_forward
    if isinstance(attention_mask, Mask):
        attention_mask = attention_mask.as_subclass(Tensor)
    return own(module, query, key, value, attention_mask, **options)


def _watched(model, ids: Tensor, start: int) -> list[Layer]:
    """What every layer does with the tokens `ids` at the positions from `start` on."""
    cache = Watch(model.config, parts.config(model).num_hidden_layers, start)
    where = runs_on(model.get_input_embeddings())
    positions = torch.arange(start, start + len(ids), device=where)[None]
    try:
        with running(cache):
            parts.decoder(model)(
                input_ids=ids[None].to(where), position_ids=positions, past_key_values=cache, use_cache=True
            )
    except KvattnError:
        raise
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KvattnError(f"it cannot be watched while it runs ({type(error).__name__}: {said})") from error
    return cache.watched


@torch.no_grad()
def survey(model) -> Geometry:
    """Runs the model a few times on some tokens, in float32 where it can be. Raises KvattnError, saying what was
    measured and at which layers, for a model whose cache cannot be cut and moved."""
    context = _context(parts.config(model))
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    original, kind = model.config._attn_implementation, parts.config(model).model_type
    try:
        model.set_attn_implementation(NAME)
        with in_float32(model):
            return _survey(model, context)
    except KvattnError as error:
        raise KvattnError(f"plans cannot be trusted on this {kind} model: {error}; take another judge") from error
    finally:
        model.set_attn_implementation(original)


def _survey(model, context: int | None) -> Geometry:
    size = max(1, min(TOKENS, (context or FARTHEST) // 2))
    top = parts.config(model).vocab_size
    ids = torch.randint(min(8, top // 4), top, (size,), generator=torch.Generator().manual_seed(0))
    here = _watched(model, ids, 0)
    _refuse(here, lambda x: x.stored != 1, "do not keep keys and values of their own for every token")
    _refuse(here, lambda x: x.query is None, "attend past transformers' attention interface, where nobody can watch")
    if strange := sorted({name for x in here for name in x.options} - UNDERSTOOD - {"dropout"}):
        raise KvattnError(f"its attention is given {', '.join(strange)}, whose effect kvattn does not know")
    _refuse(here, lambda x: x.rule is None, "attend without a mask, or with one of their own")
    shapes = {(x.query.shape[1], *x.keys.shape[1::2], *x.values.shape[1::2]) for x in here}  # type: ignore[union-attr]
    heads, kv_heads, head_dim, *values = min(shapes)
    if len(shapes) > 1 or [kv_heads, head_dim] != values:
        said = "; or ".join(f"{s[1]} x {s[2]} and {s[3]} x {s[4]}" for s in sorted(shapes))
        raise KvattnError(
            f"what its cache holds of a token as keys and as values is {said} numbers a layer, where kvattn moves "
            "heads of one size (latent attention?); no layer could be stitched"
        )
    windows, context = _windows(here, context)
    last = min(context or FARTHEST, FARTHEST) - size
    near = min(NEAR, last)
    seen = _watched(model, ids, near)
    single = seen[0].keys.dtype in (torch.float32, torch.float64)  # type: ignore[union-attr]
    exact = single and not parts.quantised(model)
    rotary, errors = _rotary(model, here, seen, near)
    _refuse_moved(errors, near, 1e-3 if exact else 0.1)
    if last > near:  # what depends on how long the prompt is shows at its far end, where fp32 angles are coarse
        _refuse_moved(_moved(rotary, here, _watched(model, ids, last), last), last, 0.05 if exact else 0.2)
    sinks = any("s_aux" in x.options for x in here)
    devices = tuple(x.keys.device for x in here)  # type: ignore[union-attr]
    return Geometry(len(here), heads, kv_heads, head_dim, rotary, windows, sinks, context, devices)


def _context(config) -> int | None:
    """Tokens of the longest prompt; under YaRN what it stretches to, where the configuration says from what."""
    said, rope = getattr(config, "max_position_embeddings", None), getattr(config, "rope_parameters", None) or {}
    if said is not None and said < 1:
        raise KvattnError(f"its configuration says a context of {said} tokens (max_position_embeddings); correct it")
    if said and rope.get("rope_type") == "yarn":
        return max(said, int((rope.get("original_max_position_embeddings") or 0) * (rope.get("factor") or 1)))
    return said


# -- masks -------------------------------------------------------------------------------------------------------------


def _windows(layers: Sequence[Layer], context: int | None) -> tuple[tuple[int | None, ...], int | None]:
    """The sliding window of every layer, and the context, cut to where layers see all that comes before if what they
    see is no window (chunks)."""
    reach, windows, found = min(context or FARTHEST, FARTHEST), [], {}
    for layer in layers:
        assert layer.rule is not None
        if layer.rule not in found:
            found[layer.rule] = _sees(layer.rule, reach, layers)
        window, whole = found[layer.rule]
        windows.append(window)
        if whole < reach:
            context = min(context or whole, whole)
    return tuple(windows), context


def _sees(rule: Callable, reach: int, layers: Sequence[Layer]) -> tuple[int | None, int]:
    """(window, tokens) of a mask's rule: up to so many tokens, a token sees those before it that are in the window."""
    at, zero = torch.arange(reach), torch.tensor(0)

    def seen(query: int) -> list[int]:
        return torch.nonzero(rule(zero, zero, torch.tensor(query), at).expand(reach))[:, 0].tolist()

    last, before = seen(reach - 1), seen(max(0, reach - 2))
    ends = [(x[0], x[-1], len(x) == x[-1] - x[0] + 1) for x in (last, before) if x]
    causal = len(ends) == 2 and ends[0][1:] == (reach - 1, True) and ends[1][1:] == (max(0, reach - 2), True)
    if not causal:
        _refuse(layers, lambda x: x.rule is rule, "let a token see what comes behind it, or not all of a span")
    if ends[0][0] == 0:
        return None, reach
    if ends[0][0] - ends[1][0] == 1:
        return reach - ends[0][0], reach
    return None, int(rule(zero, zero, at, zero).expand(reach).sum())  # those that see the first token


# -- rotation ----------------------------------------------------------------------------------------------------------


def _tables(model) -> list[Tensor]:
    """Every table of rotary frequencies in the decoder, [pairs]."""
    named = dict(parts.decoder(model).named_buffers())
    tables = [x.detach().float().cpu() for n, x in named.items() if n.endswith("inv_freq") and "original" not in n]
    if any(not bool(torch.isfinite(x).all()) for x in tables):
        raise KvattnError("its rotary frequencies are not finite; correct rope_parameters in its config.json")
    return tables


def _rotary(model, here: Sequence[Layer], there: Sequence[Layer], by: int) -> tuple[Rotary, Float[Tensor, " layers"]]:
    """The rotation that fits best, of all tables, styles and places in the head, and what is left of an error."""
    dim, tables = here[0].keys.shape[-1], _tables(model)  # type: ignore[union-attr]
    best: tuple[float, Rotary, Tensor] | None = None
    for pairs in sorted({len(x) for x in tables if 2 * len(x) <= dim}) or [1]:
        every = torch.stack([torch.zeros(pairs), *(x for x in tables if len(x) == pairs)])
        for interleaved in (False, True):
            for start in sorted({0, dim - 2 * pairs}):
                tried = [Rotary(row.expand(len(here), -1), interleaved, start) for row in every]
                errors = torch.stack([_moved(rotary, here, there, by) for rotary in tried])
                least, which = errors.min(0)
                if best is None or float(least.max()) < best[0]:
                    best = float(least.max()), Rotary(every[which], interleaved, start), least
    assert best is not None
    return best[1:]


def _moved(rotary: Rotary, here: Sequence[Layer], there: Sequence[Layer], by: int) -> Float[Tensor, " layers"]:
    """How far what every layer makes at positions 0, 1, ... and turns by `by` is from what it makes there: keys and
    queries turned, values as they are; the largest distance of a token's numbers, over the length of what they are."""
    worst = torch.zeros(len(here))
    for name in ("keys", "query", "values"):
        a, b = (torch.cat([getattr(x, name).float().cpu() for x in layers]) for layers in (here, there))
        at = torch.arange(a.shape[2])
        a = a if name == "values" else rotary.turn(a, at, at + by)
        off, own = (torch.linalg.vector_norm(x, dim=(1, 3)) for x in (a - b, b))  # [layers, tokens]
        # What is not finite says nothing here; the engine refuses it, naming where it begins.
        worst = torch.maximum(worst, (off / own.clamp_min(1e-12)).nan_to_num(0, 0).amax(1))
    return worst


# -- refusals ----------------------------------------------------------------------------------------------------------


def _refuse_moved(errors: Tensor, by: int, bound: float) -> None:
    wrong = torch.nonzero(~(errors <= bound))[:, 0].tolist()
    if wrong:
        raise KvattnError(
            f"moved by {by} positions, keys, values or queries of {_named(wrong)} of {len(errors)} are off by "
            f"{float(errors.max()):.0%} from those that were made before and turned, under every rotation that kvattn "
            f"knows; "
            f"{_others(wrong, len(errors))}"
        )


def _refuse(layers: Sequence[Layer], bad: Callable[[Layer], bool], what: str) -> None:
    """Raises KvattnError where a layer is bad, naming those that are and those that are not."""
    if wrong := [i for i, x in enumerate(layers) if bad(x)]:
        raise KvattnError(f"{_named(wrong)} of {len(layers)} {what}; {_others(wrong, len(layers))}")


def _others(wrong: Sequence[int], layers: int) -> str:
    right = [i for i in range(layers) if i not in wrong]
    return f"only {_named(right)} could be stitched" if right else "no layer could be stitched"


def _named(layers: Sequence[int]) -> str:
    """ "layers 0 to 2 and 4"."""
    runs = [[i for _, i in run] for _, run in groupby(enumerate(layers), lambda at: at[1] - at[0])]
    said = [x for run in runs for x in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run))]
    *most, last = said
    return ("layer " if len(layers) == 1 else "layers ") + (f"{', '.join(most)} and {last}" if most else last)
