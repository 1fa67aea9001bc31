"""Caches held against the questions that they are of, before anything is judged."""

from __future__ import annotations

from pathlib import Path

from kvattn.engine.blocks import Blocks
from kvattn.engine.caches import Folder, named
from kvattn.engine.plan import KVBlock
from kvattn.errors import KvattnError
from kvattn.judge.judge import Judge
from kvattn.questions.prompt import JudgePrompt


class Given:
    """The caches of a candidates file: those that its candidates name, and those of a folder.

    file:   the candidates file; what its candidates name is relative to where it lies
    folder: files of `kvattn.caches.save` that name their question
    """

    def __init__(self, file: str | Path, folder: Path | None = None) -> None:
        self.beside = Path(file).parent
        self.folder = Folder(folder) if folder is not None else None

    def of(self, prompt: JudgePrompt) -> tuple[dict[str, KVBlock], KVBlock | None]:
        """The blocks of a question by candidate, and that of its whole prompt. Raises KvattnError for a file that
        cannot be read, and for a candidate whose cache is given in both ways."""
        mine, whole = self.folder.of(prompt) if self.folder is not None else ({}, None)
        own = named(prompt, self.beside)
        if both := sorted(own.keys() & mine.keys()):
            raise KvattnError(
                f"question {prompt.id!r}: candidate {both[0]!r} names its cache, and the folder of --caches has one, "
                "too; leave one of them out"
            )
        return own | mine, whole

    def check(self, judge: Judge, prompt: JudgePrompt) -> None:
        """Raises KvattnError where a question's caches cannot be judged: a file that cannot be read, another shape,
        dtype, length, text or model, numbers that are not finite."""
        caches, whole = self.of(prompt)
        Blocks(judge.engine, prompt, judge.regime, caches=caches, whole=whole)

    def refuse_unused(self) -> None:
        """Raises KvattnError where no question had a cache in the folder: the ids are others."""
        if self.folder is not None:
            self.folder.refuse_unused()
