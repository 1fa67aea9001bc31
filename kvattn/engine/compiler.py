"""Prompts compiled by a tokenizer.

Candidate text is hostile: no candidate can open a chat turn or move a span (`kvattn.engine.texts`).
"""

from __future__ import annotations

from collections.abc import Sequence

from kvattn.engine.conversation import Conversations, Parts
from kvattn.engine.layout import Ask, PromptLayout, join
from kvattn.engine.texts import Texts
from kvattn.errors import KvattnError
from kvattn.questions.conversation import QUESTION, candidate, words
from kvattn.questions.prompt import Candidate, JudgePrompt

FEWER = "shorten or drop candidates"  # what a prompt that is too long is helped by
MOST_LOST = 0.5  # of a text's characters: a judge of the rest would judge another text


class PromptCompiler(Texts):
    """Compiles prompts for one tokenizer.

    max_tokens: the model's context; a longer prompt is an error
    identity:   the weights that the prompts are for; of candidates that others generated the text counts, not the ids
    """

    def __init__(self, tokenizer, max_tokens: int | None = None, identity: str | None = None) -> None:
        super().__init__(tokenizer)
        self.max_tokens, self.identity = max_tokens, identity
        self.conversations = Conversations(self)

    def check_said(self, prompt: JudgePrompt) -> None:
        """Raises KvattnError where most of the template, the question or a candidate is lost on the tokenizer."""
        t = prompt.template
        parts = (
            t.system,
            t.question_heading,
            t.candidates_heading,
            t.header,
            t.instruction,
            t.label_question,
            *words(t),
        )
        trusted = (f"the template {t.name!r}", " ".join(parts))
        own = [(f"what the agent of candidate {c.id!r} was asked", c.prompt) for c in prompt.candidates if c.prompt]
        texts = [(f"candidate {c.id!r}", c.text) for c in prompt.candidates if self._own_ids(c) is None]
        for what, text in (("the question", prompt.question), *texts, *own, trusted):
            if (share := self.lost(text)) > MOST_LOST:
                raise KvattnError(
                    f"question {prompt.id!r}: this tokenizer cannot say {what}: {share:.0%} of its characters become "
                    "unknown tokens; take a model whose vocabulary has them"
                )

    def _own_ids(self, candidate: Candidate) -> tuple[int, ...] | None:
        """The ids that a candidate was generated with, where they mean something to these weights."""
        return None if candidate.foreign_to(self.identity) else candidate.token_ids

    def candidate_ids(self, prompt: JudgePrompt, index: int) -> list[int]:
        """Ids of candidate `index` (not slot): those it was generated with, else its text's. In a conversation, whose
        text is tokenised whole, those of its text that no neighbour changes (`conversation.Core`)."""
        return self._candidate(prompt, index)[1]

    def _candidate(self, prompt: JudgePrompt, index: int) -> tuple[list[int], list[int], list[int]]:
        """The same, with the ids before and after them that are not the candidate's own in the judge's prompt."""
        c = prompt.candidates[index]
        what = f"question {prompt.id!r}: candidate {c.id!r}"
        if prompt.template.messages:
            return self.conversations.core(prompt.template, candidate(0), c.text, what)[:3]
        return [], self._alone(c, what), []

    def _alone(self, c: Candidate, what: str) -> list[int]:
        ids = self._own_ids(c)
        if ids is None:
            return self.text(c.text, what)
        bad = [t for t in ids if t in self.reserved or not 0 <= t < len(self.tokenizer)]
        if bad:
            raise KvattnError(f"{what} holds token id {bad[0]}, which is reserved or unknown to this tokenizer")
        return list(ids)

    def compile(self, prompt: JudgePrompt, ask: Ask, room: int = 0) -> PromptLayout:
        """The judge's layout: prefix, question, separator, then header, candidate and separator of every slot, suffix
        and, if the readout asks about every slot apart, a branch per slot.

        room: tokens that are to be written after it. Raises KvattnError for a prompt that is, with them, longer than
        the model's context, and where labels are not one token each."""
        shown = tuple(prompt.shown(s).id for s in range(prompt.n))
        parts, answer_ids = (
            self.conversations.parts(prompt, ask) if prompt.template.messages else self._parts(prompt, ask)
        )
        begun = self.branch_end(ask)[2] if ask.branch is not None else []
        layout = join(parts, shown, answer_ids, ask.reader, len(begun))
        self.check_length(layout, prompt, room)
        return layout

    def _parts(self, prompt: JudgePrompt, ask: Ask) -> tuple[Parts, tuple[int, ...]]:
        """Segments of a template of parts, and the ids of the answers."""
        t, labels = prompt.template, prompt.template.slot_labels(prompt.n)
        before, after = self.frame(t.system, t.chat)
        parts: Parts = [
            ("prefix", None, before + self.text(t.question_heading)),
            ("question", None, self.text(prompt.question, f"question {prompt.id!r}")),
            ("separator", None, self.text(t.candidates_heading)),
        ]
        for slot, label in enumerate(labels):
            parts += [
                ("header", slot, self.text(t.header.replace("{label}", label))),
                ("candidate", slot, self.candidate_ids(prompt, prompt.order[slot])),
                ("separator", slot, self.text(t.separator)),
            ]
        closing = " ".join(x for x in (t.instruction, ask.question) if x)
        if ask.branch is None:
            opening, answer_ids = self.forced(ask.opening, labels if ask.answers is None else ask.answers)
            parts.append(("suffix", None, self.text(closing) + after + opening))
        else:
            opening, answer_ids, begun = self.branch_end(ask)
            ending = after + opening + begun
            parts.append(("suffix", None, self.text(closing)))
            parts += [("branch", s, self.text(ask.branch.replace("{label}", x)) + ending) for s, x in enumerate(labels)]
        return parts, answer_ids

    def execution(self, prompt: JudgePrompt, regime: str = "parallel", way_out: str = FEWER) -> list[PromptLayout]:
        """The layouts of the execution agents' own contexts; slots are candidate indices, not display slots.

        "parallel": one layout, the agents' common prompt and then every candidate at the same positions.
        "progressive": one layout an agent; agent i saw the question and the answers before it.

        A candidate with a `prompt` of its own has, under either regime, a layout of its own: that text as the user's
        turn, behind the template's system text for agents, then the candidate. Exactly the layouts that hold the
        question have a segment of that role; the first is always one of them."""
        t = prompt.template
        before, after = self.frame(t.agent_system, t.chat)
        first, question, last = self._question(prompt)
        head: Parts = [
            ("prefix", None, before + self.text(t.question_heading) + first),
            ("question", None, question),
        ]
        turn = ("separator", None, last + self.text(t.agent_instruction) + after)
        texts = [self._candidate(prompt, i) for i in range(prompt.n)]
        answers: list[Parts] = [
            [*([("header", i, x[0])] if x[0] else []), ("candidate", i, x[1])] for i, x in enumerate(texts)
        ]
        ids = tuple(c.id for c in prompt.candidates)
        own: dict[int, PromptLayout] = {}
        for i, c in enumerate(prompt.candidates):
            if c.prompt is not None:
                asked = self.text(c.prompt, f"question {prompt.id!r}: prompt of candidate {c.id!r}") + after
                own[i] = join([("prefix", None, before), ("separator", None, asked), *answers[i]], ids)
        if regime == "parallel":
            common = [part for i, x in enumerate(answers) if i not in own for part in x]
            layouts = [join([*head, turn, *common], ids).shared_start("header", "candidate"), *own.values()]
        elif regime == "progressive":
            layouts, earlier = [] if 0 not in own else [join([*head, turn], ids)], []
            for i, (label, (lead, x, rest)) in enumerate(zip(t.slot_labels(prompt.n), texts, strict=True)):
                heading = [("separator", None, self.text(t.candidates_heading))] if earlier else []
                layouts.append(own.get(i) or join([*head, *heading, *earlier, turn, *answers[i]], ids))
                earlier += [
                    ("header", i, self.text(t.header.replace("{label}", label)) + lead),
                    ("candidate", i, x),
                    ("separator", i, rest + self.text(t.separator)),
                ]
        else:
            raise KvattnError(f"unknown regime {regime!r}. Known: parallel, progressive.")
        for x in layouts:
            self.check_length(x, prompt, way_out=way_out)
        return layouts

    def _question(self, prompt: JudgePrompt) -> tuple[list[int], list[int], list[int]]:
        """Ids of the question, those before and after its own as with candidates."""
        what = f"question {prompt.id!r}"
        if prompt.template.messages:
            return self.conversations.core(prompt.template, QUESTION, prompt.question, what)[:3]
        return [], self.text(prompt.question, what), []

    def check_length(
        self, layout: PromptLayout, prompt: JudgePrompt, room: int = 0, whose: str = "the model's", way_out: str = FEWER
    ) -> None:
        """Raises KvattnError for a text that, with room for a verdict, the context does not hold."""
        longest = int(layout.positions.max()) + 1
        if self.max_tokens is not None and longest + room > self.max_tokens:
            verdict = f" and up to {room} for the verdict" if room else ""
            shorter = ", or ask for a shorter verdict" if room else ""
            raise KvattnError(
                f"question {prompt.id!r} needs {longest} tokens{verdict}, {whose} context holds {self.max_tokens}; "
                f"{way_out}{shorter}"
            )


def token_texts(tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of every token, which together are the decoded prompt. Of tokens that make a character together the
    first has it and the others are empty."""

    def text(start: int, stop: int) -> str:
        return tokenizer.decode(list(ids[start:stop]), clean_up_tokenization_spaces=False)

    out, before, at = [""] * len(ids), 0, 0  # tokens from `before` are the context of those from `at`
    for stop in range(1, len(ids) + 1):
        known, new = text(before, at), text(before, stop)
        if stop == len(ids) or not new.endswith("\ufffd"):
            out[at] = new[len(known) :]
            before, at = at, stop
    return out
