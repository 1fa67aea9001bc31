"""What a study will take, from judging a few of its questions; nothing is written."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvattn.methods import Method
from kvattn.study import run_folder
from kvattn.study.run_folder.schema import unit_tables
from kvattn.study.study import Study

# After one question that warms up, questions are timed until so many or so many seconds are over, two at least.
MOST_TIMED = 8
LONG_ENOUGH = 30.0
# Of held-out questions that frozen pools are filled from, so many.
WARMED = 4
# A pool that holds anchors of fewer questions than this takes every new one.
ALWAYS_LEARNED = 2
# What reducing the finished run for the app takes beside the loaded model (benchmarks/estimate.py shows the sum).
DIGEST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Estimate:
    """seconds on this machine as busy as it is now; disk_bytes of the whole run folder; peak_bytes, the largest
    resident set of the process; questions and judgements that are made here (a shard counts its own); left_out,
    questions of the whole study that could not be read or judged."""

    seconds: float
    disk_bytes: int
    peak_bytes: int
    questions: int
    judgements: int
    left_out: int


def of_study(study: Study) -> Estimate:
    """Seconds, bytes on disk and peak memory of a run of the study.

    A few questions, drawn at random, are judged and turned into tables, timed, and scaled by tokens: linear in them,
    which holds while attention is a small part of the work. The longest question is judged for its memory. Held-out
    questions are timed on one of them. Of learning methods' anchors, the first two questions leave all; how many the
    others leave is estimated from those that were sampled, which is the least certain of these numbers.
    """
    study = study.checked()
    judge = study.judge
    mine = list(range(len(study.prompts)) if study.mine is None else study.mine)
    tokens = {i: len(judge.compile(study.prompts[i])) for i in mine}
    warming, warmed_bytes = _warm(study)
    drawn = random.Random(0).sample(mine, min(len(mine), MOST_TIMED + 1))
    study.decisions(drawn[0])
    seconds, size, made = 0.0, 0, 0
    timed: list[int] = []
    for i in drawn[1:] or drawn:
        began = time.perf_counter()
        decisions = study.decisions(i)
        size += _unit_bytes(study, i, decisions)
        seconds += time.perf_counter() - began
        made += len(decisions)
        timed.append(i)
        if len(timed) >= 2 and seconds > LONG_ENOUGH:
            break
    sampled = list(dict.fromkeys([drawn[0], *timed]))
    online = [m for m in study.zoo if m.learns and not m.frozen]
    learned = sum(_learned(m, [study.prompts[i].id for i in sampled], len(mine)) for m in online)
    longest = max(tokens, key=lambda i: tokens[i])
    if longest not in sampled:
        study.decisions(longest)
    held_seconds, held_bytes = _held_out(study)
    return Estimate(
        seconds=seconds * sum(tokens.values()) / sum(tokens[i] for i in timed) + held_seconds + warming,
        disk_bytes=round(size * len(mine) / len(timed) + held_bytes + warmed_bytes + learned),
        peak_bytes=peak_bytes() + DIGEST_BYTES,
        questions=len(mine),
        judgements=round(made / len(timed) * len(mine)),
        left_out=len(run_folder.left_out(study.extra)),
    )


def peak_bytes() -> int:
    """The most memory that this process held so far: its resident set, and what it took of GPUs."""
    import torch

    on_gpus = sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + on_gpus


def _unit_bytes(study: Study, index: int, decisions: Sequence[Any]) -> int:
    prompt = study.prompts[index]
    tables = unit_tables(run_folder.question_row(prompt, [0] * prompt.n, study.judge.readout.name), decisions)
    return sum(len(run_folder.to_parquet(t)) for t in tables.values())


def _held_out(study: Study) -> tuple[float, float]:
    """Seconds and bytes of judging the held-out questions densely in all rotations, from the one of median length."""
    if not study.heldout:
        return 0.0, 0.0
    tokens = [len(study.judge.compile(p)) for p in study.heldout]
    middle = sorted(range(len(tokens)), key=lambda i: tokens[i])[len(tokens) // 2]
    apart = Study(study.judge, [study.heldout[middle]], ["dense"], "rotations", seed=study.seed, capture=False)
    began = time.perf_counter()
    size = _unit_bytes(apart, 0, apart.decisions(0))
    return (time.perf_counter() - began) * sum(tokens) / tokens[middle], size * len(tokens)


def _warm(study: Study) -> tuple[float, float]:
    """Seconds and bytes of filling frozen pools from the held-out questions; the study's own are filled from a few."""
    seconds, size = 0.0, 0.0
    for m in study.zoo:
        if not (m.learns and m.needs_warming):
            continue
        few: list[str] = []
        began = time.perf_counter()
        for prompt in study.heldout:
            if len(few) >= WARMED and not m.needs_warming:
                break
            study.judge.warm(m, [prompt])
            few.append(prompt.id)
        seconds += (time.perf_counter() - began) * len(study.heldout) / max(1, len(few))
        size += _learned(m, few, len(study.heldout))
    return seconds, size


def _learned(method: Method, sampled: Sequence[str], questions: int) -> float:
    """Bytes that so many questions leave on disk, from what the method learned of the sampled ones."""
    learned = method.learned_bytes()
    left = [learned.get(question, 0) for question in sampled]
    first, later = left[:ALWAYS_LEARNED], left[ALWAYS_LEARNED:]
    whole = sum(first) / max(1, len(first))
    rate = (sum(later) + whole) / (len(later) + 2)  # the rule of succession: few questions say little of the others
    return sum(first) + rate * max(0, questions - len(first))
