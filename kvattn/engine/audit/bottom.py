"""Layer 0 is free of context: its values are a function of the token alone, its keys of token and position. So what a
cache holds there can be said exactly, token by token."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from kvattn.engine.engine import Engine
from kvattn.engine.layout import PromptLayout, join
from kvattn.engine.plan import KVPlan
from kvattn.engine.rotary import Rotary

AT_ONCE = 512  # tokens of a pass over the vocabulary
FARTHEST = 32768  # positions that are looked for
UNKNOWN = -1  # the id of a row that is no token's


def plain(ids: Sequence[int] | Tensor) -> PromptLayout:
    """Ids as a layout of one segment."""
    return join([("prefix", None, torch.as_tensor(ids).tolist())], ())


def first_layer(engine: Engine, ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [kv heads, tokens, dim] of layer 0, whatever stands before, on the CPU in fp32."""
    parts = []
    for at in range(0, len(ids), AT_ONCE):
        layout = replace(plain(ids[at : at + AT_ONCE]), positions=positions[at : at + AT_ONCE])
        plan = KVPlan.of(layout, engine.layers, torch.full((len(layout),), engine.layers))
        keys, values = engine.probe(plan, 1).cache()
        parts.append((keys[0].float().cpu(), values[0].float().cpu()))
    return torch.cat([k for k, _ in parts], 1), torch.cat([v for _, v in parts], 1)


def distance(x: Float[Tensor, "*layers heads tokens dim"], of: Tensor) -> Float[Tensor, "*layers tokens"]:
    """How far rows are from others, over the norm of those."""
    return (x - of).norm(dim=(-3, -1)) / of.norm(dim=(-3, -1)).clamp_min(1e-12)


def tokens(
    engine: Engine, values: Float[Tensor, "heads rows dim"], likely: Tensor, near: float
) -> Int[Tensor, " rows"]:
    """The token whose values stand in each row of layer 0: of the likely ids if they fit, else of the vocabulary."""
    found = torch.full((values.shape[1],), UNKNOWN)
    vocabulary = torch.arange(engine.model.config.vocab_size)
    for ids in (likely.unique(), vocabulary):
        for at in range(0, len(ids), AT_ONCE):
            open_ = torch.nonzero(found == UNKNOWN)[:, 0]
            if not len(open_):
                return found
            some = ids[at : at + AT_ONCE]
            _, table = first_layer(engine, some, torch.arange(len(some)))
            flat, rows = table.transpose(0, 1).flatten(1), values[:, open_].transpose(0, 1).flatten(1)
            best = flat[(nearest := torch.cdist(rows, flat).argmin(1))]  # by products: right, but not exact
            off = (rows - best).norm(dim=-1) / best.norm(dim=-1).clamp_min(1e-12)
            found[open_] = torch.where(off <= near, some[nearest], UNKNOWN)
    return found


@dataclass(frozen=True)
class Edit:
    """Claimed tokens [start, stop) against the rows [row, row_stop) that a cache has in their place.

    kind: "missing", "doubled", "extra", "order", or "token"
    """

    kind: str
    start: int
    stop: int
    row: int
    row_stop: int


def edits(claimed: list[int], found: list[int]) -> tuple[list[Edit], Int[Tensor, " rows"]]:
    """How the rows differ from what is claimed, and the claimed index of each row (-1 for rows that have none)."""
    place = torch.full((len(found),), -1)
    if len(claimed) == len(found):
        wrong = [i for i, (a, b) in enumerate(zip(claimed, found, strict=True)) if a != b]
        if not wrong:
            return [], torch.arange(len(found))
        if sorted(claimed[i] for i in wrong) == sorted(found[i] for i in wrong):
            place = torch.arange(len(found))
            place[wrong] = -1
            return [Edit("order", wrong[0], wrong[-1] + 1, wrong[0], wrong[-1] + 1)], place
    out = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, claimed, found, autojunk=False).get_opcodes():
        if tag == "equal":
            place[c:d] = torch.arange(a, b)
            continue
        n = d - c
        again = tag == "insert" and found[c:d] in (found[max(c - n, 0) : c], found[d : d + n])
        kind = {"delete": "missing", "insert": "doubled" if again else "extra", "replace": "token"}[tag]
        out.append(Edit(kind, a, b, c, d))
    return out, place


# -- keys --------------------------------------------------------------------------------------------------------------


def pairs(keys: Float[Tensor, "heads tokens dim"], rotary: Rotary) -> Complex[Tensor, "heads tokens pairs"]:
    """The dimensions that turn, as complex numbers."""
    first, second = rotary.halves
    return torch.complex(keys[..., first].double(), keys[..., second].double())


@dataclass(frozen=True)
class Turned:
    """What layer 0's keys say.

    positions: [rows], where each row's key was turned to; the claimed one where none fits
    off:       [rows], how far the key is from the model's own there
    scale:     [rows], its length over the model's
    """

    positions: Int[Tensor, " rows"]
    off: Float[Tensor, " rows"]
    scale: Float[Tensor, " rows"]


def turned(engine: Engine, keys: Tensor, own: Tensor, claimed: Int[Tensor, " rows"], near: float) -> Turned:
    """Where keys [kv heads, rows, dim] of layer 0 were turned to, given the model's `own` at the claimed positions."""
    rotary = replace(engine.rotary, inv_freq=engine.rotary.inv_freq[:1])
    most = engine.geometry.max_tokens or FARTHEST
    positions, off = claimed.clone(), distance(keys, own)
    scale = keys.norm(dim=(0, 2)) / own.norm(dim=(0, 2)).clamp_min(1e-12)
    theta = rotary.inv_freq[0].double()
    reach = max(min(most, FARTHEST), 2 * int(claimed.max()) + 1)
    angles = torch.outer(torch.arange(reach).double(), theta)
    turns = torch.polar(torch.ones_like(angles), -angles).T  # [pairs, positions]
    for rows in torch.nonzero(off > near)[:, 0].split(256):
        a, b = pairs(own[:, rows], rotary), pairs(keys[:, rows], rotary)
        shared = (a.conj() * b).sum(0) * torch.polar(torch.ones(1).double(), claimed[rows, None] * theta)
        best = (shared @ turns).real.argmax(1)
        there = rotary.turn(own[None, :, rows], claimed[rows], best)[0]
        fits = distance(keys[:, rows] / scale[rows, None], there) <= near
        positions[rows] = torch.where(fits, best, claimed[rows])
        off[rows] = torch.where(fits, distance(keys[:, rows], there), off[rows])
    return Turned(positions, off, scale)


def frequencies(engine: Engine, keys: Tensor, own: Tensor, claimed: Tensor, near: float) -> str | None:
    """Which other RoPE turned these rows of keys, None where none that is tried explains them all: the usual bases,
    with and without the usual linear factors; "others" where they are a rotation all the same."""
    theta, n = engine.rotary.inv_freq[0].double(), engine.rotary.inv_freq.shape[1]
    a, b = pairs(own, engine.rotary), pairs(keys, engine.rotary)
    rest = [x[..., engine.rotary.still(x.shape[-1])] for x in (keys, own)]
    same = (a.abs() - b.abs()).norm() <= near * a.abs().norm()
    if not same or (rest[0] - rest[1]).norm() > near * own.norm():
        return None
    at = claimed.double()[:, None]
    for base in sorted({10000.0, 500000.0, 1000000.0, *_bases(engine)}):
        plain_ = base ** (-torch.arange(n).double() / n)
        for factor in (1, 2, 4, 8, 16, 32):
            other = a * torch.polar(torch.ones(1).double(), at * (plain_ / factor - theta))
            if (other - b).norm() <= 2 * near * b.abs().norm():
                return f"base {base:g}" + (f", positions divided by {factor}" if factor > 1 else ", without scaling")
    return "others"


def _bases(engine: Engine) -> set[float]:
    said = getattr(engine.model.config, "rope_parameters", None) or {}
    many = [said, *(v for v in said.values() if isinstance(v, dict))]
    return {float(x["rope_theta"]) for x in many if x.get("rope_theta")}
