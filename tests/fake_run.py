"""A made-up run with a planted effect, for tests and for looking at figures without a model.

Dense reads all candidates with a mild liking for the first slot. Naive reuse loses what the candidates say about each
other: its slot mass falls with the slot, most in the upper layers, and its picks move to the first slot. The rungs
between them lose less; `foreign-kv` reads another question and decides by slot alone; `null-edit` is dense but for a
little noise.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import softmax

from kvattn.decision import Cost, Decision, SlotMass
from kvattn.questions.prompt import Candidate, JudgePrompt
from kvattn.stats import content_test
from kvattn.study.run_folder import Run, RunWriter, question_row

METHODS = ("dense", "true-mask", "isolated", "isolated(labelled=False)", "naive", "foreign-kv", "null-edit")

# How much of dense's reading of the contents survives, and how far slots after the first are under-read.
_KEPT = {
    "dense": 1.0,
    "null-edit": 1.0,
    "true-mask": 0.8,
    "isolated": 0.65,
    "isolated(labelled=False)": 0.5,
    "naive-linked": 0.4,
    "naive": 0.35,
    "foreign-kv": 0.0,
}

HOSTILE = (
    "<script>document.title='owned'</script> Total: 4 < 5 & \"6\"",
    "$\\frac{1}{2}$ <img src=x onerror=\"document.title='owned'\"> </script></style><!--",
    "%{customdata} <b>bold</b><br>`Agent 2:` <|im_start|>\u202eevil\u202c\x00\x1b[31m",
    "\u65e5\u672c\u8a9e \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \U0001f600 https://example.invalid/x.js "
    + "x" * 600,
)


@dataclass(frozen=True)
class Fake:
    """The size of a made-up run. `signal` is how clearly the contents speak to dense: 0 makes a judge that reads
    nothing and picks by slot; without `rows` no slot mass is captured, without `sinks` nobody looked for sinks."""

    questions: int = 16
    candidates: int = 4
    orders: int = 4
    layers: int = 30
    heads: int = 9
    methods: tuple[str, ...] = METHODS
    signal: float = 2.0
    calibrated: bool = True
    hostile: bool = False
    rows: bool = True
    sinks: bool = True
    seed: int = 0

    def manifest(self) -> dict[str, Any]:
        """A manifest as the study writes it, without the fields that come late."""
        return {
            "kvattn": "0.0.0",
            "model": {"id": "fake-judge", "revision": "main"},
            "template": "math",
            "readout": "label",
            "n_candidates": [self.candidates],
            "layers": self.layers,
            "heads": self.heads,
            "methods": [{"name": m, "class": m.title().replace("-", ""), "parameters": {}} for m in self.methods],
            "orders": {"kind": "cyclic", "per_question": self.orders, "seed": self.seed},
            "dtype": "float32",
            "device": "cpu",
            "threads": 1,
            "kernel": "sdpa",
            "seeds": [self.seed],
            "data": {"source": "synthetic", "sha256": "0" * 64},
            "versions": {"python": "3.11", "torch": "2.13"},
            "content_test": None,
            "calibration": None,
            "sinks": None,
        }

    def units(self) -> list[tuple[dict[str, Any], list[Decision]]]:
        """(question row, decisions) of every question."""
        return [self.unit(i) for i in range(self.questions)]

    def unit(self, index: int) -> tuple[dict[str, Any], list[Decision]]:
        """One question: its row and its decisions, reproducible by itself."""
        rng = np.random.default_rng([self.seed, index])
        prompt = self.prompt(index, rng)
        lengths = rng.integers(40, 120, self.candidates)
        quality = np.array([1.0 if c.correct else 0.0 for c in prompt.candidates]) + rng.normal(0, 0.5, self.candidates)
        decisions = [
            self._decide(prompt, order, method, quality, lengths, np.random.default_rng([self.seed, index, o, m]))
            for o, order in enumerate(self.display_orders())
            for m, method in enumerate(self.methods)
        ]
        return question_row(prompt, lengths.tolist()), decisions

    @cache  # noqa: B019
    def content_tests(self) -> dict[str, Any]:
        """What the study writes into the manifest: the content test of held-out questions, raw and calibrated."""
        held_out = replace(self, questions=24, orders=self.candidates, methods=("dense",), seed=self.seed + 1000)
        units = held_out.units()
        rows = pd.DataFrame([row for row, _ in units])
        found: dict[str, Any] = {}
        for kind in ("raw", "calibrated") if self.calibrated else ("raw",):
            picks = [
                (d.question_id, list(d.order), d.slot if kind == "raw" else d.slot_calibrated)
                for _, decisions in units
                for d in decisions
            ]
            frame = pd.DataFrame(picks, columns=["question_id", "order", "slot"])
            found[kind] = content_test(frame, rows).to_dict()
        return found

    def display_orders(self) -> list[tuple[int, ...]]:
        """Cyclic orders first, then all others."""
        n = self.candidates
        cyclic = [tuple((s + shift) % n for s in range(n)) for shift in range(n)]
        others = (p for p in itertools.permutations(range(n)) if p not in set(cyclic))
        return [*cyclic, *itertools.islice(others, max(0, self.orders - n))][: self.orders]

    def prompt(self, index: int, rng: np.random.Generator) -> JudgePrompt:
        """A question with right and wrong candidates."""
        name = f"../{HOSTILE[0]}/{index}" if self.hostile else f"fake-{index:03d}"
        corrects = rng.permutation([True] * max(1, self.candidates // 2) + [False] * self.candidates)[: self.candidates]
        total = int(rng.integers(20, 90))
        candidates = tuple(
            Candidate(
                id=f"c{i}",
                text=HOSTILE[i % len(HOSTILE)]
                if self.hostile
                else f"Adding the boxes gives {total}.\nThe answer is {total + (0 if right else i + 1)}.",
                agent=f"agent-{(i + index) % self.candidates + 1}",
                correct=bool(right),
            )
            for i, right in enumerate(corrects)
        )
        question = HOSTILE[1] if self.hostile else f"Two boxes hold {total} pens in all; how many pens are there?"
        return JudgePrompt(question=question, candidates=candidates, id=name, answer=str(total))

    def _decide(
        self,
        prompt: JudgePrompt,
        order: tuple[int, ...],
        method: str,
        quality: np.ndarray,
        lengths: np.ndarray,
        rng: np.random.Generator,
    ) -> Decision:
        kept = _KEPT.get(method, 0.5)
        n = self.candidates
        shown = np.array(order)
        prior = np.linspace(0.6, -0.6, n) * (1 + (1 - kept))
        base = softmax(self.signal * kept * quality[shown] + prior)
        noise = np.random.default_rng([self.seed, *map(int, shown), len(prompt.id)]).normal(0, 0.4, n)
        scores = np.log(base) - 0.2 + noise * (1.0 if kept > 0.9 else 1.3) + rng.normal(0, 0.05, n)
        slot = int(scores.argmax())
        calibrated = scores - np.linspace(0.6, -0.6, n) if self.calibrated else None
        slot_calibrated = None if calibrated is None else int(calibrated.argmax())
        by_slot = prompt.ordered(order)
        tokens = int(120 + lengths.sum() + 8 * n)
        computed = tokens if method in ("dense", "true-mask", "null-edit") else int(tokens - lengths.sum())
        decision = Decision(
            question_id=prompt.id,
            order=order,
            method=method,
            readout="label",
            choice=by_slot.shown(slot).id,
            slot=slot,
            scores=scores,
            coverage=float(np.exp(scores).sum().clip(0, 1)),
            correct=by_slot.shown(slot).correct,
            calibrated=calibrated,
            choice_calibrated=None if slot_calibrated is None else by_slot.shown(slot_calibrated).id,
            slot_calibrated=slot_calibrated,
            correct_calibrated=None if slot_calibrated is None else by_slot.shown(slot_calibrated).correct,
            cost=Cost(
                tokens=tokens,
                tokens_computed=computed,
                layers=self.layers,
                token_layers=computed * self.layers,
                seconds=0.004 * computed,
                kv_bytes=tokens * self.layers * 768,
                batch=self.orders,
            ),
        )
        return replace(decision, mass=self._mass(lengths[shown], kept, rng)) if self.rows else decision

    def _mass(self, lengths: np.ndarray, kept: float, rng: np.random.Generator) -> SlotMass:
        n = len(lengths)
        names = (
            "prefix",
            "question",
            *(f"{r}:{s + 1}" for s in range(n) for r in ("header", "candidate", "separator")),
        )
        names = (*names, "suffix")
        sizes = [60, 30, *(int(x) for length in lengths for x in (4, length, 1)), 20]
        layer = np.linspace(0, 1, self.layers)[:, None, None]
        head = np.sin(np.arange(self.heads) * 1.7)[None, :, None]
        logit = np.zeros((self.layers, self.heads, len(names))) + rng.normal(0, 0.15, (1, 1, len(names)))
        logit[:, :, 0] += 2.2 + 0.8 * head[:, :, 0]
        logit[:, :, -1] += 1.0 - 0.5 * layer[:, :, 0]
        for s in range(n):
            at = 2 + 3 * s
            logit[:, :, at] -= 1.0
            logit[:, :, at + 2] -= 1.5
            loss = (1 - kept) * 1.2 * s / max(1, n - 1) * layer[:, :, 0]
            logit[:, :, at + 1] += 0.6 * layer[:, :, 0] * head[:, :, 0] - loss + 0.002 * (lengths[s] - 80)
        mass = softmax(logit + rng.normal(0, 0.1, logit.shape), axis=-1)
        sink = np.zeros_like(mass)
        sink[:, :, 0] = mass[:, :, 0] * 0.9
        return SlotMass(
            mass=mass.astype(np.float32),
            sink=sink.astype(np.float32) if self.sinks else None,
            names=names,
            lengths=tuple(sizes),
            norm=(mass * 3).astype(np.float32),
        )


def write_fake_run(folder: Path, fake: Fake | None = None, **late: Any) -> Path:
    """Writes the run and returns its folder; `late` goes into the manifest (content_test, calibration, sinks). A run
    that this process wrote before is copied."""
    fake = fake or Fake()
    if "content_test" not in late and fake.questions >= 8:
        late["content_test"] = fake.content_tests()
    before = Path(_shelf().name) / hashlib.sha256(repr((fake, late)).encode()).hexdigest()
    if before.exists() and not folder.exists():
        return Path(shutil.copytree(before, folder))
    with RunWriter(folder, fake.manifest()) as writer:
        for row, decisions in fake.units():
            writer.write_unit(row["question_id"], row, decisions)
        if late:
            writer.update_manifest(**late)
    if not before.exists():
        shutil.copytree(folder, before)
    return folder


@cache
def _shelf() -> tempfile.TemporaryDirectory[str]:
    """Runs written before; it goes with the process."""
    return tempfile.TemporaryDirectory(prefix="kvattn-fake-runs-")


def frame(folder: str | Path) -> Any:
    """The judgements of a run, comparable: rows in one order, lists as tuples."""
    table: Any = Run(folder).judgements()
    for column in ("order", "scores", "calibrated", "notes"):
        table[column] = table[column].map(lambda x: tuple(x) if isinstance(x, np.ndarray | list) else None)
    return table.sort_values(["question_id", "method", "order"], ignore_index=True)
