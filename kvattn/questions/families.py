"""Families of arithmetic word problems: a question, and the steps that solve it.

A family draws names, objects and numbers and returns a `WordProblem`. Steps refer to given numbers or to the results of
earlier steps, so that a solution can be evaluated, and be evaluated again with one step gone wrong.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

_OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_NAMES, _GOODS, _FOODS, _PLANTS, _CARDS = (
    words.split()
    for words in (
        "Ada Ben Clara David Elena Farid Grace Hana Ivan Julia Karim Lena Marco Nina Omar Petra Quentin Rosa Samir "
        "Tara Ulla Viktor Wanda Yusuf Zoe",
        "pens rulers folders mugs candles brushes lamps bowls ribbons badges torches cushions",
        "muffins rolls pies bagels scones tarts cookies buns",
        "tulips beans carrots roses lettuces peppers onions sunflowers",
        "stamps marbles coins shells stickers cards beads postcards",
    )
)


class Of(NamedTuple):
    """The result of an earlier step, by its index."""

    step: int


@dataclass(frozen=True)
class Step:
    """`left op right` gives `label`, a noun phrase; operands are given numbers or results of earlier steps."""

    label: str
    left: int | Of
    op: str
    right: int | Of


@dataclass(frozen=True)
class WordProblem:
    """A question and the steps that solve it; the last step's result is the answer."""

    family: str
    question: str
    steps: tuple[Step, ...]


class Line(NamedTuple):
    """One written step: `left op right = value`, whether or not that holds."""

    label: str
    left: int
    op: str
    right: int
    value: int


def apply(left: int, op: str, right: int) -> int | None:
    """`left op right`, or None where a division leaves a remainder or has no result."""
    if op == "/":
        return left // right if right and left % right == 0 else None
    return _OPERATORS[op](left, right)


def evaluate(steps: Sequence[Step], slips: dict[int, int] | None = None) -> tuple[Line, ...] | None:
    """The steps worked out in order; `slips[i]` is added to the result of step i and carried on.

    None when a result is no positive whole number: such a solution would give itself away.
    """
    lines: list[Line] = []
    for i, step in enumerate(steps):
        left, right = (lines[x.step].value if isinstance(x, Of) else x for x in (step.left, step.right))
        value = apply(left, step.op, right)
        if value is None or value + (slips or {}).get(i, 0) <= 0:
            return None
        lines.append(Line(step.label, left, step.op, right, value + (slips or {}).get(i, 0)))
    return tuple(lines)


def _steps(text: str) -> tuple[Step, ...]:
    """Steps out of "label = left op right; ...", in which #0 is the result of the first."""
    found = re.findall(r"(.+?) = (#?)(\d+) (.) (#?)(\d+)(?:; |$)", text)
    return tuple(
        Step(label, Of(int(x)) if a else int(x), op, Of(int(y)) if b else int(y)) for label, a, x, op, b, y in found
    )


def _shopping(r: Random) -> WordProblem:
    name, (x, y) = r.choice(_NAMES), r.sample(_GOODS, 2)
    a, b, c, d = r.randint(2, 9), r.randint(2, 9), r.randint(2, 9), r.randint(3, 12)
    paid = (a * b + c * d) // 10 * 10 + r.choice([10, 20, 50])
    ask = r.choice([f"How much change does {name} get?", f"How many dollars does {name} get back?"])
    buys = r.choice(
        [
            f"{name} buys {a} {x} at ${b} each and {c} {y} at ${d} each, and pays with ${paid}.",
            f"At the market {x} cost ${b} and {y} cost ${d} a piece. {name} takes {a} {x} and {c} {y} and hands over "
            f"${paid}.",
        ]
    )
    steps = f"the {x} = {a} * {b}; the {y} = {c} * {d}; the bill = #0 + #1; the change = {paid} - #2"
    return WordProblem("shopping", f"{buys} {ask}", _steps(steps))


def _savings(r: Random) -> WordProblem:
    name, thing = r.choice(_NAMES), r.choice(["bicycle", "guitar", "camera", "tent", "skateboard"])
    a, b, c = r.randint(5, 20), r.randint(3, 12), r.randint(10, 60)
    d = r.randint(5, a * b + c - 5)
    texts = [
        f"{name} has ${c} and saves ${a} a week for {b} weeks. Then {name} spends ${d} on a {thing}. How many "
        "dollars are left?",
        f"Every week for {b} weeks {name} puts ${a} into a box that already held ${c}. A {thing} for ${d} is paid "
        "from the box. How much money stays in it?",
    ]
    steps = f"the savings = {a} * {b}; the sum = #0 + {c}; what is left = #1 - {d}"
    return WordProblem("savings", r.choice(texts), _steps(steps))


def _travel(r: Random) -> WordProblem:
    name, by = r.choice(_NAMES), r.choice(["drives", "rides", "cycles", "sails"])
    a, b, c, d = r.randint(12, 60), r.randint(2, 6), r.randint(12, 60), r.randint(2, 6)
    texts = [
        f"{name} {by} {b} hours at {a} km an hour and then {d} hours at {c} km an hour. How many km is that in all?",
        f"On a trip {name} {by} at {a} km an hour for {b} hours, rests, and goes on at {c} km an hour for {d} "
        "hours. How long is the way in km?",
    ]
    steps = f"the first part = {a} * {b}; the second part = {c} * {d}; the whole way = #0 + #1"
    return WordProblem("travel", r.choice(texts), _steps(steps))


def _sharing(r: Random) -> WordProblem:
    name, thing = r.choice(_NAMES), r.choice(_CARDS)
    each, friends = r.randint(3, 15), r.randint(3, 8)
    b = r.randint(6, 20)
    a = each * friends // b + r.randint(1, 3)
    gone = a * b - each * friends
    texts = [
        f"{name} has {a} boxes with {b} {thing} in each, loses {gone} {thing}, and shares the rest equally among "
        f"{friends} friends. How many {thing} does each friend get?",
        f"There are {b} {thing} in every one of {name}'s {a} boxes. {gone} of them are sold and the others go to "
        f"{friends} children in equal parts. How many {thing} does one child get?",
    ]
    steps = f"all the {thing} = {a} * {b}; the rest = #0 - {gone}; each share = #1 / {friends}"
    return WordProblem("sharing", r.choice(texts), _steps(steps))


def _garden(r: Random) -> WordProblem:
    name, plant = r.choice(_NAMES), r.choice(_PLANTS)
    a, b = r.randint(4, 15), r.randint(5, 18)
    c = r.randint(3, a * b // 2)
    texts = [
        f"{name} plants {a} rows of {b} {plant}. Rabbits eat {c} of the {plant}. How many {plant} are left?",
        f"In {name}'s garden there are {a} rows with {b} {plant} each. After a frost {c} {plant} have died. How "
        f"many {plant} are still alive?",
    ]
    steps = f"all the {plant} = {a} * {b}; the ones left = #0 - {c}"
    return WordProblem("garden", r.choice(texts), _steps(steps))


def _parking(r: Random) -> WordProblem:
    what, place = r.choice([("cars", "car park"), ("boats", "harbour"), ("bikes", "station"), ("horses", "stable")])
    a, b, c = r.randint(30, 90), r.randint(5, 25), r.randint(5, 40)
    texts = [
        f"A {place} holds {a} {what}. In the morning {b} leave and then {c} come in. How many {what} are there now?",
        f"There are {a} {what} at the {place}. First {b} of them go away, later {c} others arrive. How many "
        f"{what} does the {place} hold at the end?",
    ]
    steps = f"the {what} left = {a} - {b}; the final number = #0 + {c}"
    return WordProblem("parking", r.choice(texts), _steps(steps))


def _bakery(r: Random) -> WordProblem:
    name, food = r.choice(_NAMES), r.choice(_FOODS)
    a, b, d = r.randint(4, 10), r.randint(8, 18), r.randint(2, 6)
    c = r.randint(1, max(1, (a * b - 5) // d // 2))
    price = r.randint(2, 5)
    texts = [
        f"{name} bakes {a} trays of {b} {food}, gives {c} {food} to each of {d} schools, and sells the rest at "
        f"${price} each. How many dollars does {name} earn?",
        f"From {a} trays with {b} {food} each, {name} sends {d} schools {c} {food} apiece as a gift. The others "
        f"are sold for ${price} each. How much money does that bring?",
    ]
    steps = f"all the {food} = {a} * {b}; the gifts = {c} * {d}; the ones sold = #0 - #1; the earnings = #2 * {price}"
    return WordProblem("bakery", r.choice(texts), _steps(steps))


def _reading(r: Random) -> WordProblem:
    name = r.choice(_NAMES)
    a, b, c, more = r.randint(8, 25), r.randint(3, 7), r.randint(5, 20), r.randint(3, 9)
    pages = a * b + c * more
    texts = [
        f"A book has {pages} pages. {name} reads {a} pages a day for {b} days, and from then on {c} pages a day. "
        "How many more days does the rest take?",
        f"{name} reads {a} pages of a {pages}-page book on each of {b} days. If {name} reads {c} pages a day "
        "after that, how many days does the remainder last?",
    ]
    steps = f"the pages read = {a} * {b}; the pages left = {pages} - #0; the days = #1 / {c}"
    return WordProblem("reading", r.choice(texts), _steps(steps))


def _collections(r: Random) -> WordProblem:
    (one, two, three), thing = r.sample(_NAMES, 3), r.choice(_CARDS)
    a, k = r.randint(6, 20), r.randint(2, 5)
    c = r.randint(2, a * k - 2)
    texts = [
        f"{one} has {a} {thing}. {two} has {k} times as many, and {three} has {c} fewer than {two}. How many "
        f"{thing} do the three have together?",
        f"{two} owns {k} times as many {thing} as {one}, who owns {a}. {three} owns {c} less than {two}. What is "
        f"the number of {thing} of all three?",
    ]
    steps = f"{two} = {a} * {k}; {three} = #0 - {c}; {one} and {two} = {a} + #0; all three = #2 + #1"
    return WordProblem("collections", r.choice(texts), _steps(steps))


def _wages(r: Random) -> WordProblem:
    name = r.choice(_NAMES)
    a, b, c, d = r.randint(8, 15), r.randint(4, 8), r.randint(12, 22), r.randint(2, 5)
    f, weeks = r.randint(5, 30), r.randint(2, 5)
    texts = [
        f"Each week {name} works {b} hours for ${a} an hour and {d} hours for ${c} an hour, and pays ${f} for the "
        f"bus. How many dollars does {name} keep after {weeks} weeks?",
        f"{name} earns ${a} an hour for {b} hours a week and ${c} an hour for {d} more. The bus costs ${f} a "
        f"week. How much is left over from {weeks} such weeks?",
    ]
    steps = (
        f"the first hours = {a} * {b}; the other hours = {c} * {d}; a week's pay = #0 + #1; "
        f"one week = #2 - {f}; all weeks = #3 * {weeks}"
    )
    return WordProblem("wages", r.choice(texts), _steps(steps))


def _fence(r: Random) -> WordProblem:
    name = r.choice(_NAMES)
    length, width = r.randint(6, 30), r.randint(4, 20)
    gate, price, gift = r.randint(1, 4), r.randint(2, 7), r.randint(5, 20)
    texts = [
        f"{name} fences a field {length} m long and {width} m wide, but leaves a gate of {gate} m. Fence costs "
        f"${price} a metre, and a coupon takes off ${gift}. How many dollars does {name} pay?",
        f"A field measures {length} m by {width} m. All sides get a fence at ${price} a metre, except for a gate "
        f"of {gate} m. {name} has a coupon for ${gift}. What does the fence cost {name}?",
    ]
    steps = (
        f"length and width = {length} + {width}; all sides = #0 * 2; the fence = #1 - {gate}; "
        f"the price = #2 * {price}; the cost = #3 - {gift}"
    )
    return WordProblem("fence", r.choice(texts), _steps(steps))


FAMILIES: tuple[Callable[[Random], WordProblem], ...] = (
    _shopping,
    _savings,
    _travel,
    _sharing,
    _garden,
    _parking,
    _bakery,
    _reading,
    _collections,
    _wages,
    _fence,
)
