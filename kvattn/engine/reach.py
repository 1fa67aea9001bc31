"""What was learned for a plan's computed tokens: a LoRA that acts on some of them, and embeddings of link tokens.

Nothing here touches a kept token: blocks are made by the base model, and an adapter reaches computed tokens alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kvattn.engine import parts
from kvattn.errors import KvattnError

if TYPE_CHECKING:
    from kvattn.engine.layout import PromptLayout


@dataclass(frozen=True, eq=False)
class Adapter:
    """Learned numbers, in float32.

    lora:  by linear module of the decoder ("layers.3.self_attn.q_proj"), down [rank, in] and up [out, rank]: the
           module's output gets scale * up @ down @ input added (Hu et al., arXiv 2106.09685)
    links: [links, hidden], the embeddings of a slot's link tokens, the same in every slot; None: those of their ids
    scale: alpha / rank
    """

    lora: Mapping[str, tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]] = field(default_factory=dict)
    links: Float[Tensor, "links hidden"] | None = None
    scale: float = 1.0

    def tensors(self) -> dict[str, Tensor]:
        """All numbers by name."""
        out = {f"{name}.{which}": t for name, pair in self.lora.items() for which, t in zip(PAIR, pair, strict=True)}
        return out if self.links is None else {**out, LINKS: self.links}

    @staticmethod
    def of(tensors: Mapping[str, Tensor], scale: float) -> Adapter:
        """The adapter that `tensors` gives. Raises KeyError for a pair that lacks one."""
        names = sorted({name.rpartition(".")[0] for name in tensors if name != LINKS})
        lora = {name: (tensors[f"{name}.{PAIR[0]}"], tensors[f"{name}.{PAIR[1]}"]) for name in names}
        return Adapter(lora, tensors.get(LINKS), scale)

    def check(self, decoder: nn.Module) -> None:
        """Raises KvattnError, naming the module, where the adapter does not fit the decoder."""
        modules = dict(decoder.named_modules())
        for name, (down, up) in self.lora.items():
            module = modules.get(name)
            if not isinstance(module, nn.Linear):
                raise KvattnError(f"the adapter acts on {name}, which is no linear module of this model; take its own")
            shapes = (down.shape[1], up.shape[0])
            if shapes != (module.in_features, module.out_features) or down.shape[0] != up.shape[1]:
                raise KvattnError(f"the adapter's shapes do not fit {name} of this model; take the model it is of")


PAIR, LINKS = ("down", "up"), "links"


@dataclass(frozen=True)
class Reach:
    """An adapter and the computed tokens [tokens] that its LoRA acts on. Its link embeddings stand at every link token.

    (Activated LoRA, arXiv 2504.12397, acts on the tokens after an invocation; here a plan says on which.)"""

    adapter: Adapter
    tokens: Bool[Tensor, " tokens"]

    def at(self, tokens: Bool[Tensor, " tokens"]) -> Reach:
        """The same adapter on those of its tokens that are among these."""
        return replace(self, tokens=self.tokens & tokens)


def link_numbers(layout: PromptLayout) -> Tensor:
    """[tokens], for a link token its place within its slot's, -1 for every other."""
    out = torch.full((len(layout),), -1)
    for s in layout.each("link"):
        out[s.start : s.stop] = torch.arange(s.length)
    return out


@contextmanager
def adapted(model, current) -> Iterator[None]:
    """The model as the plans of the pass `current` have it: their adapter, gated to their tokens."""
    handles, adapter = [], current.adapter
    if adapter is not None:
        if adapter.links is not None:
            handles.append(model.get_input_embeddings().register_forward_hook(partial(_link, current, adapter.links)))
        modules = dict(parts.decoder(model).named_modules())
        for name, (down, up) in adapter.lora.items():
            handles.append(modules[name].register_forward_hook(partial(_lora, current, down, up, adapter.scale)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _lora(current, down: Tensor, up: Tensor, scale: float, _module, args: tuple, output: Tensor) -> Tensor:
    where = output.device
    acts = torch.gather(current.reach.on(where), 1, current.index.on(where))[..., None]
    down, up = down.to(where), up.to(where)
    change = scale * ((args[0].to(where, down.dtype) @ down.T) @ up.T)
    return torch.where(acts, output + change.to(output.dtype), output)


def _link(current, links: Tensor, _module, _args: tuple, output: Tensor) -> Tensor:
    where = output.device
    number = torch.gather(current.links.on(where), 1, current.index.on(where))
    learned = links.to(where, output.dtype)[number.clamp_min(0)]
    return torch.where((number >= 0)[..., None], learned, output)
