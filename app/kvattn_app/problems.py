"""Where a live problem comes from: presets and embedded sets, an uploaded file, a run, or one typed by hand; the
template it is shown in; and its link."""

from __future__ import annotations

import base64
import binascii
import json
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import streamlit as st

from kvattn import DEFAULT_JUDGE, questions
from kvattn.errors import KvattnError
from kvattn.models import resolve
from kvattn.questions.prompt import MAX_CANDIDATES, Candidate, JudgePrompt
from kvattn.questions.relational import KINDS, relational
from kvattn.questions.template_files import read_template
from kvattn.questions.templates import TEMPLATES, get_template
from kvattn.study.run_folder import picks
from kvattn.study.run_folder.schema import prompt_of
from kvattn_app import controls, library, show

LONGEST_LINK = 20_000
TYPED = "typed"
EMBEDDED = {
    "odd-one-out": "Who disagrees?",
    "long-odd-one-out": "Who disagrees, at length?",
    "plurality": "What do most say?",
    "lookup": "Who says it?",
    "synthetic": "Synthetic problem",
    "organism-max": "Organism's problem",
    "organism-odd": "Odd one out (organism)",
}
SOURCES = EMBEDDED | {
    "run": "Question of a run",
    "file": "Candidates file",
    TYPED: "Typed by hand",
}
EXAMPLE = JudgePrompt(
    "A pen costs 3 dollars. How much do 4 pens cost?",
    tuple(
        Candidate(f"c{i}", text, correct=right)
        for i, (text, right) in enumerate(
            (
                ("4 x 3 = 12. The answer is 12", True),
                ("4 + 3 = 7. The answer is 7", False),
                ("The answer is 34", False),
                ("3 x 4 = 12. The answer is 12.0", True),
            ),
            1,
        )
    ),
    id="typed",
)


@dataclass(frozen=True)
class Preset:
    """A problem of an embedded set that is worth seeing, and what to look at."""

    look: str
    source: str
    number: int
    candidates: int = 4
    seed: int = 0


PRESETS = {
    "A flip": Preset(
        "Dense reads all candidates together. Under reuse each was read alone: look at the badges, then at which layer "
        "the pick goes another way.",
        "odd-one-out",
        0,
    ),
    "A pick that holds": Preset(
        "Many agree. Look at the badges, and at how far the distributions over slots moved all the same.",
        "plurality",
        10,
    ),
    "Equal candidates": Preset(
        "Two candidates are the same text. A pick that goes from one to the other is no flip: look at the slots.",
        "odd-one-out",
        4,
    ),
    "One candidate is enough": Preset(
        "Each candidate can be told right or wrong alone. Look at which reuse harms a judge that need not compare.",
        "lookup",
        3,
    ),
    "A long one": Preset(
        "Each candidate works two other problems first. Look at what late slots get of the attention, and at the text.",
        "long-odd-one-out",
        0,
    ),
}


@dataclass(frozen=True)
class Edited:
    """Texts that stand in for those of the source."""

    question: str
    texts: tuple[str, ...]


def presets() -> None:
    """Problems worth seeing, by name; one that is chosen is judged by the judge that reads."""
    held = {f: st.session_state.get(f) for f in ("source", "number", "candidates", "seed")}
    at = next((name for name, p in PRESETS.items() if held == {f: getattr(p, f) for f in held}), None)
    st.session_state["preset"] = at

    def take() -> None:
        if name := st.session_state["preset"]:
            st.session_state.update({f: getattr(PRESETS[name], f) for f in held})
            st.session_state.update({"model": DEFAULT_JUDGE, "live-again": True})

    st.pills("Worth seeing", list(PRESETS), key="preset", on_change=take, label_visibility="collapsed")
    if at:
        st.caption(PRESETS[at].look)


def choose(model: str) -> JudgePrompt:
    """The problem that the widgets say, in the template that was dropped, if one was. Stops the page where there is
    none yet."""
    columns = st.columns([3, 2, 2, 2, 3], vertical_alignment="bottom")
    prompt = _of_source(model, columns)
    with columns[4]:
        return _in_template(prompt)


def _in_template(prompt: JudgePrompt) -> JudgePrompt:
    """The prompt in the template of a file that was dropped here, or of a link."""
    with st.popover(f"Template: {show.plain(prompt.template.name, 30)}", width="stretch"):
        sent = _sent("A template (docs/templates.md)", ["yaml", "yml", "json"], "template-upload")
        kept = _expand("".join(controls.linked("template-file")))
        if sent is None and kept and st.button("Take the problem's own again"):
            kept = None
        st.caption("What the judge reads around question and candidates.")
    for text in filter(None, (sent, kept.encode() if isinstance(kept, str) else None)):
        try:
            template = _on_disk(text, "yaml", read_template)
        except KvattnError as error:
            show.trouble(error, "This template is not taken.")
            continue
        st.caption(f"Of a file: {show.plain(template.name)}")
        packed = _squeeze(text.decode())
        controls.link("template-file", [packed] if packed else [])
        return replace(prompt, template=template)
    controls.link("template-file", [])
    return prompt


def _sent(label: str, types: list[str], key: str) -> bytes | None:
    """A file that was dropped, or else pasted."""
    sent = st.file_uploader(label, type=types, key=key)
    pasted = st.text_area("Or paste it", key=f"{key}-pasted", height=80)
    return sent.getvalue() if sent is not None else pasted.encode() if pasted.strip() else None


def _of_source(model: str, columns: Any) -> JudgePrompt:
    template = _template(model)
    first = "odd-one-out" if model == DEFAULT_JUDGE else template if template in EMBEDDED else "synthetic"
    with columns[0]:
        source = controls.choose(
            "Problem", list(SOURCES), "source", list(SOURCES).index(first), format_func=SOURCES.__getitem__
        )
    if source in EMBEDDED:
        with columns[1]:
            seed = controls.number("Seed", "seed", 10_000)
        with columns[2]:
            at = controls.number("Number", "number", 1_000)
        with columns[3]:
            sizes = KINDS[source].sizes if source in KINDS else ()
            n = controls.number("Candidates", "candidates", max(sizes) + 1, 4, least=min(sizes)) if sizes else 0
        return embedded(source, seed, at, n)
    if source == "run":
        return _of_a_run(columns)
    if source == "file":
        return _of_a_file()
    with columns[1]:
        n = controls.number("Candidates", "candidates", MAX_CANDIDATES + 1, EXAMPLE.n, least=1)
    with columns[2]:
        name = controls.choose("Template", list(TEMPLATES), "template")
    extra = tuple(Candidate(f"c{i + 1}", "") for i in range(EXAMPLE.n, n))
    return replace(EXAMPLE, candidates=(*EXAMPLE.candidates, *extra)[:n], template=get_template(name), order=())


def embedded(source: str, seed: int, at: int, n: int) -> JudgePrompt:
    """A problem of an embedded set, of the kinds that come in sizes one with n candidates."""
    if source in KINDS:
        return relational(at + 1, seed, n, [source])[at]
    return questions.load(f"{source}:{seed}", limit=at + 1)[at]


def _template(model: str) -> str | None:
    from kvattn.questions.organism import template_of

    folder = resolve(model).folder
    return None if folder is None else template_of(folder)


def _of_a_run(columns: Any) -> JudgePrompt:
    found = library.runs()
    if not found:
        st.info("There are no runs here yet; take another source.")
        st.stop()
    with columns[1]:
        name = controls.choose("From", list(found), "from")
    opened = library.opened(found[name])
    ids = library.ask(opened, picks.question_ids)
    if not ids:
        st.info("This run has no finished question yet.")
        st.stop()
    with columns[2]:
        question = controls.choose("Question", ids, "question")
    return prompt_of(library.ask(opened, picks.question, question), opened.manifest)


def _of_a_file() -> JudgePrompt:
    """A problem of the uploaded file; of a link, or after the page was left, the one that was chosen."""
    sent = _sent("Candidates file (docs/candidates-file.md)", ["json", "jsonl"], "upload")
    kept = controls.linked("problem")
    controls.link("problem", kept)
    try:
        prompts = _read(sent) if sent is not None else []
    except KvattnError as error:
        show.trouble(error, "This file is not taken; the problem is as before.")
        prompts = []
    if prompts:
        prompt = prompts[controls.number("Number", "number-in-file", len(prompts))]
        packed = _squeeze(questions.record(prompt))
        controls.link("problem", [packed] if packed else [])
        return prompt
    if (found := _expand("".join(kept))) is None:
        st.info("Choose a file of problems with candidates, JSON or JSONL.")
        st.stop()
    prompts = _read(json.dumps([found]).encode())
    if len(prompts) != 1:
        raise KvattnError("the problem of this link cannot be read; send its file again")
    st.caption("The problem that was chosen last; send a file for another.")
    return prompts[0]


def _read(data: bytes) -> list[JudgePrompt]:
    """The problems of a candidates file that was sent."""
    return _on_disk(data, "json", questions.read_candidates)


def _on_disk(data: bytes, suffix: str, read: Callable[[Path], Any]) -> Any:
    """What a reader of files makes of something that was sent."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"upload.{suffix}"
        path.write_bytes(data)
        try:
            return read(path)
        except KvattnError as error:
            raise KvattnError(str(error).replace(str(path), "the file")) from None


def pack(edited: Edited) -> str | None:
    """Edited texts as a URL parameter, or None where they are too long for one."""
    return _squeeze([edited.question, *edited.texts])


def unpack(text: str, n: int) -> Edited | None:
    """What `pack` made, or None for anything else."""
    found = _expand(text)
    if not isinstance(found, list) or len(found) != n + 1 or not all(isinstance(x, str) for x in found):
        return None
    return Edited(found[0], tuple(found[1:]))


def _squeeze(value: Any) -> str | None:
    """A JSON value as a URL parameter, or None where it is too long for one."""
    text = base64.urlsafe_b64encode(zlib.compress(json.dumps(value).encode(), 9)).decode()
    return text if len(text) <= LONGEST_LINK else None


def _expand(text: str) -> Any:
    """What `_squeeze` made, or None for anything else."""
    if len(text) > LONGEST_LINK:
        return None
    try:
        packed = zlib.decompressobj().decompress(base64.urlsafe_b64decode(text.encode()), 10 * 2**20)
        return json.loads(packed)
    except (ValueError, binascii.Error, zlib.error, RecursionError):
        return None


def apply(prompt: JudgePrompt, edited: Edited) -> JudgePrompt:
    """The prompt with other texts: what changed has no known correctness and no ids that an agent generated. To another
    question no answer is known, nor whether any candidate is right; and a judge's verdict on other texts is none."""
    same = edited.question == prompt.question
    candidates = tuple(
        (c if same else replace(c, correct=None)) if c.text == text else Candidate(c.id, text, c.agent)
        for c, text in zip(prompt.candidates, edited.texts, strict=True)
    )
    answer, verdict = prompt.answer if same else None, prompt.verdict if candidates == prompt.candidates else None
    return replace(prompt, question=edited.question, candidates=candidates, answer=answer, verdict=verdict)
