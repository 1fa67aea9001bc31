"""Display orders: which candidate stands in which slot, seeded per question and the same for all methods."""

from __future__ import annotations

import itertools
import math

import numpy as np

from kvattn.errors import KvattnError

SCHEMES = "fixed, shuffle[:K], rotations, latin, all (up to 5 candidates)"


def orders(scheme: str, n: int, seed: int = 0, question: str = "") -> list[tuple[int, ...]]:
    """Display orders of n candidates; order[s] is the candidate shown in slot s.

    "fixed":     the candidates' own order
    "shuffle:K": K different seeded random permutations (default 1), drawn anew for every question
    "rotations": all cyclic rotations of the candidates' own order
    "latin":     n orders of a seeded Latin square: every candidate stands in every slot once
    "all":       every permutation, for n <= 5
    """
    rng = np.random.default_rng([seed, *question.encode("utf-8", "surrogatepass")])
    kind, _, count = scheme.partition(":")
    if kind == "fixed" and not count:
        return [tuple(range(n))]
    if kind == "shuffle" and (not count or (count.isdigit() and int(count) > 0)):
        return _shuffles(n, int(count or 1), rng)
    if kind == "rotations" and not count:
        return [tuple((i + k) % n for i in range(n)) for k in range(n)]
    if kind == "latin" and not count:
        return latin_square(n, rng)
    if kind == "all" and not count:
        if n > 5:
            raise KvattnError(f"all orders of {n} candidates are {n}!; take shuffle:K or latin above five")
        return list(itertools.permutations(range(n)))
    raise KvattnError(f"unknown order scheme {scheme!r}. Known: {SCHEMES}.")


def _shuffles(n: int, count: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    if count > math.factorial(n):
        raise KvattnError(f"{n} candidates have {math.factorial(n)} orders, fewer than shuffle:{count} asks for")
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        found[tuple(int(i) for i in rng.permutation(n))] = None
    return list(found)


def latin_square(n: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """n orders in which every candidate stands in every slot once: a cyclic square with shuffled rows and columns."""
    rows, columns, names = rng.permutation(n), rng.permutation(n), rng.permutation(n)
    return [tuple(int(names[(r + c) % n]) for c in columns) for r in rows]
