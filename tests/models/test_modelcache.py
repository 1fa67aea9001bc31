"""Prepared folders: a half-written one never counts, two processes build once, a full disk is one line."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvattn import files
from kvattn.errors import KvattnError
from kvattn.models import folder as modelcache


def write_two(partial: Path) -> dict:
    (partial / "config.json").write_text("{}")
    (partial / "weights").write_bytes(b"w" * 1000)
    return {"name": "two"}


def raising(error: Exception) -> Callable[[Path], dict]:
    def fill(partial: Path) -> dict:
        write_two(partial)
        raise error

    return fill


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / "m"


def test_a_built_folder_is_whole_and_is_not_built_again(folder: Path) -> None:
    assert modelcache.damage(folder) is not None
    modelcache.build(folder, write_two, 0)
    assert modelcache.damage(folder) is None
    assert (modelcache.read_record(folder) or {})["source"] == {"name": "two"}
    modelcache.build(folder, raising(AssertionError()), 0)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: (f / "weights").unlink(), "weights is missing"),
        (lambda f: (f / "weights").write_bytes(b"w" * 999), "999 bytes, not 1000"),
        (lambda f: (f / "weights").write_bytes(b"v" * 1000), "content of weights has changed"),
        (lambda f: (f / "prepared.json").unlink(), "no readable prepared.json"),
        (lambda f: (f / "prepared.json").write_text('{"format'), "no readable prepared.json"),
        (lambda f: (f / "prepared.json").write_text('{"format": 0, "files": {}}'), "another version"),
    ],
)
def test_harm_is_seen_and_mended(folder: Path, harm: Callable[[Path], object], said: str) -> None:
    modelcache.build(folder, write_two, 0)
    harm(folder)
    assert said in str(modelcache.damage(folder))
    modelcache.build(folder, write_two, 0)
    assert modelcache.damage(folder) is None
    assert {path.name for path in folder.parent.iterdir()} == {"m", ".m.lock"}


def test_harm_is_seen_in_large_files_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "REMEMBERED", 999)
    modelcache.build(folder, write_two, 0)
    assert modelcache.damage(folder) is None
    (folder / "weights").write_bytes(b"v" * 1000)
    assert "content of weights has changed" in str(modelcache.damage(folder))


def test_a_folder_with_a_record_of_the_old_name_is_accepted(folder: Path) -> None:
    modelcache.build(folder, write_two, 0)
    (folder / "prepared.json").rename(folder / "kvattn.json")
    assert modelcache.damage(folder) is None
    modelcache.build(folder, raising(AssertionError()), 0)


def test_an_error_leaves_nothing_behind(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        modelcache.build(folder, raising(ZeroDivisionError()), 0)
    assert [path.name for path in folder.parent.iterdir()] == [".m.lock"]


KILLED = """
import os, sys
from pathlib import Path
from kvattn.models import folder as modelcache
def fill(partial):
    (partial / "config.json").write_text("{}")
    os._exit(9)
modelcache.build(Path(sys.argv[1]), fill, 0)
"""


def test_a_killed_build_counts_for_nothing(folder: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False).returncode == 9
    assert len(list(folder.parent.glob(".m.*.partial"))) == 1
    assert modelcache.damage(folder) is not None
    modelcache.build(folder, write_two, 0)
    assert {path.name for path in folder.parent.iterdir()} == {"m", ".m.lock"}


RACING = """
import os, sys, time
from pathlib import Path
from kvattn.models import folder as modelcache
def fill(partial):
    with open(sys.argv[2], "a") as file:
        file.write("filled\\n")
    while len(list(Path(sys.argv[2]).parent.glob("here.*"))) < 3:
        time.sleep(0.05)
    time.sleep(1)
    (partial / "config.json").write_text("{}")
    return {}
Path(sys.argv[2]).with_name(f"here.{os.getpid()}").touch()
modelcache.build(Path(sys.argv[1]), fill, 0, print)
"""


def test_of_two_processes_one_builds(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACING, str(folder), str(tmp_path / "log")]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [racer.communicate()[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "filled\n"
    assert sum("waiting" in line for line in said) == 2


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_runs_full_is_one_line(folder: Path, error: Exception) -> None:
    with pytest.raises(KvattnError, match=r"no room in .*KVATTN_CACHE") as caught:
        modelcache.build(folder, raising(error), 0)
    assert "\n" not in str(caught.value)
    assert [path.name for path in folder.parent.iterdir()] == [".m.lock"]


def test_too_little_room_is_seen_before_anything_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=300_000_000))
    with pytest.raises(KvattnError, match=r"no room in .*: 1\.5 GB are needed, 300 MB are free"):
        modelcache.build(folder, raising(AssertionError()), 1_500_000_000)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KvattnError, match=r"cannot write to .*KVATTN_CACHE"):
        modelcache.build(tmp_path / "file" / "models" / "m", write_two, 0)


def test_others_may_read_what_is_prepared(folder: Path) -> None:
    def private(partial: Path) -> dict:
        os.close(os.open(partial / "weights", os.O_CREAT | os.O_WRONLY, 0o600))
        return {}

    modelcache.build(folder, private, 0)
    assert (folder.stat().st_mode & 0o777, (folder / "weights").stat().st_mode & 0o777) == (0o755, 0o644)
