"""The command line, run in the test's own process, since a new one takes seconds to import torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvattn.cli import main


@dataclass
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def line(self) -> str:
        """The one line that the command ended in."""
        (line,) = [x for x in self.stderr.splitlines() if x.strip()]
        assert line.startswith("kvattn: ")
        return line


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs `kvattn ARGUMENTS` in a folder."""

    def call(*args: object, cwd: Path) -> Done:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["kvattn", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.main()
        out = capsys.readouterr()
        return Done(int(ended.value.code or 0), out.out, out.err)

    return call
