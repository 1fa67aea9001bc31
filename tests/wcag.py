"""How well a colour is read on another."""

from __future__ import annotations


def contrast(*colours: str) -> float:
    """The contrast of two hex colours, 1 to 21 (WCAG 2.2)."""

    def light(channel: str) -> float:
        share = int(channel, 16) / 255
        return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4

    red, green, blue = zip(*([light(c[i : i + 2]) for i in (1, 3, 5)] for c in colours), strict=True)
    low, high = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05 for r, g, b in zip(red, green, blue, strict=True))
    return high / low
