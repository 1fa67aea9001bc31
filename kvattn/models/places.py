"""Where a model's weights go: a device, or several, or the disk."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvattn.errors import KvattnError, unknown
from kvattn.files import cache_root

if TYPE_CHECKING:
    import torch
    from torch import nn

DeviceMap = str | Mapping[str, str | int]  # one of NAMED, or by module its device; "disk" is one
NAMED = ("auto", "balanced", "balanced_low_0", "sequential")  # accelerate's words for "you know best"
_FOLDERS: list[tempfile.TemporaryDirectory] = []  # what was written anew for the disk; gone with the process


def find(name: str) -> torch.device:
    """The device of that name. Raises KvattnError for one that is not there."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise KvattnError(f"{name!r} names no device; use cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise KvattnError(
            f"device {name!r} is not there: torch sees {count} CUDA devices; use cpu or another torch build"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise KvattnError("device 'mps' is not there; use cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise KvattnError(f"device {name!r} is not supported; use cpu, cuda, cuda:N or mps")
    return device


def checked(device_map: DeviceMap, device: str) -> DeviceMap:
    """The map, its devices by name. Raises KvattnError for one that no model could be spread by."""
    if device != "cpu":
        raise KvattnError(f"device {device!r} and a device map: the map says it all; leave the device out")
    if isinstance(device_map, str):
        if device_map not in NAMED:
            raise unknown("device map", device_map, NAMED)
        return device_map
    if not isinstance(device_map, Mapping) or not device_map:
        raise KvattnError(f"{device_map!r:.60} is no device map; give auto, or a device for every module")
    named = {str(module): f"cuda:{x}" if isinstance(x, int) else str(x) for module, x in device_map.items()}
    kinds = {find(x).type for x in named.values() if x != "disk"}
    if not kinds:
        raise KvattnError("a device map with the disk alone; something has to compute: give one module a device")
    return named


def first(device_map: DeviceMap) -> torch.device:
    """A device that will compute."""
    import torch

    if isinstance(device_map, str):
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    return find(str(next(x for x in device_map.values() if x != "disk")))


def options(folder: Path, device_map: DeviceMap) -> dict[str, Any]:
    """What `from_pretrained` is to be told. Raises KvattnError for a module that the model in `folder` lacks, and where
    one is left out."""
    if not isinstance(device_map, str):
        device_map = _apart(_blank(folder), device_map)
    root = cache_root() / "offloaded"
    root.mkdir(parents=True, exist_ok=True)
    _FOLDERS.append(tempfile.TemporaryDirectory(dir=root))  # experts are written anew; all else is read where it lies
    return {"device_map": device_map, "offload_folder": _FOLDERS[-1].name}


def _blank(folder: Path) -> nn.Module:
    """The model in `folder` without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def _apart(model: nn.Module, device_map: Mapping[str, str | int]) -> dict[str, str | int]:
    """The same map with no module inside another's: a device of its own goes before that of what a module lies in."""
    modules = dict(model.named_modules())
    if surplus := sorted({*device_map} - {*modules}):
        layer = next((name for name in modules if name.endswith(".0")), "lm_head")
        raise KvattnError(f"the device map names {surplus[0]}, which the model lacks; its layers are {layer}, ...")
    made: dict[str, str | int] = {}

    def place(path: str, device: str | int | None) -> None:
        device, start = device_map.get(path, device), f"{path}." if path else ""
        if device is not None and not any(name.startswith(start) and name != path for name in device_map):
            made[path] = device
            return
        for name, _ in modules[path].named_parameters(recurse=False):
            if device is None:
                raise KvattnError(
                    f'the device map says no device for {start}{name}; name its module, or "" for the rest'
                )
            made[start + name] = device
        for name, _ in modules[path].named_children():
            place(start + name, device)

    place("", None)
    return made
