"""The one exception family that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Set
from operator import index
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
    """The values as a list. Raises KvattnError for one text, which would be taken letter by letter, for a set or a
    mapping, which have no order or hold something else, and for no list."""
    if isinstance(values, Set | Mapping):
        raise KvattnError(f"{what} are a list, not a {type(values).__name__}; put them in brackets, in their order")
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise KvattnError(f"{what} are a list, not {values!r:.60}; put it in brackets")
    return list(values)


def whole(value: object, what: str, least: int = 0) -> int:
    """The value as a whole number of `least` or more; text must be its decimal digits. Raises KvattnError otherwise."""
    if isinstance(value, str) and value.isdecimal() and len(value) <= 18:
        value = int(value)
    if not hasattr(value, "__index__") or isinstance(value, bool) or (number := index(value)) < least:  # type: ignore[arg-type]
        raise KvattnError(f"{what} is {value!r:.40}; give a whole number of {least} or more")
    return number


def unknown(kind: str, name: str, known: Iterable[str]) -> KvattnError:
    """An error for a name that is not in a registry: lists the known ones and suggests the nearest."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return KvattnError(f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}.")
