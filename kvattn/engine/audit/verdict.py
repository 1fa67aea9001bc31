"""What an audit says: faults, a verdict a block, and everything that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from kvattn.engine.audit.structure import runs
from kvattn.text import plain as jsonable


@dataclass(frozen=True)
class Fault:
    """What is wrong with tokens [start, stop) in some layers (none named: in all), in a word and in a line.

    kind: one of `KINDS`
    """

    kind: str
    start: int
    stop: int
    line: str
    layers: tuple[int, ...] = ()

    def __str__(self) -> str:
        where = "token" if self.stop == self.start + 1 else "tokens"
        span = f"{where} {self.start}" + (f" to {self.stop - 1}" if self.stop > self.start + 1 else "")
        return f"{span}: {self.line}"


KINDS = {
    "missing": "tokens that the cache has no row of",
    "doubled": "tokens that it has twice",
    "extra": "rows of tokens that nobody claims",
    "order": "the right tokens in another order",
    "token": "rows of other tokens",
    "position": "keys turned to other positions",
    "unturned": "keys that were never turned",
    "turned-twice": "keys turned twice",
    "frequencies": "keys turned with other frequencies",
    "scale": "keys of another length",
    "zero": "rows that are zero",
    "not-finite": "NaN or infinity",
    "swapped": "values in the place of keys",
    "heads": "heads in another order",
    "layers": "layers in another order",
    "late": "rows of some layers shifted against the others",
    "rounded": "numbers of a coarser format",
    "weights": "other weights than the model's",
    "prefix": "made behind another text",
}


@dataclass(frozen=True)
class Verdict:
    """A block's: what it was made behind ("here": the prompt before it; "alone": nothing; "claimed": the claimed
    prompt; "another text"; "another model"; "unknown" where layer 0 says that it is not this text), and its faults.

    off: the largest distance from that reference, over its norm; noise: what rounding alone makes, measured
    """

    name: str
    start: int
    stop: int
    made: str
    off: float
    noise: float
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        if self.faults:
            return "\n".join(f"{self.name}: {f}" for f in self.faults)
        word = {"here": "what the model computes here", "alone": "what the text alone gives"}.get(self.made)
        word = word or "what the claimed prompt gives"
        return (
            f"{self.name}: tokens {self.start} to {self.stop - 1}: {word} ({self.off:.1e} off, noise {self.noise:.1e})"
        )


@dataclass(frozen=True)
class Audit:
    """What a cache holds.

    blocks:    a verdict each
    found:     [rows], the token whose values stand in each row (-1: none)
    positions: [rows], where its key was turned to
    claimed:   [tokens], where the claimed tokens are said to stand
    drift:     [layers, rows], how far keys or values are from the best reference of their block, over its norm
    noise:     [layers], the same between two ways of computing one thing
    near:      [layers], how far a row may be off for rounding
    share:     token-layers that the audit computed over those of a dense pass
    """

    blocks: tuple[Verdict, ...]
    found: tuple[int, ...]
    positions: tuple[int, ...]
    claimed: tuple[int, ...]
    drift: Float[Tensor, "layers rows"] = field(repr=False)
    noise: Float[Tensor, " layers"] = field(repr=False)
    near: Float[Tensor, " layers"] = field(repr=False)
    dtype: str = ""
    share: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every block is what is claimed."""
        return not any(b.faults for b in self.blocks)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of all faults, each once."""
        return tuple(dict.fromkeys(f.kind for b in self.blocks for f in b.faults))

    def __str__(self) -> str:
        return "\n".join(map(str, self.blocks))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        told = {"format": "kvattn-audit-1", "passed": self.passed, "blocks": [asdict(b) for b in self.blocks]}
        told |= {"found": self.found, "positions": self.positions, "drift": self.drift.numpy()}
        return jsonable(
            told | {"noise": self.noise.numpy(), "near": self.near.numpy(), "dtype": self.dtype, "share": self.share}
        )


def merged(faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
    """Faults of one kind and span as one, their layers together."""
    out: dict[tuple, Fault] = {}
    for f in faults:
        key = (f.kind, f.start, f.stop)
        if key in out and f.layers:
            layers = tuple(sorted({*out[key].layers, *f.layers}))
            line = f"{named(layers)}: {KINDS[f.kind]}"
            out[key] = replace(out[key], layers=layers, line=line)
        else:
            out.setdefault(key, f)
    return tuple(out.values())


def named(layers: Sequence[int]) -> str:
    """ "layers 2 to 4, 7"."""
    said = [str(a) if b == a + 1 else f"{a} to {b - 1}" for a, b in runs(sorted(layers))]
    return f"layer{'' if len(layers) == 1 else 's'} {', '.join(said)}"


def side(d: int) -> str:
    """Which side of its place a row stands that is off by d."""
    return "late" if d > 0 else "early"
