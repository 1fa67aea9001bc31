"""A method's scores less its own slot offsets: the repair that costs nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from kvattn.engine.blocks import Blocks
from kvattn.engine.engine import Engine
from kvattn.engine.execution import Execution
from kvattn.engine.layout import PromptLayout
from kvattn.engine.plan import KVPlan
from kvattn.engine.scores import pair_scores
from kvattn.errors import KvattnError
from kvattn.files import read_json, sha256, write_atomically
from kvattn.methods.base import Method
from kvattn.methods.naive import Naive
from kvattn.text import hash_of

FORMAT = "kvattn-offsets-1"
NAIVE = Naive()


@dataclass
class Offsets:
    """Mean score by slot under one method, from unlabelled questions.

    of:     what they hold for: method, weights, readout; the first judgement says it
    means:  by number of slots, [slots]; questions: by number of slots, how many they are the mean of
    """

    of: dict[str, str | None] = field(default_factory=dict)
    means: dict[int, Float[np.ndarray, " slots"]] = field(default_factory=dict)
    questions: dict[int, int] = field(default_factory=dict)

    def add(self, scores: Float[np.ndarray, " slots"]) -> None:
        """Count a question's scores in."""
        n = len(scores)
        seen = self.questions[n] = self.questions.get(n, 0) + 1
        mean = self.means.get(n, np.zeros(n))
        self.means[n] = mean + (scores - mean) / seen

    def save(self, path: Path) -> None:
        """Write them as JSON."""
        said = {str(n): {"mean": m.tolist(), "questions": self.questions[n]} for n, m in self.means.items()}
        try:
            write_atomically(path, (json.dumps({"format": FORMAT, "of": self.of, "slots": said}) + "\n").encode())
        except OSError as e:
            raise KvattnError(f"{path} cannot be written ({e.strerror}); name a folder that can be written") from e

    def load(self, path: Path) -> None:
        """Take over what a file says. Raises KvattnError for a file that is missing, damaged, or of another kind."""
        try:
            data: Any = read_json(path)
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']!r}")
            slots = {int(n): s for n, s in data["slots"].items()}
            means = {n: np.asarray(s["mean"], dtype=float) for n, s in slots.items()}
            if any(m.shape != (n,) or not np.isfinite(m).all() for n, m in means.items()):
                raise ValueError("means that do not fit the number of slots")
            self.of, self.means, self.questions = (
                dict(data["of"]),
                means,
                {n: int(s["questions"]) for n, s in slots.items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise KvattnError(
                f"cannot read slot offsets from {path} ({e}); fit them again on held-out questions"
            ) from e


@dataclass(frozen=True)
class SlotOffset(Method):
    """Its base's scores less the base's own mean score in each slot on held-out, unlabelled questions.

    Only what is the same for every question is taken away: a shift of all picks to a slot, not a loss of content.
    Offsets are fit by `judge.warm(method, prompts)` (a study does so with its held-out questions), whose candidates
    have to stand in an order that says nothing of them.

    Parameters
    ----------
    base : the method whose scores are corrected; any that does not learn.
    offsets : a file of offsets that were fit before and saved (`method.save(folder, name)` writes NAME.json, a study
        pools/NAME.json).
    """

    base: Method = NAIVE
    offsets: str = ""
    state: Offsets = field(default_factory=Offsets, compare=False, repr=False)
    learning: bool = field(default=False, compare=False, repr=False)

    name = "slot-offset"
    source = "kvattn"
    learns = True
    keeps = False

    def __post_init__(self) -> None:
        if self.base.learns or isinstance(self.base, SlotOffset):
            raise KvattnError(
                f"method {self.name!r} cannot correct {self.base.label!r}, whose scores change while it learns; take a "
                "base that does not learn, such as naive"
            )
        if self.offsets and not self.state.means:
            self.state.load(Path(self.offsets))

    @property
    def files(self) -> dict[str, str]:
        return {**super().files, **({self.offsets: sha256(Path(self.offsets))} if self.offsets else {})}

    @property
    def frozen(self) -> bool:
        """Offsets are fit before a study, and never change."""
        return True

    @property
    def needs_warming(self) -> bool:
        """Whether no offsets were fit yet."""
        return not self.state.means

    def learner(self) -> SlotOffset:
        """The same, learning the offsets of this one."""
        return replace(self, learning=True)

    def save(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.state.save(folder / f"{name}.json")

    def restore(self, folder: Path, name: str) -> None:
        self.state.load(folder / f"{name}.json")

    def prompts(self, prompt):
        return self.base.prompts(prompt)

    def _here(self, layout: PromptLayout, engine: Engine) -> dict[str, str | None]:
        reader = layout.reader.__name__ if layout.reader else None
        return {"method": self.base.label, "weights": engine.identity, "readout": reader}

    def require(self, layout: PromptLayout, engine: Engine) -> None:
        """Raises KvattnError where offsets were fit for another method, judge or readout."""
        super().require(layout, engine)
        here, of = self._here(layout, engine), self.state.of
        if other := {
            k: v for k, v in of.items() if here[k] != v and (k != "weights" or hash_of(here[k]) != hash_of(v))
        }:
            said = ", ".join(f"{k} {v!r} (here {here[k]!r})" for k, v in other.items())
            raise KvattnError(f"method {self.label!r}: its offsets were fit for {said}; fit them again")

    def plan(self, layout: PromptLayout, blocks: Blocks, engine: Engine) -> KVPlan:
        """The base's plan. Raises KvattnError where offsets of this judge and this number of slots were not fit."""
        if layout.reader in (None, pair_scores) or layout.slots != blocks.prompt.n:
            raise KvattnError(
                f"method {self.label!r} needs a score for every slot of one prompt; use the readout label, yesno or "
                "score, and a base that shows all candidates together"
            )
        self.require(layout, engine)
        if self.learning and not self.state.of:
            self.state.of.update(self._here(layout, engine))
        if not self.learning and layout.slots not in self.state.means:
            known = ", ".join(map(str, sorted(self.state.means))) or "none"
            raise KvattnError(
                f"method {self.label!r} has no offsets for {layout.slots} slots (there are: {known}); give held-out "
                "questions (judge.warm, --heldout) or offsets=FILE"
            )
        return self.base.plan(layout, blocks, engine)

    def observe(self, layout: PromptLayout, blocks: Blocks, execution: Execution) -> None:
        """While learning, count the scores in."""
        if self.learning:
            assert execution.logits is not None
            self.state.add(layout.scores(execution.logits)[0])

    def adjusted(self, scores):
        """Scores less the offsets, which sum to nothing; while learning, the base's."""
        if self.learning:
            return scores
        offsets = self.state.means[len(scores)]
        return scores - (offsets - offsets.mean())
