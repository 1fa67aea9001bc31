"""A study that is killed, or finds the disk full, again and again, ends as one that was left alone."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from killed import Commands

from kvattn import files
from kvattn.errors import KvattnError
from kvattn.files import TEMPORARY
from kvattn.study import grid
from kvattn.study.grid import Grid
from kvattn.study.run_folder import Run

STUDY = """
name: killed
models: organism-unsafe
data: {source: organism-max, limit: 24, heldout: 8}
orders: "shuffle:2"
methods: [dense, naive, kvcomm, "kvcomm:pool=frozen", "last-k:budget=0.5", foreign-kv]
"""
SMALL = STUDY.replace("limit: 24, heldout: 8", "limit: 6, heldout: 3").replace('"kvcomm:pool=frozen", ', "")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "study.yaml").write_text(STUDY)
    monkeypatch.setenv("KVATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def seen(folder: Path) -> tuple[int, bool]:
    """Number of part files, and whether one is being written."""
    count, writing = 0, False
    for top, _, names in os.walk(folder):
        count += sum(n.startswith("part-") for n in names) if not top.endswith("pools") else 0
        writing = writing or any(n.startswith(TEMPORARY) for n in names)
    return count, writing


def equal(a: Path, b: Path) -> None:
    """Row for row, timings apart, in every table of the run and of its held-out questions; manifests and pools too."""
    for one, other in ((a, b), (a / "heldout", b / "heldout")):
        first, second = Run(one), Run(other)
        assert not first.check()
        for table in ("questions", "mass", "sums"):
            # Parts are named by the hash of their content, which holds no timings here.
            assert {p.name for p in (one / table).iterdir()} == {p.name for p in (other / table).iterdir()}
        mine, theirs = (r.judgements().drop(columns="seconds") for r in (first, second))
        pd.testing.assert_frame_equal(mine, theirs, check_exact=True)
        changing = {"created", "sessions"}
        left, right = ({k: v for k, v in r.manifest.items() if k not in changing} for r in (first, second))
        assert left == right
    states = [{p.name: p.read_bytes() for p in (f / "pools").glob("*.json")} for f in (a, b)]
    assert states[0] == states[1]
    assert states[0]
    assert not list(a.rglob(f"{TEMPORARY}*"))


@pytest.mark.parametrize(
    ("often", "questions"),
    [(8, "limit: 9, heldout: 4"), pytest.param(20, "limit: 24, heldout: 8", marks=pytest.mark.slow)],
)
def test_a_study_killed_at_random_instants_equals_one_that_was_not(here: Path, often: int, questions: str) -> None:
    (here / "study.yaml").write_text(STUDY.replace("limit: 24, heldout: 8", questions))
    rng = random.Random(20)
    with Commands(here, {"KVATTN_CACHE": str(here / "cache"), "OMP_NUM_THREADS": "1"}) as commands:
        commands.start(["study", "run", "study.yaml", "--folder", "whole"])
        assert commands.wait() == 0, commands.log.read_text()
        whole = next((here / "whole").iterdir())
        total, _ = seen(whole)
        written = sorted(p.stat().st_mtime for p in whole.rglob("part-*"))
        # One kill in every part of the run, at a random place in it: half of them at a random time before the next unit
        # would be done, half as soon as a file is being written.
        kills: list[tuple[int, bool, bool]] = []
        for k in range(often):
            place = int((k + rng.random()) / often * (total - 8))
            in_write = k % 2 == 1
            pid = commands.start(["study", "resume", "study.yaml", "--folder", "cut"])
            limit = time.monotonic() + 240
            while seen(here / "cut")[0] < place:
                assert time.monotonic() < limit, commands.log.read_text()
            if in_write:
                while not seen(here / "cut")[1]:
                    assert time.monotonic() < limit, commands.log.read_text()
            else:
                time.sleep(rng.random() * (written[place + 4] - written[place]))
            os.kill(pid, signal.SIGKILL)
            assert commands.wait() == -signal.SIGKILL, "the process had ended before it was killed"
            count, left = seen(here / "cut")
            kills.append((count, left, in_write))
        commands.start(["study", "resume", "study.yaml", "--folder", "cut"])
        assert commands.wait() == 0, commands.log.read_text()
    # The kills hit at different states of the run, from the first held-out questions to the last ones, also in the
    # middle of a unit and of a file.
    progress = [count for count, _, _ in kills]
    assert len(kills) == often
    assert len(set(progress)) >= often - 4, progress
    assert progress == sorted(progress)
    assert progress[0] < total * 2.5 / often
    assert progress[-1] > total * (1 - 3 / often)
    assert progress[-1] < total
    assert sum(left for _, left, _ in kills) >= often // 6, kills
    assert len(Counter(count % 4 for count in progress)) >= 2, progress
    cut = next((here / "cut").iterdir())
    assert len(json.loads((cut / "manifest.json").read_text())["sessions"]) > often / 2
    equal(cut, whole)


def small(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small study, its model loaded once for all attempts, and its run without any trouble."""
    (here / "study.yaml").write_text(SMALL)
    loaded = grid.load_judge("organism-unsafe")
    monkeypatch.setattr(grid, "load_judge", lambda *_, **__: loaded)
    return Grid.read("study.yaml").run("whole")[0]


def run_until_done(prepare: Callable[[int], None] = lambda attempt: None) -> tuple[Path, list[str]]:
    """The study run again and again; `prepare(attempt)` comes before each. Its folder, and what went wrong."""
    said: list[str] = []
    for attempt in itertools.count():
        assert attempt < 60, said
        prepare(attempt)
        try:
            return Grid.read("study.yaml").run("cut")[0], said
        except KvattnError as error:
            said.append(str(error))
    raise AssertionError


def test_a_study_that_finds_the_disk_full_at_random_writes_equals_one_that_did_not(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small(here, monkeypatch)
    rng = random.Random(7)
    stages: Counter[str] = Counter()

    def full(stage: str) -> bool:
        if rng.random() > 1 / 50:
            return False
        stages[stage] += 1
        return True

    def no_room() -> OSError:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Disk(io.BufferedWriter):
        def write(self, data: Any, /) -> int:
            if full("write"):
                super().write(data[: rng.randrange(len(data))])
                raise no_room()
            return super().write(data)

    def sync(descriptor: int) -> None:
        if full("sync"):
            raise no_room()

    def rename(source: Path, target: Path) -> None:
        if full("rename"):
            raise no_room()
        Path(source).replace(target)

    with monkeypatch.context() as patch:
        patch.setattr(files, "open", lambda path, mode: Disk(io.FileIO(path, mode)), raising=False)
        patch.setattr(files, "os", SimpleNamespace(**{**vars(os), "fsync": sync, "replace": rename}))
        cut, said = run_until_done()
    assert len(said) >= 5
    assert all("No space left" in line and "\n" not in line for line in said), said
    assert min(stages[s] for s in ("write", "sync", "rename")) >= 1, stages
    equal(cut, whole)


def mount(folder: Path, options: str) -> bool:
    """Mounts a file system in memory; whether that is allowed here."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return (
        shutil.which("mount") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def test_a_study_on_a_disk_that_is_too_small_goes_on_when_there_is_room(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "cut").mkdir()
    if not mount(here / "cut", "size=200k"):
        pytest.skip("mounting a small disk is not allowed here")
    try:
        whole = small(here, monkeypatch)
        size = 200

        def grow(attempt: int) -> None:
            nonlocal size
            size += attempt and 150
            assert mount(here / "cut", f"remount,size={size}k")

        cut, said = run_until_done(grow)
        assert len(said) >= 3
        assert all("No space left" in line and "\n" not in line for line in said), said
        equal(cut, whole)
    finally:
        subprocess.run(["umount", str(here / "cut")], check=True)
