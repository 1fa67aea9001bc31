"""Dense's distributions over slots, judged once and stored by a hash of the very prompt, its order included."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import softmax

from kvattn.engine.layout import PromptLayout
from kvattn.errors import KvattnError
from kvattn.files import read_json, write_atomically
from kvattn.judge.judge import Judge
from kvattn.questions.orders import rotations
from kvattn.questions.prompt import JudgePrompt
from kvattn.text import Progress, hash_of

FORMAT = "kvattn-teacher-1"
EVERY = 16  # questions between two writes


def order_hash(layout: PromptLayout) -> str:
    """What tells a prompt under one order from every other: a hash of its token ids."""
    return hashlib.sha256(layout.token_ids.numpy().tobytes()).hexdigest()[:24]


def question_sha256(prompt: JudgePrompt) -> str:
    """What tells a question from others, whatever its id and order: a hash of question and candidates' texts."""
    said = json.dumps([prompt.question, sorted(c.text for c in prompt.candidates)])
    return hashlib.sha256(said.encode()).hexdigest()[:24]


class Teacher:
    """Dense's scores [slots] by `order_hash`, kept in a file.

    Raises KvattnError for a file that is damaged, or of other weights or another readout."""

    def __init__(self, judge: Judge, file: Path) -> None:
        self.judge, self.file, self.scores = judge, file, dict[str, list[float]]()
        if file.exists():
            self._read()

    def _of(self) -> dict[str, Any]:
        return {"format": FORMAT, "weights": self.judge.engine.identity, "readout": self.judge.readout.name}

    def _read(self) -> None:
        try:
            data: Any = read_json(self.file)
            held, self.scores = {k: data[k] for k in self._of()}, {str(k): list(v) for k, v in data["scores"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise KvattnError(f"cannot read the teacher {self.file} ({e}); delete it, and it is judged again") from e
        if odd := [k for k, v in self._of().items() if hash_of(held[k]) != hash_of(v)]:
            raise KvattnError(
                f"the teacher {self.file} is of {odd[0]} {held[odd[0]]!r}, not {self._of()[odd[0]]!r}; name another "
                "folder"
            )

    def _write(self) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, json.dumps({**self._of(), "scores": self.scores}).encode())
        except OSError as e:
            raise KvattnError(f"{self.file} cannot be written ({e.strerror}); make room, and run it again") from e

    @property
    def sha256(self) -> str:
        """Of all that it teaches."""
        return hashlib.sha256(json.dumps(self.scores, sort_keys=True).encode()).hexdigest()

    def learn(self, prompts: Sequence[JudgePrompt], progress: Progress) -> None:
        """Judge densely, in all rotations, what the file does not hold yet."""
        for i, prompt in enumerate(prompts):
            progress("teacher", i, len(prompts))
            orders = rotations(prompt.order)
            keys = [order_hash(self.judge.compile(prompt.ordered(o))) for o in orders]
            if any(key not in self.scores for key in keys):
                decisions = self.judge.judge(prompt, ["dense"], orders, capture=False)
                self.scores.update({key: d.scores.tolist() for key, d in zip(keys, decisions, strict=True)})
                if i % EVERY == EVERY - 1:
                    self._write()
        self._write()
        progress("teacher", len(prompts), len(prompts))

    def says(self, layout: PromptLayout) -> Float[np.ndarray, " slots"]:
        """Dense's distribution over slots of this very prompt. Raises KvattnError where it was judged under another
        order, or not at all."""
        key = order_hash(layout)
        if key not in self.scores:
            raise KvattnError(
                f"the teacher {self.file} never judged this prompt in this order; delete it, and train anew"
            )
        return softmax(np.asarray(self.scores[key], dtype=float))


def targets(
    teacher: Teacher, layouts: Sequence[Sequence[PromptLayout]], kind: str, seed: int
) -> list[Float[np.ndarray, "rotations slots"]]:
    """By question, the distributions that are taught. Raises KvattnError where a permuted teacher has no other question
    of as many candidates."""
    own = [np.stack([teacher.says(x) for x in some]) for some in layouts]
    if kind == "averaged":
        return [_averaged(p, [x.candidates for x in some]) for p, some in zip(own, layouts, strict=True)]
    if kind != "permuted":
        return own
    rng, out = np.random.default_rng(seed), list(own)
    for n in {p.shape[1] for p in own}:
        alike = rng.permutation([i for i, p in enumerate(own) if p.shape[1] == n])
        if len(alike) < 2:
            raise KvattnError(f"a permuted teacher needs two questions of {n} candidates; give more questions")
        for i, other in zip(alike, np.roll(alike, 1), strict=True):
            out[i] = own[other]
    return out


def _averaged(p: np.ndarray, shown: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Each candidate's mean probability over rotations, back in every rotation's slots."""
    names = list(shown[0])
    by_slot = np.array([[names.index(c) for c in row] for row in shown])  # [rotations, slots], the candidate there
    mean = np.array([p[by_slot == c].mean() for c in range(len(names))])
    return mean[by_slot]
