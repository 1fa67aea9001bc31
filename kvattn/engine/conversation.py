"""A whole conversation compiled token for token: rendered by the tokenizer's chat template with question and candidates
in their places, tokenised as one text, and cut into segments afterwards.

Where a text meets the user's own words, a token may hold characters of both. It belongs to the words around the text;
the text's own tokens are those that stand within it in every slot (`core`), so that a block made elsewhere fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from kvattn.engine.layout import Ask
from kvattn.engine.texts import Texts, Token
from kvattn.errors import KvattnError
from kvattn.questions import conversation
from kvattn.questions.conversation import QUESTION
from kvattn.questions.prompt import JudgePrompt
from kvattn.questions.templates import Message, Template

BRANCH = "branch"  # the mark of what a readout asks about each slot apart
_OPEN, _CLOSE = "\u2063kvattn:", "\u2063"  # around a mark's name, where it is looked for in a rendered conversation

Parts = list[tuple[str, "int | None", list[int]]]


class Span(NamedTuple):
    """A piece of a rendered conversation: its mark, or None for trusted text."""

    mark: str | None
    text: str


class Core(NamedTuple):
    """Ids of a text tokenised alone, those that are its own with what stands before and after them; and the character
    at which they begin."""

    before: list[int]
    own: list[int]
    after: list[int]
    start: int


@dataclass(frozen=True)
class Skeleton:
    """A conversation as a chat template renders it, its marks not yet filled.

    messages: the conversation that the chat template takes; literals: the text before, between and after the marks;
    strips: by mark, whether the chat template strips the blanks (before, after) it, as many do at a message's ends
    """

    messages: tuple[Message, ...]
    marks: tuple[str, ...]
    literals: tuple[str, ...]
    strips: Mapping[str, tuple[bool, bool]]

    def shown(self, mark: str, text: str) -> str:
        """The text as the chat template leaves it."""
        before, after = self.strips[mark]
        text = text.lstrip() if before else text
        return text.rstrip() if after else text

    def spans(self, values: Mapping[str, str]) -> list[Span]:
        """The filled conversation, literals and texts by turns."""
        texts = [Span(m, self.shown(m, values[m])) for m in self.marks]
        return [s for pair in zip(map(Span, [None] * len(texts), self.literals), texts, strict=False) for s in pair] + [
            Span(None, self.literals[-1])
        ]


class Conversations:
    """Compiles the prompts of conversations for one tokenizer."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self._skeletons: dict[tuple[Template, bool], Skeleton] = {}
        self._cores: dict[tuple[Template, str, str], Core] = {}
        self._tails: dict[tuple[str, tuple[str, ...]], tuple[int, ...]] = {}

    def parts(self, prompt: JudgePrompt, ask: Ask) -> tuple[Parts, tuple[int, ...]]:
        """(role, slot, ids) of every segment in prompt order, and the ids of the answers. Without a branch, the ids are
        exactly those that the tokenizer makes of its chat template's text, unless a text holds the words of a special
        token: those stay words."""
        t = prompt.template
        branches = None if ask.branch is None else [ask.branch.replace("{label}", x) for x in t.slot_labels(prompt.n)]
        skeleton = self.skeleton(t, branches is not None)
        values = {conversation.candidate(s): prompt.shown(s).text for s in range(prompt.n)}
        values |= {QUESTION: prompt.question} | ({BRANCH: branches[0]} if branches else {})
        spans = skeleton.spans(values)
        self._unchanged(prompt, skeleton, values, spans)
        where = f"question {prompt.id!r}"
        tail = spans.pop()
        if not branches:
            spans.append(tail)
            answers = t.slot_labels(prompt.n) if ask.answers is None else ask.answers
            return self._cut(prompt, skeleton, spans, where), self._answers(t, tail.text, answers)
        spans.pop()  # the branch itself
        opening, answers, begun = self.texts.branch_end(ask)
        ending = [x.id for x in self.tokens([tail], where)] + opening + begun
        out = self._cut(prompt, skeleton, spans, where)
        return out + [(BRANCH, s, self.texts.text(x) + ending) for s, x in enumerate(branches)], answers

    def core(self, template: Template, mark: str, text: str, what: str) -> Core:
        """What of a text is its own wherever it stands in the conversation, in any slot if it is a candidate's."""
        key = (template, "" if mark == QUESTION else "candidate", text)
        if key not in self._cores:
            if len(self._cores) > 4096:
                self._cores.clear()
            self._cores[key] = self._core(template, mark, text, what)
        return self._cores[key]

    def _core(self, template: Template, mark: str, text: str, what: str) -> Core:
        alone = self.texts.tokens(text, what)
        first, last = len(text) - len(text.lstrip()), len(text.rstrip())
        kept = {x for x in alone if first <= x.start and x.stop <= last}
        skeleton = self.skeleton(template)
        for i, m in enumerate(skeleton.marks):
            if (m == QUESTION) != (mark == QUESTION):
                continue
            before, after, shown = skeleton.literals[i], skeleton.literals[i + 1], skeleton.shown(m, text)
            there = self.tokens([Span(None, before), Span(m, shown), Span(None, after)], what)
            shift = (first if skeleton.strips[m][0] else 0) - len(before)
            kept &= {Token(x.id, x.start + shift, x.stop + shift) for x in there}
        runs = [list(run) for own, run in groupby(range(len(alone)), lambda i: alone[i] in kept) if own]
        run = max(runs, key=len, default=[])
        lo, hi = (run[0], run[-1] + 1) if run else (len(alone), len(alone))
        ids = [x.id for x in alone]
        return Core(ids[:lo], ids[lo:hi], ids[hi:], alone[lo].start if run else first)

    def skeleton(self, template: Template, branch: bool = False) -> Skeleton:
        """The rendered conversation; with a branch, it ends the last turn of the user, and no opening follows. Raises
        KvattnError for a chat template that does not carry the conversation."""
        key = (template, branch)
        if key not in self._skeletons:
            self._skeletons[key] = self._skeleton(template, branch)
        return self._skeletons[key]

    def _skeleton(self, template: Template, branch: bool) -> Skeleton:
        said, errors = template.messages, []
        if branch:
            said = said[:-1] if said[-1].role == "assistant" else said
            last = max(i for i, m in enumerate(said) if m.role == "user")
            asked = Message("user", said[last].content + f"{_OPEN}{BRANCH}{_CLOSE}")
            said = (*said[:last], asked, *said[last + 1 :])
        for messages in (said, without_system(said)):
            marks = [*conversation.marks(messages), *([BRANCH] if branch else [])]
            try:
                bare = self.texts.render(_sealed(messages, marks, ""), template.chat)
                wide = self.texts.render(_sealed(messages, marks, "\n"), template.chat)
            except KvattnError as error:
                errors.append(error)
                continue
            found = _literals(bare, marks)
            own = [x for m in messages for x, mark in conversation.pieces(m.content) if mark is None]
            if found is None or not all(x.replace(f"{_OPEN}{BRANCH}{_CLOSE}", "").strip() in bare for x in own):
                continue
            strips = {m: tuple(x not in wide for x in (f"\n{_OPEN}{m}", f"{m}{_CLOSE}\n")) for m in marks}
            return Skeleton(messages, tuple(marks), found, strips)  # type: ignore[arg-type]
        raise KvattnError(
            f"the template {template.name!r} does not fit the judge's chat template, which "
            + (f"says: {errors[0]}" if errors else "leaves out some of its messages or their order")
            + "; write its messages as that judge takes them (user and assistant by turns, the system's first or none)"
        )

    def _unchanged(
        self, prompt: JudgePrompt, skeleton: Skeleton, values: Mapping[str, str], spans: Sequence[Span]
    ) -> None:
        """Raises KvattnError where the chat template treats these texts otherwise than any text."""
        marks = {**values, BRANCH: values.get(BRANCH, "")}
        said = [
            {**turn, "content": turn["content"].replace(f"{_OPEN}{BRANCH}{_CLOSE}", marks[BRANCH])}
            for turn in conversation.filled(skeleton.messages, values)
        ]
        if self.texts.render(said, prompt.template.chat) != "".join(s.text for s in spans):
            raise KvattnError(
                f"question {prompt.id!r}: the judge's chat template changes the text of the question or a candidate, "
                "so that its place cannot be told; take another template, or leave the question out"
            )

    def tokens(self, spans: Sequence[Span], what: str) -> list[Token]:
        """The tokens of a rendered text. No text of a mark becomes a special or added token."""
        own_texts, text = self.texts, "".join(s.text for s in spans)
        foreign, at = [], 0
        for s in spans:
            if s.mark is not None:
                foreign.append((at, at + len(s.text)))
            at += len(s.text)

        def hostile(x: Token) -> bool:
            return x.id in own_texts.reserved and any(x.start < b and a < x.stop for a, b in foreign)

        out = own_texts.special_tokens(text)
        if not any(map(hostile, out)):
            return out
        out, at = [], 0  # the special tokens of trusted text; between them nothing is one
        held: list[Token] = []
        for s in spans:
            if s.mark is None:
                own = own_texts.special_tokens(s.text)
                held += [Token(x.id, x.start + at, x.stop + at) for x in own if x.id in own_texts.reserved]
            at += len(s.text)
        at = 0
        for mark in [*held, None]:
            stop = len(text) if mark is None else mark.start
            out += [Token(x.id, x.start + at, x.stop + at) for x in own_texts.tokens(text[at:stop], what)]
            if mark is not None:
                out.append(mark)
                at = mark.stop
        return out

    def _answers(self, template: Template, tail: str, answers: tuple[str, ...]) -> tuple[int, ...]:
        """The one token that each answer is behind the prompt's end, with or without a blank before it."""
        if not answers:
            return ()
        key = (tail, answers)
        if key not in self._tails:
            for lead in ("",) if tail[-1:].isspace() else ("", " "):
                last = [self.texts.special_tokens(tail + lead + a)[-1] for a in answers]
                one = [x.id for x in last if x.start == len(tail)]
                if len(set(one)) == len(answers):
                    self._tails[key] = tuple(one)
                    break
            else:
                shown = ", ".join(repr(a) for a in answers)
                raise KvattnError(
                    f"label collision: where the prompt of {template.name!r} ends, {tail[-20:]!r}, the labels {shown} "
                    "are not one distinct token each in this tokenizer; take letters or digits, no blank before them"
                )
        return self._tails[key]

    def _cut(self, prompt: JudgePrompt, skeleton: Skeleton, spans: Sequence[Span], where: str) -> Parts:
        """The tokens of a filled conversation as segments, in prompt order."""
        tokens, at = self.tokens(spans, where), 0
        ids = [x.id for x in tokens]

        def first(char: int, low: int, high: int) -> int:
            return next((i for i in range(low, high) if tokens[i].start >= char), high)

        texts: list[tuple[str, int | None, int, int]] = []  # role, slot, first token, last token + 1
        gaps: list[tuple[str, int]] = []  # the trusted texts with the character that each begins at
        for s in spans:
            if s.mark is None:
                gaps.append((s.text, at))
            else:
                slot = None if s.mark == QUESTION else int(s.mark.partition(".")[2]) - 1
                text = prompt.question if slot is None else prompt.shown(slot).text
                core, lead = self.core(prompt.template, s.mark, text, where), len(text) - len(text.lstrip())
                own, char = core.own, at + core.start - (lead if skeleton.strips[s.mark][0] else 0)
                there = (i for i, x in enumerate(tokens) if x.start == char and ids[i : i + len(own)] == own)
                start = next(there, None) if own else first(char, 0, len(tokens))
                if start is None:
                    who = "the question" if slot is None else f"candidate {prompt.shown(slot).id!r}"
                    raise KvattnError(
                        f"{where}: {who} runs into the text beside it, so that its tokens cannot be told; put a line "
                        f"end around its mark in the template {prompt.template.name!r}"
                    )
                texts.append(("question" if slot is None else "candidate", slot, start, start + len(own)))
            at += len(s.text)

        out: Parts = []
        done, beginning = 0, self.texts.beginning(prompt.template.chat)
        for (role, slot, start, stop), (text, char) in zip(texts, gaps, strict=False):
            cut = start if slot is None else first(char + conversation.divide(text), done, start)
            if out:
                out.append(("separator", out[-1][1], ids[done:cut]))
            else:
                out.append(("prefix", None, beginning + ids[:cut]))
            if slot is not None:
                out.append(("header", slot, ids[cut:start]))
            out.append((role, slot, ids[start:stop]))
            done = stop
        text, char = gaps[-1]
        cut = first(char + len(text) - len(text.lstrip()), done, len(tokens))
        return [*out, ("separator", out[-1][1], ids[done:cut]), ("suffix", None, ids[cut:])]


def without_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation for a chat template that knows no system: its text opens the user's first turn."""
    system = "\n\n".join(m.content for m in messages if m.role == "system")
    out = [m for m in messages if m.role != "system"]
    first = next(i for i, m in enumerate(out) if m.role == "user")
    out[first] = Message("user", f"{system}\n\n{out[first].content}" if system else out[first].content)
    return tuple(out)


def _sealed(messages: Sequence[Message], marks: Sequence[str], beside: str) -> list[dict[str, str]]:
    """The conversation with a seal, between `beside`, in the place of each mark."""
    seals = {m: f"{beside}{_OPEN}{m}{_CLOSE}{beside}" for m in marks}
    seal: Callable[[str], str] = lambda x: x.replace(f"{_OPEN}{BRANCH}{_CLOSE}", seals.get(BRANCH, ""))  # noqa: E731
    return [{**turn, "content": seal(turn["content"])} for turn in conversation.filled(messages, seals)]


def _literals(text: str, marks: Sequence[str]) -> tuple[str, ...] | None:
    """What stands before, between and after the seals; None where they are not there once each and in order."""
    out = []
    for mark in marks:
        seal = f"{_OPEN}{mark}{_CLOSE}"
        if text.count(seal) != 1:
            return None
        before, _, text = text.partition(seal)
        out.append(before)
    return (*out, text)
