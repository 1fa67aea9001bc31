"""Relational questions: which candidate is right can be told from the candidates together and from none of them alone.

===============  ======================================================================  ==========  =================
kind             the right candidate                                                     candidates  right ones
===============  ======================================================================  ==========  =================
odd-one-out      states another answer than all the others, who agree                    3 to 8      1
pair             states the answer that exactly two state                                4 to 8      2
plurality        states the answer that most state                                       3 to 8      2 or more
median           states the middle number                                                3, 5, 7     1
contradiction    says of a thing what two others deny; the rest speak of other things    3 to 8      1
link             begins where another one ends                                           2 to 8      1
named            is named by two of the others                                           3 to 8      1
lookup           states what the question asks for: *pointwise*, the control             2 to 8      1
===============  ======================================================================  ==========  =================

Values, names and wordings are drawn alike for right and wrong candidates, and places are assigned at random. So to
whoever sees the question and one candidate (for all kinds but lookup), that candidate is right with the share of right
candidates, whatever it says (the median gives away a little at the ends of its range). Where candidates may state the
same, the highest of scores that know nothing still finds the odd one out in half of the cases, since equals share a
score: `RelationalPrompt.pointwise`. It is 1 / candidates for the kinds in `STRICT`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

from kvattn.errors import KvattnError, unknown
from kvattn.questions.prompt import Candidate, JudgePrompt
from kvattn.questions.synthetic import synthetic
from kvattn.questions.templates import TEMPLATES

_NAMES = "Ada Ben Clara David Elena Farid Grace Hana Ivan Julia Karim Lena Marco Nina Omar Petra Rosa Samir Tara Viktor"
_THINGS = "key lamp map ring coin book watch ticket letter camera bottle flag"
_PLACES = "drawer garden kitchen attic cellar office car shed tent tower boat barn"
_WORDS = {
    "colour": "red blue green yellow brown white black orange purple pink grey",
    "city": "Paris Rome Oslo Cairo Lima Tokyo Delhi Madrid Athens Vienna Dublin Warsaw",
    "animal": "horse tiger rabbit eagle salmon camel wolf goat owl whale fox bear",
}
_STATEMENTS = (
    "The answer is {0}.",
    "I get {0}.",
    "My answer is {0}.",
    "It must be {0}.",
    "I am sure that it is {0}.",
    "So the result is {0}.",
    "{0} is what I find.",
    "After some work I arrive at {0}.",
)
_OPENINGS = (
    "",
    "",
    "",
    "Here is what I found.",
    "Let me say it briefly.",
    "I checked this with care.",
    "I went over it twice, from the start to the end.",
    "This took me a while, but now I see it clearly.",
    "We were asked to reply in a few words, so I leave out how I came to it.",
)

Prompt = TypeVar("Prompt", bound=JudgePrompt)
Stated = tuple[str, ...]
Said = tuple[
    str, tuple[str, ...], list[Stated], int
]  # the question, forms to say it in, what is stated, how many right


@dataclass(frozen=True)
class RelationalPrompt(JudgePrompt):
    """A `JudgePrompt` that knows its kind, one of `KINDS`, and what each candidate states, whatever its words."""

    kind: str = ""
    stated: tuple[Stated, ...] = ()

    @property
    def pointwise(self) -> float:
        """How often the best of scores that are drawn for every stated content by itself belongs to a right candidate:
        what a judge that sees one candidate at a time reaches on kinds other than lookup. Candidates that state the
        same share a score, so it is the share of right ones among the different contents, not among candidates."""
        right = {s for s, c in zip(self.stated, self.candidates, strict=True) if c.correct}
        return len(right) / len(set(self.stated))


def relational(
    n: int, seed: int = 0, candidates: int = 4, kinds: Sequence[str] | None = None, worked: int = 0
) -> list[RelationalPrompt]:
    """The first n problems of the endless series that the other arguments define; kinds take turns.

    Parameters
    ----------
    n : number of problems.
    seed : any integer; part of the ids, "rel-<seed>-<kind>-000012".
    candidates : 2 to 8.
    kinds : of `KINDS`; by default all of `RELATIONAL` that are made with so many candidates.
    worked : how many worked word problems, which say nothing of the question, stand before each candidate's statement;
        some 20 words each. The questions and statements are those of `worked=0`.

    Raises KvattnError for an unknown kind and for a number of candidates that a kind is not made with.
    """
    if min(n, worked) < 0:
        raise KvattnError(f"{min(n, worked)} relational or worked problems asked for; give a number of 0 or more")
    if not 2 <= candidates <= 8:
        raise KvattnError(f"relational problems have 2 to 8 candidates, not {candidates}")
    chosen = [k for k in RELATIONAL if candidates in KINDS[k].sizes] if kinds is None else list(dict.fromkeys(kinds))
    for kind in chosen:
        if kind not in KINDS:
            raise unknown("relational kind", kind, KINDS)
        if candidates not in KINDS[kind].sizes:
            sizes = ", ".join(map(str, KINDS[kind].sizes))
            raise KvattnError(f"relational problems of kind {kind!r} have {sizes} candidates, not {candidates}")
    if not chosen:
        raise KvattnError(f"no relational kind given; choose from {', '.join(KINDS)}")
    drawn = [_problem(i, seed, candidates, chosen[i % len(chosen)]) for i in range(n)]
    if not worked:
        return drawn
    told = [behind_work(p, Random(f"work-{p.id}").randrange(2**40), worked) for p in drawn]
    return [replace(p, id=f"{p.id}-behind-{worked}") for p in told]


def behind_work(prompt: Prompt, seed: int, problems: int = 1) -> Prompt:
    """The prompt with what each candidate says behind so many worked problems, other ones for every candidate."""
    n = prompt.n
    solutions = [x.candidates[0].text.rpartition(" The answer is")[0] for x in synthetic(n * problems, seed, 2)]
    told = [" ".join([*solutions[i::n], c.text]) for i, c in enumerate(prompt.candidates)]
    behind = tuple(replace(c, text=text) for c, text in zip(prompt.candidates, told, strict=True))
    return replace(prompt, candidates=behind)


def _problem(index: int, seed: int, n: int, kind: str) -> RelationalPrompt:
    r = Random(f"relational-{seed}-{index}-{n}-{kind}")
    question, forms, stated, right = KINDS[kind].make(n, r)
    places = r.sample(range(n), n)
    texts = [f"{r.choice(_OPENINGS)} {r.choice(forms).format(*stated[at])}".strip() for at in places]
    return RelationalPrompt(
        question=question,
        candidates=tuple(
            Candidate(id=f"agent-{'abcdefgh'[i]}", text=text, agent=f"agent-{i + 1}", correct=at < right)
            for i, (at, text) in enumerate(zip(places, texts, strict=True))
        ),
        template=TEMPLATES["relational"],
        id=f"rel-{seed}-{kind}-{index:06d}",
        kind=kind,
        stated=tuple(stated[at] for at in places),
    )


def _values(count: int, r: Random) -> list[str]:
    """Different values of one type, in an order that says nothing."""
    kind = r.choice(["number", "number", "large", *_WORDS])
    if kind in _WORDS:
        return r.sample(_WORDS[kind].split(), count)
    return [str(x) for x in r.sample(range(100, 1000) if kind == "large" else range(10, 100), count)]


def _alone(values: Sequence[str]) -> list[Stated]:
    return [(v,) for v in values]


def _odd_one_out(n: int, r: Random) -> Said:
    common, odd = _values(2, r)
    question = r.choice(
        [
            "Which agent states another answer than all the others?",
            "All agents but one agree. Which agent disagrees?",
            "One agent's answer differs from everybody else's. Whose is it?",
            "Find the odd one out: the agent whose answer nobody else gives.",
        ]
    )
    return question, _STATEMENTS, _alone([odd] + [common] * (n - 1)), 1


def _pair(n: int, r: Random) -> Said:
    # The other answers are stated once, or by three and more: never by two.
    crowd = r.choice([0, *range(3, n - 1)])
    values = _values(2 + n, r)
    said = [values[0]] * 2 + [values[1]] * crowd + values[2 : n - crowd]
    question = r.choice(
        [
            "Which answer is stated by exactly two agents? Choose one of the two.",
            "Exactly two agents give the same answer. Choose an agent of that pair.",
            "Find an agent with whom one other agent, and only one, agrees.",
        ]
    )
    return question, _STATEMENTS, _alone(said), 2


def _plurality(n: int, r: Random) -> Said:
    top = r.randint(2, n - 1)
    values = _values(n + 1, r)
    rest: list[str] = []
    while len(rest) < n - top:
        rest += values[1 + len(rest) : 2 + len(rest)] * min(r.randint(1, top - 1), n - top - len(rest))
    question = r.choice(
        [
            "Pick an agent whose answer is the one that most agents state.",
            "Which answer do most agents give? Choose an agent who gives it.",
            "The answer with the most votes wins. Choose an agent who voted for it.",
        ]
    )
    return question, _STATEMENTS, _alone([values[0]] * top + rest), top


def _median(n: int, r: Random) -> Said:
    value = r.randint(20, 900)
    numbers = [value := value + r.randint(4, 30) for _ in range(n)]
    middle = numbers.pop(n // 2)
    question = r.choice(
        [
            "Which agent states the middle number: as many agents state less as state more?",
            "Put the agents' numbers in order. Which agent has the median?",
        ]
    )
    return question, _STATEMENTS, _alone([str(x) for x in (middle, *numbers)]), 1


def _contradiction(n: int, r: Random) -> Said:
    things, places = r.sample(_THINGS.split(), n - 2), r.sample(_PLACES.split(), 2)
    others = [r.choice(_PLACES.split()) for _ in range(n - 3)]
    said = [
        (things[0], places[0]),
        (things[0], places[1]),
        (things[0], places[1]),
        *zip(things[1:], others, strict=True),
    ]
    forms = ("The {0} is in the {1}.", "I saw the {0} in the {1}.", "You will find the {0} in the {1}.")
    question = r.choice(
        [
            "One agent contradicts two others. Which one?",
            "Which agent says of a thing what two other agents deny?",
        ]
    )
    return question, forms, said, 1


def _link(n: int, r: Random) -> Said:
    values = [str(x) for x in r.sample(range(10, 100), 2 * n)]
    # The first candidate begins where the second ends; no other begins at an end.
    pairs = [(values[0], values[1]), (values[2], values[0])] + [(values[2 * i], values[2 * i + 1]) for i in range(2, n)]
    forms = (
        "I start at {0} and end at {1}.",
        "My way begins at {0} and goes to {1}.",
        "Begin at {0}, end at {1}.",
    )
    question = r.choice(
        [
            "Which agent begins where another agent ends?",
            "One agent starts at the number at which another one ends. Who starts there?",
            "Which agent's first number is another agent's last number?",
        ]
    )
    return question, forms, pairs, 1


def _named(n: int, r: Random) -> Said:
    names = r.sample(_NAMES.split(), n)
    # Everybody names one other; the first is named twice, the second by nobody, the rest once.
    targets = [0, 0, *range(2, n)]
    while any(i == t for i, t in enumerate(targets)):
        r.shuffle(targets)
    forms = ("I am {0}. I trust {1}.", "My name is {0} and I vote for {1}.", "{0} here. Ask {1}.")
    question = r.choice(
        [
            "Which agent is named by two of the others?",
            "Each agent names another one. Who is named twice?",
        ]
    )
    return question, forms, [(names[i], names[t]) for i, t in enumerate(targets)], 1


def _lookup(n: int, r: Random) -> Said:
    values = _values(n, r)
    question = r.choice(
        [
            "Which agent states that the answer is {0}?",
            "Who says {0}?",
            "Choose the agent whose answer is {0}.",
        ]
    )
    return question.format(values[0]), _STATEMENTS, _alone(values), 1


@dataclass(frozen=True)
class Kind:
    """How problems of a kind are drawn, and with how many candidates."""

    make: Callable[[int, Random], Said]
    sizes: Sequence[int]


KINDS = {
    "odd-one-out": Kind(_odd_one_out, range(3, 9)),
    "pair": Kind(_pair, range(4, 9)),
    "plurality": Kind(_plurality, range(3, 9)),
    "median": Kind(_median, range(3, 9, 2)),
    "contradiction": Kind(_contradiction, range(3, 9)),
    "link": Kind(_link, range(2, 9)),
    "named": Kind(_named, range(3, 9)),
    "lookup": Kind(_lookup, range(2, 9)),
}
RELATIONAL = tuple(kind for kind in KINDS if kind != "lookup")
"""The kinds that need the other candidates."""
STRICT = ("median", "link", "named")
"""Those of them whose candidates all state something else."""
