"""Caches held against the questions that they are of, before anything is judged."""

from __future__ import annotations

from collections.abc import Iterable

from kvattn.engine.blocks import Blocks
from kvattn.engine.caches import Folder
from kvattn.errors import KvattnError
from kvattn.judge.judge import Judge
from kvattn.questions.prompt import JudgePrompt


def cache_faults(judge: Judge, prompts: Iterable[JudgePrompt], folder: Folder) -> dict[str, str]:
    """By id of the question, why its caches cannot be judged: a file that cannot be read, another shape, dtype, length,
    text or model, numbers that are not finite. Raises KvattnError where no question has one in the folder."""
    found: dict[str, str] = {}
    for prompt in prompts:
        try:
            caches, whole = folder.of(prompt)
            Blocks(judge.engine, prompt, judge.regime, caches=caches, whole=whole)
        except KvattnError as error:
            found[prompt.id] = str(error)
    folder.refuse_unused()
    return found
