"""What every test may use, and the switch that keeps the tests off the Hub."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# Read when huggingface_hub is imported, so it has to stand before anything imports it.
os.environ["HF_HUB_OFFLINE"] = "1"

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """No test cuts the power: what is written need not reach the disk before the test goes on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of public benchmark data beside the checkout; a test that needs it is skipped where there is none."""
    folder = CHECKOUT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the checkout, so no benchmark data to test with")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The folder of the embedded judge, which loads like its name; it stays in the user's cache for the next run."""
    from kvattn.models.source import prepare

    return str(prepare("smollm2-135m").folder)


@pytest.fixture
def bare_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are written without their sections, whose figures take seconds: where a page is asked for by the way."""
    monkeypatch.setattr("kvattn.report.build", lambda page, facts: None)


@dataclass
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def line(self) -> str:
        """The one line that the command ended in."""
        (line,) = [x for x in self.stderr.splitlines() if x.strip() and not x.startswith("  ")]  # but for progress
        assert line.startswith("kvattn: ")
        return line


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs `kvattn ARGUMENTS` in a folder, in the test's own process: a new one takes seconds to import torch."""
    from kvattn.cli import main

    def call(*args: object, cwd: Path) -> Done:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["kvattn", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.main()
        out = capsys.readouterr()
        return Done(int(ended.value.code or 0), out.out, out.err)

    return call
