"""An audit as one HTML page that needs no network: `write_audit`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kvattn.engine.audit import KINDS, Audit
from kvattn.errors import KvattnError
from kvattn.files import write_atomically
from kvattn.plots.drift import drift_map
from kvattn.report.page import Page, element, macros, paragraph, text

AT_ONCE = 400  # tokens of a map


def write_audit(found: Audit, tokens: Sequence[str], out: str | Path, name: str = "a cache") -> Path:
    """Write what an audit found, with a map of token x layer, and return its path.

    tokens: the texts of the tokens whose values stand in the cache's rows (`Audit.found`)
    name:   what the page calls the cache

    Raises KvattnError for texts that are not one a row, and where the file cannot be written."""
    page = Page(f"{name}: what this cache holds")
    page.section("blocks", "Block by block", *(_verdict(b) for b in found.blocks))
    page.section("map", "Token by layer", *_maps(found, tokens, page))
    used = [f"{kind}: {KINDS[kind]}" for kind in found.kinds]
    if used:
        page.section("kinds", "The names of faults", macros().element("ul", [element("li", u) for u in used], "", ""))
    level, head = ("good", "It is what is claimed.") if found.passed else ("bad", "It is not what is claimed.")
    bad = sum(bool(b.faults) for b in found.blocks)
    said = f"{bad} of {len(found.blocks)} blocks have faults. The audit computed {found.share:.1f} times a dense pass."
    lead = macros().lead(
        ["What ", text(name, 120), " holds"],
        [f"{len(found.found)} rows, {len(found.noise)} layers, {found.dtype}"],
        [macros().box(level, head, [said])],
    )
    path = Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page.render(lead).encode("utf-8"))
    except OSError as error:
        raise KvattnError(f"{path} cannot be written ({error.strerror}); name another file") from error
    return path


def _verdict(block) -> str:
    return element("ul", *(element("li", text(line, 600)) for line in str(block).splitlines()))


def _maps(found: Audit, tokens: Sequence[str], page: Page) -> list[str]:
    if len(tokens) != len(found.found):
        raise KvattnError(f"{len(tokens)} texts for {len(found.found)} rows; give one a row")
    drift, near = found.drift.numpy(), found.near.numpy()
    aligned = drift.shape[1] == max(b.stop for b in found.blocks)
    moved = np.array(found.positions) - np.array(found.claimed) if aligned else np.zeros(drift.shape[1], dtype=int)
    spans = {b.name: (b.start, b.stop) for b in found.blocks} if aligned else {}
    parts: list[str] = [
        paragraph(
            "How far each row's keys or values are from what its block is held against: blue is what rounding explains "
            "here, red is not. A row that fits no reference is held against what is claimed."
        )
    ]
    for at in range(0, drift.shape[1], AT_ONCE):
        stop = min(at + AT_ONCE, drift.shape[1])
        here = {n: (max(a, at) - at, min(b, stop) - at) for n, (a, b) in spans.items() if a < stop and b > at}
        fig = drift_map(drift[:, at:stop], near, tokens[at:stop], here, moved[at:stop])
        fig.update_xaxes(title_text=f"token, from {at}" if at else "token")
        parts.append(page.figure(fig, f"distance by token and layer, tokens {at} to {stop - 1}"))
    return parts
