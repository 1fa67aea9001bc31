"""Every target of the fuzzer reads its good files, and ends in a value or one line on harmed ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import targets

from kvattn.errors import KvattnError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", targets.NAMES)
def test_a_target_reads_good_files_and_refuses_harmed_ones_in_a_line(name: str, folder: Path) -> None:
    target, path = targets.target(name, folder), folder / name / "place"
    path.mkdir(parents=True)
    path /= target.name
    good = [target.packed(x) for x in target.documents] + list(target.files)
    read = set()
    for data in good:
        path.write_bytes(data)
        target.run(path)
        for i, parse in enumerate(target.parsers):
            try:
                parse(path)
                read.add(i)
            except KvattnError:
                pass
    assert read == set(range(len(target.parsers)))
    drawn = random.Random(0)

    def text() -> str:
        return "".join(map(chr, drawn.sample(range(0xD900), 4)))

    for _ in range(5 if name == "model" else 100):
        path.write_bytes(target.harmed(lambda most: drawn.randint(0, most), text))
        target.run(path)
