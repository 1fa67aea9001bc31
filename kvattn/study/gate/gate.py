"""A gate: which passes it looks at, a score, a threshold, and the guarantee that the threshold was granted on; in use
it runs those passes, and accepts their decision or falls back to dense."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from kvattn import methods as zoo
from kvattn.decision import Decision
from kvattn.engine.blocks import Blocks
from kvattn.errors import KvattnError
from kvattn.files import read_json, write_output
from kvattn.methods import Method
from kvattn.questions.prompt import JudgePrompt
from kvattn.questions.validation import short, validated
from kvattn.stats.frames import read_questions
from kvattn.stats.reading import ContentTest
from kvattn.study.gate import scorers, signals
from kvattn.study.gate.examples import Examples, learners, read_examples
from kvattn.study.gate.features import Recipe, features, further_rotations, pass_of
from kvattn.study.gate.guarantee import Certificate, Promise, certify, refuse_if_small, sequence
from kvattn.study.gate.scorers import Scorer
from kvattn.study.run_folder import Run
from kvattn.study.run_folder.schema import question_row

if TYPE_CHECKING:
    from kvattn.judge.judge import Judge

FORMAT = "kvattn-gate-2"
FOLDS = 5

# What has to be the same where a gate is used: its guarantee speaks of this judge, asked in this way.
JUDGED = ("model", "template", "readout", "regime", "dtype", "n_candidates")


@dataclass(frozen=True)
class Verdict:
    """What a gate says of one judgement, and why."""

    accepted: bool
    score: float
    threshold: float

    @property
    def why(self) -> str:
        """One line."""
        word, sign = ("accepts reuse", ">=") if self.accepted else ("falls back to dense", "<")
        return f"gate: {word}, score {self.score:.4g} {sign} {self.threshold:.4g}"


@dataclass(frozen=True)
class Gate:
    """A gate that may be used: it accepts a reuse decision whose score reaches a granted threshold.

    judged: how the run it was fitted on was judged (the entries of JUDGED)
    fitted: provenance: run, seed, questions and rows of the fitting half
    """

    recipe: Recipe
    scorer: Annotated[Scorer, Field(alias="score")]  # its name in a file
    certificate: Certificate
    judged: dict[str, Any] = field(default_factory=dict)
    fitted: dict[str, Any] = field(default_factory=dict)

    def verdicts(self, x: pd.DataFrame) -> list[Verdict]:
        """One a row of features."""
        threshold = self.certificate.threshold
        return [Verdict(bool(s >= threshold), float(s), threshold) for s in self.scorer.score(x)]

    def accepts(self, x: pd.DataFrame) -> np.ndarray:
        """[rows], whether the reuse decision is taken."""
        return self.scorer.score(x) >= self.certificate.threshold

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "format": FORMAT,
            "recipe": {**asdict(self.recipe), "probes": list(self.recipe.probes)},
            "score": self.scorer.to_json(),
            "certificate": asdict(self.certificate),
            "judged": self.judged,
            "fitted": self.fitted,
        }

    def save(self, path: str | Path) -> Path:
        """Writes the gate as JSON. Raises KvattnError where it cannot be written."""
        return write_output(Path(path), (json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n").encode())

    @staticmethod
    def load(path: str | Path) -> Gate:
        """The gate in a file. Raises KvattnError for a file that is missing, damaged, or no gate."""
        path = Path(path)
        try:
            data = read_json(path)
        except FileNotFoundError:
            raise KvattnError(f"there is no gate {path}; kvattn gate fit RUN makes one") from None
        except (OSError, ValueError) as error:
            raise KvattnError(f"{path} cannot be read ({error}); fit the gate again") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise KvattnError(f"{path} is no gate of this kvattn ({FORMAT}); fit it again: kvattn gate fit RUN")
        try:
            gate = validated(Gate, path.read_bytes(), str(path))
            gate.scorer.check()
        except KvattnError as error:
            raise KvattnError(f"{error}; fit the gate again") from None
        return gate


def split(examples: Examples, seed: int = 0) -> tuple[Examples, Examples]:
    """Halves that share no question: one to fit on, in all orders, and one to calibrate on, one order a question."""
    names = np.unique(examples.question.astype(str))
    held = np.random.default_rng(seed).permutation(names)[: round(len(names) * 0.5)]
    calibrate = np.isin(examples.question.astype(str), held)
    return examples.take(~calibrate), one_order(examples.take(calibrate), seed)


def one_order(examples: Examples, seed: int = 0) -> Examples:
    """One row a question, drawn by the seed without a look at what it says."""
    rng = np.random.default_rng([seed, 1])
    rows: dict[str, list[int]] = {}
    for i, q in enumerate(examples.question):
        rows.setdefault(str(q), []).append(i)
    return examples.take(np.array([int(rng.choice(rows[q])) for q in sorted(rows)], dtype=int))


def out_of_fold(kind: str, x: pd.DataFrame, safe: np.ndarray, question: np.ndarray, seed: int = 0) -> np.ndarray:
    """[rows], scores of rows whose question the score was not fitted on: cross-validation in FOLDS folds of questions.

    Raises KvattnError for fewer than two questions."""
    names, codes = np.unique(np.asarray(question).astype(str), return_inverse=True)
    if len(names) < 2:
        raise KvattnError("cross-validation needs at least two questions")
    fold = (np.random.default_rng([seed, 2]).permutation(len(names)) % min(FOLDS, len(names)))[codes]
    out = np.empty(len(safe))
    for inside in (fold == f for f in np.unique(fold)):
        out[inside] = scorers.fit(kind, x.loc[~inside], safe[~inside], seed).score(x.loc[inside])
    return out


def fit(examples: Examples, promise: Promise, kind: str = "logistic", seed: int = 0) -> tuple[Scorer, Certificate]:
    """A score from one half of the questions, and the threshold that the other half grants.

    Raises Refused where no threshold can be granted."""
    a, b = split(examples, seed)
    refuse_if_small(len(b), promise)
    inner = out_of_fold(kind, a.x, a.safe, a.question, seed)
    scorer = scorers.fit(kind, a.x, a.safe, seed)
    thresholds = sequence(scorer.score(a.x), inner, ~a.safe, len(b), promise)
    return scorer, certify(scorer.score(b.x), ~b.safe, thresholds, promise)


def fit_run(
    run: Run,
    recipe: Recipe,
    promise: Promise,
    kind: str = "logistic",
    seed: int = 0,
    despite: bool = False,
    examples: Examples | None = None,
) -> Gate:
    """A gate fitted on a run.

    despite:  fit although the judge failed the content test
    examples: the run's (`read_examples`), where they are read already

    Raises Refused where no threshold can be granted; KvattnError for a judge that failed the content test, and for
    methods that learn from question to question, whose questions are not independent.
    """
    online = learners(run, (recipe.reuse, *recipe.probes))
    if online:
        raise KvattnError(
            f"{online[0]!r} learns from question to question, so its questions are not independent and no guarantee "
            "holds; judge with a frozen pool (pool=frozen)"
        )
    if not despite and content_test(run) == "does not read":
        raise KvattnError(
            f"by its content test the judge of {run.folder} does not read its candidates: a gate would promise that "
            "two slot habits coincide; take another judge or readout, or fit all the same: --despite-content-test"
        )
    examples = examples or read_examples(run, recipe)
    scorer, certificate = fit(examples, promise, kind, seed)
    half, _ = split(examples, seed)
    return Gate(
        recipe=recipe,
        scorer=scorer,
        certificate=certificate,
        judged=judged(run.manifest),
        fitted={
            "run": run.folder.name,
            "data": (run.manifest.get("data") or {}).get("sha256"),
            "orders": run.manifest.get("orders"),
            "seed": seed,
            "questions": half.questions,
            "rows": len(half),
            "flips": int((~half.safe).sum()),
            "content_test": content_test(run),
        },
    )


def content_test(run: Run) -> str | None:
    """Whether the judge reads by its content test with raw choices, which are the ones a gate speaks of."""
    test = ContentTest.stored(run.manifest)
    return None if test is None else test.verdict


def judged(manifest: dict[str, Any]) -> dict[str, Any]:
    """How a run was judged, as far as it matters where its gate is used."""
    model = {k: v for k, v in (manifest.get("model") or {}).items() if k in ("name", "id", "revision", "hashes")}
    return {**{k: manifest.get(k) for k in JUDGED}, "model": model}


def different(own: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """In which entries of `judged` another judgement is not one of those a gate was fitted on."""
    wrong = [k for k in JUDGED if own.get(k) != other.get(k)]
    hashes = [(x.get("model") or {}).get("hashes") for x in (own, other)]
    same = {
        "model": bool(hashes[0]) and hashes[0] == hashes[1],  # under another name
        "n_candidates": set(other.get("n_candidates") or []) <= set(own.get("n_candidates") or []),
    }
    return [k for k in wrong if not same.get(k)]


def decide(
    judge: Judge, prompt: JudgePrompt, gate: Gate, method: str | Method | None = None, allow: Sequence[str] = ()
) -> Decision:
    """The reuse decision where the gate accepts it, else dense's. `method` says whose it is, the last note says why.

    method: the reuse method, where it is an object that knows something (a warmed pool); its label must be the gate's
    allow:  entries of `gate.JUDGED` in which this judge may differ from the one the gate was fitted on;
            the guarantee says nothing about it then

    The decision's cost counts everything that was run: passes that were looked at, and were not the answer, as probes.
    Raises KvattnError where judge or prompt are not those that the gate was fitted for.
    """
    _check(judge, prompt, gate, allow)
    recipe = gate.recipe
    reuse = zoo.get(recipe.reuse) if method is None else zoo.get(method)
    if reuse.label != recipe.reuse:
        raise KvattnError(f"the gate was fitted for {recipe.reuse!r}, not {reuse.label!r}; fit one for that method")
    probes = [zoo.get(p) for p in recipe.probes]
    made = judge.judge(prompt, [reuse, *probes], capture=recipe.mass)
    further = further_rotations(prompt.order, recipe.votes)
    votes = judge.judge(prompt, [reuse], further, capture=False) if further else []
    lengths = [len(judge.engine.compiler.candidate_ids(prompt, i)) for i in range(prompt.n)]
    question = read_questions(pd.DataFrame([question_row(prompt, lengths)]))[prompt.id]
    away = None
    if recipe.deviation:
        away = signals.of_judge(judge, prompt, reuse, Blocks(judge.engine, prompt, judge.regime))
    by_label = {d.method: d for d in made}
    passes = {label: pass_of(d, question) for label, d in by_label.items()}
    looked_at = {p: passes[p] for p in recipe.probes}
    voted = [pass_of(v, question) for v in votes]
    row = features(question, prompt.order, passes[recipe.reuse], looked_at, voted, away)
    verdict = gate.verdicts(pd.DataFrame([row], dtype=float))[0]
    answer = by_label[recipe.reuse]
    if not verdict.accepted:
        whole = [d for d in made if passes[d.method].whole]
        answer = whole[0] if whole else judge.judge(prompt, ["dense"], capture=False)[0]
    others = [d for d in (*made, *votes) if d is not answer]
    spent = sum(d.cost.token_layers + d.cost.probe_token_layers for d in others)
    spent += 0 if away is None else int(away["token_layers"])
    cost = replace(
        answer.cost,
        probe_token_layers=answer.cost.probe_token_layers + spent,
        seconds=answer.cost.seconds + sum(d.cost.seconds for d in others),
    )
    return replace(answer, cost=cost, notes=(*answer.notes, verdict.why))


def _check(judge: Judge, prompt: JudgePrompt, gate: Gate, allow: Sequence[str]) -> None:
    here = judged(
        {
            "model": judge.engine.info,
            "template": prompt.template.id,
            "readout": judge.readout.name,
            "regime": judge.regime,
            "dtype": str(judge.engine.dtype).removeprefix("torch."),
            "n_candidates": [prompt.n],
        }
    )
    wrong = [k for k in different(gate.judged, here) if k not in allow]
    if wrong:
        values = [j.get(wrong[0]) for j in (gate.judged, here)]
        own, now = (short(v.get("name") or v.get("id") if isinstance(v, dict) else v) for v in values)
        raise KvattnError(
            f"the gate was fitted with another {wrong[0]} ({own}, here {now}), so its guarantee says nothing here; "
            "fit a gate on a run judged like this"
        )
