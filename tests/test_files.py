"""Files on a disk: many writers of one name, locks that end with their process, hashes that are remembered."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import Timeout

from kvattn import files

WRITER = """
import sys
from pathlib import Path
from kvattn.files import write_atomically
path, letter = Path(sys.argv[1]), sys.argv[2].encode()
print("ready", flush=True)
sys.stdin.readline()
for i in range(150):
    write_atomically(path, letter * (1 + 7919 * i % 400_000))
"""


def test_two_processes_that_write_one_file_leave_one_whole(tmp_path: Path) -> None:
    """With one temporary name for all, one of them renames the other's half-written file, or finds its own gone."""
    path = tmp_path / "report.html"
    command = [sys.executable, "-c", WRITER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([*command, letter], **pipes) for letter in "ab"]
    lengths = {1 + 7919 * i % 400_000 for i in range(150)}
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    reads = 0
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            data = path.read_bytes()
            assert len(set(data)) == 1, "one file holds what two wrote"
            assert len(data) in lengths, "a file is there that was not whole"
            reads += 1
    assert [(writer.communicate()[1], writer.returncode) for writer in writers] == [("", 0)] * 2
    assert reads > 10
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.write_atomically(path, b"old")

    def half() -> None:
        with files.replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"old"}


HOLDER = """
import sys, time
from pathlib import Path
from kvattn.files import take_lock
with take_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_its_process_and_can_be_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Timeout):
        files.take_lock(path)
    killer = threading.Timer(0.3, holder.kill)
    with files.take_lock(path, killer.start), pytest.raises(Timeout):
        files.take_lock(path)
    holder.wait()
    with files.take_lock(path):
        pass


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose hash is remembered, old enough for that."""
    monkeypatch.setenv("KVATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "REMEMBERED", 9)
    monkeypatch.setattr(files, "_SETTLED", -1.0)
    (tmp_path / "weights").write_bytes(b"a" * 10)
    return tmp_path / "weights"


def test_a_hash_is_computed_once_and_follows_the_content(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    assert files.sha256(large) == digest(b"a" * 10)
    times = large.stat().st_atime_ns, large.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(files, "_sha256", lambda _: pytest.fail("hashed again"))
        assert files.sha256(large) == digest(b"a" * 10)
    time.sleep(0.02)  # more than a tick of the clock that stamps files
    large.write_bytes(b"b" * 10)
    os.utime(large, ns=times)  # same place, same size, same time of its content
    assert files.sha256(large) == digest(b"b" * 10)
    for note in (large.parent / "cache" / "hashes").iterdir():
        note.write_text("no hash")
    assert files.sha256(large) == digest(b"b" * 10)


def test_a_file_that_was_just_written_is_hashed_again(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SETTLED", 60.0)
    files.sha256(large)
    assert not (large.parent / "cache").exists()


def test_without_a_cache_folder_hashes_are_computed(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVATTN_CACHE", str(large / "no folder"))
    assert files.sha256(large) == hashlib.sha256(b"a" * 10).hexdigest()
