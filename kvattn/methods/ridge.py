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
    explained: share of the variance of the very tokens that it was fit on, so too much where they are few
    """

    layers: Int[Tensor, "layers chosen"]
    weights: Float[Tensor, "layers inputs features"]
    bias: Float[Tensor, "layers features"]
    explained: float

    def __call__(self, theirs: Float[Tensor, "their_layers tokens their_features"]) -> Float[Tensor, ...]:
        """The judge's [layers, tokens, features], in fp32."""
        device = theirs.device
        chosen = rearrange(theirs.float()[self.layers.to(device)], "layer own token unit -> layer token (own unit)")
        return torch.baddbmm(self.bias.to(device)[:, None], chosen, self.weights.to(device))


class Sums:
    """What ridge regression needs to know of paired tokens: how many, and sums and products of their numbers."""

    def __init__(self) -> None:
        self.tokens = 0
        self._x = self._y = self._xx = self._xy = self._yy = torch.zeros((), dtype=torch.float64)
        self._shape = (0, 0, 0, 0)  # layers and features, theirs and the judge's

    @property
    def units(self) -> int:
        """Numbers of one of their layers at a token; 0 where nothing was counted."""
        return self._shape[1]

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
            try:
                weights = torch.linalg.solve(inner + ridge * torch.eye(len(rows), dtype=inner.dtype), cross)
            except RuntimeError:  # torch's error for singular matrices is one
                raise KvattnError(f"tokens leave the map open under ridge={ridge}; raise it") from None
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
        spread = float(total.sum())
        return Fit(best, w.float(), bias.float(), min(1.0, explained / spread) if spread > 0 else 1.0)


@dataclass(eq=False)
class RidgeMap:
    """Of keys, with their rotation taken off, and of values; called, it is what turns agents' blocks into the judge's
    (`Blocks.made_by(agents, via=...)`).

    of:   what it holds for: the weights of agents and judge
    how:  how it was solved: layers chosen, ridge
    fits: of keys and of values, once it was solved; sums: what is counted until then
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

    def enough(self, chosen: int) -> bool:
        """Whether there were twice as many tokens as a map from so many layers has inputs."""
        return 0 < 2 * chosen * self.sums[0].units <= self.tokens

    def solve(self, chosen: int, ridge: float) -> None:
        """Make the maps of what was counted, and forget it. Raises KvattnError for too few tokens."""
        if not self.enough(chosen):
            wanted = 2 * chosen * self.sums[0].units
            raise KvattnError(
                f"a map from {chosen} layers wants {wanted} held-out tokens, twice its inputs, and was shown "
                f"{self.tokens}; give more held-out questions, or take fewer layers"
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
        keys = judge.rotary.turn(keys.contiguous(), torch.zeros_like(block.positions), block.positions)
        dtype = block.keys.dtype
        return replace(block, keys=keys.to(dtype), values=values.contiguous().to(dtype), mapped=True)

    def check(self, agents: Engine, judge: Engine) -> None:
        """Raises KvattnError for a map of other shapes than these models have."""
        theirs, own = (e.geometry.kv_heads * e.geometry.head_dim for e in (agents, judge))
        for fit in self.fits:
            layers, chosen = fit.layers.shape if fit.layers.dim() == 2 else (0, 0)
            sound = fit.layers.dtype == torch.long and bool(((fit.layers >= 0) & (fit.layers < agents.layers)).all())
            shapes = (tuple(fit.weights.shape), tuple(fit.bias.shape)) == (
                (layers, chosen * theirs, own),
                (layers, own),
            )
            if not (
                sound and shapes and layers == judge.layers and fit.weights.dtype == fit.bias.dtype == torch.float32
            ):
                raise KvattnError("the map is not one between models of these shapes; fit it again")

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

    def load(self, folder: Path, name: str, how: dict[str, float]) -> None:
        """Take over what `save` wrote. Raises KvattnError for files that are missing, damaged, of another kind, or
        solved in another way than `how`."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            card: Any = read_json(folder / f"{name}.json")
            if card["format"] != FORMAT:
                raise ValueError(f"format {card['format']!r}")
            data = (folder / f"{name}.safetensors").read_bytes()
            if hashlib.sha256(data).hexdigest() != card["sha256"]:
                raise ValueError(f"{name}.safetensors is not the file that {name}.json describes")
            held, of, tokens = load(data), dict(card["of"]), int(card["tokens"])
            if set(of) != {"agents", "judge"} or tokens < 1:
                raise ValueError("it does not say what it holds for")
            if card["how"] != how:
                raise ValueError(f"it was fit with {card['how']}, not {how}")
            fits = tuple(
                Fit(held[f"{part}.layers"], held[f"{part}.weights"], held[f"{part}.bias"], float(explained))
                for part, explained in zip(PARTS, card["explained"], strict=True)
            )
            if not all(bool(torch.isfinite(x).all()) for fit in fits for x in (fit.weights, fit.bias)):
                raise ValueError("numbers that are not finite")
            self.of, self.how, self.tokens, self.fits = of, how, tokens, fits
        except (OSError, ValueError, KeyError, TypeError, OverflowError, SafetensorError) as e:
            raise KvattnError(f"cannot read the map {folder / name} ({e}); fit it again on held-out questions") from e


def plain(block: KVBlock, engine: Engine) -> tuple[Tensor, Tensor]:
    """Keys as they are without their rotation, and values, each [layers, tokens, heads * channels] in fp32."""
    keys = engine.rotary.turn(block.keys.float(), block.positions, torch.zeros_like(block.positions))
    together = "layer head token dim -> layer token (head dim)"
    return rearrange(keys, together), rearrange(block.values.float(), together)
