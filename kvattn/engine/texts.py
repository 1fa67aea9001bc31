"""Texts as one tokenizer's ids.

Candidate text is hostile. Every untrusted text is tokenised alone, by a copy of the tokenizer that knows no special
and no added token, and the result is checked, so no candidate can open a chat turn or move a span.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kvattn.engine.layout import Ask
from kvattn.errors import KvattnError

# Llama 3.2's chat template writes today's date; with this before it, the day is always that of its own default.
FIXED_DAY = (
    "{% macro strftime_now(form) %}{{ form | replace('%d', '26') | replace('%b', 'Jul') | replace('%B', 'July')"
    " | replace('%m', '07') | replace('%Y', '2024') | replace('%y', '24') }}{% endmacro %}"
)
PLAIN = " \t\r\n\u25810123456789"  # what may be added tokens of a vocabulary and is plain text all the same


class Token(NamedTuple):
    """A token and the characters [start, stop) that it stands for."""

    id: int
    start: int
    stop: int


class Texts:
    """Tokenises texts, trusted and not, and renders chats.

    reserved: the ids that no untrusted text becomes: special and added tokens, but for blanks and digits
    """

    def __init__(self, tokenizer) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise KvattnError(
                f"{type(tokenizer).__name__} is a slow tokenizer, whose special tokens cannot be kept out of candidate "
                "text; use a model with a tokenizer.json"
            )
        self.tokenizer = tokenizer
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

    def frame(self, system: str, chat: bool = True) -> tuple[list[int], list[int]]:
        """Ids before and after the user's text in a chat of one system and one user turn, the model's turn open."""
        key = (system, chat)
        if key not in self._frames:
            self._frames[key] = self._make_frame(system, chat)
        return self._frames[key]

    def _make_frame(self, system: str, chat: bool) -> tuple[list[int], list[int]]:
        mark = "\u2063kvattn user text\u2063"
        if not self.has_chat(chat):
            between = "\n\n" if system else ""
            return self.beginning(chat) + self.text(f"{system}{between}"), self.text(between)
        said = "does not carry the system and user text unchanged"
        # A template without a system role raises whatever it likes, or leaves such turns out.
        for turns in (
            [{"role": "system", "content": system}, {"role": "user", "content": mark}],
            [{"role": "user", "content": f"{system}\n\n{mark}"}],
        ):
            try:
                before, found, after = self.render(turns).partition(mark)
            except KvattnError as error:
                said = str(error)
                continue
            if found and system in before and mark not in after:
                return self.special_ids(before), self.special_ids(after)
        raise KvattnError(
            f"the tokenizer's chat template {said}; correct it in the model's files, or take it out to judge "
            "without chat turns"
        )

    def has_chat(self, chat: bool = True) -> bool:
        """Whether there is a chat template to be used."""
        return chat and bool(getattr(self.tokenizer, "chat_template", None))

    def beginning(self, chat: bool = True) -> list[int]:
        """Ids that stand before any text: none in a chat, whose template says all."""
        bos = getattr(self.tokenizer, "bos_token_id", None)
        return [] if self.has_chat(chat) or bos is None else [bos]

    def render(self, turns: Sequence[Mapping[str, str]], chat: bool = True) -> str:
        """The turns as the tokenizer's chat template writes them, the model's turn open, or left open where the last
        turn is its own; without a chat template, one after the other. Raises KvattnError that says what the chat
        template says."""
        tok = self.tokenizer
        more = turns[-1]["role"] == "assistant"
        if not self.has_chat(chat):
            return "\n\n".join([turn["content"] for turn in turns] + [""] * (not more))
        held = tok.chat_template
        if isinstance(held, dict) and "default" not in held:
            raise KvattnError(f"is one of {', '.join(sorted(held))}, and none is the default")
        try:
            template = tok.get_chat_template()
            template = FIXED_DAY + template if "strftime_now" in template else template
            return tok.apply_chat_template(
                turns,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=not more,
                continue_final_message=more,
            )
        except Exception as error:
            raise KvattnError(f"cannot be used ({type(error).__name__}: {error})") from None

    def tokens(self, text: str, what: str = "text") -> list[Token]:
        """The tokens of an untrusted text with their characters; never a special or added one, as with `text`."""
        self.text(text, what)
        encoded = self._bare.encode(text, add_special_tokens=False)
        return _placed(encoded.ids, encoded.offsets)

    def special_ids(self, text: str) -> list[int]:
        """Ids of a trusted text, in which the words of special tokens are special tokens."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def special_tokens(self, text: str) -> list[Token]:
        """The same with their characters."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return _placed(encoded.input_ids, encoded.offset_mapping)

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

    def branch_end(self, ask: Ask) -> tuple[list[int], tuple[int, ...], list[int]]:
        """How the model's turn opens in a branch, the ids of the answers, and the beginning of one that is two
        tokens."""
        if ask.longer:
            return self.numbers(ask.answers or ())
        return (*self.forced(ask.opening, ask.answers or ()), [])

    def numbers(self, answers: tuple[str, ...]) -> tuple[list[int], tuple[int, ...], list[int]]:
        """`forced` of numbers at the turn's beginning, of which the last may be two tokens, if the first of them is
        another number ("1", "0"): then their ids are the last two, and that first one comes back beside them."""
        opening, ids = self.forced("", answers[:-1])
        last = self.text(answers[-1])
        head, rest = last[: len(opening)], last[len(opening) :]
        if head == opening and len(rest) == 1 + (rest[0] in ids):
            return opening, (*ids, *rest), rest[:-1]
        raise KvattnError(
            f"label collision: {answers[-1]!r} is neither one token in this tokenizer nor another number and one more; "
            "take a scale such as [1, 10] or [1, 5]"
        )


def _placed(ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> list[Token]:
    """Tokens with their characters; those that a tokenizer counts to none, such as blanks before a word, are the
    token's that follows."""
    out: list[Token] = []
    at = 0
    for token, (start, stop) in zip(ids, offsets, strict=True):
        out.append(Token(token, min(start, at), max(stop, min(start, at))))
        at = max(at, stop)
    return out
