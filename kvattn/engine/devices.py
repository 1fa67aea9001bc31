"""Models whose layers lie on several devices, or on the disk until they run (accelerate's hooks)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn


class Everywhere:
    """A tensor that steers a pass, known on the CPU, and its copies on the devices that asked for it."""

    def __init__(self, own: Tensor) -> None:
        self.own = own
        self._copies: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """The tensor on that device, copied there once."""
        if device not in self._copies:
            self._copies[device] = self.own.to(device)
        return self._copies[device]


def stacked(by_layer: list[Tensor], dim: int = 0) -> Tensor:
    """One tensor of all layers, on the first one's device."""
    return torch.stack([x.to(by_layer[0].device) for x in by_layer], dim)


def runs_on(module: nn.Module) -> torch.device:
    """The device that a module with weights runs on: theirs, or the one that they are fetched to."""
    hook = getattr(module, "_hf_hook", None)
    where = getattr(hook, "execution_device", None)
    return next(module.parameters()).device if where is None else torch.device(where)


@contextmanager
def at_hand(module: nn.Module, alone: bool = False) -> Iterator[None]:
    """Its weights, and unless `alone` those of all in it, are there until the block ends, fetched where they lie on the
    disk."""
    with ExitStack() as stack:
        for part in (module,) if alone else module.modules():
            if any(p.is_meta for p in part.parameters(recurse=False)):
                stack.enter_context(align_module_device(part))
        yield
