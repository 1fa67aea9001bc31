"""A second device for machines that have one: tensors on the CPU that say they lie elsewhere, and meet no others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("away")
AWAY = torch.device("away:0")
BOTH = ("_to_copy", "copy_", "index")  # what takes tensors of both devices: copies, and an index from the CPU


class Away(Tensor):
    """A tensor that says it is on `AWAY`."""

    @staticmethod
    def __new__(cls, held: Tensor) -> Away:
        """`held` under another device's name."""
        how = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype, "device": AWAY}
        return torch.Tensor._make_wrapper_subclass(cls, held.size(), **how)  # type: ignore[attr-defined]

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """SDPA looks at the device before anything can be dispatched."""
        with torch._C.DisableTorchFunctionSubclass():
            if func is F.scaled_dot_product_attention:
                _together(func, (args, kwargs))
                return Away(func(*_held(args), **_held(kwargs or {})))
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """The operation on the CPU."""
        return _computed(func, args, kwargs or {})


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor:  # it asks the device for memory before anything can be dispatched
            return func(*args, **{**kwargs, "device": "cpu"}).to(kwargs.get("device", "cpu"))
        return func(*args, **kwargs)


@contextmanager
def two_devices() -> Iterator[None]:
    """`AWAY` is there until the block ends."""
    with _Functions(), _Operations():
        yield


def _held(tree):
    return tree_map(lambda x: x.held if isinstance(x, Away) else x, tree)


def _together(func, given) -> bool:
    """Whether they lie away. Raises RuntimeError, as a GPU does, for tensors that do not lie together."""
    tensors = [x for x in tree_leaves(given) if isinstance(x, Tensor)]
    away = [x for x in tensors if isinstance(x, Away)]
    if away and any(x.dim() for x in tensors if not isinstance(x, Away)):
        raise RuntimeError(f"{func} was given tensors on two devices")
    return bool(away)


def _computed(func, args, kwargs):
    name = func.overloadpacket.__name__
    away = isinstance(args[0], Away) if name in BOTH else _together(func, (args, kwargs))
    asked = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.device)]
    args_here, kwargs_here = tree_map(
        lambda x: torch.device("cpu") if isinstance(x, torch.device) else x, _held((args, kwargs))
    )
    made = func(*args_here, **kwargs_here)
    if not (asked[0].type == AWAY.type if asked else away):
        return made
    out = tree_map(lambda x: Away(x) if isinstance(x, Tensor) else x, made)
    return return_and_correct_aliasing(func, args, kwargs, out) if away else out
