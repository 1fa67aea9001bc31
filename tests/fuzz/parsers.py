"""Coverage-guided fuzzing of the parsers (atheris): any bytes are read, or refused in one printable line.

python tests/fuzz/parsers.py candidates|study|manifest|gate [--seconds 60]

Prints how many inputs were tried; an input that breaks the rule is kept as crash-* in the current folder.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))

with atheris.instrument_imports(include=["kvattn", "yaml"]):
    from kvattn.errors import KvattnError
    from kvattn.questions import candidates, problems
    from kvattn.study.gate.gate import Gate
    from kvattn.study.grid import Grid
    from kvattn.study.run_folder.reader import read_manifest

import test_hostile as seeds


def _candidates(path: Path) -> None:
    for parse in (candidates.read_candidates, problems.load_problems):
        for name in ("file.jsonl", "file.json"):
            os.replace(path, path.with_name(name))
            path = path.with_name(name)
            _refused(parse, path)


def _refused(parse, path: Path) -> None:
    try:
        parse(path)
    except KvattnError as error:
        if not str(error) or not str(error).isprintable():
            raise AssertionError(f"no line: {error!r}") from error


TARGETS = {
    "candidates": (_candidates, "file", [seeds.QUESTION, {"problems": [seeds.QUESTION]}]),
    "study": (lambda path: _refused(Grid.read, path), "study.yaml", [seeds.STUDY]),
    "manifest": (lambda path: _refused(lambda p: read_manifest(p.parent), path), "manifest.json", []),
    "gate": (lambda path: _refused(Gate.load, path), "gate.json", list(seeds.GATES.values())),
}


def _harmed(documents: list, data: bytes) -> bytes:
    """A good document with a few values at any depth replaced, as the input says: still JSON, but no longer good."""
    said = atheris.FuzzedDataProvider(data)
    document = json.loads(json.dumps(documents[said.ConsumeIntInRange(0, len(documents) - 1)]))
    for _ in range(said.ConsumeIntInRange(1, 3)):
        at = document
        while isinstance(at, dict | list) and at:
            key = said.PickValueInList(list(at) if isinstance(at, dict) else list(range(len(at))))
            if not isinstance(at[key], dict | list) or not at[key] or said.ConsumeIntInRange(0, 2) == 0:
                at[key] = said.PickValueInList([None, True, -1, 10**30, 0.5, "", [], {}, [0], {"a": 0}, math.inf])
                if said.ConsumeBool():
                    at[key] = said.ConsumeUnicode(8)
                break
            at = at[key]
    return json.dumps(document).encode()


def main() -> None:
    """Runs one target."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    asked = parser.parse_args()
    run, name, documents = TARGETS[asked.target]
    if asked.target == "manifest":
        from fake_run import Fake, write_fake_run

        with tempfile.TemporaryDirectory() as made:
            folder = write_fake_run(Path(made) / "run", Fake(questions=1, candidates=2, orders=1))
            documents = [json.loads((folder / "manifest.json").read_text())]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for i, document in enumerate(documents):
            (corpus / str(i)).write_text(json.dumps(document))  # JSON is YAML
            (corpus / f"harmed-{i}").write_bytes(bytes([0, i]) + random.Random(i).randbytes(64))
        path = Path(folder) / name

        def one(data: bytes) -> None:
            path.write_bytes(_harmed(documents, data[1:]) if data[:1] == b"\0" else data)
            run(path)

        atheris.Setup(
            [
                "fuzz",
                str(corpus),
                f"-max_total_time={asked.seconds}",
                "-max_len=8192",
                "-print_final_stats=1",
                "-seed=1",
            ],
            one,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
