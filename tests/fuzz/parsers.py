"""Coverage-guided fuzzing of the parsers (atheris): any bytes are read, or refused in one printable line.

python tests/fuzz/parsers.py candidates|study|manifest|gate|caches|claims|adapter|model [--seconds 60]

Prints how many inputs were tried; an input that breaks the rule is kept as crash-* in the current folder.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import atheris

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "engine")]

with atheris.instrument_imports(include=["kvattn", "yaml"]):
    import targets


def main() -> None:
    """Runs one target."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("target", choices=targets.NAMES)
    parser.add_argument("--seconds", type=int, default=60)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        corpus, place = Path(folder) / "corpus", Path(folder) / "place"
        corpus.mkdir()
        place.mkdir()
        target = targets.target(asked.target, Path(folder))
        for i, document in enumerate(target.documents):
            (corpus / str(i)).write_bytes(target.packed(document))
            (corpus / f"harmed-{i}").write_bytes(bytes([0, i]) + random.Random(i).randbytes(64))
        for i, data in enumerate(target.files):
            (corpus / f"file-{i}").write_bytes(data)
        path = place / target.name

        def one(data: bytes) -> None:
            if data[:1] == b"\0":
                said = atheris.FuzzedDataProvider(data[1:])
                data = target.harmed(lambda most: said.ConsumeIntInRange(0, most), lambda: said.ConsumeUnicode(8))
            path.write_bytes(data)
            target.run(path)

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
