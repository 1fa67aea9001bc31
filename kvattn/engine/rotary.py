"""The rotation that a model gives its keys, and how keys are turned from one position to another."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

AT_ONCE = 2**18  # numbers that are turned at once: what is between stays in a core's cache


@dataclass(frozen=True)
class Rotary:
    """The model's own rotary frequencies: inv_freq [layers, pairs] in fp32, zeros for a layer that does not rotate;
    2 * pairs of the head's dimensions turn.

    interleaved: the two dimensions of a pair stand side by side (GPT-J), not half of the rotary part apart (NeoX)
    start:       the first dimension that turns
    """

    inv_freq: Float[Tensor, "layers pairs"]
    interleaved: bool = False
    start: int = 0

    def of(self, layers: slice) -> Rotary:
        """Of these layers alone."""
        return replace(self, inv_freq=self.inv_freq[layers])

    def turns_as(self, other: Rotary) -> bool:
        """Whether keys that one turned the other can turn on."""
        same = (self.interleaved, self.start) == (other.interleaved, other.start)
        return same and torch.equal(self.inv_freq.cpu(), other.inv_freq.cpu())

    @property
    def halves(self) -> tuple[slice, slice]:
        """The dimensions of a head that are the first of their pairs, and the second ones."""
        pairs, stop = self.inv_freq.shape[-1], self.start + 2 * self.inv_freq.shape[-1]
        if self.interleaved:
            return slice(self.start, stop, 2), slice(self.start + 1, stop, 2)
        return slice(self.start, self.start + pairs), slice(self.start + pairs, stop)

    def still(self, dim: int) -> list[int]:
        """The dimensions of a head of `dim` that do not turn."""
        return [*range(self.start), *range(self.start + 2 * self.inv_freq.shape[-1], dim)]

    def turn(
        self,
        keys: Float[Tensor, "layers heads tokens dim"],
        before: Int[Tensor, " tokens"],
        after: Int[Tensor, " tokens"],
    ) -> Float[Tensor, "layers heads tokens dim"]:
        """Keys moved from the positions `before` to `after`. Only the angle changes: a scaling of the cosines (YaRN)
        that the keys already carry stays as it is."""
        if torch.equal(before, after):
            return keys
        out, (own, other) = keys.clone(), (x.to(keys.device) for x in self.angles(before, after))
        step = max(1, AT_ONCE // max(1, keys[:1].numel()))
        for some in (slice(at, at + step) for at in range(0, len(keys), step)):
            self.turn_(out[some], *((own, other) if len(own) == 1 else (own[some], other[some])))
        return out

    def angles(
        self, before: Int[Tensor, " tokens"], after: Int[Tensor, " tokens"]
    ) -> tuple[Float[Tensor, "layers 1 tokens turning"], Float[Tensor, "layers 1 tokens turning"]]:
        """Of the move from `before` to `after`, for every dimension that turns: its own share in what it becomes, and
        its partner's. In fp32 on the CPU; of one layer where all turn alike."""
        same = bool((self.inv_freq == self.inv_freq[:1]).all())  # most models do
        frequencies = self.inv_freq[:1] if same else self.inv_freq
        angle = (_angles(after, frequencies) - _angles(before, frequencies))[:, None]
        cos, sin = angle.cos().float(), angle.sin().float()
        at = -1 if self.interleaved else -2
        return torch.stack([cos, cos], at).flatten(-2), torch.stack([-sin, sin], at).flatten(-2)

    def turn_(self, keys: Float[Tensor, "*layers heads tokens dim"], own: Tensor, partner: Tensor) -> None:
        """Turn keys where they are, by what `angles` gave."""
        pairs = self.inv_freq.shape[-1]
        turning = keys[..., self.start : self.start + 2 * pairs]
        x = turning.float()
        other = x.unflatten(-1, (pairs, 2)).flip(-1).flatten(-2) if self.interleaved else x.roll(pairs, -1)
        turning.copy_(x.mul_(own).addcmul_(other, partner))  # in fp32 that is where they are already


def _angles(positions: Tensor, frequencies: Tensor) -> Float[Tensor, "layers tokens pairs"]:
    """The angles by which a model turns its keys, as it computes them: products in fp32. Far out their rounding weighs,
    so the difference of two positions' angles is taken of these (in fp64), and not computed from the distance."""
    positions = positions.to(frequencies.device, torch.float32)
    return einsum(positions, frequencies.float(), "token, layer pair -> layer token pair").double()
