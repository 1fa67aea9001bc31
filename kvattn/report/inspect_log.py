"""A run's judgements by one method as a log of inspect_ai (its JSON form, version 2), which its viewer and readers
open: a sample a judgement, an epoch an order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from kvattn.decision import TIE
from kvattn.errors import KvattnError
from kvattn.questions.inspect_logs import sample_of
from kvattn.questions.prompt import JudgePrompt
from kvattn.study.run_folder import Run, picks
from kvattn.study.run_folder.schema import prompt_of
from kvattn.text import plain

SCORES = ("correct", "as_dense")


def inspect_log(run: Run, method: str) -> bytes:
    """The log as JSON. Its scores are whether a judgement is right, and whether it picks the text that dense picks in
    the same order; a judgement of which either is unknown lacks that score.

    Raises KvattnError for a method that was not run."""
    if method not in picks.methods(run):
        raise KvattnError(f"{run.folder} has no judgements by {method!r}; it has {', '.join(picks.methods(run))}")
    samples = list(_samples(run, method))
    model = f"kvattn/{(run.manifest.get('model') or {}).get('name')}"
    key = hashlib.sha256(f"{run.folder.name}\n{method}\n{run.manifest.get('created')}".encode()).hexdigest()
    created = str(run.manifest.get("created"))
    ids = list(dict.fromkeys(s["id"] for s in samples))
    said = {
        "version": 2,
        "status": "success",
        "eval": {
            "eval_id": key[:22],
            "run_id": key[22:44],
            "task_id": key[42:],
            "created": created,
            "task": f"kvattn judge, {method}",
            "dataset": {"name": run.folder.name, "samples": len(ids), "sample_ids": ids, "shuffled": False},
            "model": model,
            "config": {"epochs": max((s["epoch"] for s in samples), default=1)},
            "metadata": {k: run.manifest.get(k) for k in ("template", "readout", "orders", "regime", "data", "kvattn")}
            | {"method": method},
        },
        "results": {
            "total_samples": len(samples),
            "completed_samples": len(samples),
            "scores": [_summary(name, samples) for name in SCORES],
        },
        "stats": {"started_at": created, "completed_at": created},
        "samples": [s | {"output": _output(model, s.pop("said"))} for s in samples],
    }
    return (json.dumps(plain(said), ensure_ascii=False, indent=1) + "\n").encode()


def _samples(run: Run, method: str) -> Iterator[dict[str, Any]]:
    asked = {row["question_id"]: row for row in run.questions().to_dict("records")}
    same = {
        (q, tuple(o)): a
        for q, o, a in run.sql(
            'SELECT question_id, "order", agree FROM picks WHERE NOT calibrated AND method = ?', [method]
        ).itertuples(index=False)
    }
    judged: Any = run.judgements()
    seen: dict[str, int] = {}
    for row in judged[judged["method"] == method].to_dict("records"):
        key, order = row["question_id"], tuple(int(i) for i in row["order"])
        seen[key] = seen.get(key, 0) + 1
        prompt = prompt_of(asked[key], run.manifest)
        shown, labels = _sample(prompt.ordered(order[: prompt.n]))
        choice = None if row["choice"] is None else str(row["choice"])
        named = None if choice is None else labels[choice]
        written = row.get("output")
        scores = {"correct": row["correct"], "as_dense": same[key, order]}
        right = shown["target"]
        yield {
            **shown,
            "target": right[0] if len(right) == 1 else right,
            "epoch": seen[key],
            "said": written if isinstance(written, str) else named or "",
            "scores": {
                name: {"value": "C" if value else "I", "answer": named}
                for name, value in scores.items()
                if value is True or value is False or isinstance(value, np.bool_)
            },
            "metadata": {
                **shown["metadata"],
                "choice": choice,
                **{k: row[k] for k in ("scores", "coverage", "margin", "token_layers")},
            },
        }


def _sample(prompt: JudgePrompt) -> tuple[dict[str, Any], dict[str, str]]:
    """The judge's question as inspect_ai has it, and what each verdict is called: a conversation as it was sent; of a
    template of parts the question, and the candidates as its choices."""
    t, names = prompt.template, [prompt.shown(s).id for s in range(prompt.n)]
    called = dict(zip(names, t.slot_labels(prompt.n), strict=True))
    called |= {TIE: t.tie_label} if prompt.n == 2 and (isinstance(t.labels, str) or len(t.labels) > 2) else {}
    if t.messages:
        made = sample_of(prompt)
        return made | {"messages": made["input"]}, called
    shown = [prompt.shown(s) for s in range(prompt.n)]
    return {
        "id": prompt.id,
        "input": prompt.question,
        "choices": [c.text for c in shown],
        "target": [called[c.id] for c in shown if c.correct],
        "messages": [],
        "metadata": {"candidates": names, "template": t.id},
    }, called


def _output(model: str, said: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": said, "source": "generate", "model": model}
    return {"model": model, "choices": [{"message": message, "stop_reason": "stop"}], "completion": said}


def _summary(name: str, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """The share of samples that have the score and are right by it."""
    known = [s["scores"][name]["value"] == "C" for s in samples if name in s["scores"]]
    value = {"accuracy": {"name": "accuracy", "value": float(np.mean(known))}} if known else {}
    counts = {"scored_samples": len(known), "unscored_samples": len(samples) - len(known)}
    return {"name": name, "scorer": name, **counts, "metrics": value}
