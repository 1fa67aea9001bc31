"""The audit: what a cache holds at layer 0, token by token, and what its deeper layers were made behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kvattn.engine.audit import bottom, structure
from kvattn.engine.audit.bottom import distance
from kvattn.engine.audit.claims import Claims
from kvattn.engine.audit.structure import runs
from kvattn.engine.audit.verdict import Audit, Verdict, merged, named, side
from kvattn.engine.caches.memory import name_of

SHARE = 0.98  # of the rows of a layer, for it to be in its place


def audit(
    engine: Any,
    cache: Any,
    token_ids: Sequence[int] | Tensor | None = None,
    positions: Sequence[int] | Tensor | None = None,
    blocks: Mapping[str, tuple[int, int]] | None = None,
    claimed: Mapping[str, Sequence[int]] | None = None,
) -> Audit:
    """Hold a cache against the model.

    engine:    an engine, or a judge
    cache:     a block (`kvattn.caches`), a cache of transformers, or (keys, values) of every layer
    token_ids: what it claims to be the KV of (a block's own where none are given); its length may be another one
    positions: where the keys are claimed to stand (default: the block's own, or 0, 1, 2, ...)
    blocks:    by name, the tokens [start, stop) that are judged together (default: all as one)
    claimed:   by a block's name, the ids of the text that it was made behind (nothing: []); a block that is not named
               is claimed to be what the model computes at its place

    Raises KvattnError for a cache whose layers, heads or dtype are not the model's."""
    return _Auditor(getattr(engine, "engine", engine), cache, token_ids, positions, blocks, claimed).run()


class _Auditor(Claims):
    def run(self) -> Audit:
        began = self.engine.meter.token_layers
        self.measure()
        self._rounding()
        k, v = self.keys.float(), self.values.float()
        self._broken(k, v)
        k, v = k.nan_to_num(0, 0, 0), v.nan_to_num(0, 0, 0)
        k, v = self._bottom(k, v)
        verdicts = self._deep(k, v)
        share = (self.engine.meter.token_layers - began) / (len(self.ids) * self.engine.layers)
        told = tuple(self.found.tolist()), tuple(self.where.tolist()), tuple(self.at.tolist())
        return Audit(verdicts, *told, self.drift, self.noise, self.near, name_of(self.engine.dtype), share)

    def _rounding(self) -> None:
        on = structure.rounded(self.keys, self.values, self.here)
        if on:
            self.say("rounded", 0, len(self.ids), f"{named(on.layers)} hold numbers of {on.name}", on.layers)
            self.near = self.near.clamp_min(2 * on.off)

    def _broken(self, k: Tensor, v: Tensor) -> None:
        """Rows that are zero or not finite, by the layers that they are so in."""
        bad = ~(torch.isfinite(k) & torch.isfinite(v)).all(-1).all(1)
        zero = ((k == 0).all(-1).all(1) | (v == 0).all(-1).all(1)) & ~bad
        self.usable = ~(bad | zero)  # [layers, rows]
        for kind, what, mask in (("not-finite", "NaN or infinite", bad), ("zero", "zero", zero)):
            alike: dict[tuple[int, ...], list[int]] = {}
            for row in torch.nonzero(mask.any(0))[:, 0].tolist():
                alike.setdefault(tuple(torch.nonzero(mask[:, row])[:, 0].tolist()), []).append(row)
            for layers, rows in alike.items():
                for a, b in runs(rows):
                    self.say(kind, a, b, f"{named(layers)} are {what}", layers)

    def _bottom(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and positions by layer 0; keys and values with layers, heads and places mended as far as it says."""
        n, rows, near = len(self.ids), k.shape[2], float(self.near[0])
        likely = torch.cat([self.ids, *(torch.tensor(c, dtype=torch.long) for c in self.claimed.values())])
        if rows == n:
            k, v = self._mended(k, v, range(1))
        ok = self.usable[0]
        fits = distance(v[0], self.here[1][0]) <= near if rows == n else torch.zeros(rows, dtype=torch.bool)
        self.found = torch.where(fits, self.ids, bottom.UNKNOWN) if rows == n else torch.full((rows,), bottom.UNKNOWN)
        rest = torch.nonzero(~fits & ok)[:, 0]
        if len(rest):
            self.found[rest] = bottom.tokens(self.engine, v[0][:, rest], likely, near)
        strange = (self.found == bottom.UNKNOWN) & ok
        self.foreign = bool(strange.sum() > 0.5 * max(int(ok.sum()), 1))
        if self.foreign:
            self.place = torch.full((rows,), -1)
            self.where = torch.arange(rows)
            line = "layer 0 holds the values of no token: other weights, or an adapter"
            if rows == n:
                off = distance(v[0], self.here[1][0])[ok].median()
                line += f" ({float(off):.0%} off the claimed ones)"
            self.say("weights", 0, n, line)
            return k, v
        if rows == n:  # rows that cannot be read say nothing against the claim
            self.found = torch.where(ok, self.found, self.ids)
        changes, self.place = bottom.edits(self.ids.tolist(), self.found.tolist())
        for e in changes:
            self._edit(e)
        return self._positions(k), v

    def _edit(self, e: bottom.Edit) -> None:
        said = {
            "missing": f"{e.stop - e.start} tokens have no row",
            "doubled": f"{e.row_stop - e.row} rows repeat the tokens beside them (rows {e.row} to {e.row_stop - 1})",
            "extra": f"{e.row_stop - e.row} rows of other tokens stand before it ({self._names(e)})",
            "order": "the right tokens in another order",
            "token": f"rows of other tokens: {self._names(e)}",
        }
        start = min(e.start, len(self.ids) - 1)
        self.say(e.kind, start, max(e.stop, start + 1), said[e.kind])

    def _names(self, e: bottom.Edit) -> str:
        ids = self.found[e.row : e.row_stop].tolist()
        words = [repr(self.engine.tokenizer.decode([i])) if i >= 0 else "no token" for i in ids[:4]]
        return ", ".join(words) + (", ..." if len(ids) > 4 else "")

    def _positions(self, k: Tensor) -> Tensor:
        """Where each row's key was turned to, against where it is claimed to stand; the keys, at the model's length."""
        n, rows = len(self.ids), len(self.found)
        self.where = torch.arange(rows) if rows != n else self.at.clone()
        self.odd = torch.zeros(rows, dtype=torch.bool)  # rows whose keys are no rotation of their token's
        known = torch.nonzero((self.found != bottom.UNKNOWN) & self.usable[0])[:, 0]
        base = torch.where(self.place >= 0, self.at[self.place.clamp_min(0)], self.where)
        if not len(known):
            return k
        own, _ = bottom.first_layer(self.engine, self.found[known], base[known])
        near = float(self.near[0])
        said = bottom.turned(self.engine, k[0][:, known], own, base[known], near)
        self.where = base.clone()
        self.where[known] = said.positions
        off, long = said.off, (said.scale - 1).abs() > max(2 * near, 0.02)
        if bool(long.float().mean() > 0.5) and float(said.scale.std()) < 0.02 * float(said.scale.mean()):
            self.say(
                "scale", 0, n, f"keys {float(said.scale.mean()):.3f} times as long as the model's (a RoPE scaling)"
            )
            off = torch.where((off - (said.scale - 1).abs()).abs() <= near, 0.0, off)
            k = k / said.scale.mean()
        wrong = off > near
        if bool(wrong.any()):
            at = known[wrong]
            self.odd[at] = True
            name = bottom.frequencies(self.engine, k[0][:, at], own[:, wrong], base[at], near)
            line = {None: "keys are not this token's at any position", "others": "keys turned with other frequencies"}
            kind = "weights" if name is None else "frequencies"
            line = line.get(name, f"keys turned with other frequencies: those of {name}")
            for a, b in runs(at.tolist()):
                self.say(kind, *self._claims(a, b), line)
        moved = torch.nonzero((self.where != base) & (self.place >= 0) & ~self.odd)[:, 0].tolist()
        if not moved:
            return k
        shift, double = self.where - base, self.where == 2 * base
        if len(moved) > 2 and bool((self.where[moved] == 0).all()):
            self.say("unturned", *self._claims(moved[0], moved[-1] + 1), "keys were never turned")
        elif len(moved) > 2 and bool(double[moved].all()):
            self.say("turned-twice", *self._claims(moved[0], moved[-1] + 1), "keys were turned twice")
        else:
            for d in dict.fromkeys(shift[moved].tolist()):
                for a, b in runs([i for i in moved if int(shift[i]) == d]):
                    self.say("position", *self._claims(a, b), f"right text, keys {abs(d)} positions {side(d)}")
        return k

    def _claims(self, row: int, stop: int) -> tuple[int, int]:
        """Rows as claimed tokens."""
        inside = self.place[row:stop]
        inside = inside[inside >= 0]
        return (int(inside.min()), int(inside.max()) + 1) if len(inside) else (row, min(stop, len(self.ids)))

    def _mended(self, k: Tensor, v: Tensor, layers: range | list[int], rows: Tensor | None = None):
        """Keys and values put back where layers, heads or places are wrong against the dense pass, and said."""
        k, v = k.clone(), v.clone()
        n = k.shape[2]
        rows = torch.arange(n) if rows is None else rows
        ref = [x[:, :, rows] for x in self.here]
        for layer in layers:
            ok = self.usable[layer][rows]
            pair = [k[layer][:, rows], v[layer][:, rows]]
            near = float(self.near[layer])
            fine = [
                bool((distance(x, r[layer])[ok] <= near).float().mean() > SHARE) for x, r in zip(pair, ref, strict=True)
            ]
            if int(ok.sum()) < 3 or (fine[1] and (layer == 0 or fine[0])):
                continue
            from_v = structure.origin(pair[1], layer, ref[0], ref[1], ok, self.near)
            from_k = structure.origin(pair[0], layer, ref[0], ref[1], ok, self.near)
            if from_v is None:
                continue
            start, stop = int(rows[0]), int(rows[-1]) + 1
            plain_heads = tuple(range(k.shape[1]))
            if not from_v.values:
                self.say("swapped", start, stop, f"layer {layer} has its values in the place of keys", (layer,))
            elif from_v.layer != layer:
                self.say("layers", start, stop, f"layer {layer} holds what is layer {from_v.layer}'s", (layer,))
            elif from_v.late:
                d = from_v.late
                self.say("late", start, stop, f"layer {layer} holds its rows {abs(d)} tokens {side(d)}", (layer,))
            elif from_v.heads != plain_heads or (from_k and from_k.heads != plain_heads):
                self.say(
                    "heads", start, stop, f"layer {layer} has its heads in the order {list(from_v.heads)}", (layer,)
                )
            else:
                continue
            k[layer][:, rows], v[layer][:, rows] = ref[0][layer], ref[1][layer]
        return k, v

    # -- deeper layers -------------------------------------------------------------------------------------------------

    def _deep(self, k: Tensor, v: Tensor) -> tuple[Verdict, ...]:
        """A verdict a block: which reference it fits, in which layers it does not."""
        self.drift = torch.zeros(k.shape[0], k.shape[2])
        if not self.foreign and k.shape[2] == len(self.ids):
            off = distance(v, self.here[1]) > self.near[:, None]
            k, v = self._mended(k, v, [i for i in range(1, len(off)) if bool(off[i].float().mean() > 0.5)])
        out = []
        for name, (start, stop) in self.spans.items():
            rows = torch.nonzero((self.place >= start) & (self.place < stop))[:, 0]
            made, off = "unknown", float("nan")
            if len(rows) and not self.foreign:
                made, off = self._block(name, start, stop, rows, k, v)
            mine = [f for f in self.faults if f.start < stop and f.stop > start]
            mine = tuple(replace(f, start=max(f.start, start), stop=min(f.stop, stop)) for f in mine)
            out.append(Verdict(name, start, stop, made, off, float(self.noise.max()), merged(mine)))
        return tuple(out)

    def _block(self, name: str, start: int, stop: int, rows: Tensor, k: Tensor, v: Tensor) -> tuple[str, float]:
        at, where = self.place[rows], self.where[rows]
        mine = k[:, :, rows]
        usable = self.usable[:, rows]
        odd = self.odd[rows]

        def drift(ref: tuple[Tensor, Tensor], first: int, from_: Tensor) -> Tensor:
            theirs = self.engine.rotary.turn(ref[0][:, :, at - first], from_[at - first], where)
            a, b = distance(mine, theirs), distance(v[:, :, rows], ref[1][:, :, at - first])
            return torch.where(odd, b, torch.maximum(a, b)) * usable

        references = {"here": drift(self.here, 0, self.at)}
        best = references["here"]
        if self._fits(best) and name not in self.claimed:
            self.drift[:, rows] = best
            return "here", float(best.max())
        if self.claimed.get(name):
            before = torch.tensor(self.claimed[name])
            ids, cut = torch.cat([before, self.ids[start:stop]]), len(before)
            made = self.dense(ids, torch.arange(len(ids)))
            tail = tuple(x[:, :, cut:] for x in made)
            references["claimed"] = drift(tail, start, torch.arange(cut, len(ids)))  # type: ignore[arg-type]
        if start or name in self.claimed:
            alone = self.dense(self.ids[start:stop], self.at[start:stop])
            references["alone"] = drift(alone, start, self.at[start:stop])
        want = "here" if name not in self.claimed else ("claimed" if self.claimed[name] else "alone")
        for made in dict.fromkeys([want, *references]):
            if self._fits(references[made]):
                self.drift[:, rows] = references[made]
                if made != want:
                    word = {"here": "the prompt before it", "alone": "nothing, as a text of its own"}
                    line = word.get(made, "the claimed prompt")
                    self.say("prefix", start, stop, f"right text, made behind {line}")
                return made, float(references[made].max())
        best = references[want]
        self.drift[:, rows] = best
        return self._unfit(best, want, rows, start, stop, k, v)

    def _fits(self, drift: Tensor) -> bool:
        return bool((drift <= self.near[:, None]).all())

    def _unfit(self, best, want, rows, start, stop, k, v) -> tuple[str, float]:
        """Why no reference fits: layers out of place, other weights further up, or another text before."""
        wrong = best > self.near[:, None]
        layers = torch.nonzero(wrong.any(1))[:, 0].tolist()
        if len(self.place) == len(self.ids):
            before = len(self.faults)
            self._mended(k, v, [x for x in layers if x > 0], rows)
            if len(self.faults) > before:
                told = {x for f in self.faults[before:] for x in f.layers}
                layers = [x for x in layers if x not in told]
                if not layers:
                    return want, float(best.max())
        known = {x for f in self.faults if f.kind in ("zero", "not-finite", "layers", "late") for x in f.layers}
        layers = [x for x in layers if x not in known] or layers
        lowest, off = min(layers), float(best[layers].amax())
        tokens = torch.nonzero(wrong[layers].any(0))[:, 0]
        a, b = self._claims(int(rows[tokens[0]]), int(rows[tokens[-1]]) + 1)
        first = int(self.place[rows[0]]) == 0 and bool(wrong[:, 0].any()) and int(self.at[0]) == 0
        if first or len(tokens) == 0:
            self.say("weights", a, b, f"other weights than the model's from layer {lowest} on ({off:.0%} off)", layers)
            return "another model", off
        what = "right text, made behind another one" if lowest else "other weights, or another text"
        self.say("prefix", a, b, f"{what}: {off:.0%} off from layer {lowest} on", layers)
        return "another text", off
