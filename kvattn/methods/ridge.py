"""A linear map from one model's keys and values to another's, in closed form, from sums over paired tokens."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from kvattn.engine.engine import Engine
from kvattn.engine.plan import KVBlock
from kvattn.errors import KvattnError
from kvattn.files import read_json, write_atomically

FORMAT = "kvattn-map-1"
PARTS = ("keys", "values")


@dataclass(frozen=True)
class Fit:
    """For each of the judge's layers, a map from the agents' layers that say most of it.

    layers:    [layers, chosen], which of theirs
    weights:   [layers, chosen * their features, features]; features are heads times channels
    bias:      [layers, features]
    explained: share of the variance of the tokens that it was fit on
    """

    layers: Int[Tensor, "layers chosen"]
    weights: Float[Tensor, "layers inputs features"]
    bias: Float[Tensor, "layers features"]
    explained: float

    def __call__(self, theirs: Float[Tensor, "their_layers tokens their_features"]) -> Float[Tensor, ...]:
        """The judge's [layers, tokens, features]."""
        device, dtype = theirs.device, theirs.dtype
        chosen = rearrange(theirs.float()[self.layers.to(device)], "layer own token unit -> layer token (own unit)")
        made = torch.baddbmm(self.bias.to(device)[:, None], chosen, self.weights.to(device))
        return made.to(dtype)


class Sums:
    """What ridge regression needs to know of paired tokens: how many, and sums and products of their numbers."""

    def __init__(self) -> None:
        self.tokens = 0
        self._x = self._y = self._xx = self._xy = self._yy = torch.zeros((), dtype=torch.float64)
        self._shape = (0, 0, 0, 0)  # layers and features, theirs and the judge's

    def add(self, theirs: Float[Tensor, "their_layers tokens t"], own: Float[Tensor, "layers tokens f"]) -> None:
        """Count tokens in."""
        x, y = (rearrange(side, "layer token unit -> token (layer unit)").cpu().double() for side in (theirs, own))
        self._shape = (len(theirs), theirs.shape[-1], len(own), own.shape[-1])
        self.tokens += len(x)
        self._x, self._y, self._yy = self._x + x.sum(0), self._y + y.sum(0), self._yy + (y * y).sum(0)
        self._xx, self._xy = self._xx + x.T @ x, self._xy + x.T @ y

    def fit(self, chosen: int, ridge: float) -> Fit:
        """W = (X'X + ridge I)^-1 X'Y on centred numbers, layer by layer of the judge's, X being those `chosen` of their
        layers that explain most of it one by one."""
        n, (layers, units, own_layers, own_units) = self.tokens, self._shape
        xx = self._xx - torch.outer(self._x, self._x) / n
        xy = self._xy - torch.outer(self._x, self._y) / n
        total = (self._yy - self._y**2 / n).view(own_layers, own_units).sum(1)

        def solve(rows: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
            """The weights, and how much variance of each column they explain."""
            inner, cross = xx[rows][:, rows], xy[rows, columns]
            weights = torch.linalg.solve(inner + ridge * torch.eye(len(rows), dtype=inner.dtype), cross)
            return weights, (2 * weights * cross - weights * (inner @ weights)).sum(0)

        each = torch.arange(layers * units).view(layers, units)
        alone = [solve(rows, slice(None))[1].view(own_layers, own_units).sum(1) for rows in each]
        best = torch.stack(alone, 1).topk(chosen, 1).indices.sort(1).values
        weights, explained = [], 0.0
        for layer, rows in enumerate(each[best].flatten(1)):
            made, found = solve(rows, slice(layer * own_units, (layer + 1) * own_units))
            weights.append(made)
            explained += float(found.sum())
        w = torch.stack(weights)
        mean = torch.einsum("li,lio->lo", self._x[each[best].flatten(1)] / n, w)
        bias = self._y.view(own_layers, own_units) / n - mean
        return Fit(best, w.float(), bias.float(), explained / max(float(total.sum()), 1e-30))


@dataclass(eq=False)
class RidgeMap:
    """Of keys, with their rotation taken off, and of values; called, it is what turns agents' blocks into the judge's
    (`Blocks.made_by(agents, via=...)`).

    of:   what it holds for: the weights of agents and judge; the first pair says it
    how:  how it was solved: layers chosen, ridge
    fits: of keys and of values, once it was solved; sums: what is learned until then
    """

    of: dict[str, str | None] = field(default_factory=dict)
    how: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    fits: tuple[Fit, ...] = ()
    sums: tuple[Sums, Sums] = field(default_factory=lambda: (Sums(), Sums()))

    def add(self, theirs: KVBlock, own: KVBlock, agents: Engine, judge: Engine) -> None:
        """Count the tokens of one text in, as both models made them."""
        for sums, x, y in zip(self.sums, plain(theirs, agents), plain(own, judge), strict=True):
            sums.add(x, y)
        self.tokens = self.sums[0].tokens

    def solve(self, chosen: int, ridge: float) -> None:
        """Make the maps of what was counted, and forget it. Raises KvattnError for fewer tokens than numbers they are
        told from."""
        needed = chosen * self.sums[0]._shape[1] + 1
        if self.tokens < needed:
            raise KvattnError(
                f"a map from {chosen} layers has {needed} inputs, more than the {self.tokens} tokens it was shown; "
                "give more held-out questions (judge.warm, --heldout), or fewer layers (layers=)"
            )
        self.fits, self.how = tuple(s.fit(chosen, ridge) for s in self.sums), {"layers": chosen, "ridge": ridge}
        self.sums = (Sums(), Sums())

    def __call__(self, block: KVBlock, agents: Engine, judge: Engine) -> KVBlock:
        """The agents' block as the judge would have made it, at the same positions."""
        g = judge.geometry
        keys, values = (
            rearrange(fit(x), "layer token (head dim) -> layer head token dim", head=g.kv_heads)
            for fit, x in zip(self.fits, plain(block, agents), strict=True)
        )
        start = torch.zeros_like(block.positions)
        keys = judge.rotary.turn(keys.contiguous(), start, block.positions)
        return replace(block, keys=keys, values=values.contiguous(), source=f"{block.source}, mapped")

    @property
    def multiplications(self) -> int:
        """A token's."""
        return sum(fit.weights.numel() for fit in self.fits)

    def save(self, folder: Path, name: str) -> None:
        """Write NAME.json, which says what it is, and NAME.safetensors."""
        from safetensors.torch import save

        tensors = {
            f"{part}.{what}": getattr(fit, what).contiguous()
            for part, fit in zip(PARTS, self.fits, strict=True)
            for what in ("layers", "weights", "bias")
        }
        data = save(tensors)
        card = {"format": FORMAT, "of": self.of, "how": self.how, "tokens": self.tokens}
        card |= {"explained": [fit.explained for fit in self.fits], "sha256": hashlib.sha256(data).hexdigest()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / f"{name}.safetensors", data)
            write_atomically(folder / f"{name}.json", (json.dumps(card) + "\n").encode())
        except OSError as e:
            raise KvattnError(f"{folder} cannot be written ({e.strerror}); name a folder that can be written") from e

    def load(self, folder: Path, name: str) -> None:
        """Take over what `save` wrote. Raises KvattnError for files that are missing, damaged, or of another kind."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            card: Any = read_json(folder / f"{name}.json")
            data = (folder / f"{name}.safetensors").read_bytes()
            if card["format"] != FORMAT:
                raise ValueError(f"format {card['format']!r}")
            if hashlib.sha256(data).hexdigest() != card["sha256"]:
                raise ValueError(f"{name}.safetensors is not the file that {name}.json describes")
            held = load(data)
            self.fits = tuple(
                Fit(*(held[f"{part}.{what}"] for what in ("layers", "weights", "bias")), float(explained))
                for part, explained in zip(PARTS, card["explained"], strict=True)
            )
            self.of, self.how, self.tokens = dict(card["of"]), dict(card["how"]), int(card["tokens"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as e:
            raise KvattnError(f"cannot read the map {folder / name} ({e}); fit it again on held-out questions") from e


def plain(block: KVBlock, engine: Engine) -> tuple[Tensor, Tensor]:
    """Keys as they are without their rotation, and values, each [layers, tokens, heads * channels]."""
    keys = engine.rotary.turn(block.keys, block.positions, torch.zeros_like(block.positions))
    together = "layer head token dim -> layer token (head dim)"
    return rearrange(keys, together), rearrange(block.values, together)
