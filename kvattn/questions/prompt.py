"""What a judge is asked: a question, its candidates, a template and a display order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import index

from kvattn.decision import TIE, ties
from kvattn.errors import KvattnError, unknown
from kvattn.questions.conversation import marked
from kvattn.questions.templates import MAX_CANDIDATES, TEMPLATES, Template
from kvattn.text import hash_of

REGIMES = ("parallel", "progressive")


@dataclass(frozen=True)
class Candidate:
    """One answer to the question.

    `token_ids` are the ids an execution agent generated, when they are known; otherwise `text` is tokenised once, when
    the prompt is compiled. `correct` is None when nobody knows. `prompt` is what the agent was asked, word for word,
    where that is known; otherwise its execution context is the template's: question and agent instruction. `model`
    names the weights that generated it (`Engine.identity`), where they are known: ids and caches mean something to the
    same weights alone. `cache` names the file of its KV as its agent made it (`kvattn.caches.save`), relative to the
    candidates file; whoever reuses it gives the block to the judge (`kvattn.caches.named`).
    """

    id: str
    text: str
    agent: str | None = None
    correct: bool | None = None
    token_ids: tuple[int, ...] | None = None
    prompt: str | None = None
    model: str | None = None
    cache: str | None = None

    def foreign_to(self, identity: str | None) -> bool:
        """Whether other weights than those generated it, as far as anybody knows; names do not matter, hashes do."""
        return self.model is not None and identity is not None and hash_of(self.model) != hash_of(identity)


@dataclass(frozen=True)
class JudgePrompt:
    """A question with its candidates, a template, and the order in which the candidates are displayed.

    `order[s]` is the index (into `candidates`) of the candidate shown in slot s. `regime` says how the candidates were
    made: "parallel" (each agent saw the question alone) or "progressive" (agent i saw the answers before it); None
    where nobody knows. `verdict` is the id of the candidate that a production judge chose, where a log says; no method
    looks at it.
    """

    question: str
    candidates: tuple[Candidate, ...]
    template: Template = TEMPLATES["math"]
    order: tuple[int, ...] = ()
    id: str = "q"
    answer: str | None = None
    verdict: str | None = None
    regime: str | None = None

    def __post_init__(self) -> None:
        n = len(self.candidates)
        if not 1 <= n <= MAX_CANDIDATES:
            raise KvattnError(f"question {self.id!r} has {n} candidates; a judge prompt takes 1 to {MAX_CANDIDATES}")
        if self.template.messages and (marks := marked(self.template)) != n:
            raise KvattnError(
                f"question {self.id!r} has {n} candidates, and the template {self.template.name!r} has marks for "
                f"{marks}; give each number of candidates a template of its own"
            )
        if not self.order:
            object.__setattr__(self, "order", tuple(range(n)))
        if sorted(self.order) != list(range(n)):
            raise KvattnError(f"question {self.id!r}: order {list(self.order)} is no permutation of 0..{n - 1}")
        if self.regime is not None and self.regime not in REGIMES:
            raise unknown("regime", self.regime, REGIMES)
        seen: set[str] = set()
        for c in self.candidates:
            if c.id in seen:
                raise KvattnError(f"question {self.id!r}: candidate id {c.id!r} is given twice; give each its own 'id'")
            seen.add(c.id)
        check_unicode(self.question, f"question {self.id!r}: question")
        for c in self.candidates:
            check_unicode(c.text, f"question {self.id!r}: candidate {c.id!r}")
            check_unicode(c.prompt or "", f"question {self.id!r}: prompt of candidate {c.id!r}")

    @property
    def n(self) -> int:
        """Number of candidates."""
        return len(self.candidates)

    def ordered(self, order: Sequence[int]) -> JudgePrompt:
        """The same prompt with its candidates displayed in another order."""
        try:
            if any(isinstance(i, bool) for i in order):
                raise TypeError
            return replace(self, order=tuple(index(i) for i in order))
        except TypeError:
            raise KvattnError(f"question {self.id!r}: an order is a list of whole numbers, not {order!r:.60}") from None

    def require_regime(self, regime: str) -> None:
        """Raises KvattnError where the candidates are known to have been made under another regime than that."""
        if self.regime not in (None, regime):
            raise KvattnError(
                f"question {self.id!r}: its candidates were made under the {self.regime} regime, and are judged as "
                f"{regime}; judge them with the regime they were made under (--regime {self.regime}; in a study file, "
                f"regimes: [{self.regime}])"
            )

    def shown(self, slot: int) -> Candidate:
        """The candidate displayed in that slot (slots count from 0)."""
        return self.candidates[self.order[slot]]

    def verdicts(self, readout: str) -> tuple[Candidate, ...]:
        """What may be chosen under a readout: the candidates, and under "pairwise" behind them a tie, whose text is no
        candidate's, and which is right where both are, or neither. Raises KvattnError where there are not two, and
        where one has the tie's id."""
        if not ties(readout):
            return self.candidates
        if self.n != 2:
            raise KvattnError(
                f"question {self.id!r} has {self.n} candidates, and the readout {readout} compares two; take the "
                "readout label"
            )
        if TIE in (c.id for c in self.candidates):
            raise KvattnError(f"question {self.id!r}: the id {TIE!r} is that of a tie; give the candidate another one")
        text, (a, b) = f"({TIE})", (c.correct for c in self.candidates)
        while text in (c.text for c in self.candidates):
            text = f"({text})"
        return (*self.candidates, Candidate(TIE, text, correct=None if None in (a, b) else a == b))

    def same_content(self, a: str | None, b: str | None) -> bool:
        """Whether two verdicts, candidate ids or a tie's, stand for the same text (`contents`). None, no choice, is the
        same as nothing."""
        content = dict(zip((c.id for c in self.candidates), contents([c.text for c in self.candidates]), strict=True))
        return a is not None and b is not None and content.get(a, a) == content.get(b, b)


def contents(texts: Sequence[str]) -> list[int]:
    """For each candidate the index of the first of the same text. Candidates of equal text are one choice: a flip
    between them is a tie, not a flip."""
    return [texts.index(t) for t in texts]


def check_unicode(text: str, where: str) -> None:
    """Raises KvattnError when `text` is none, or holds a lone surrogate, which is no Unicode text and cannot be
    tokenised."""
    if not isinstance(text, str):
        raise KvattnError(f"{where} is {text!r:.60}, not text; give text, or leave it out")
    for i, ch in enumerate(text):
        if "\ud800" <= ch <= "\udfff":
            raise KvattnError(
                f"{where} holds a lone surrogate (U+{ord(ch):04X}) at character {i}; replace it, e.g. by U+FFFD"
            )
