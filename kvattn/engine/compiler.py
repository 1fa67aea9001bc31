"""Prompts compiled by a tokenizer.

Candidate text is hostile. Every untrusted text is tokenised alone, by a copy of the tokenizer that knows no special
and no added token, and the result is checked, so no candidate can open a chat turn or move a span.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence

from kvattn.engine.layout import Ask, PromptLayout, join
from kvattn.errors import KvattnError
from kvattn.questions.prompt import Candidate, JudgePrompt, slot_labels

# Llama 3.2's chat template writes today's date; with this before it, the day is always that of its own default.
FIXED_DAY = (
    "{% macro strftime_now(form) %}{{ form | replace('%d', '26') | replace('%b', 'Jul') | replace('%B', 'July')"
    " | replace('%m', '07') | replace('%Y', '2024') | replace('%y', '24') }}{% endmacro %}"
)
MOST_LOST = 0.5  # of a text's characters: a judge of the rest would judge another text
PLAIN = " \t\r\n\u25810123456789"  # what may be added tokens of a vocabulary and is plain text all the same


class PromptCompiler:
    """Compiles prompts for one tokenizer.

    max_tokens: the model's context; a longer prompt is an error
    identity:   the weights that the prompts are for; of candidates that others generated the text counts, not the ids
    reserved:   the ids that no untrusted text becomes: special and added tokens, but for blanks and digits
    """

    def __init__(self, tokenizer, max_tokens: int | None = None, identity: str | None = None) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise KvattnError(
                f"{type(tokenizer).__name__} is a slow tokenizer, whose special tokens cannot be kept out of candidate "
                "text; use a model with a tokenizer.json"
            )
        self.tokenizer, self.max_tokens, self.identity = tokenizer, max_tokens, identity
        bare = json.loads(tokenizer.backend_tokenizer.to_str())
        vocabulary = bare["model"].get("vocab")
        # Runs of blanks (Gemma) and digits can be added tokens that plain text becomes; they open no turn.
        plain = [t for t in bare["added_tokens"] if not t["special"] and not t["content"].strip(PLAIN)]
        plain = [t for t in plain if isinstance(vocabulary, dict) and vocabulary.get(t["content"]) == t["id"]]
        reserved = {t["id"] for t in bare["added_tokens"] if t not in plain}
        bare["added_tokens"], bare["post_processor"], bare["truncation"], bare["padding"] = plain, None, None, None
        self._bare = type(tokenizer.backend_tokenizer).from_str(json.dumps(bare))
        unk, own = getattr(tokenizer, "unk_token_id", None), bare["model"]
        self.reserved = reserved - {unk}
        self._unknown = {unk, own.get("unk_id"), self._bare.token_to_id(own.get("unk_token") or "")}
        self._texts: dict[str, list[int]] = {}
        self._lost: dict[str, float] = {}
        self._frames: dict[tuple[str, bool], tuple[list[int], list[int]]] = {}

    def text(self, text: str, what: str = "text") -> list[int]:
        """Ids of an untrusted text; never a special or added token. Raises KvattnError if that cannot be kept."""
        if text not in self._texts:
            ids = self._bare.encode(text, add_special_tokens=False).ids
            bad = self.reserved.intersection(ids)
            if bad:
                token = self.tokenizer.convert_ids_to_tokens(min(bad))
                raise KvattnError(f"{what} tokenises to the reserved token {token!r}; reword it")
            if len(self._texts) > 4096:
                self._texts.clear()
            self._texts[text] = ids
        return self._texts[text]

    def lost(self, text: str) -> float:
        """The share of a text's characters, blanks apart, that become unknown tokens, or none at all."""
        if text not in self._lost:
            if len(self._lost) > 4096:
                self._lost.clear()
            # A normaliser may compose characters, of which one then stands for several.
            self._lost[text] = min(map(self._lost_of, {text, unicodedata.normalize("NFC", text)}))
        return self._lost[text]

    def _lost_of(self, text: str) -> float:
        encoded, said = self._bare.encode(text, add_special_tokens=False), bytearray(len(text))
        for token, (start, stop) in zip(encoded.ids, encoded.offsets, strict=True):
            if token not in self._unknown:
                said[start:stop] = b"1" * (stop - start)
        written = [bool(there) for there, c in zip(said, text, strict=True) if not c.isspace()]
        return written.count(False) / max(1, len(written))

    def check_said(self, prompt: JudgePrompt) -> None:
        """Raises KvattnError where most of the template, the question or a candidate is lost on the tokenizer."""
        t = prompt.template
        parts = (t.system, t.question_heading, t.candidates_heading, t.header, t.instruction, t.label_question)
        trusted = (f"the template {t.name!r}", " ".join(parts))
        own = [(f"what the agent of candidate {c.id!r} was asked", c.prompt) for c in prompt.candidates if c.prompt]
        texts = [(f"candidate {c.id!r}", c.text) for c in prompt.candidates if self._own_ids(c) is None]
        for what, text in (("the question", prompt.question), *texts, *own, trusted):
            if (share := self.lost(text)) > MOST_LOST:
                raise KvattnError(
                    f"question {prompt.id!r}: this tokenizer cannot say {what}: {share:.0%} of its characters become "
                    "unknown tokens; take a model whose vocabulary has them"
                )

    def frame(self, system: str, chat: bool = True) -> tuple[list[int], list[int]]:
        """Ids before and after the user's text in a chat of one system and one user turn, the model's turn open."""
        key = (system, chat)
        if key not in self._frames:
            self._frames[key] = self._make_frame(system, chat)
        return self._frames[key]

    def _make_frame(self, system: str, chat: bool) -> tuple[list[int], list[int]]:
        tok, mark = self.tokenizer, "\u2063kvattn user text\u2063"
        said = "does not carry the system and user text unchanged"
        held = getattr(tok, "chat_template", None) if chat else None
        if isinstance(held, dict) and "default" not in held:
            said = f"is one of {', '.join(sorted(held))}, and none is the default"
        # A template without a system role raises whatever it likes, or leaves such turns out.
        for turns in (
            [{"role": "system", "content": system}, {"role": "user", "content": mark}],
            [{"role": "user", "content": f"{system}\n\n{mark}"}],
        ):
            if not held:
                break
            try:
                template = tok.get_chat_template()
                template = FIXED_DAY + template if "strftime_now" in template else template
                text = tok.apply_chat_template(
                    turns, chat_template=template, tokenize=False, add_generation_prompt=True
                )
            except Exception as error:
                if not isinstance(held, dict):
                    said = f"cannot be used ({type(error).__name__}: {error})"
                continue
            before, found, after = text.partition(mark)
            if found and system in before and mark not in after:
                return (
                    tok(before, add_special_tokens=False).input_ids,
                    tok(after, add_special_tokens=False).input_ids,
                )
        else:
            raise KvattnError(
                f"the tokenizer's chat template {said}; correct it in the model's files, or take it out to judge "
                "without chat turns"
            )
        bos = [tok.bos_token_id] if getattr(tok, "bos_token_id", None) is not None else []
        return bos + self.text(f"{system}\n\n" if system else ""), self.text("\n\n" if system else "")

    def _own_ids(self, candidate: Candidate) -> tuple[int, ...] | None:
        """The ids that a candidate was generated with, where they mean something to these weights."""
        return None if candidate.foreign_to(self.identity) else candidate.token_ids

    def candidate_ids(self, prompt: JudgePrompt, index: int) -> list[int]:
        """Ids of candidate `index` (not slot): those it was generated with, else its text's."""
        c = prompt.candidates[index]
        what = f"question {prompt.id!r}: candidate {c.id!r}"
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
        t, labels = prompt.template, slot_labels(prompt.n)
        before, after = self.frame(t.system, t.chat)
        parts: list[tuple[str, int | None, list[int]]] = [
            ("prefix", None, before + self.text(t.question_heading)),
            ("question", None, self.text(prompt.question, f"question {prompt.id!r}")),
            ("separator", None, self.text(t.candidates_heading)),
        ]
        for slot, label in enumerate(labels):
            parts += [
                ("header", slot, self.text(t.header.format(label=label))),
                ("candidate", slot, self.candidate_ids(prompt, prompt.order[slot])),
                ("separator", slot, self.text(t.separator)),
            ]
        answers = labels if ask.answers is None else ask.answers
        opening, answer_ids = self.forced(ask.opening, answers)
        ending = after + opening
        closing = " ".join(x for x in (t.instruction, ask.question) if x)
        if ask.branch is None:
            parts.append(("suffix", None, self.text(closing) + ending))
        else:
            parts.append(("suffix", None, self.text(closing)))
            parts += [("branch", s, self.text(ask.branch.format(label=x)) + ending) for s, x in enumerate(labels)]
        shown = tuple(prompt.shown(s).id for s in range(prompt.n))
        layout = join(parts, shown, answer_ids, ask.reader)
        self._check_length(layout, prompt, room)
        return layout

    def forced(self, opening: str, answers: tuple[str, ...]) -> tuple[list[int], tuple[int, ...]]:
        """Ids of the opening of the model's turn, and the one token that each answer then is.

        Found by tokenising opening + answer for every answer. Raises KvattnError where the openings differ or the
        answers are not one distinct token each."""
        if not answers:
            return self.text(opening), ()
        whole = [self.text(opening + a) for a in answers]
        heads = {tuple(w[:-1]) for w in whole}
        last = tuple(w[-1] for w in whole if w)
        if len(heads) != 1 or len(set(last)) != len(answers) or self.text(opening) in whole:
            shown = ", ".join(repr(a) for a in answers)
            raise KvattnError(
                f"label collision: after {opening!r} the answers {shown} are not one distinct token each in this "
                "tokenizer; use fewer candidates or another readout"
            )
        return list(heads.pop()), last

    def execution(self, prompt: JudgePrompt, regime: str = "parallel") -> list[PromptLayout]:
        """The layouts of the execution agents' own contexts; slots are candidate indices, not display slots.

        "parallel": one layout, the agents' common prompt and then every candidate at the same positions.
        "progressive": one layout an agent; agent i saw the question and the answers before it.

        A candidate with a `prompt` of its own has, under either regime, a layout of its own: that text as the user's
        turn, behind the template's system text for agents, then the candidate. Exactly the layouts that hold the
        question have a segment of that role; the first is always one of them."""
        t = prompt.template
        before, after = self.frame(t.agent_system, t.chat)
        head: list[tuple[str, int | None, list[int]]] = [
            ("prefix", None, before + self.text(t.question_heading)),
            ("question", None, self.text(prompt.question, f"question {prompt.id!r}")),
        ]
        turn = ("separator", None, self.text(t.agent_instruction) + after)
        texts = [self.candidate_ids(prompt, i) for i in range(prompt.n)]
        ids = tuple(c.id for c in prompt.candidates)
        own: dict[int, PromptLayout] = {}
        for i, c in enumerate(prompt.candidates):
            if c.prompt is not None:
                asked = self.text(c.prompt, f"question {prompt.id!r}: prompt of candidate {c.id!r}") + after
                own[i] = join([("prefix", None, before), ("separator", None, asked), ("candidate", i, texts[i])], ids)
        if regime == "parallel":
            common = [("candidate", i, x) for i, x in enumerate(texts) if i not in own]
            layouts = [join([*head, turn, *common], ids).shared_start("candidate"), *own.values()]
        elif regime == "progressive":
            layouts, earlier = [] if 0 not in own else [join([*head, turn], ids)], []
            for i, (label, x) in enumerate(zip(slot_labels(prompt.n), texts, strict=True)):
                heading = [("separator", None, self.text(t.candidates_heading))] if earlier else []
                layouts.append(own.get(i) or join([*head, *heading, *earlier, turn, ("candidate", i, x)], ids))
                earlier += [
                    ("header", i, self.text(t.header.format(label=label))),
                    ("candidate", i, x),
                    ("separator", i, self.text(t.separator)),
                ]
        else:
            raise KvattnError(f"unknown regime {regime!r}. Known: parallel, progressive.")
        for x in layouts:
            self._check_length(x, prompt)
        return layouts

    def _check_length(self, layout: PromptLayout, prompt: JudgePrompt, room: int = 0) -> None:
        longest = int(layout.positions.max()) + 1
        if self.max_tokens is not None and longest + room > self.max_tokens:
            verdict = f" and up to {room} for the verdict" if room else ""
            shorter = ", or ask for a shorter verdict" if room else ""
            raise KvattnError(
                f"question {prompt.id!r} needs {longest} tokens{verdict}, the model's context holds {self.max_tokens}; "
                f"shorten or drop candidates{shorter}"
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
