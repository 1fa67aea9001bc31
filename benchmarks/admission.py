"""Which models plans can be trusted on: a tiny random one of every shape, surveyed and examined.

    python -m benchmarks.admission [SHAPE ...]

Prints the tables of docs/models.md. Of an admitted model the doctor's worst line stands there, the one whose number is
nearest to its bound, in float32 and in bfloat16; of a refused one what was measured.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from benchmarks.shapes import ADMITTED, REFUSED, random_model
from kvattn.engine.doctor import Doctor, Finding
from kvattn.engine.engine import Engine
from kvattn.errors import KvattnError
from kvattn.models import load_pretrained


def main() -> None:
    """Prints both tables."""
    logging.set_verbosity_error()
    words = load_pretrained("smollm2-135m")[1]
    asked = sys.argv[1:]
    print("| shape | keys turn | layers see | worst line, float32 | worst line, bfloat16 |\n|---|---|---|---|---|")
    for shape in ADMITTED:
        if not asked or shape in asked:
            print(f"| {shape} | {' | '.join(_admitted(shape, words))} |", flush=True)
    print("\n| shape | refused with |\n|---|---|")
    for shape in REFUSED:
        if not asked or shape in asked:
            print(f"| {shape} | {_refused(shape, words)} |", flush=True)


def _admitted(shape: str, words: PreTrainedTokenizerFast) -> Iterator[str]:
    single = Engine(random_model(shape), words)
    yield _rotation(single)
    yield _sight(single)
    for engine in (single, Engine(random_model(shape, torch.bfloat16), words)):
        yield _worst(list(Doctor(engine).examine()))


def _rotation(engine: Engine) -> str:
    rotary, dim = engine.rotary, engine.geometry.head_dim
    turns, still = 2 * rotary.inv_freq.shape[-1], [i for i, row in enumerate(rotary.inv_freq) if not row.any()]
    said = "neighbours" if rotary.interleaved else "halves"
    said += "" if turns == dim else f", {turns} of {dim} dimensions"
    return said + (f", not in layers {', '.join(map(str, still))}" if still else "")


def _sight(engine: Engine) -> str:
    windows, options = engine.geometry.windows, []
    if any(windows):
        options.append(f"windows of {', '.join(str(w or 'all') for w in windows)}")
    return "; ".join([*options, *["a sink in every softmax"] * engine.geometry.sinks]) or "all"


def _worst(findings: list[Finding]) -> str:
    """The line nearest to its bound. Raises RuntimeError where one failed."""
    if failed := [str(f) for f in findings if not f.passed]:
        raise RuntimeError("; ".join(failed))
    near = max((f for f in findings if not f.skipped and f.bound), key=_nearness)
    none = sum(bool(f.skipped) for f in findings)
    return f"{near.name}: {near.value:.1e} ({'>' if near.above else '<='} {near.bound:.0e})" + (
        f"; {none} lines skipped, TransformerLens has no bridge" if none else ""
    )


def _nearness(finding: Finding) -> float:
    return finding.bound / finding.value if finding.above else finding.value / finding.bound


def _refused(shape: str, words: PreTrainedTokenizerFast) -> str:
    try:
        Engine(random_model(shape), words)
    except KvattnError as error:
        return str(error).partition(" model: ")[2].removesuffix("; take another judge")
    raise RuntimeError(f"{shape} was admitted")


if __name__ == "__main__":
    main()
