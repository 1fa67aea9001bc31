"""Where a live problem comes from: embedded sets, an uploaded file, a run, or one typed by hand; and its link."""

from __future__ import annotations

import base64
import binascii
import json
import tempfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import streamlit as st

from kvattn import DEFAULT_JUDGE, questions
from kvattn.errors import KvattnError
from kvattn.models import resolve
from kvattn.questions.prompt import MAX_CANDIDATES, Candidate, JudgePrompt
from kvattn.questions.templates import TEMPLATES, get_template
from kvattn.study.run_folder import picks
from kvattn.study.run_folder.schema import prompt_of
from kvattn_app import controls, library

LONGEST_LINK = 20_000
TYPED = "typed"
EMBEDDED = {
    "odd-one-out": "Who disagrees?",
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
class Edited:
    """Texts that stand in for those of the source."""

    question: str
    texts: tuple[str, ...]


def choose(model: str) -> JudgePrompt:
    """The problem that the widgets say. Stops the page where there is none yet."""
    template = _template(model)
    first = "odd-one-out" if model == DEFAULT_JUDGE else template if template in EMBEDDED else "synthetic"
    columns = st.columns([3, 2, 2, 3])
    with columns[0]:
        source = controls.choose(
            "Problem", list(SOURCES), "source", list(SOURCES).index(first), format_func=SOURCES.__getitem__
        )
    if source in EMBEDDED:
        with columns[1]:
            seed = controls.number("Seed", "seed", 10_000)
        with columns[2]:
            at = controls.number("Number", "number", 1_000)
        return questions.load(f"{source}:{seed}", limit=at + 1)[at]
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
    sent = st.file_uploader("Candidates file (docs/candidates-file.md)", type=["json", "jsonl"], key="upload")
    if sent is not None:
        prompts = _read(sent.getvalue(), "jsonl" if sent.name.lower().endswith("jsonl") else "json")
        prompt = prompts[controls.number("Number", "number-in-file", len(prompts))]
        packed = _squeeze(questions.record(prompt))
        controls.link("problem", [packed] if packed else [])
        return prompt
    kept = controls.linked("problem")
    if (found := _expand("".join(kept))) is None:
        st.info("Choose a file of problems with candidates, JSON or JSONL.")
        st.stop()
    prompts = _read(json.dumps([found]).encode(), "json")
    if len(prompts) != 1:
        raise KvattnError("the problem of this link cannot be read; send its file again")
    controls.link("problem", kept)
    st.caption("The problem that was chosen last; send a file for another.")
    return prompts[0]


def _read(data: bytes, suffix: str) -> list[JudgePrompt]:
    """The problems of a candidates file that was sent."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"upload.{suffix}"
        path.write_bytes(data)
        try:
            return questions.read_candidates(path)
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
