"""Faults of disks, files, clocks and machines: one line that says what to do, and nothing that was finished is lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from killed import Commands
from test_kill import equal, mount, seen
from tiny import plain_model, save, tokenizer

from kvattn import files
from kvattn.cli import main
from kvattn.errors import KvattnError
from kvattn.models.pretrained import load_pretrained
from kvattn.questions import synthetic, write_candidates
from kvattn.study.grid import Grid
from kvattn.study.run_folder import Run, writer

STUDY = """
name: s
models: organism-unsafe
data: {source: organism-max, limit: 6, heldout: 2}
methods: [dense, naive, "kvcomm:pool=frozen"]
"""


def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    """Exit status of `kvattn ARGUMENTS` and what it wrote to standard error; one line where it failed."""
    monkeypatch.setattr(sys, "argv", ["kvattn", *arguments])
    status = 0
    try:
        main.main()
    except SystemExit as end:
        status = int(end.code or 0)
    error = capsys.readouterr().err
    if status:
        last = error.rstrip("\n").splitlines()[-1]
        assert last.startswith("kvattn: "), error
        assert "Traceback" not in error
    return status, error


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a study and a candidates file, its cache in it."""
    (tmp_path / "study.yaml").write_text(STUDY)
    write_candidates(tmp_path / "file.jsonl", synthetic(3))
    monkeypatch.setenv("KVATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the study's run leaves in its folder."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "study.yaml").write_text(STUDY)
    Grid.read(folder / "study.yaml").run(folder / "out")
    return folder / "out"


@pytest.fixture
def run(judged: Path, here: Path) -> Path:
    """The study's run in `here`, a copy that may be harmed."""
    return next(Path(shutil.copytree(judged, "out")).iterdir())


@pytest.fixture
def mounted(here: Path) -> Iterator[Path]:
    """A small file system of its own, in memory."""
    folder = here / "disk"
    folder.mkdir()
    if not mount(folder, "size=64m"):
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.usefixtures("bare_page")
def test_a_read_only_folder(
    here: Path, judged: Path, mounted: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Nothing can be written there, every command says so; what is there can be read."""
    run = next(Path(shutil.copytree(judged, mounted / "out")).iterdir())
    shutil.copytree(run, here / "copy")
    assert mount(mounted, "remount,ro")
    model = save(here / "model")
    for arguments in (
        ["judge", "organism-max", "--limit", "2", "--model", "organism-safe", "--run", "disk/new"],
        ["judge", "file.jsonl", "--limit", "1", "--model", model, "--out", "disk/x.jsonl"],
        ["judge", "file.jsonl", "--limit", "1", "--model", model, "--out", "disk/x.parquet"],
        ["study", "run", "study.yaml", "--folder", "disk/out"],
        ["study", "run", "study.yaml", "--folder", "disk/other"],
        ["study", "merge", "disk/merged", "copy"],
        ["report", str(run)],
        ["report", "copy", "--out", "disk/report.html"],
    ):
        status, error = command(capsys, monkeypatch, *arguments)
        assert status == 2, arguments
        assert "disk" in error
    for arguments in (["compare", str(run), "copy"], ["report", str(run), "--out", "report.html"]):
        assert command(capsys, monkeypatch, *arguments)[0] == 0
    monkeypatch.setenv("KVATTN_CACHE", str(mounted / "cache"))
    status, error = command(capsys, monkeypatch, "compare", "copy")
    assert status in (0, 2)
    assert not Run(run).check()


@pytest.mark.usefixtures("bare_page")
def test_a_full_disk_under_single_files(
    here: Path, run: Path, mounted: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    model = save(here / "model")
    assert mount(mounted, "remount,size=8k")
    for arguments in (
        ["judge", "file.jsonl", "--model", model, "--out", "disk/x.jsonl"],
        ["judge", "file.jsonl", "--model", model, "--out", "disk/x.parquet"],
        ["judge", "file.jsonl", "--limit", "1", "--model", model, "--run", "disk/run"],
        ["report", str(run), "--out", "disk/report.html"],
        ["study", "merge", "disk/merged", str(run)],
    ):
        (mounted / "ballast").write_bytes(b"x" * 4096)
        status, _ = command(capsys, monkeypatch, *arguments)
        assert status == 2, arguments
        for path in mounted.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert command(capsys, monkeypatch, "report", str(run))[0] == 0


def harmed(rng: random.Random, data: bytes) -> bytes:
    """The bytes cut, or with a few of them changed, more often near the beginning, where a header is."""
    if rng.random() < 0.4:
        return data[: rng.choice([0, 4, 8, 9, rng.randrange(len(data)), len(data) - 1])]
    changed = bytearray(data)
    for _ in range(rng.choice([1, 8])):
        changed[int(len(data) * rng.random() ** 8)] = rng.randrange(256)
    return bytes(changed)


def test_damaged_weights_are_one_line_or_still_weights(tmp_path: Path) -> None:
    save(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    whole, rng, refused = file.read_bytes(), random.Random(0), 0
    for _ in range(40):
        file.write_bytes(harmed(rng, whole))
        said = "loaded"
        try:
            load_pretrained(str(tmp_path / "m"))
        except KvattnError as error:
            said = str(error)
        refused += said != "loaded"
        assert said.isprintable()
    assert refused >= 15  # others changed a number within a tensor, which a folder without a record cannot show
    for name in ("config.json", "tokenizer.json"):
        file.write_bytes(whole)
        good = (tmp_path / "m" / name).read_bytes()
        for bad in (b"", b"{", b"[]", b"\xff\xfe", good[: len(good) // 2]):
            (tmp_path / "m" / name).write_bytes(bad)
            with pytest.raises(KvattnError) as caught:
                load_pretrained(str(tmp_path / "m"))
            assert str(caught.value).isprintable()
        (tmp_path / "m" / name).write_bytes(good)
    load_pretrained(str(tmp_path / "m"))


def test_a_missing_shard(tmp_path: Path) -> None:
    plain_model().save_pretrained(tmp_path, max_shard_size="50KB")
    tokenizer().save_pretrained(tmp_path)
    load_pretrained(str(tmp_path))
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    kept = shards[1].read_bytes()
    shards[1].unlink()
    with pytest.raises(KvattnError, match=r"cannot be loaded|lacks weights") as caught:
        load_pretrained(str(tmp_path))
    assert shards[1].name in str(caught.value)
    shards[1].write_bytes(kept)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(KvattnError, match="cannot be loaded"):
        load_pretrained(str(tmp_path))


def test_every_harmed_byte_of_a_run_is_seen(run: Path) -> None:
    parts = sorted(run.glob("*/part-*.parquet"))
    rng = random.Random(1)
    for _ in range(60):
        victim = rng.choice(parts)
        whole = victim.read_bytes()
        victim.write_bytes(harmed(rng, whole))
        changed = victim.read_bytes() != whole
        said = Run(run).check()
        assert len(said) == changed
        assert all(victim.name in line for line in said)
        victim.write_bytes(whole)
    assert not Run(run).check()


@pytest.mark.parametrize("harm", ["cut", "empty", "gone", "another"])
def test_a_damaged_manifest_stops_the_run_and_a_copy_of_it_goes_on(
    run: Path, harm: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole, manifest = Run(run).judgements(), run / "manifest.json"
    good = manifest.read_bytes()
    sorted((run / "judgements").iterdir())[0].unlink()
    manifest.unlink() if harm == "gone" else manifest.write_bytes(
        {"cut": good[:200], "empty": b"", "another": b'{"schema": 1, "late": 3}'}[harm]
    )
    status, error = command(capsys, monkeypatch, "study", "run", "study.yaml", "--folder", "out")
    assert status == 2
    assert run.name in error
    manifest.write_bytes(good)
    assert command(capsys, monkeypatch, "study", "run", "study.yaml", "--folder", "out")[0] == 0
    again = Run(run).judgements()
    assert len(again) == len(whole)
    assert again.drop(columns="seconds").equals(whole.drop(columns="seconds"))


def test_clocks_that_jump(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions hours before the ones before them, files from the future: nothing but the notes of the time changes."""
    whole = run
    times = iter(datetime(2030, 1, 1, tzinfo=UTC) - timedelta(hours=7 * k) for k in range(1000))

    class Clock:
        @staticmethod
        def now(zone: Any) -> datetime:
            return next(times).astimezone(zone)

    monkeypatch.setattr(writer, "datetime", Clock)
    grid, interrupted = Grid.read("study.yaml"), 0
    for stop in (1, 2, 4):

        def progress(what: str, done: int, of: int, stop: int = stop) -> None:
            if what == "judging" and done >= stop:
                raise KeyboardInterrupt

        try:
            grid.run("cut", progress)
        except KeyboardInterrupt:
            interrupted += 1
        for path in Path("cut").rglob("part-*"):
            os.utime(path, (2**32, 2**32))
    (cut,) = grid.run("cut")
    assert interrupted == 3
    sessions = [s["started"] for s in json.loads((cut / "manifest.json").read_text())["sessions"]]
    assert len(sessions) == 4
    assert sessions == sorted(sessions, reverse=True)
    equal(cut, whole)


@pytest.mark.slow
def test_sigterm_ends_in_one_line_and_the_study_goes_on(here: Path) -> None:
    (here / "study.yaml").write_text(STUDY.replace("limit: 6", "limit: 20"))
    with Commands(here, {"KVATTN_CACHE": str(here / "cache"), "OMP_NUM_THREADS": "1"}) as commands:
        commands.start(["study", "run", "study.yaml", "--folder", "whole"])
        assert commands.wait() == 0, commands.log.read_text()
        for place in (2, 12, 40):
            pid = commands.start(["study", "run", "study.yaml", "--folder", "cut"])
            limit = time.monotonic() + 60
            while seen(here / "cut")[0] < place:
                assert time.monotonic() < limit, commands.log.read_text()
                time.sleep(0.001)
            os.kill(pid, signal.SIGTERM)
            assert commands.wait() == 128 + signal.SIGTERM
            assert not list((here / "cut").rglob(f"{files.TEMPORARY}*"))
        said = commands.log.read_text()
        assert said.count("kvattn: terminated; what was finished is kept") == 3
        assert "Traceback" not in said
        commands.start(["study", "run", "study.yaml", "--folder", "cut"])
        assert commands.wait() == 0, commands.log.read_text()
    equal(*(next((here / name).iterdir()) for name in ("cut", "whole")))
