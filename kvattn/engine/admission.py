"""Whether plans can be trusted on a model that was just loaded: measured once for its weights, and remembered."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from kvattn.engine import parts
from kvattn.engine.doctor import ESSENTIAL, Doctor, Finding
from kvattn.engine.engine import Engine
from kvattn.errors import KvattnError
from kvattn.files import cache_root, write_atomically

FORMAT = 1  # raised when the checks change


def admit(engine: Engine) -> None:
    """Raises KvattnError, saying what was measured, unless the doctor's essential checks pass on the engine. Weights
    that passed, in this precision, on this kind of device, under these versions, are not checked again."""
    path = _record(engine)
    if path is not None and path.is_file():
        return
    if wrong := parts.not_finite(engine.model):
        raise KvattnError(f"{wrong} holds numbers that are not finite; fetch the weights anew")
    findings = list(Doctor(engine).examine(ESSENTIAL))
    for finding in findings:
        if not finding.passed:
            raise KvattnError(
                f"plans cannot be trusted on {engine.info.get('name', 'this model')}: {_said(finding)}; "
                "`kvattn doctor` says more, another dtype may help (--dtype), else take another judge"
            )
    if path is not None:
        with suppress(OSError):  # a cache that cannot be written to is measured again
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps([[f.name, f.value, f.bound] for f in findings]).encode() + b"\n")


def _record(engine: Engine) -> Path | None:
    """Where it is remembered that these weights passed; None for weights that nobody can name."""
    if engine.identity is None:
        return None
    versions = [version(name) for name in ("torch", "transformers")]
    kinds = dict.fromkeys(device.type for device in engine.geometry.devices)
    said = [FORMAT, engine.identity, str(engine.dtype), ", ".join(kinds), *versions]
    return cache_root() / "admitted" / f"{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]}.json"


def _said(finding: Finding) -> str:
    return str(finding).removeprefix("FAIL ")
