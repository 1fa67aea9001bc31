"""The one exception family that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypeVar

from kvattn.text import one_line

T = TypeVar("T")
LONGEST = 2000  # characters of a message


class KvattnError(Exception):
    """Bad input or an unsupported request; the message is one line that names the cause and the way out, whatever
    stands in the names and texts that it quotes."""

    def __init__(self, message: str = "") -> None:
        said = one_line(message)
        # A quoted text may be a megabyte; cause and way out stand at the two ends.
        super().__init__(said if len(said) <= LONGEST else f"{said[: LONGEST // 2]} [...] {said[-LONGEST // 2 :]}")


def listed(values: Iterable[T], what: str) -> list[T]:
    """The values as a list. Raises KvattnError for one text, which would be taken letter by letter, and for no list."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise KvattnError(f"{what} are a list, not {values!r:.60}; put it in brackets")
    return list(values)


def unknown(kind: str, name: str, known: Iterable[str]) -> KvattnError:
    """An error for a name that is not in a registry: lists the known ones and suggests the nearest."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return KvattnError(f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}.")
