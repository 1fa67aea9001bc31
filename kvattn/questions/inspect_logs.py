"""Logs of inspect_ai, in which the evaluated model is the judge: its samples as requests in OpenAI's form, and
questions as samples that it reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kvattn.errors import KvattnError
from kvattn.questions.conversation import QUESTION, candidate, filled
from kvattn.questions.prompt import JudgePrompt

_BEGINS = re.compile(rb'\s*\{\s*"version":\s*\d+,\s*"status":\s*"')


def is_log(path: Path) -> bool:
    """Whether a file is a log of inspect_ai: by the ending .eval, or by how its JSON begins."""
    if path.suffix == ".eval":
        return True
    if path.suffix != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        return _BEGINS.match(file.read(200)) is not None


def requests(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Every sample with its place: what the judge was asked and what it wrote. Raises KvattnError for a log that cannot
    be read, and for one of the binary form where inspect_ai is not installed."""
    log = _read(path)
    samples = log.get("samples") or []
    if not samples:
        raise KvattnError(f"{path}: this inspect_ai log holds no samples (status {log.get('status')!r:.40})")
    epochs = any(s.get("epoch", 1) != 1 for s in samples if isinstance(s, Mapping))
    for number, sample in enumerate(samples, 1):
        place = f"sample {number}"
        if not isinstance(sample, Mapping) or not isinstance(sample.get("messages"), list):
            raise KvattnError(f"{path}, {place}: holds no messages; write the log with log_samples on")
        said = [{k: m.get(k) for k in ("role", "content")} for m in sample["messages"] if isinstance(m, Mapping)]
        if said and said[-1]["role"] == "assistant":
            said.pop()
        row = {"id": f"{sample.get('id')}" + (f", epoch {sample.get('epoch')}" if epochs else ""), "messages": said}
        reply = (sample.get("output") or {}).get("completion")
        reply = _written(sample) if reply is None else reply
        target = sample.get("target")
        yield (
            row
            | ({"response": reply} if isinstance(reply, str) else {})
            | ({"target": target} if isinstance(target, str) else {}),
            place,
        )


def sample_of(prompt: JudgePrompt) -> dict[str, Any]:
    """The question as a sample of inspect_ai's JSON data sets: the filled conversation, and the labels of the right
    candidates for its target. Raises KvattnError for a template of parts."""
    t = prompt.template
    if not t.messages:
        raise KvattnError(f"the template {t.name!r} is no conversation; give one with messages (docs/templates.md)")
    values = {QUESTION: prompt.question, **{candidate(s): prompt.shown(s).text for s in range(prompt.n)}}
    labels = t.slot_labels(prompt.n)
    shown = [prompt.shown(s) for s in range(prompt.n)]
    return {
        "id": prompt.id,
        "input": filled(t.messages, values),
        "target": [x for x, c in zip(labels, shown, strict=True) if c.correct],
        "metadata": {"candidates": [c.id for c in shown], "template": t.id},
    }


def _read(path: Path) -> dict[str, Any]:
    if path.suffix != ".eval":
        try:
            log = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as e:
            raise KvattnError(f"{path}: an inspect_ai log that is no JSON ({e})") from None
        return log if isinstance(log, dict) else {}
    try:
        from inspect_ai.log import read_eval_log  # type: ignore[import-not-found]
    except ImportError:
        raise KvattnError(
            f"{path}: logs of inspect_ai's binary form need one more package: pip install 'kvattn[inspect]', or write "
            "the log as JSON (inspect log convert --to json)"
        ) from None
    try:
        return json.loads(read_eval_log(str(path)).model_dump_json())
    except (
        Exception
    ) as e:  # a zip that is damaged, a schema of another version: the library raises what its parts raise
        why = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise KvattnError(f"cannot read {path}: {why}") from None


def _written(sample: Mapping[str, Any]) -> Any:
    """The text of the reply where its log does not repeat it."""
    choices = (sample.get("output") or {}).get("choices") or []
    content = choices[0].get("message", {}).get("content") if choices and isinstance(choices[0], Mapping) else None
    if isinstance(content, list):
        return "".join(p.get("text", "") for p in content if isinstance(p, Mapping))
    return content
