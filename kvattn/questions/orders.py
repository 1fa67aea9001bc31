"""Display orders: which candidate stands in which slot, seeded per question and the same for all methods."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from kvattn.errors import KvattnError, whole
from kvattn.questions.prompt import JudgePrompt

SCHEMES = "fixed, shuffle[:K], rotations, latin, all (up to 5 candidates)"


def orders(
    scheme: str, n: int, seed: int = 0, question: str = "", own: Sequence[int] | None = None
) -> list[tuple[int, ...]]:
    """Display orders of n candidates; order[s] is the candidate shown in slot s.

    own: the question's own order (default: 0, 1, ...), which "fixed" keeps and every other scheme permutes

    "fixed":     the own order
    "shuffle:K": K different seeded random permutations (default 1), drawn anew for every question
    "rotations": all cyclic rotations of the own order
    "latin":     n orders of a seeded Latin square: every candidate stands in every slot once
    "all":       every permutation, for n <= 5
    """
    drawn = whole(seed, "the seed of orders")
    made = _permutations(scheme, n, np.random.default_rng([drawn, *question.encode("utf-8", "surrogatepass")]))
    return made if own is None else [tuple(own[i] for i in order) for order in made]


def check_scheme(scheme: str) -> tuple[str, int | None]:
    """The kind of a scheme, and how many orders it draws, where it says so. Raises KvattnError for an unknown one."""
    kind, colon, count = scheme.partition(":") if isinstance(scheme, str) else ("", "", "")
    if kind not in ("fixed", "shuffle", "rotations", "latin", "all") or (colon and kind != "shuffle"):
        raise KvattnError(f"unknown order scheme {scheme!r:.60}. Known: {SCHEMES}.")
    return kind, whole(count, f"K of the order scheme {scheme!r:.60}", 1) if colon else None


def rotations(order: Sequence[int]) -> list[tuple[int, ...]]:
    """All cyclic rotations of an order, its own first: every candidate stands in every slot once."""
    return [tuple(order[i:]) + tuple(order[:i]) for i in range(len(order))]


def assign(prompts: Sequence[JudgePrompt], seed: int = 0) -> list[JudgePrompt]:
    """The prompts with their candidates assigned to slots by seeded Latin squares: over every n successive prompts of n
    candidates, the i-th candidate (one agent's, where files are made by agents) stands in every slot once. So no agent
    is tied to a slot, and a judge that is locked to one is right no more often than chance."""
    rng = {n: np.random.default_rng([whole(seed, "the seed of orders"), n]) for n in {p.n for p in prompts}}
    rows: dict[int, list[tuple[int, ...]]] = {n: [] for n in rng}
    out = []
    for p in prompts:
        rows[p.n] = rows[p.n] or latin_square(p.n, rng[p.n].permutation)
        out.append(p.ordered(rows[p.n].pop()))
    return out


def _permutations(scheme: str, n: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    kind, count = check_scheme(scheme)
    if kind == "fixed":
        return [tuple(range(n))]
    if kind == "shuffle":
        return _shuffles(n, count or 1, rng)
    if kind == "rotations":
        return rotations(range(n))
    if kind == "latin":
        return latin_square(n, rng.permutation)
    if n > 5:
        raise KvattnError(f"all orders of {n} candidates are {n}!; take shuffle:K or latin above five")
    return list(itertools.permutations(range(n)))


def _shuffles(n: int, count: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    if count > math.factorial(n):
        raise KvattnError(f"{n} candidates have {math.factorial(n)} orders, fewer than shuffle:{count} asks for")
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        found[tuple(int(i) for i in rng.permutation(n))] = None
    return list(found)


def latin_square(n: int, permutation: Callable[[int], Sequence[int] | np.ndarray]) -> list[tuple[int, ...]]:
    """n orders in which every candidate stands in every slot once: a cyclic square with its rows, its columns and its
    candidates shuffled by `permutation`, which draws an order of 0..n-1."""
    rows, columns, names = (permutation(n) for _ in range(3))
    return [tuple(int(names[(r + c) % n]) for c in columns) for r in rows]
