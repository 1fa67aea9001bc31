"""Which precision a device multiplies matrices faster in, measured."""

from __future__ import annotations

import time
from functools import cache
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WIDTHS = {"cpu": 256}  # of the square matrices; a CPU without bfloat16 in hardware takes a second a billion products
WIDTH = 4096  # on every other device
TURNS = 5
GAIN = 1.2  # what bfloat16 has to be faster by: below, its rounding is not worth it


@cache
def fastest(device: torch.device) -> tuple[str, str]:
    """("bfloat16" or "float32", what was measured). Takes less than a second; in turns, after one that warms up."""
    import torch

    took: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    width = WIDTHS.get(device.type, WIDTH)
    for _ in range(TURNS + 1):
        for name, seconds in took.items():
            matrix = torch.ones(width, width, dtype=getattr(torch, name), device=device)
            began = time.perf_counter()
            float((matrix @ matrix)[0, 0])  # waits for the device
            seconds.append(time.perf_counter() - began)
    single, half = (median(took[name][1:]) for name in ("float32", "bfloat16"))
    chosen = "bfloat16" if single > GAIN * half else "float32"
    said = f"{width} x {width} matrices take {single * 1e3:.1f} ms in float32 and {half * 1e3:.1f} ms in bfloat16"
    return chosen, f"{chosen}: {said} on {device}"
