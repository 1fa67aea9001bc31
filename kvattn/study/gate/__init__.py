"""When is reuse safe? A gate looks at cheap reuse passes alone and accepts their decision or falls back to dense.

`fit_run` learns a score on one half of a run's questions and grants it a threshold on the other half, with a guarantee
on the share of accepted decisions that dense would have decided otherwise (`guarantee`). How well scores tell safe from
unsafe is in `evaluate`; docs/gate.md says where it earns its keep.
"""

from __future__ import annotations

from kvattn.study.gate.examples import Examples, read_examples
from kvattn.study.gate.features import Recipe
from kvattn.study.gate.gate import Gate, Verdict, decide, fit_run
from kvattn.study.gate.guarantee import Certificate, Promise, Refused, certify, upper_bound

__all__ = [
    "Certificate",
    "Examples",
    "Gate",
    "Promise",
    "Recipe",
    "Refused",
    "Verdict",
    "certify",
    "decide",
    "fit_run",
    "read_examples",
    "upper_bound",
]
